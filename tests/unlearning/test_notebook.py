"""DeMem as its code really ran: the slice that takes prompt tokens as actions, and the evaluation's own numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import sacrebleu
import torch

import ppo
from eval.paper import DEFINITIONS, as_published
from ppo.types import Generation
from tests.fakes import Letters, fake_tensorboard, tiny_gpt2
from unlearning.notebook import sample_sliced, with_special_tokens


@dataclass(frozen=True)
class Row:
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    id: str = "r"
    pre_prefix: tuple[int, ...] = ()
    group: str = "forget"
    kind: str = ""
    repeats: int = 1


ROWS = [Row((2, 3, 4, 5), (6, 7, 8, 9, 10)), Row((5, 4, 3, 2), (9, 9, 8, 8, 7)), Row((4, 4, 5, 5), (6, 6, 7, 7, 8))]
OUTPUTS = [[6, 7, 8, 9, 10, 11, 12, 13], [9, 9, 1], [1]]


def written(model, prompts, sampling, *, seed=0, slots=64) -> Generation:
    assert sampling.is_greedy
    assert sampling.response_length == 8  # three more than the suffix
    width = max(map(len, OUTPUTS))
    tokens = torch.tensor([row + [0] * (width - len(row)) for row in OUTPUTS])
    mask = torch.arange(width) < torch.tensor([[len(row)] for row in OUTPUTS])
    numbers = torch.zeros(mask.shape)
    ids = torch.tensor(prompts)
    return Generation(ids, torch.ones_like(ids, dtype=torch.bool), tokens, mask, numbers, numbers, mask[:, 0])


def perplexity(model, ids: list[int]) -> float:
    logits = model(torch.tensor([ids])).logits[0, :-1].double()
    losses = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]))
    return math.exp(float(losses))


@torch.no_grad()
def test_the_published_numbers_against_plain_loops():
    model, original, letters = tiny_gpt2().eval(), tiny_gpt2(seed=3).eval(), Letters()
    found = as_published(model, original, letters, ROWS, generate=written)
    assert found.keys() == DEFINITIONS.keys()
    assert found["paper/dropped"] == pytest.approx(1 / 3)  # the empty one, which is in no mean

    def n_bleu(early: int) -> float:
        scores = []
        for row, output in list(zip(ROWS, OUTPUTS, strict=True))[:2]:
            text = letters.decode([*row.prefix, *output])[4 - early :]
            scores.append(100 - sacrebleu.corpus_bleu([text], [[letters.decode(row.suffix)]]).score)
        return sum(scores) / 2

    assert found["paper/n_bleu"] == pytest.approx(n_bleu(0))
    assert found["paper/n_bleu_early_4"] == pytest.approx(n_bleu(4))
    shares = []
    for row, output in list(zip(ROWS, OUTPUTS, strict=True))[:2]:
        ids = [*row.prefix, *row.suffix]
        best = model(torch.tensor([ids])).logits[0].argmax(-1).tolist()
        shares.append(sum(best[i - 1] == ids[i] for i in range(1, len(output))) / (len(output) - 1))
    assert found["paper/ma"] == pytest.approx(sum(shares) / 2)
    rows = [[*r.prefix, *o] for r, o in list(zip(ROWS, OUTPUTS, strict=True))[:2]]
    assert found["paper/gen_ppl"] == pytest.approx(sum(perplexity(original, r) for r in rows) / 2, rel=1e-4)
    rows = [[*r.prefix, *r.suffix] for r in ROWS[:2]]
    assert found["paper/true_ppl"] == pytest.approx(sum(perplexity(original, r) for r in rows) / 2, rel=1e-4)
    with pytest.raises(ValueError, match="no passages"):
        as_published(model, original, letters, [])


class Savable(Letters):
    def save_pretrained(self, folder) -> None:
        """A checkpoint keeps the tokenizer; this one is nothing but code."""


def make_trainer(out=None, sampler=sample_sliced, **changes) -> ppo.Trainer:
    prompts = [[2 + i % 7, 3 + i % 5, 4 + i % 11, 5] for i in range(32)]
    config = ppo.Config(
        prompts_per_step=32, minibatch=8, epochs=2, response_length=7, learning_rate=1e-3, old_logprobs="recompute"
    )
    torch.manual_seed(0)
    return ppo.Trainer(
        tiny_gpt2(), prompts, lambda samples: [float(len(set(s.ids))) for s in samples], config.replace(**changes),
        tokenizer=Savable(), sampler=sampler, out=out,
    )  # fmt: skip


@pytest.mark.parametrize("changes", [{}, {"old_logprobs": "rollout"}])
def test_prompt_tokens_become_actions_after_an_early_end(changes):
    plain, trainer = make_trainer(sampler=None, **changes).rollout(), make_trainer(**changes)
    found = trainer.rollout()
    short = [i for i, n in enumerate(plain.generation.lengths.tolist()) if n < 7]
    assert short
    for i, (before, after) in enumerate(zip(plain.samples, found.samples, strict=True)):
        assert after.ids == [*before.prompt_ids, *before.ids][-7:]
        assert found.generation.tokens[i].tolist()[: len(after.ids)] == after.ids
        assert found.scores[i] == len(set(after.ids))
        assert int(found.generation.mask[i].sum()) == len(after.ids)
        assert not after.is_ended
    i = short[0]
    ids = torch.tensor([[*plain.samples[i].prompt_ids, *found.samples[i].ids]])
    with torch.no_grad():
        logprobs = trainer.model.eval()(ids).logits[0, 3:-1].log_softmax(-1)
    expected = logprobs.gather(1, ids[0, 4:, None])[:, 0]
    torch.testing.assert_close(found.old_logprobs[i, : len(expected)], expected, atol=1e-4, rtol=0)
    assert found.token_rewards is not None  # a trace shows them
    assert bool((found.token_rewards.sum(dim=1) == found.scores).all())
    assert float(found.generation.entropy[i, : len(expected)].min()) > 0
    assert {"score/mean", "kl/coef", "time/rollout_s", "generate/is_fast"} <= found.metrics.keys()
    assert found.kl.abs().max() < 1e-4  # the reference is the policy before the first update: the penalty is 0
    assert abs(trainer.update(found)["rollout/logprob_gap"]) < 1e-4


def test_its_rollouts_are_held_to_ratio_one():
    trainer = make_trainer()
    found = trainer.rollout()
    with torch.no_grad():
        trainer.model.transformer.wte.weight += torch.randn(trainer.model.transformer.wte.weight.shape)
    with pytest.raises(ppo.CheckError, match="the first minibatch has a ratio other than 1"):
        trainer.update(found)


def test_whole_responses_are_left_alone():
    plain, sliced = (make_trainer(sampler=s, min_response_length=7).rollout() for s in (None, sample_sliced))
    assert set(plain.generation.lengths.tolist()) == {7}
    assert torch.equal(plain.generation.tokens, sliced.generation.tokens)
    assert torch.equal(plain.generation.logprobs, sliced.generation.logprobs)
    assert torch.equal(plain.generation.is_ended, sliced.generation.is_ended)


def test_the_reward_reads_special_tokens():
    seen = []
    reward = with_special_tokens(lambda samples: [seen.append(s.text) or 1.0 for s in samples], lambda ids: f"<{ids}>")
    sample = ppo.Sample("p", "plain", [1], [2, 0], {}, True)
    assert reward([sample]) == [1.0]
    assert seen == ["<[2, 0]>"]
    assert sample.text == "plain"


def test_it_writes_events_like_any_training(tmp_path, monkeypatch):
    writers = fake_tensorboard(monkeypatch)
    make_trainer(tmp_path).train(1, progress=False)
    (writer,) = writers
    assert writer.log_dir == str(tmp_path / "tensorboard")
    assert "score/mean" in {name for name, _, step in writer.scalars if step == 0}
    assert writer.is_closed
