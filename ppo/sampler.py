"""Where responses come from: the policy itself, or anywhere else.

A sampler is a function ``(policy, prompts, *, seed, request_ids) -> Generation``. It gives one response to each of the
given prompts. ``request_ids``: the places of these prompts among all prompts of the step; with several processes, each
samples a part of them. A response should depend on ``seed`` and its own request id alone: then it does not depend on
the number of processes.

``Generation.logprobs`` must be those of the distribution ``policy.sampling``, or a check fails. A sampler that does not
know them takes the log-probs, entropy and values of ``policy.measure(generation)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from .config import Config
from .generation import generate
from .generation.requests import pad_left, pad_right
from .policy import Policy
from .prompts import Prompt
from .run.limits import retry_smaller
from .types import Generation, Sampler


def sampler_of(config: Config) -> Sampler:
    """The sampler that a config asks for."""
    return partial(sample_policy, compiled=config.compiled_rollout)


def sample_policy(
    policy: Policy, prompts: Sequence[Prompt], *, seed: int, request_ids: Sequence[int], compiled: bool = False
) -> Generation:
    """Draw one response of the policy to each prompt. When memory runs out, fewer are decoded side by side.

    ``compiled``: decode with ``torch.compile``; see :func:`ppo.generate`.
    """
    ids = [prompt.ids for prompt in prompts]

    def sample() -> Generation:
        return generate(
            policy.model,
            ids,
            policy.sampling,
            seed=seed,
            request_ids=request_ids,
            slots=policy.limits.rollout_slots,
            value_fn=policy.actor.value_fn,
            compiled=compiled,
        )

    return retry_smaller(sample, lambda: policy.limits.halve_slots(len(prompts)))


def collate(
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    *,
    eos_ids: Sequence[int] = (),
    device: torch.device | None = None,
) -> Generation:
    """Pad prompts and responses, given as token ids, into one batch.

    Log-probs and entropy are 0, because they were not measured. A response that ends with one of ``eos_ids`` counts as
    ended by itself. Raises ValueError for lists of different lengths and for a response without a token.
    """
    if len(prompts) != len(responses):
        raise ValueError(f"{len(prompts)} prompts and {len(responses)} responses: give one response to each prompt")
    if empty := [index for index, response in enumerate(responses) if len(response) == 0]:
        raise ValueError(f"response {empty[0]} holds no token: leave it and its prompt out")
    device = torch.device("cpu") if device is None else device
    prompt_ids, prompt_mask = pad_left(prompts, device)
    tokens = pad_right(responses, device)
    lengths = torch.tensor([len(response) for response in responses], device=device)
    mask = torch.arange(tokens.shape[1], device=device) < lengths.unsqueeze(1)
    zeros = torch.zeros(mask.shape, dtype=torch.float32, device=device)
    is_ended = torch.tensor([response[-1] in eos_ids for response in responses], device=device)
    return Generation(prompt_ids, prompt_mask, tokens, mask, zeros, zeros, is_ended)
