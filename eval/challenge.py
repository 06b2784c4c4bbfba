"""The training-data extraction challenge's own score: recall at 100 errors, and its CSV of guesses.

A guess is an example's number and a suffix. Guesses are counted from the most to the least confident. Recall is the
share of *all* examples that are solved before 100 guesses are wrong, so the confidences matter as much as the guesses.
This module knows token ids; the caller knows which passages the examples are.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from ppo.config import Sampling
from ppo.generation import generate as ppo_generate
from ppo.io.console import shown_errors
from ppo.io.plain_files import new_text
from ppo.io.rows import csv_rows, read_ids

from .protocols import Generate
from .teacher import teacher_force

COLUMNS = ("Example ID", "Suffix Guess")
CONFIDENCE = "Confidence"
MAX_ERRORS = 100
BASELINE = Sampling(temperature=1.0, top_k=10)


@dataclass(frozen=True)
class Guess:
    """``example``: row number, from 0. ``suffix``: token ids. ``confidence``: higher means more confident."""

    example: int
    suffix: tuple[int, ...]
    confidence: float


@dataclass(frozen=True)
class Score:
    """``recall`` at the given number of errors, and ``precision`` of the guesses counted until then."""

    recall: float
    precision: float
    num_right: int
    num_errors: int


def recall_at_errors(
    guesses: Sequence[Guess], truths: Sequence[Sequence[int]], *, max_errors: int = MAX_ERRORS
) -> Score:
    """Count the guesses in the order of falling confidence until ``max_errors`` are wrong or no guess remains.

    An example that is guessed right several times counts once for recall; a wrong guess counts every time. Guesses of
    equal confidence keep their order. ValueError for an example that does not exist, or when there are no examples.
    """
    if not truths or max_errors < 1:
        raise ValueError(f"{len(truths)} examples and max_errors={max_errors}: both must be at least 1")
    solved: set[int] = set()
    num_right = num_errors = 0
    for guess in ranked(guesses):
        if not 0 <= guess.example < len(truths):
            raise ValueError(f"guess for example {guess.example}, but there are only {len(truths)}, counted from 0")
        if num_errors == max_errors:
            break
        if tuple(truths[guess.example]) == guess.suffix:
            solved.add(guess.example)
            num_right += 1
        else:
            num_errors += 1
    counted = num_right + num_errors
    return Score(len(solved) / len(truths), num_right / counted if counted else 0.0, num_right, num_errors)


def ranked(guesses: Sequence[Guess]) -> list[Guess]:
    """Guesses from the most to the least confident. Guesses of equal confidence keep their order."""
    return sorted(guesses, key=lambda guess: -guess.confidence)


def signature(sampling: Sampling, *, num_samples: int, seed: int, max_errors: int = MAX_ERRORS) -> str:
    """What exactly was measured, as a signature in sacrebleu's style."""
    sampler = f"temperature:{sampling.temperature:g}|top_k:{sampling.top_k}|top_p:{sampling.top_p:g}"
    return f"recall|at-errors:{max_errors}|{sampler}|samples:{num_samples}|seed:{seed}|confidence:mean-suffix-logprob"


def make_guesses(
    model: nn.Module,
    prefixes: Sequence[Sequence[int]],
    suffix_length: int = 50,
    *,
    sampling: Sampling = BASELINE,
    num_samples: int = 8,
    seed: int = 0,
    slots: int = 64,
    batch_tokens: int = 8192,
    generate: Generate = ppo_generate,
) -> list[Guess]:
    """One guess per example: the most likely of ``num_samples`` samples.

    The confidence is the mean log-prob of its ``suffix_length`` tokens under the model (not under the sampler). It also
    decides which sample is the most likely. EOS does not end a guess, so every guess has ``suffix_length`` tokens.
    Guesses come in the order of ``prefixes``.
    """
    asked = Sampling(
        response_length=suffix_length,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        num_samples=num_samples,
        eos_ids=(),
    )
    prompts = [[int(token) for token in prefix] for prefix in prefixes]
    generation = generate(model, prompts, asked, seed=seed, slots=slots)
    suffixes = generation.tokens.tolist()
    candidates = [
        sorted({tuple(s) for s in suffixes[i * num_samples : (i + 1) * num_samples]}) for i in range(len(prompts))
    ]
    pairs = [(i, suffix) for i, found in enumerate(candidates) for suffix in found]
    values = confidences(
        model, [prompts[i] for i, _ in pairs], [suffix for _, suffix in pairs], batch_tokens=batch_tokens
    )
    best: dict[int, Guess] = {}
    for (i, suffix), value in zip(pairs, values, strict=True):
        if i not in best or value > best[i].confidence:
            best[i] = Guess(i, suffix, value)
    return [best[i] for i in range(len(prompts))]


def confidences(
    model: nn.Module,
    prefixes: Sequence[Sequence[int]],
    suffixes: Sequence[Sequence[int]],
    *,
    batch_tokens: int = 8192,
) -> list[float]:
    """Mean log-prob of every suffix given its prefix, in nats per token, over all its tokens.

    The challenge's published baseline misses the last token; see ``quirks.off_by_one_confidence``.
    """
    sequences = [[*prefix, *suffix] for prefix, suffix in zip(prefixes, suffixes, strict=True)]
    starts = [len(prefix) for prefix in prefixes]
    found = teacher_force(model, sequences, starts=starts, batch_tokens=batch_tokens)
    return [-s.nll / (len(s) - s.start) for s in found]


def write_guesses(path: Path, guesses: Sequence[Guess]) -> None:
    """Write the challenge's CSV, most confident guess first: "Example ID", "Suffix Guess" ("[1,2,3]"), "Confidence".

    The last column is our addition. The official scorer reads columns by name and ranks guesses by their order.
    """
    with new_text(path, newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*COLUMNS, CONFIDENCE])
        for guess in ranked(guesses):
            writer.writerow([guess.example, json.dumps(guess.suffix, separators=(",", ":")), repr(guess.confidence)])


@shown_errors()
def read_guesses(path: Path) -> list[Guess]:
    """Guesses of a CSV in the challenge's format. Without "Confidence" the first guess is the most confident.

    ValueError, with file and line, for a missing column or an invalid number or list of token ids.
    """
    guesses = []
    for number, (place, row) in enumerate(csv_rows(path, COLUMNS)):
        try:
            suffix = json.loads(row["Suffix Guess"])
            if not isinstance(suffix, list) or not all(type(token) is int for token in suffix):
                raise ValueError(f"Suffix Guess is {row['Suffix Guess']!r:.80}, no list of token ids")
            confidence = float(row[CONFIDENCE]) if row.get(CONFIDENCE) else -float(number)
            if math.isnan(confidence):
                raise ValueError(f"{CONFIDENCE} is no number")
            guesses.append(Guess(int(row["Example ID"]), tuple(suffix), confidence))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{place}: {error}") from error
    return guesses


@shown_errors()
def read_truths(path: Path) -> list[tuple[int, ...]]:
    """The true suffixes of a ``.npy`` file, integers [rows, tokens]. Nothing is unpickled."""
    return [tuple(row) for row in read_ids(path).astype(np.int64).tolist()]
