"""The checks of every step: each one is made to fail, names its rows, and leaves a dump that can be replayed."""

import dataclasses
import errno
import warnings

import pytest
import torch
from safetensors import SafetensorError

import ppo
from ppo import CheckError, Config, Trainer, generate, sampler
from ppo.checks import dump, rollout_problems
from ppo.metrics import mean_gaps
from tests.fakes import random_rollout, tiny_gpt2

PROMPTS = [[2, 3, 4], [5, 6], [7], [8, 9, 10, 11], [12, 13], [3, 3, 3], [4], [6, 5]]
SMALL = Config(prompts_per_step=8, minibatch=4, response_length=6, epochs=2, learning_rate=1e-3)
KEEP = {"retain_coef": 0.5, "retain_loss": "kl", "retain_tokens": 8, "retain_sequences": 2}


def id_mean(samples):
    return [sum(s.ids) / len(s.ids) for s in samples]


def make(config=SMALL, **arguments):
    retain = [[2, 4, 6, 8], [3, 5, 7]] if config.retain_coef else None
    return Trainer(tiny_gpt2(), PROMPTS, id_mean, config, retain=retain, **arguments)


def spoil(record, name, change):
    """Change a frozen record, as a bug would."""
    value = getattr(record, name).clone()
    change(value)
    object.__setattr__(record, name, value)


def test_a_healthy_rollout_has_no_problem():
    rollout = make().rollout()
    assert not any(bool(is_bad.any()) for is_bad in rollout_problems(rollout).values())


@pytest.mark.parametrize(
    ("record", "name", "change", "problem"),
    [
        ("rollout", "advantages", lambda x: x[2].fill_(float("nan")), "advantages is not finite"),
        ("rollout", "ref_logprobs", lambda x: x[2, 0].fill_(-torch.inf), "ref_logprobs is not finite"),
        ("rollout", "old_logprobs", lambda x: x[2, 0].fill_(0.5), "old_logprobs is above 0"),
        ("rollout", "returns", lambda x: x[2, -1].fill_(1.0), "returns is not 0 on padding"),
        ("rollout", "scores", lambda x: x[2].fill_(float("inf")), "scores is not finite"),
        ("generation", "mask", lambda x: x[2, 0].fill_(False), "the response mask has a hole"),
        ("generation", "mask", lambda x: x[2, 1:].fill_(False), "the mask counts other tokens than the sample has"),
        ("generation", "mask", lambda x: x[2].fill_(False), "there is no real token"),
        ("generation", "prompt_mask", lambda x: x[2, -1].fill_(False), "the prompt mask has a hole"),
    ],
)
def test_each_problem_of_a_rollout_is_found_on_its_row(record, name, change, problem):
    rollout = random_rollout([5, 2, 3, 4])
    rollout = dataclasses.replace(rollout, old_logprobs=-rollout.old_logprobs.abs())
    assert not any(bool(is_bad.any()) for is_bad in rollout_problems(rollout).values())
    spoil(rollout if record == "rollout" else rollout.generation, name, change)
    assert rollout_problems(rollout)[problem].nonzero().flatten().tolist() == [2]


def test_a_reference_with_nan_ends_the_run_before_the_update(tmp_path):
    def reference(generation, samples):
        logprobs = generation.logprobs.clone()
        logprobs[3, 0] = float("nan")
        return logprobs

    trainer = make(reference=reference, out=tmp_path)
    with pytest.raises(CheckError, match=r"step 0: ref_logprobs is not finite: in 1 of 8 rows, such as row 3 \('\["):
        trainer.train(1, progress=False)
    found = ppo.replay(tmp_path / "dumps" / "step-000000-rollout")
    assert found.check == "rollout"
    assert found.problems["ref_logprobs is not finite"] == [3]
    assert make(SMALL.replace(checks="off"), reference=reference).rollout() is not None


def test_a_rollout_with_other_advantages_is_still_checked(tmp_path):
    """A researcher's own advantages turn no check off, because the policy's version stays with the rows."""
    trainer = make(SMALL.replace(minibatch=8), out=tmp_path)
    trainer.train(1, progress=False)
    rollout = trainer.rollout()
    assert rollout.policy_version == 2  # updates so far: two epochs of one minibatch
    mine = dataclasses.replace(rollout, advantages=torch.ones_like(rollout.advantages) * rollout.generation.mask)
    wrong = dataclasses.replace(mine, old_logprobs=rollout.old_logprobs * 1.4)
    with pytest.raises(CheckError, match="step 1: the first minibatch has a ratio other than 1"):
        trainer.update(wrong)
    assert ppo.replay(tmp_path / "dumps" / "step-000001-first_minibatch").rollout.policy_version == 2
    assert trainer.update(mine)["rollout/logprob_gap"] < 1e-5
    again = trainer.update(mine)  # the policy has moved since, so a ratio other than 1 is allowed
    assert again["rollout/logprob_gap"] > 1e-5


@pytest.mark.parametrize("config", [SMALL, SMALL.replace(**KEEP, kl_as="loss", kl_estimator="k3", value_head="mlp")])
def test_log_probs_of_another_distribution_are_caught_in_the_first_minibatch_and_replayed(tmp_path, config):
    trainer = make(config.replace(minibatch=8), out=tmp_path)
    trainer.train(1, progress=False)
    rollout = trainer.rollout()
    spoil(rollout, "old_logprobs", lambda x: x[5].mul_(1.4))  # as if row 5 had been sampled at another temperature
    with pytest.raises(
        CheckError, match=r"step 1: the first minibatch has a ratio other than 1.* in 1 of 8 rows"
    ) as caught:
        trainer.update(rollout)
    found = ppo.replay(tmp_path / "dumps" / "step-000001-first_minibatch")
    assert found.message in str(caught.value)
    ((problem, (row,)),) = found.problems.items()
    assert problem == "log-probs are more than 0.005 nats per token apart"
    assert f"row {row} " in found.message
    assert found.rollout.samples[row].ids == rollout.samples[5].ids
    for now, saved in zip(trainer.model.parameters(), found.policy.model.parameters(), strict=True):
        assert torch.equal(now, saved)  # no weight had moved yet
    assert found.statistics["policy/log_ratio"] > 0.005
    assert found.statistics["update/grad_norm"] > 0
    assert ("retain/loss" in found.statistics) == (config.retain_coef > 0)


def test_one_wrong_row_is_found_among_many_right_ones(tmp_path):
    """0.05 nats per token in one row of 32 are 0.0016 in the mean, which rounding could also cause."""
    prompts = [[2 + i % 9, 3 + i % 7] for i in range(32)]
    config = SMALL.replace(prompts_per_step=32, minibatch=32, response_length=12, min_response_length=12)
    trainer = Trainer(tiny_gpt2(), prompts, id_mean, config, out=tmp_path)
    rollout = trainer.rollout()
    spoil(rollout, "old_logprobs", lambda x: x[7].sub_(0.05))
    with pytest.raises(CheckError, match=r"0\.05 nats per token off \(limit 0\.005\): in 1 of 32 rows"):
        trainer.update(rollout)


def test_the_gap_of_a_row_is_its_mean_over_eight_tokens_at_least():
    logprobs = torch.tensor([[-1.0, -2.0, 0.0, 0.0], [-1.0, -1.0, -1.0, -1.0]]).repeat(1, 4)
    others = logprobs + torch.tensor([[0.8], [-0.2]])
    mask = torch.tensor([[True, True] + [False] * 14, [True] * 16])
    assert mean_gaps(logprobs, others, mask).tolist() == pytest.approx([0.2, 0.2])


BFLOAT16 = [{"autocast": "bfloat16"}, {"autocast": "bfloat16", "value_head": "critic"}, {"old_logprobs": "recompute"}]


@pytest.mark.parametrize("changes", BFLOAT16)
def test_a_sampler_that_draws_from_another_distribution_is_caught_where_its_log_probs_are_not_used(
    tmp_path, monkeypatch, changes
):
    """With old log-probs from the training forward the first minibatch has ratio 1 whatever the sampler did."""

    def wrong(model, prompts, sampling, **arguments):
        generation = generate(model, prompts, sampling, **arguments)
        generation.logprobs[5].mul_(1.6)  # as if the row had been sampled at another temperature
        return generation

    config = SMALL.replace(response_length=12, min_response_length=12, **changes)
    healthy = make(config)
    rollout = healthy.rollout()
    assert 0 < rollout.metrics["rollout/sampler_gap"] < 0.02
    healthy.update(rollout)
    monkeypatch.setattr(sampler, "generate", wrong)
    with pytest.raises(CheckError, match=r"step 0: the sampler's log-probs are not those of the tr.* 1 of 8 rows") as e:
        make(config, out=tmp_path).train(1, progress=False)
    found = ppo.replay(tmp_path / "dumps" / "step-000000-sampler")
    assert found.message in str(e.value)
    assert list(found.problems.values()) == [[5]]
    assert make(config.replace(checks="off")).rollout().metrics["rollout/sampler_gap"] > 0.3


def test_log_probs_of_the_sampler_that_are_nan_are_not_those_of_the_training_forward():
    trainer = make(SMALL.replace(old_logprobs="recompute"))
    rollout = trainer.rollout()
    logprobs = rollout.generation.logprobs.clone()
    logprobs[2, 0] = torch.nan
    broken = dataclasses.replace(rollout, generation=dataclasses.replace(rollout.generation, logprobs=logprobs))
    with pytest.raises(CheckError, match=r"sampler's log-probs are not those of the training forward.* in 1 of 8 rows"):
        trainer.checks.rollout(broken, step=0)


def test_a_rollout_may_be_used_for_two_updates():
    trainer = make(SMALL.replace(learning_rate=0.02))
    rollout = trainer.rollout()
    trainer.update(rollout)
    assert trainer.update(rollout)["rollout/logprob_gap"] > 0.005


def test_the_limit_of_the_gap_can_be_set(tmp_path):
    with pytest.raises(CheckError, match=r"\(limit 1e-12\)"):
        make(SMALL.replace(max_logprob_gap_nats=1e-12)).train(3, progress=False)


def poisoned(trainer, *, updates):
    """Make the gradient NaN in the given updates of a run, as a kernel that overflows would."""
    calls = []

    def poison(gradient):
        calls.append(1)
        return gradient * float("nan") if len(calls) - 1 in updates else gradient

    trainer.model.transformer.ln_f.weight.register_hook(poison)
    return trainer


def test_an_update_with_a_gradient_that_is_not_finite_is_skipped_and_counted(tmp_path):
    trainer = poisoned(make(out=tmp_path), updates={1, 2})
    with pytest.warns(RuntimeWarning, match=r"step 0: the gradient norm is nan .* 1 of 3 such updates in a row"):
        trainer.train(1, progress=False)
    assert trainer.learner.optimizer.num_updates == 2
    assert trainer.state.counters.skipped_in_a_row == 0
    assert all(bool(p.isfinite().all()) for p in trainer.model.parameters())
    line = (tmp_path / "metrics.jsonl").read_text()
    assert '"update/skipped_not_finite": 2.0' in line
    assert '"update/minibatches": 2.0' in line
    found = ppo.replay(tmp_path / "dumps" / "step-000000-not_finite")
    assert found.problems == {}  # the rows are right: the fault lay in the backward pass
    assert found.statistics["update/grad_norm"] > 0


def test_the_newest_dumps_of_a_check_are_kept(tmp_path):
    """Otherwise one bad gradient per step would leave a whole checkpoint per step."""
    trainer = poisoned(make(SMALL.replace(minibatch=8, epochs=2), out=tmp_path), updates=set(range(0, 20, 2)))
    with pytest.warns(RuntimeWarning, match="1 of 3"):
        trainer.train(5, progress=False)
    left = sorted(p.name for p in (tmp_path / "dumps").iterdir())
    assert left == [f"step-00000{step}-not_finite" for step in (2, 3, 4)]
    assert ppo.replay(tmp_path / "dumps" / left[0]).check == "not_finite"
    trainer.state.counters.step = (
        1  # as after a resume from an early checkpoint: the newest dump is the one written last
    )
    with pytest.warns(RuntimeWarning, match="1 of 3"):
        trainer.train(1, progress=False)
    left = sorted(p.name for p in (tmp_path / "dumps").iterdir())
    assert left == [f"step-00000{step}-not_finite" for step in (1, 3, 4)]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), SafetensorError("I/O error: No space left")])
def test_a_full_disk_does_not_end_a_run_that_should_go_on(tmp_path, monkeypatch, error):
    def full(path, tensors):
        raise error

    monkeypatch.setattr(dump, "save_tensors", full)
    trainer = poisoned(make(out=tmp_path), updates={1})
    with pytest.warns(RuntimeWarning, match=r"1 of 3 .*; no dump: .*No space left.*; this update is skipped"):
        trainer.train(1, progress=False)
    assert trainer.learner.optimizer.num_updates == 3
    assert list((tmp_path / "dumps").iterdir()) == []  # an incomplete dump is deleted, because it cannot be replayed


def test_a_few_skipped_updates_in_a_row_end_the_run_and_a_resume_keeps_the_count(tmp_path):
    config = SMALL.replace(stop_after_skipped_updates=6, save_every_steps=1)
    with pytest.warns(RuntimeWarning, match="1 of 6"):
        poisoned(make(config, out=tmp_path), updates=set(range(99))).train(1, progress=False)
    resumed = Trainer.resume(tmp_path, PROMPTS, id_mean, out=tmp_path)
    assert resumed.state.counters.skipped_in_a_row == 4
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the run before the resume gave the first warning
        with pytest.raises(FloatingPointError, match=r"step 1: .*; 6 of 6 such updates in a row"):
            poisoned(resumed, updates=set(range(99))).train(1, progress=False)
    assert Trainer.resume(tmp_path, PROMPTS, id_mean).step == 1


def test_rows_that_are_not_finite_are_named(tmp_path):
    trainer = make(SMALL.replace(minibatch=8, stop_after_skipped_updates=1, epochs=1), out=tmp_path)
    rollout = trainer.rollout()
    spoil(rollout, "advantages", lambda x: x[3, 0].fill_(float("nan")))
    before = [p.clone() for p in trainer.model.parameters()]
    with pytest.raises(FloatingPointError, match=r"policy/loss is nan.* in 1 of 8 rows, such as row \d"):
        trainer.update(rollout)
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))
    assert len(ppo.replay(tmp_path / "dumps" / "step-000000-not_finite").problems["advantages is not finite"]) == 1


def test_a_damaged_dump_is_named(tmp_path):
    trainer = make(SMALL.replace(max_logprob_gap_nats=1e-12), out=tmp_path)
    with pytest.raises(CheckError):
        trainer.train(3, progress=False)
    folder = next((tmp_path / "dumps").iterdir())
    (folder / "dump.json").write_text("[1]", encoding="utf-8")
    with pytest.raises(ValueError, match="holds no dump of a check"):
        ppo.replay(folder)
    (folder / "rows.safetensors").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"rows.safetensors is damaged"):
        ppo.replay(folder)
