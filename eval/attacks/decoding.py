"""Attacks that decode differently from the same prefix: samples under a grid of samplers, and beam search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig

from ppo.config import Sampling
from ppo.generation.requests import pad_left
from ppo.lm.backbone import end_ids, evaluation_mode

from ..outputs import Continuation
from ..protocols import Passage
from .prompts import as_shown, attack_shown
from .result import AttackResult, score_tries


def grid(temperatures: Sequence[float], top_ks: Sequence[int], top_ps: Sequence[float]) -> list[Sampling]:
    """A sampler for every combination. ValueError for an invalid one; temperature 0 is greedy, not a sampler."""
    samplers = [Sampling(temperature=t, top_k=k, top_p=p) for t, k, p in product(temperatures, top_ks, top_ps)]
    if any(sampler.is_greedy for sampler in samplers):
        raise ValueError("temperature 0 gives the same text every time: take a positive one")
    return samplers


def sampling_attack(
    model: nn.Module,
    tokenizer: Any,
    passages: Sequence[Passage],
    *,
    samplers: Sequence[Sampling] = (Sampling(),),
    num_samples: int = 8,
    seed: int = 0,
    slots: int = 64,
) -> list[AttackResult]:
    """``num_samples`` samples of every passage under each sampler; one result per sampler."""
    shown = [as_shown(p, tokenizer) for p in passages]
    return [
        attack_shown(
            model,
            tokenizer,
            shown,
            replace(sampler, num_samples=num_samples),
            attack=f"{num_samples} samples",
            variant=f"temperature:{sampler.temperature:g}|top_k:{sampler.top_k}|top_p:{sampler.top_p:g}",
            sees="prefix",
            seed=seed,
            slots=slots,
        )
        for sampler in samplers
    ]


def beam_attack(
    model: Any, tokenizer: Any, passages: Sequence[Passage], *, num_beams: int = 4, batch: int = 16
) -> list[AttackResult]:
    """Beam search for the most likely suffix. Every beam that remains at the end is a try.

    The search is that of transformers with EOS forbidden; where a true suffix holds an EOS, it is a token like all
    others. All beams are therefore as long as the longest suffix, and no length penalty is needed. Each beam is then
    cut to the length of its passage's suffix. ``batch`` passages are searched at once.
    """
    if num_beams < 2:
        raise ValueError(f"num_beams={num_beams} must be at least 2: one beam is greedy decoding")
    shown = [as_shown(p, tokenizer) for p in passages]
    longest = max(len(s.suffix) for s in shown)
    ends = frozenset(end_ids(model))
    tries: list[list[Continuation]] = []
    for start in range(0, len(shown), batch):
        part = shown[start : start + batch]
        has_ends = any(not ends.isdisjoint(s.suffix) for s in part)
        prompts = [list(s.prefix) for s in part]
        beams = search(model, prompts, length=longest, num_beams=num_beams, has_ends=has_ends)
        for passage, rows in zip(part, beams.tolist(), strict=True):
            cut = [row[: len(passage.suffix)] for row in rows]
            tries.append([Continuation(ids, tokenizer.decode(ids, skip_special_tokens=True)) for ids in cut])
    rows = score_tries(shown, tries, tokenizer)
    return [AttackResult("beam search", f"beams:{num_beams}", "prefix", num_beams, rows)]


@torch.no_grad()
def search(
    model: Any, prompts: Sequence[Sequence[int]], *, length: int, num_beams: int, has_ends: bool = False
) -> Tensor:
    """The ``num_beams`` most likely continuations that a beam search finds, int64 [B, num_beams, length].

    ``has_ends``: EOS is a token like all others; otherwise it is forbidden.
    """
    ids, mask = pad_left([list(prompt) for prompt in prompts], next(model.parameters()).device)
    own = model.generation_config
    ends = None if has_ends else getattr(own, "eos_token_id", None)
    settings = GenerationConfig(
        max_new_tokens=length,
        min_new_tokens=length,
        num_beams=num_beams,
        num_return_sequences=num_beams,
        do_sample=False,
        length_penalty=0.0,
        pad_token_id=0,
        eos_token_id=ends,
    )
    try:
        model.generation_config = settings  # what settings leave open would be filled from the model's own
        with evaluation_mode(model):
            found = model.generate(input_ids=ids, attention_mask=mask.long(), generation_config=settings)
    finally:
        model.generation_config = own
    return found[:, ids.shape[1] :].view(len(prompts), num_beams, length)
