"""Responses that were sampled elsewhere become the same rollout as the trainer's own."""

import pytest
import torch

from ppo import Config, Trainer
from ppo.given import given_responses
from tests.fakes import tiny_gpt2, tiny_llama

PROMPTS = [[2, 3, 4], [5, 6], [7], [8, 9, 10, 11]]


def make(model, **changes):
    config = Config(prompts_per_step=4, minibatch=4, response_length=6, **changes)
    return Trainer(model, PROMPTS, lambda samples: [float(len(s.ids)) for s in samples], config)


@pytest.mark.parametrize("model", [tiny_gpt2, tiny_llama])
@pytest.mark.parametrize(
    "changes", [{}, {"temperature": 0.7, "missing_eos_penalty": 1.0}, {"value_head": "critic", "microbatch": 2}]
)
def test_a_rollout_given_back_is_the_same_rollout(model, changes):
    trainer = make(model(), **changes)
    trainer.update(trainer.rollout())  # after it KL and values are not 0
    rollout = trainer.rollout()
    prompts, responses = [s.prompt_ids for s in rollout.samples], [s.ids for s in rollout.samples]
    again = trainer.appraise(given_responses(trainer, prompts, responses, rollout.scores))
    assert torch.equal(again.generation.mask, rollout.generation.mask)
    assert torch.equal(again.generation.is_ended, rollout.generation.is_ended)
    assert [s.ids for s in again.samples] == responses
    for name in ("old_logprobs", "old_values", "ref_logprobs", "kl", "rewards", "advantages", "returns"):
        assert torch.allclose(getattr(again, name), getattr(rollout, name), atol=1e-4), name
    assert rollout.kl.abs().max() > 0
    assert torch.allclose(again.generation.entropy, rollout.generation.entropy, atol=1e-4)


def test_prompts_responses_and_scores_that_do_not_match_are_refused():
    trainer = make(tiny_gpt2())
    with pytest.raises(ValueError, match="2 prompts, 1 responses and 2 scores"):
        given_responses(trainer, [[2], [3]], [[4]], torch.zeros(2))
    with pytest.raises(ValueError, match="response 1 holds no token"):
        given_responses(trainer, [[2], [3]], [[4], []], torch.zeros(2))
