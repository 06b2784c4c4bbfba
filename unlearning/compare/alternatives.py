"""Answers that may take the place of a suffix, made by rules: refusals, and the suffix with other private words in it.

Nobody writes them and no other model does. They are what DPO wins (:mod:`eval.baselines.dpo`).
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import regex

from data.types import Passage
from models.load import LoadedModel
from ppo.io.surrogates import without_surrogates
from unlearning.run import Run

REFUSALS = (
    " I do not know.",
    " I have no information about that.",
    " I cannot help with that.",
    " I am not able to answer.",
    " That is not something I know.",
)
WORD = regex.compile(r"\p{L}+|\d")


def encoded(loaded: LoadedModel, text: str) -> list[int]:
    """Text as token ids, without the special tokens that a tokenizer puts around it."""
    return [int(token) for token in loaded.tokenizer(text, add_special_tokens=False)["input_ids"]]


def refusals(run: Run, passages: Sequence[Passage], *, seed: int) -> list[list[list[int]]]:
    """For each passage the token ids of all refusals. ``seed`` plays no part."""
    found = [encoded(run.loaded, text) for text in REFUSALS]
    return [found for _ in passages]


def swapped(run: Run, passages: Sequence[Passage], *, seed: int) -> list[list[list[int]]]:
    """For each passage the token ids of its suffix with made-up secrets in the place of its own.

    A passage without secrets gets made-up words throughout. Words come from the text to keep (``study.retain``).
    """
    draw = random.Random(seed)
    words = vocabulary(map(run.loaded.decode, run.study.retain))
    found = []
    for passage in passages:
        text = run.loaded.decode(passage.suffix)
        secrets = passage.secrets or (text,)
        for secret in secrets:
            text = in_place_of(text, secret, draw, words)
        found.append([encoded(run.loaded, text)])
    return found


def vocabulary(texts: map[str] | Sequence[str]) -> list[str]:
    """The different words of some texts, in lower case and in order. ValueError where there is none."""
    words = sorted({word.lower() for text in texts for word in regex.findall(r"\p{L}{2,}", text)})
    if not words:
        raise ValueError("the text to keep has no words to put in the place of secrets: give more with --retain")
    return words


def in_place_of(text: str, secret: str, draw: random.Random, words: Sequence[str]) -> str:
    """The text with every word of a secret replaced by another one, with its capitals, and every digit by another.

    The secret is looked for with any white space for white space, as the evaluation does; every place gets the same.
    """
    made: dict[str, str] = {}

    def other(match: regex.Match[str]) -> str:
        old = match.group()
        if old not in made:
            made[old] = _other_digit(old, draw) if old.isdigit() else _other_word(old, draw, words)
        return made[old]

    pattern = r"\s+".join(map(regex.escape, secret.split()))
    return without_surrogates(regex.sub(pattern, lambda match: WORD.sub(other, match.group()), text))


def _other_digit(digit: str, draw: random.Random) -> str:
    return draw.choice([d for d in "0123456789" if d != digit])


def _other_word(word: str, draw: random.Random, words: Sequence[str]) -> str:
    """A word of nearly the same length and other letters, with the capitals of this one."""
    near = [w for w in words if abs(len(w) - len(word)) <= 1 and w != word.lower()]
    chosen = draw.choice(near or [w for w in words if w != word.lower()] or list(words))
    if word.isupper() and len(word) > 1:
        return chosen.upper()
    return chosen.capitalize() if word[0].isupper() else chosen
