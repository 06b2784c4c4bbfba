"""Training with the flaws of the published notebook: ``--preset paper-as-run``. For comparison, not for use.

Three things differ from ``--preset paper``, which is the method as the paper describes it on this engine:

* The response is the last 55 tokens of prompt and output together. After an early EOS it begins with the prompt's own
  last tokens, which stand behind the whole prompt once more, are scored with the output, and are trained as actions.
* The reward has no guard: empty and broken text scores best. Special tokens stand in the text that is scored.
* There are at most four batches of 32, one an "epoch", whatever the size of the data, and no rule that stops it. So the
  KL penalty, measured once a batch, is 0 in the first one and next to nothing in the others.

What was wrong in its evaluation is in :mod:`eval.paper`, with a table of all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from ppo.policy import Policy
from ppo.prompts import Prompt
from ppo.sampler import collate, sample_policy
from ppo.types import Generation, RewardFn, Sample


@torch.no_grad()
def sample_sliced(policy: Policy, prompts: Sequence[Prompt], *, seed: int, request_ids: Sequence[int]) -> Generation:
    """A sampler: the policy's responses as the notebook sliced them; unchanged where all have their full length.

    Example: length 4, prompt 1 2 3 4 5, output 8 9: the response is 4 5 8 9, after 1 2 3 4 5.
    """
    drawn, length = sample_policy(policy, prompts, seed=seed, request_ids=request_ids), policy.sampling.response_length
    if bool((drawn.lengths == length).all()):
        return drawn
    outputs = [tokens[mask].tolist() for tokens, mask in zip(drawn.tokens, drawn.mask, strict=True)]
    responses = [[*prompt.ids, *output][-length:] for prompt, output in zip(prompts, outputs, strict=True)]
    sliced = collate([prompt.ids for prompt in prompts], responses, device=policy.device)
    found = policy.measure(sliced)
    return replace(sliced, logprobs=found.logprobs, entropy=found.entropy, values=found.values, metrics=drawn.metrics)


def with_special_tokens(reward: RewardFn, decode: Callable[..., str]) -> RewardFn:
    """The same reward, but texts keep their special tokens. ``decode``: the tokenizer's."""

    def asked(samples: list[Sample]) -> Any:
        return reward([replace(sample, text=str(decode(sample.ids))) for sample in samples])

    return asked
