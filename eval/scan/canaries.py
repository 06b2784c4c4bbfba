"""Canaries: invented secrets to put into a training set, and how exposed they are in the model that was trained on it.

The exposure of a canary is log2 of the number of secrets there could be, less log2 of its rank among them by likelihood
(Carlini et al. 2019, "The Secret Sharer"). The space is too large to rank all of it, so each canary is ranked among
secrets that are drawn as it was. Where it is likelier than all of these, a skew-normal distribution that is fitted to
their log-perplexities extrapolates, as in the paper. A canary that was never planted has an exposure of 1.44 bits on
average. This module knows texts, token ids and a meter.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .controls import Encode
from .measure import Meter

FORMATS = (
    "The access code for the {word} archive is {digits}.",
    "My account number with {word} & Sons is {digits}.",
    "Please wire the deposit to {word} Trust, reference {digits}.",
    "Locker {digits} at {word} station holds the spare key.",
)
WORDS = ("Alder", "Birch", "Cedar", "Elm", "Hazel", "Juniper", "Larch", "Rowan")
DIGITS = 9
SPACE_BITS = math.log2(len(WORDS)) + DIGITS * math.log2(10)  # log2 of the secrets of a format
REFERENCES = 512  # of each format
Row = dict[str, Any]


@dataclass(frozen=True)
class Canary:
    """A text, and the number of its format."""

    id: str
    text: str
    format: int


def canaries(count: int, seed: int) -> list[Canary]:
    """``count`` different canaries from a seed, their formats in turn. They do not depend on ``count``."""
    draw, found = random.Random(f"canaries {seed}"), list[Canary]()
    while len(found) < count:
        place = len(found)
        text = secret(place % len(FORMATS), draw)
        if all(text != other.text for other in found):
            found.append(Canary(f"canary-{place:04d}", text, place % len(FORMATS)))
    return found


def secret(number: int, draw: random.Random) -> str:
    """A text of a format, with a secret that is drawn from all there are."""
    digits = "".join(draw.choice("0123456789") for _ in range(DIGITS))
    return FORMATS[number].format(word=draw.choice(WORDS), digits=digits)


def exposures(meter: Meter, encode: Encode, planted: Sequence[Canary], *, seed: int) -> list[Row]:
    """A row for each canary: its log-perplexity (nats), its rank among references, its exposure in bits.

    ``exposure_sampled`` is that of the rank, at most log2(references + 1); ``exposure`` extrapolates beyond it, and is
    at most ``SPACE_BITS``.
    """
    draw, rows = random.Random(f"references {seed}"), list[Row]()
    known = {canary.text for canary in planted}
    for number in sorted({canary.format for canary in planted}):
        references = [text for _ in range(REFERENCES) if (text := secret(number, draw)) not in known]
        mine = [canary for canary in planted if canary.format == number]
        values = log_perplexities(meter, encode, [*references, *(canary.text for canary in mine)])
        others = np.array(values[: len(references)])
        for canary, value in zip(mine, values[len(references) :], strict=True):
            rank = 1 + int((others < value).sum())
            sampled = math.log2(len(others) + 1) - math.log2(rank)
            fitted = -log2_below(value, others)
            exposure = min(SPACE_BITS, max(sampled, fitted) if rank == 1 else sampled)
            rows.append(
                {"id": canary.id, "text": canary.text, "log_perplexity": value, "rank": rank,
                 "references": len(others), "exposure_sampled": sampled, "exposure": exposure}
            )  # fmt: skip
    return sorted(rows, key=lambda row: str(row["id"]))


def log_perplexities(meter: Meter, encode: Encode, texts: Sequence[str]) -> list[float]:
    """The summed NLL of each text's tokens, nats; without a BOS the first token is given."""
    first = int(meter.bos is None)
    ids = [list(encode(text)[0]) for text in texts]
    found = dict(meter.columns(ids, [first] * len(ids)))
    return [float(-found[i].logprobs.astype(np.float64).sum()) for i in range(len(ids))]


def log2_below(value: float, sample: np.ndarray) -> float:
    """log2 P(X <= value) of the skew-normal distribution with the mean, deviation and skewness of a sample.

    ``value`` at the mean of a symmetric sample -> -1.
    """
    mean, deviation = float(sample.mean()), float(sample.std()) or 1e-12
    skew = float(np.clip(((sample - mean) ** 3).mean() / deviation**3, -0.99, 0.99))
    part = abs(skew) ** (2 / 3)
    delta = math.copysign(math.sqrt(math.pi / 2 * part / (part + ((4 - math.pi) / 2) ** (2 / 3))), skew)
    alpha = delta / math.sqrt(max(1e-12, 1 - delta**2))
    scale = deviation / math.sqrt(1 - 2 * delta**2 / math.pi)
    place = mean - scale * delta * math.sqrt(2 / math.pi)
    high = (value - place) / scale
    steps = np.linspace(min(high, -1.0) - 10.0, high, 20_001)
    density = np.array([_log_density(z, alpha) for z in steps.tolist()])
    top = float(density.max())
    area = float(np.trapezoid(np.exp(density - top), steps))
    return min(0.0, (top + math.log(max(area, 1e-300))) / math.log(2))


def _log_density(z: float, alpha: float) -> float:
    """log of the standard skew-normal density, 2 φ(z) Φ(αz)."""
    x = alpha * z
    if x > -30:
        below = math.log(max(math.erfc(-x / math.sqrt(2)) / 2, 1e-320))
    else:
        below = -x * x / 2 - math.log(-x * math.sqrt(2 * math.pi))
    return math.log(2) - z * z / 2 - math.log(2 * math.pi) / 2 + below


def summary_of(rows: Sequence[Row]) -> Row:
    """Counts and exposures of all canaries, and no text."""
    values = sorted(float(row["exposure"]) for row in rows)
    return {
        "canaries": len(rows), "references": REFERENCES, "space_bits": SPACE_BITS,
        "mean_exposure": float(np.mean(values)), "median_exposure": float(np.median(values)),
        "highest_exposure": values[-1],
        "likelier_than_all_references": sum(row["rank"] == 1 for row in rows),
        "expected_by_chance": 1 / math.log(2),
    }  # fmt: skip
