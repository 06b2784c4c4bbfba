"""A trace changes no bit of the update, and it can be undone."""

import json
import math
from dataclasses import replace

import pytest
import torch

from ppo import CheckError, Config
from ppo.checkpoint.random_state import random_state
from ppo.trace.distributions import Writer
from tests.ppo.trace.small import GROUPS, all_rows, half_and_full, make, with_a_tool
from tests.processes import torchrun


def everything(trainer):
    """Everything that an update may change, by name."""
    state = {f"weight/{name}": p.detach().clone() for name, p in trainer.policy.actor.named_parameters()}
    state |= {f"moment/{name}": x.clone() for name, x in trainer.learner.optimizer.state_tensors().items()}
    state |= {f"rng/{name}": x.clone() for name, x in random_state().items()} | {"rng": trainer.generator.get_state()}
    numbers = (trainer.step, trainer.learner.optimizer.num_updates, trainer.kl.coef)
    return state | {"numbers": torch.tensor(numbers, dtype=torch.float64)}


def assert_same(left, right):
    assert left.keys() == right.keys()
    for name in left:
        torch.testing.assert_close(left[name], right[name], rtol=0, atol=0, equal_nan=True, msg=name)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"microbatch": 1, "gradient_checkpointing": True, "whiten_rewards": True},
        {"kl_as": "loss", "kl_estimator": "k3", "entropy_coef": 0.1, "value_head": "critic"},
        {"advantage": "grpo", **GROUPS},
        {"train_top_layers": 1, "retain_coef": 0.5, "retain_tokens": 8, "autocast": "bfloat16"},
        {"sampler": with_a_tool, "own_advantage": half_and_full, "microbatch": 2},
    ],
)
def test_a_traced_update_gives_the_bits_of_an_untraced_one(changes):
    retain = [[2, 3, 4, 5, 6, 7]] if "retain_coef" in changes else None
    plain, traced = make(retain, **changes), make(retain, **changes)
    for _ in range(2):
        metrics = plain.update(plain.rollout())
        trace = traced.trace(traced.rollout(), [5, 0], top_k=2)
        assert_same(everything(plain), everything(traced))
        assert {**trace.metrics, "time/update_s": 0} == {**metrics, "time/update_s": 0}
    assert [row.index for row in trace.rows] == [5, 0]
    assert trace.step == 1


@pytest.mark.parametrize("changes", [{}, {"moment_dtype": "bfloat16", "retain_coef": 0.5, "retain_tokens": 8}])
def test_an_undone_trace_changes_nothing(changes):
    retain = [[2, 3, 4, 5, 6, 7]] if "retain_coef" in changes else None
    trainer = make(retain, **changes)
    rollout = trainer.rollout()
    for _ in range(2):  # without Adam's moments, and with them
        before = everything(trainer)
        undone = trainer.trace(rollout, [1], is_undone=True)
        assert_same(before, everything(trainer))
        done = trainer.trace(rollout, [1])
        assert done.rows == undone.rows
        assert any(not torch.equal(before[name], x) for name, x in everything(trainer).items())


def spoil(trainer):
    """Change the weights, so that they are no longer those that sampled the rollout."""
    with torch.no_grad():
        trainer.model.transformer.wte.weight += torch.randn(trainer.model.transformer.wte.weight.shape)


@pytest.mark.parametrize("is_undone", [False, True])
def test_a_traced_update_asks_for_ratio_one_as_the_update_does(is_undone):
    plain, traced = make(), make()
    for trainer, learn in ((plain, plain.update), (traced, lambda r: traced.trace(r, is_undone=is_undone))):
        rollout = trainer.rollout()
        spoil(trainer)
        for _ in range(2):  # a second try is refused, too
            with pytest.raises(CheckError, match="the first minibatch has a ratio other than 1"):
                learn(rollout)


def test_an_update_after_an_undone_trace_still_asks_for_ratio_one():
    trainer = make()
    rollout = trainer.rollout()
    trainer.trace(rollout, is_undone=True)
    spoil(trainer)
    with pytest.raises(CheckError, match="the first minibatch has a ratio other than 1"):
        trainer.update(rollout)


def test_an_update_that_fails_is_undone_too(monkeypatch):
    trainer = make()
    rollout, before = trainer.rollout(), everything(trainer)
    plain, calls = trainer.learner.optimizer.step, []

    def fails_at_the_third(step):
        calls.append(step)
        if len(calls) == 3:
            raise RuntimeError("third")
        return plain(step)

    monkeypatch.setattr(trainer.learner.optimizer, "step", fails_at_the_third)
    with pytest.raises(RuntimeError, match="third"):
        trainer.trace(rollout, is_undone=True)
    assert_same(before, everything(trainer))


def test_a_minibatch_whose_gradient_is_not_finite_is_shown_as_skipped(monkeypatch):
    trainer = make()
    rollout, plain, calls = trainer.rollout(), trainer.learner.optimizer.step, []

    def fails_at_the_first(step):
        calls.append(step)
        if len(calls) == 1:
            raise FloatingPointError("the gradient is not finite")
        return plain(step)

    monkeypatch.setattr(trainer.learner.optimizer, "step", fails_at_the_first)
    with pytest.warns(RuntimeWarning, match="not finite"):
        trace = trainer.trace(rollout, is_undone=True)
    assert [minibatch.is_skipped for minibatch in trace.minibatches] == [True] + [False] * (len(calls) - 1)
    assert {minibatch.skip_reason for minibatch in trace.minibatches} == {"not finite", ""}
    assert trainer.state.counters.skipped_in_a_row == 0


# ---------------------------------------------------------------------- updates that end early; what is refused


def test_an_update_that_ends_early_and_one_that_is_skipped():
    _, trace = all_rows(make(stop_kl_per_token=1e-4))
    assert trace.metrics["update/stopped_early"] == 1
    assert len(trace.minibatches) == trace.metrics["update/minibatches"] < 6
    assert any(not token.updates for row in trace.rows for token in row.tokens) or len(trace.minibatches) > 1
    _, trace = all_rows(make(max_mean_ratio=0.5))
    assert [m.is_skipped for m in trace.minibatches] == [True] * 6
    assert {m.skip_reason for m in trace.minibatches} == {"ratio"}
    assert {m.grad_norm for m in trace.minibatches} == {None}
    for token in (token for row in trace.rows for token in row.tokens):
        assert token.final_logprob == pytest.approx(token.old_logprob, abs=1e-5)


def test_what_cannot_be_traced_is_refused_before_any_work():
    trainer = make()
    rollout, before = trainer.rollout(), everything(trainer)
    for rows in ([], [8], [-1], [1, 1]):
        with pytest.raises(ValueError, match=r"rows=.* must be different numbers from 0 to 7"):
            trainer.trace(rollout, rows)
    with pytest.raises(ValueError, match="top_k=0 must be at least 1"):
        trainer.trace(rollout, top_k=0)
    with pytest.raises(ValueError, match="no token_rewards"):
        trainer.trace(replace(rollout, token_rewards=None))
    with pytest.raises(ValueError, match="does not show what mask_overlong leaves out"):
        make(mask_overlong=True).trace(rollout)
    assert_same(before, everything(trainer))


def test_a_trace_becomes_json_and_its_numbers_are_read_back():
    trainer = make()
    _, trace = all_rows(trainer)
    read = json.loads(json.dumps(trace.to_dict(), allow_nan=False))
    token = read["rows"][2]["tokens"][0]
    assert torch.tensor(token["old_logprob"]) == torch.tensor(trace.rows[2].tokens[0].old_logprob)
    assert token["updates"][1]["ratio"] == pytest.approx(trace.rows[2].tokens[0].updates[1].ratio)
    assert Config.from_dict(read["config"]) == trainer.config
    odd = replace(trace, numbers={"x": math.inf})
    assert odd.to_dict()["numbers"] == {"x": None}


class Words:
    """A tokenizer that writes a space only between words, as sentencepiece does. 9 and 10 are the two bytes of é."""

    def decode(self, token_ids, *, skip_special_tokens=False):
        pieces = [f" w{i}" if i not in (9, 10) else {9: b"\xc3", 10: b"\xa9"}[i] for i in token_ids]
        joined = b"".join(p if isinstance(p, bytes) else p.encode() for p in pieces)
        return joined.decode(errors="replace").removeprefix(" ")


def test_the_text_of_a_token_depends_on_the_tokens_before_it():
    writer = Writer(Words())
    assert writer.piece([], 3) == "w3"
    assert writer.piece([2], 3) == " w3"
    assert writer.piece([2], 9) == "\ufffd"
    assert Writer(None).piece([2], 3) == ""


CASE = """
import torch, ppo
from tests.fakes import tiny_gpt2
from tests.ppo.trace.small import PROMPTS, SMALL, id_mean
with ppo.process_group():
    trainer = ppo.Trainer(tiny_gpt2(), PROMPTS, id_mean, SMALL.replace(epochs=1))
    try:
        trainer.trace(trainer.rollout())
    except ValueError as error:
        print(error)
"""


@pytest.mark.slow
def test_several_processes_are_refused(tmp_path):
    (tmp_path / "case.py").write_text(CASE)
    done = torchrun(str(tmp_path / "case.py"))
    assert done.stdout.count("a trace is taken in one process") == 2, done.stderr
