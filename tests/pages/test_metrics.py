"""The page of metrics names all that a step says, and nothing else."""

import re
from pathlib import Path

import pytest

from ppo import Config, EnvironmentSampler, Trainer, turn_rewards
from tests.fakes import tiny_gpt2
from tests.ppo.test_environment import ROWS, Hint
from unlearning.deep.forced import ForcedStates, bounded_reference, no_score, state_advantages

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
NAMED = set(re.findall(r"`([a-z]+/\w+)`", PAGE.split("|---|")[1]))
PROMPTS = [[2, 3], [4, 5], [6, 7], [8, 9]]
SMALL = {"prompts_per_step": 4, "minibatch": 4, "response_length": 5}

# What the runs below do not say, and who does.
ELSEWHERE = {
    "update/skipped_minibatches", "update/skipped_not_finite", "update/empty_minibatches",  # of what goes wrong
    "sampler/staleness",  # of given_responses
    "generate/draft_tokens", "generate/draft_acceptance",  # of generate with drafts
}  # fmt: skip


def said(prompts, reward, changes, **arguments):
    found = set()
    trainer = Trainer(tiny_gpt2(), prompts, reward, Config(**SMALL | changes), **arguments)
    trainer.train(2, progress=False, on_step=lambda step: found.update(step.metrics))
    return found


def total(samples):
    return [float(sum(sample.ids)) for sample in samples]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_every_metric_is_on_the_page_and_every_name_of_the_page_is_a_metric():
    losses = {"kl_as": "loss", "kl_estimator": "k3", "retain_coef": 0.1, "retain_tokens": 4, "positive_coef": 0.1}
    found = said(PROMPTS, total, losses | {"scale_scores": True}, retain=[[2, 3, 4, 5, 6]])
    looked_at = {"eval_every_steps": 1, "best_metric": "eval/score_mean", "stop_kl_per_token": 1e-9}
    weighed = {"old_logprobs": "recompute", "importance": "token"}
    found |= said(PROMPTS, total, looked_at | weighed, eval_prompts=PROMPTS)
    groups = {"advantage": "grpo", "samples_per_prompt": 2, "prompts_per_step": 2, "redraw_rounds": 1}
    sampler = EnvironmentSampler(Hint, turn_length=2)
    found |= said(ROWS, turn_rewards, groups | {"response_length": 10}, sampler=sampler)
    truth = {"text_ids": [3, 4, 5], "chance": [0.1, 0.1, 0.1]}
    rows = [{"prompt": [2 + i], **truth, "is_own": i > 1} for i in range(4)]
    seams = {"sampler": ForcedStates(tiny_gpt2()), "reference": bounded_reference, "advantage": state_advantages}
    found |= said(rows, no_score, {"value_head": "none", "kl_controller": "fixed"}, **seams)
    found = {name for name in found if not name.startswith("eval_start/")}
    assert found <= NAMED, sorted(found - NAMED)
    assert NAMED - found == ELSEWHERE
