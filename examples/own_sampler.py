"""Your own sampler: the policy calls a calculator in its response, and the calculator's tokens are not trained on.

The policy writes eight tokens. The calculator adds up the digits in them and writes the sum. The policy goes on for
eight more, and is paid for the sum. ``action_mask`` tells the two apart: losses, KL and entropy see the policy's tokens
only, the model reads all. (``ppo.EnvironmentSampler`` does this for you.) Run: python -m examples.own_sampler
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

import ppo
from models.load import load
from ppo.policy import Policy
from ppo.prompts import Prompt
from ppo.sampler import collate

PROMPTS = [">>> 12 + 7", ">>> print(3 *", ">>> x = 5", ">>> [1, 2"]
TURN = 8


def with_a_calculator(tokenizer: object) -> ppo.types.Sampler:
    """A sampler of two turns with the calculator in between."""

    def sampler(policy: Policy, prompts: Sequence[Prompt], *, seed: int, request_ids: Sequence[int]) -> ppo.Generation:
        turn = replace(policy.sampling, response_length=TURN, eos_ids=())
        first = ppo.generate(policy.model, [p.ids for p in prompts], turn, seed=seed, request_ids=request_ids)
        sums = [sum(int(c) for c in tokenizer.decode(ids) if c in "0123456789") for ids in first.tokens.tolist()]
        written = [tokenizer(f" = {total} ")["input_ids"] for total in sums]
        heads = [ids + tool for ids, tool in zip(first.tokens.tolist(), written, strict=True)]
        asked = [p.ids + head for p, head in zip(prompts, heads, strict=True)]
        second = ppo.generate(policy.model, asked, turn, seed=seed + 1, request_ids=request_ids)
        drawn = collate([p.ids for p in prompts], [h + s for h, s in zip(heads, second.tokens.tolist(), strict=True)])
        actions = [[True] * TURN + [False] * len(tool) + [True] * TURN for tool in written]
        action_mask = torch.tensor([row + [False] * (drawn.tokens.shape[1] - len(row)) for row in actions])
        drawn = replace(drawn, action_mask=action_mask, info=sums)
        found = policy.measure(drawn)  # the policy's log-probs of its own tokens, 0 where the calculator wrote
        return replace(drawn, logprobs=found.logprobs, entropy=found.entropy, values=found.values)

    return sampler


def the_sum(samples: list[ppo.Sample]) -> list[float]:
    """What the calculator wrote."""
    return [float(sample.info) for sample in samples]


def main(steps: int = 10, prompts_per_step: int = 64) -> list[float]:
    """The mean score of every step."""
    lab, scores = load("lab"), []
    config = ppo.Config(prompts_per_step=prompts_per_step, minibatch=prompts_per_step, learning_rate=3e-4, kl_coef=0.0)
    sampler = with_a_calculator(lab.tokenizer)
    trainer = ppo.Trainer(lab.model, PROMPTS, the_sum, config, tokenizer=lab.tokenizer, sampler=sampler)
    trainer.train(steps, on_step=lambda step: scores.append(step.metrics["score/mean"]), progress=False)
    return scores


if __name__ == "__main__":
    print("mean score of every step:", *(f"{score:.2f}" for score in main()))
