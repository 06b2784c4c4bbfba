"""Groups of equal scores give way to others; what a step then trains on are the responses as they were drawn."""

import pytest
import torch

from ppo import Config, Trainer
from ppo.buffer import join_responses, response_rows
from ppo.draws import varied_groups
from tests.fakes import tiny_gpt2

PROMPTS = [[i, i + 1, *range(2, 2 + i % 3)] for i in range(2, 14)]
CONFIG = Config(
    advantage="grpo", prompts_per_step=4, samples_per_prompt=2, minibatch=4, response_length=6, redraw_rounds=9,
    learning_rate=1e-2, epochs=1,
)  # fmt: skip


def is_dull(sample):
    return sample.prompt_ids[0] % 2 == 0


def reward(samples):
    """Prompts that begin with an even id score the same whatever is answered."""
    return [1.0 if is_dull(s) else float(len(s.ids)) + sum(s.ids) / 1000 for s in samples]


def make(config=CONFIG, reward=reward):
    torch.manual_seed(0)
    return Trainer(tiny_gpt2(), PROMPTS, reward, config)


def test_varied_groups():
    assert varied_groups(torch.tensor([1.0, 1.0, 1.0, 2.0, 0.0, 0.0]), 2).tolist() == [False, True, False]
    assert varied_groups(torch.tensor([1.0, 1.0, 2.0, 0.0, 0.0, 0.0]), 3).tolist() == [True, False]


def test_a_step_holds_groups_of_different_scores():
    trainer = make()
    rollout = trainer.rollout()
    assert len(rollout) == 8
    assert not any(is_dull(s) for s in rollout.samples)
    assert varied_groups(rollout.scores, 2).all()
    assert [s.prompt_ids for s in rollout.samples[::2]] == [s.prompt_ids for s in rollout.samples[1::2]]
    assert rollout.metrics["redraw/rounds"] >= 1
    assert 0 < rollout.metrics["redraw/equal_share"] < 1
    assert rollout.metrics["redraw/filled_share"] == 0
    assert trainer.update(rollout)["rollout/logprob_gap"] < 1e-5  # rows of different draws are put together rightly


def test_what_was_measured_stays_with_its_row():
    trainer = make(CONFIG.replace(advantage="gae"))
    rollout = trainer.rollout()
    found = trainer.policy.measure(rollout.generation)
    assert rollout.old_logprobs.allclose(found.logprobs, atol=1e-5)
    assert rollout.old_values.allclose(found.values, atol=1e-5)
    assert rollout.ref_logprobs.allclose(found.logprobs, atol=1e-5)  # nothing has moved yet
    for row, sample in enumerate(rollout.samples):
        assert rollout.generation.tokens[row][rollout.generation.mask[row]].tolist() == sample.ids
        assert rollout.scores[row] == pytest.approx(reward([sample])[0])


def test_what_is_missing_after_the_last_round_is_filled_up():
    rollout = make(CONFIG.replace(redraw_rounds=1), reward=lambda samples: [0.0] * len(samples)).rollout()
    assert len(rollout) == 8
    assert rollout.metrics["redraw/rounds"] == 1
    assert rollout.metrics["redraw/equal_share"] == rollout.metrics["redraw/filled_share"] == 1


def test_without_rounds_nothing_is_drawn_again():
    plain, never = make(CONFIG.replace(redraw_rounds=0)), make(reward=lambda s: [float(i) for i in range(len(s))])
    first, second = plain.rollout(), never.rollout()
    assert torch.equal(first.generation.tokens, second.generation.tokens)
    assert "redraw/rounds" not in first.metrics
    assert second.metrics["redraw/rounds"] == 0


def test_token_rewards_are_joined():
    rollout = make(
        reward=lambda samples: [[r / len(s.ids)] * len(s.ids) for s, r in zip(samples, reward(samples), strict=True)]
    )
    assert varied_groups(rollout.rollout().scores, 2).all()


def test_a_run_resumes_to_the_same_bits(tmp_path):
    whole = make()
    whole.train(1, progress=False)
    whole.save(tmp_path / "ckpt")
    whole.train(2, progress=False)
    again = Trainer.resume(tmp_path / "ckpt", PROMPTS, reward)
    again.train(2, progress=False)
    for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_joined_responses_are_their_parts():
    trainer = make(CONFIG.replace(redraw_rounds=0))
    parts = [trainer._draws._draw(count, 0, 0) for count in (2, 3)]
    joined = join_responses(parts)
    assert [s.ids for s in joined.samples] == [s.ids for part in parts for s in part.samples]
    assert joined.metrics["time/rollout_s"] == sum(part.metrics["time/rollout_s"] for part in parts)
    back = response_rows(joined, torch.arange(4, 10))
    width = parts[1].generation.tokens.shape[1]
    assert torch.equal(back.old_logprobs[:, :width], parts[1].old_logprobs)
    assert torch.equal(back.scores, parts[1].scores)


def test_it_needs_groups():
    with pytest.raises(ValueError, match="redraw_rounds=2 needs samples_per_prompt of at least 2"):
        Config(redraw_rounds=2)
