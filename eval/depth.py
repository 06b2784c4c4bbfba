"""How deep a passage was forgotten: what the model still knows with the passage's own tokens before it.

Greedy extraction sees the surface: one wrong token at the start hides all that follows. The numbers here come from the
teacher-forced pass, in which every token has the true ones before it. None of them has a target of its own: the target
is what the same model does on never-trained passages of the same shapes, so each is reported for both, with the
difference. Tokens that a passage shares with others (:mod:`eval.shared_tokens`) may stay likely, so the others are
counted for themselves. This module knows statistics of tokens. It runs a model for the logit lens only.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn

from .extraction import is_exact
from .intervals import difference_interval
from .lens import NoLens, readable_layers
from .protocols import Passage, whole
from .settings import Settings
from .shared_tokens import unshared
from .teacher import TokenStatistics

Record = dict[str, Any]
AREA = "depth"
FORGET, NEVER = "forget", "never"
DEPTH = ("ma_suffix", "ma_unshared", "ma_shared", "longest_run", "extraction_strength", "true_token_p", "p_unshared",
         "p_shared", "nll_suffix", "nll_unshared", "lens_right", "lens_layer")  # fmt: skip
"""Quantities with a column for forget, one for never trained, and one for the difference; hints come on top."""

LOW_IF_MEMORISED = ("nll_suffix", "nll_unshared", "lens_layer")


def depth_names(settings: Settings) -> list[str]:
    """The quantities of depth, in the order of the report."""
    return ["exact", *(f"exact_after_{k}" for k in hints_of(settings)), *DEPTH]


def hints_of(settings: Settings) -> list[int]:
    """The numbers of true suffix tokens that are shown, in order."""
    return sorted({settings.more_tokens, *settings.hints})


def longest_run(is_right: np.ndarray) -> int:
    """The most tokens in a row that are the argmax, given the true tokens before them.

    Example: right right wrong right -> 2.
    """
    wrong = np.flatnonzero(~np.concatenate([[False], np.asarray(is_right, dtype=bool), [False]]))
    return int(np.diff(wrong).max()) - 1


def own_tokens(passages: Sequence[Passage], *, run: int) -> list[np.ndarray]:
    """Which suffix tokens of each passage no other passage shares, bool [suffix length] each."""
    found = unshared([whole(p) for p in passages], run=run)
    return [mask[-len(p.suffix) :] for p, mask in zip(passages, found, strict=True)]


def depth_metrics(passage: Passage, suffix: TokenStatistics, is_own: np.ndarray, settings: Settings) -> Record:
    """Numbers of one passage from the statistics of its suffix given the prefix. ``is_own``: see :func:`own_tokens`.

    None stands for a mean over no token.
    """
    size = len(passage.suffix)
    right, logprobs = suffix.is_right[-size:], suffix.logprobs[-size:].astype(np.float64)
    kinds = {"unshared": is_own, "shared": ~is_own}
    return {
        "longest_run": float(longest_run(right)),
        **{f"exact_after_{k}": float(is_exact(right[k:])) if k < size else None for k in hints_of(settings)},
        **{f"ma_{name}": _mean(right[chosen]) for name, chosen in kinds.items()},
        **{f"p_{name}": _mean(np.exp(logprobs[chosen])) for name, chosen in kinds.items()},
        "nll_unshared": _mean(-logprobs[is_own]),
        "share_unshared": float(is_own.mean()),
    }


def _mean(values: np.ndarray) -> float | None:
    return float(np.mean(values)) if len(values) else None


def lens_metrics(
    model: nn.Module, passages: Sequence[Passage], own: Sequence[np.ndarray], settings: Settings
) -> list[Record]:
    """The logit lens on the tokens that a passage does not share, at most ``lens_tokens`` of each, evenly spaced.

    A model without a lens gets None everywhere, and a RuntimeWarning that says why.
    """
    shown = [[*p.prefix, *p.suffix] for p in passages]
    places = [
        [len(p.prefix) + int(t) for t in _spread(np.flatnonzero(mask), settings.lens_tokens)]
        for p, mask in zip(passages, own, strict=True)
    ]
    sizes = {"batch_tokens": settings.batch_tokens, "chunk_tokens": settings.chunk_tokens}
    try:
        found, count = readable_layers(model, shown, places, **sizes)
    except NoLens as error:
        warnings.warn(f"no logit lens: {error}", RuntimeWarning, stacklevel=2)
        return [{"lens_right": None, "lens_layer": None} for _ in passages]
    return [{"lens_right": _mean(values <= count), "lens_layer": _mean(values)} for values in found]


def _spread(values: np.ndarray, most: int) -> np.ndarray:
    """At most so many of the values, evenly spaced, the first and the last among them."""
    if len(values) <= most:
        return values
    chosen: np.ndarray = values[np.linspace(0, len(values) - 1, most).round().astype(int)]
    return chosen


def depth_summary(
    summary: dict[str, float], intervals: dict[str, list[float]], settings: Settings
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """The differences forget - never trained, as ``depth/<quantity>``, with intervals. Empty without the two groups."""
    differences: dict[str, float] = {}
    spread: dict[str, list[float]] = {}
    for name in depth_names(settings):
        one, other = f"{FORGET}/{name}", f"{NEVER}/{name}"
        if one not in summary or other not in summary:
            continue
        differences[f"{AREA}/{name}"] = summary[one] - summary[other]
        if one in intervals and other in intervals:
            ends = difference_interval(summary[one], intervals[one], summary[other], intervals[other])
            spread[f"{AREA}/{name}"] = list(ends)
    return differences, spread


def told_apart(intervals: Mapping[str, Sequence[float]]) -> tuple[list[str], int]:
    """The quantities that still tell forget from never-trained passages, and how many were tested.

    Such a quantity's difference has an interval that lies wholly on the side of memorising: above 0, or below it where
    a memorised passage has the lower number. A difference on the other side is damage, and other numbers show it.
    """
    tested = {name.partition("/")[2]: ends for name, ends in intervals.items() if name.startswith(f"{AREA}/")}
    found = [name for name, (low, high) in tested.items() if (high < 0 if name in LOW_IF_MEMORISED else low > 0)]
    return found, len(tested)
