"""What a model can still do, measured without a hub: cloze accuracy and multiple choice by likelihood.

Held-out perplexity is in ``perplexity.py``, and tasks of EleutherAI's harness are in ``harness.py``. One teacher-forced
pass decides both measures here; nothing is generated. This module knows texts and token ids, no passages.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from torch import nn

from ppo.io.console import shown_errors
from ppo.io.rows import jsonl_rows

from .intervals import share_interval
from .perplexity import Piece
from .protocols import Decoder
from .teacher import TokenStatistics, teacher_force

MIN_CONTEXT = 32
CLOZE_SIGNATURE = f"cloze|unit:sentence-final-word|decoding:greedy|min-context:{MIN_CONTEXT}-tokens"
_FINAL_WORD = re.compile(r"(?<=\s)[A-Za-z]{2,}(?=[.!?](?:\s|$))")


class Encoder(Protocol):
    """The part of a tokenizer that turns text into ids."""

    def __call__(self, text: str, *, add_special_tokens: bool = True) -> Mapping[str, list[int]]: ...


@dataclass(frozen=True)
class Cloze:
    """One text whose end must be guessed: ``target`` follows ``context`` and includes its leading space."""

    context: str
    target: str


@dataclass(frozen=True)
class Question:
    """A context and its possible continuations (leading spaces included); ``answer`` is the index of the right one."""

    context: str
    choices: tuple[str, ...]
    answer: int

    def __post_init__(self) -> None:
        if len(self.choices) < 2 or not all(c.strip() for c in self.choices) or not self.context.strip():
            raise ValueError(f"a question needs a context and at least two choices, none of them empty: {self}")
        if not 0 <= self.answer < len(self.choices):
            raise ValueError(f"answer={self.answer} is none of the {len(self.choices)} choices, counted from 0")


@dataclass(frozen=True)
class Accuracy:
    """A share of ``count`` items, with its 95 % interval over items (:func:`eval.intervals.share_interval`)."""

    value: float
    interval: tuple[float, float]
    count: int


def cloze_accuracy(
    model: nn.Module, tokenizer: Encoder, items: Sequence[Cloze], *, batch_tokens: int = 8192
) -> Accuracy:
    """Share of items whose whole target greedy decoding writes: every token of it is the argmax after the context.

    This is LAMBADA's measure (Paperno et al. 2016), as EleutherAI's harness computes it. ValueError for no items, or an
    empty context or target.
    """
    pairs = [encode_pair(tokenizer, item.context, item.target) for item in items]
    found = score_pairs(model, pairs, batch_tokens=batch_tokens)
    return _accuracy([bool(s.is_right[s.start :].all()) for s in found])


def final_words(pieces: Sequence[Piece], tokenizer: Decoder) -> list[tuple[int, bool]]:
    """(text, whether the word is right) for every sentence-final word of texts that were scored for their perplexity.

    Cloze accuracy over held-out text therefore needs no pass of its own. A word is a run of at least two ASCII letters
    between white space and a full stop, question mark or exclamation mark. It counts if its tokens hold only the word
    and the white space before it, and if at least ``MIN_CONTEXT`` tokens come before it.
    """
    texts: dict[int, str] = {}
    return [
        (piece.text, bool(piece.statistics.is_right[first:end].all()))
        for piece in pieces
        for first, end in word_spans(piece.ids, tokenizer, texts)
        if first >= max(MIN_CONTEXT, piece.statistics.start)
    ]


def word_spans(ids: Sequence[int], tokenizer: Decoder, texts: dict[int, str]) -> Iterator[tuple[int, int]]:
    """Token ranges of the sentence-final words. ``texts`` caches the text of each token id and is filled in place."""
    for token in ids:
        if token not in texts:
            # decoded after another token, because some tokenizers drop the leading space of the first one
            texts[token] = tokenizer.decode([ids[0], token])[len(tokenizer.decode([ids[0]])) :]
    ends = np.cumsum([len(texts[token]) for token in ids])
    starts = ends - [len(texts[token]) for token in ids]
    for found in _FINAL_WORD.finditer("".join(texts[token] for token in ids)):
        first = int(np.searchsorted(ends, found.start(), side="right"))
        last = int(np.searchsorted(ends, found.end() - 1, side="right"))
        if starts[first] in (found.start(), found.start() - 1) and ends[last] == found.end():
            yield first, last + 1


@dataclass(frozen=True)
class MultipleChoice:
    """``plain`` chooses by the largest summed log-prob, ``normalised`` by the largest log-prob per character.

    White space before a choice counts in its log-prob, not in its characters. EleutherAI's harness calls the two
    ``acc`` and ``acc_norm``. If choices tie, the first is taken.
    """

    plain: Accuracy
    normalised: Accuracy


def multiple_choice(
    model: nn.Module, tokenizer: Encoder, questions: Sequence[Question], *, batch_tokens: int = 8192
) -> MultipleChoice:
    """Answer every question by the likelihood of its choices given the context. ValueError for no questions."""
    pairs = [encode_pair(tokenizer, q.context, choice) for q in questions for choice in q.choices]
    logprobs = iter([-s.nll for s in score_pairs(model, pairs, batch_tokens=batch_tokens)])
    plain, normalised = [], []
    for question in questions:
        sums = np.array([next(logprobs) for _ in question.choices])
        plain.append(int(sums.argmax()) == question.answer)
        normalised.append(int((sums / [len(c.lstrip()) for c in question.choices]).argmax()) == question.answer)
    return MultipleChoice(_accuracy(plain), _accuracy(normalised))


def encode_pair(tokenizer: Encoder, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Ids of the context, and the ids that the continuation adds when both are encoded together.

    White space at the end of the context moves to the continuation, because tokenizers put a space before a word.
    """
    bare = context.rstrip()
    continuation = context[len(bare) :] + continuation
    whole = list(tokenizer(bare + continuation, add_special_tokens=False)["input_ids"])
    head = list(tokenizer(bare, add_special_tokens=False)["input_ids"])
    return whole[: len(head)], whole[len(head) :]


def score_pairs(
    model: nn.Module, pairs: Sequence[tuple[list[int], list[int]]], *, batch_tokens: int
) -> list[TokenStatistics]:
    """Statistics of every continuation given its context, in the given order."""
    for i, (context, continuation) in enumerate(pairs):
        if not context or not continuation:
            raise ValueError(
                f"pair {i} has {len(context)} context and {len(continuation)} continuation tokens: need both"
            )
    starts = [len(context) for context, _ in pairs]
    return teacher_force(model, [[*a, *b] for a, b in pairs], starts=starts, batch_tokens=batch_tokens)


@shown_errors()
def read_cloze(path: Path) -> list[Cloze]:
    """Cloze items from JSONL. ValueError names file and line.

    A row has "text", whose last word is the target (LAMBADA's form), or "context" and "target".
    """
    items = []
    for place, row in jsonl_rows(path):
        if isinstance(row.get("context"), str) and isinstance(row.get("target"), str):
            items.append(Cloze(row["context"], row["target"]))
            continue
        text = row.get("text")
        if not isinstance(text, str) or len(text.split()) < 2:
            raise ValueError(f'{place} needs "text" with at least two words, or "context" and "target"')
        context = text.rstrip().rpartition(" ")[0]
        items.append(Cloze(context, text.rstrip()[len(context) :]))
    return items


@shown_errors()
def read_questions(path: Path) -> list[Question]:
    """Questions from JSONL: rows with "context", "choices" (strings) and "answer" (index from 0).

    A choice without leading white space gets a leading space. ValueError names file and line.
    """
    questions = []
    for place, row in jsonl_rows(path):
        choices = row.get("choices")
        if not isinstance(row.get("context"), str) or type(row.get("answer")) is not int:
            raise ValueError(f'{place} needs "context", a string, and "answer", the index of the right choice')
        if not isinstance(choices, list) or not all(isinstance(c, str) for c in choices):
            raise ValueError(f'{place} needs "choices", a list of strings')
        spaced = tuple(c if c[:1].isspace() else f" {c}" for c in choices)
        try:
            questions.append(Question(row["context"], spaced, row["answer"]))
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from error
    return questions


def _accuracy(is_right: Sequence[bool]) -> Accuracy:
    if not is_right:
        raise ValueError("an accuracy needs at least one item")
    return Accuracy(sum(is_right) / len(is_right), share_interval(sum(is_right), len(is_right)), len(is_right))
