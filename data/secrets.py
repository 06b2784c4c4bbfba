"""What of a passage nobody may get: its secrets, as the data names them, by a pattern, or estimated.

    named      the column ``secrets`` of the data: a JSON list, or strings with " | " between them
    pii        ``--secrets pii``: e-mail addresses, telephone and other numbers, dates, IBANs; see ``PII``
    pattern    ``--secrets re:PATTERN``: what a regular expression finds; where it has a group, what the group finds
    estimated  otherwise: runs of words that no other passage shares (:mod:`data.private_words`)
    none       ``--secrets none``: none are looked for

A secret is text with single spaces. It stands in the suffix as the model's tokenizer decodes it, for that is what an
attacker would read. This module knows texts and a tokenizer that decodes, no models.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import regex

from data.private_words import Text, Word, mark_private, thinned, usual_words
from data.types import Passage
from ppo.io.rows import Place
from ppo.io.surrogates import without_surrogates
from ppo.io.token_ends import token_ends
from ppo.io.visible import visible

SEPARATOR = " | "
MOST_SECRETS = 1000  # of a passage
LONGEST_SECRET = 10_000  # characters
LONGEST_PATTERN = 1000  # characters
SECONDS = 2.0  # that a pattern may take on one passage
SHORTEST_ESTIMATE = 6  # characters of an estimated secret; a sign of a script without spaces counts as two
FEWEST_DIGITS = 4  # ... or so many digits, unless they are a year
MOST_WORDS = 8  # of an estimated secret: a longer run is cut into parts of equal size
_WIDE = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]")
_YEAR = regex.compile(r"(?:19|20)\d\d")


def _has_digits(count: int) -> Callable[[str], bool]:
    def is_kept(found: str) -> bool:
        return sum(character.isdigit() for character in found) >= count and not _YEAR.fullmatch(found)

    return is_kept


@dataclass(frozen=True)
class Pattern:
    """What is looked for, and which of the matches count."""

    expression: regex.Pattern[str]
    is_kept: Callable[[str], bool] = bool

    def spans(self, text: str) -> Iterator[tuple[int, int]]:
        """Where it is found. Where the expression has a group, where the group is. TimeoutError after ``SECONDS``."""
        group = 1 if self.expression.groups else 0
        for match in self.expression.finditer(text, timeout=SECONDS):
            if match.start(group) < match.end(group) and self.is_kept(match.group(group)):
                yield match.span(group)


_DAY = r"\d{1,2}(?:st|nd|rd|th)?"
_MONTH = "(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]*"
PII = {
    "e-mail address": Pattern(regex.compile(r"(?<![\w.+-])[\w.+-]{1,64}@[\w-]{1,64}(?:\.[\w-]{1,64})+")),
    "IBAN": Pattern(regex.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b")),
    "telephone number, seven digits or more": Pattern(
        regex.compile(r"(?<!\w)\+?\(?\d[\d ()/.-]{5,30}\d(?!\w)"), _has_digits(7)
    ),
    "date with the English name of its month": Pattern(
        regex.compile(rf"\b{_DAY} {_MONTH}\.? \d{{4}}\b|\b{_MONTH}\.? {_DAY}, \d{{4}}\b")
    ),
    "number with four digits or more, letters, hyphens, dots and slashes among them; a year alone is none": Pattern(
        regex.compile(r"(?<!\w)[^\W_]+(?:(?:[-/.]|(?<=\d),(?=\d))[^\W_]+)*(?!\w)"), _has_digits(FEWEST_DIGITS)
    ),
}  # fmt: skip
"""What ``--secrets pii`` finds. Names, streets and diagnoses are not among it: name them in the data."""


def check_secrets_option(spec: str | None) -> None:
    """ValueError, before anything is loaded, for an option ``--secrets`` that cannot work."""
    if spec is not None and spec not in ("pii", "none"):
        _patterns(spec)


def _patterns(spec: str) -> list[Pattern]:
    if spec == "pii":
        return list(PII.values())
    if not spec.startswith("re:") or len(spec) > LONGEST_PATTERN:
        raise ValueError(
            f"--secrets {spec!r:.80} must be pii, none or re: with a regular expression of at most "
            f"{LONGEST_PATTERN} characters; passages name theirs in the column secrets of the data"
        )
    try:
        found = regex.compile(spec[3:])
        is_empty = found.search("", timeout=SECONDS) is not None
    except (regex.error, TimeoutError, OverflowError, RecursionError) as error:
        raise ValueError(f"--secrets {spec!r:.80} is no regular expression: {error}") from error
    if is_empty or found.groups > 1:
        wrong = f"has {found.groups} groups" if found.groups > 1 else "fits an empty text"
        raise ValueError(f"--secrets {spec!r:.80} {wrong}: write one that finds the secret, with one group at most")
    return [Pattern(found)]


# ---------------------------------------------------------------------- named in the data


def named_secrets(value: Any, place: Place) -> tuple[str, ...]:
    """The secrets that a row names: a list of strings, or a string with a JSON list or with " | " between them."""
    if isinstance(value, str):
        value = value.strip()
        if value.startswith("["):
            try:
                value = json.loads(value)
            except (json.JSONDecodeError, RecursionError) as error:
                raise ValueError(f"{place}: secrets is {value!r:.80}, no JSON list: {error}") from error
        else:
            value = value.split(SEPARATOR) if value else []
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise ValueError(f"{place}: secrets is {value!r:.80}; it must be a list of strings")
    found = tuple(dict.fromkeys(fold(one) for one in value))
    for one in found:
        if not 0 < len(one) <= LONGEST_SECRET:
            raise ValueError(
                f"{place}: a secret has {len(one)} characters; it must have 1 to {LONGEST_SECRET}: leave it out"
            )
    if len(found) > MOST_SECRETS:
        raise ValueError(f"{place} names {len(found)} secrets, at most {MOST_SECRETS}; name fewer")
    return found


def check_named(passage: Passage, place: Place, decode: Callable[..., str]) -> None:
    """ValueError, with the place of the row, for a named secret that does not stand in the suffix."""
    if not passage.secrets:
        return
    prompt, suffix = (fold(text) for text in _text(passage, decode))
    for secret in passage.secrets:
        if secret in suffix:
            continue
        if secret in prompt:
            raise ValueError(
                f"{place}: the secret {secret!r:.80} stands in the prefix, which the attacker knows: move the end of "
                "the prefix before it, or leave it out of secrets"
            )
        raise ValueError(
            f"{place}: the secret {secret!r:.80} does not stand in the suffix as the model's tokenizer writes it: copy "
            "it from there, or leave it out of secrets"
        )


def fold(text: str) -> str:
    """The text with single spaces in the place of white space."""
    return " ".join(text.split())


# ---------------------------------------------------------------------- found


def with_secrets(
    passages: Sequence[Passage], decode: Callable[..., str], spec: str | None, *, others: Sequence[Passage] = ()
) -> tuple[list[Passage], str]:
    """The passages with their secrets, and how they were found: named, pii, pattern, estimated or none.

    ``others``: further passages of the data, to hold estimates against. ValueError when ``--secrets`` finds nothing, or
    when the data names secrets of its own.
    """
    is_named = any(p.secrets for p in (*passages, *others))
    if spec is not None and is_named:
        raise ValueError(f"--secrets {spec!r:.80}: the data names its secrets; leave the option or the column out")
    if spec == "none":
        return list(passages), "none"
    if is_named:
        _warn_of_unnamed(passages)
        return list(passages), "named"
    texts = texts_of(passages, decode)
    if spec is None:
        found = _estimated(texts, texts_of(thinned(others), decode))
        return [replace(p, secrets=secrets) for p, secrets in zip(passages, found, strict=True)], "estimated"
    patterns = _patterns(spec)
    found = [_matches(text, patterns, spec, p) for p, text in zip(passages, texts, strict=True)]
    if not any(secrets for p, secrets in zip(passages, found, strict=True) if p.group in ("", "forget")):
        raise ValueError(
            f"--secrets {spec!r:.80} finds nothing in the passages to forget: leave it out, or name the secrets in the "
            "column secrets of the data"
        )
    how = "pii" if spec == "pii" else "pattern"
    return [replace(p, secrets=secrets) for p, secrets in zip(passages, found, strict=True)], how


def _warn_of_unnamed(passages: Sequence[Passage]) -> None:
    forget = [p for p in passages if p.group in ("", "forget")]
    without = [p for p in forget if not p.secrets]
    if without:
        warnings.warn(
            f"{len(without)} of {len(forget)} passages to forget (such as {visible(without[0].id)}) name no secret: "
            "of these only the whole suffix is looked for",
            RuntimeWarning,
            stacklevel=4,
        )


def texts_of(passages: Sequence[Passage], decode: Callable[..., str]) -> list[Text]:
    """The text before the suffix and the suffix of every passage, as the tokenizer decodes them."""
    return [_text(p, decode) for p in passages]


def _text(passage: Passage, decode: Callable[..., str]) -> Text:
    parts = (passage.long_prompt_ids, passage.suffix)
    prompt, suffix = (without_surrogates(decode(list(part), skip_special_tokens=True)) for part in parts)
    return prompt, suffix


def _matches(text: Text, patterns: Sequence[Pattern], spec: str, passage: Passage) -> tuple[str, ...]:
    """What the patterns find in a suffix and the prompt does not tell. Matches that overlap become one."""
    prompt, suffix = text
    try:
        spans = sorted(span for pattern in patterns for span in pattern.spans(suffix))
    except TimeoutError as error:
        raise ValueError(
            f"--secrets {spec!r:.80} takes more than {SECONDS:g} s on passage {visible(passage.id)}: simplify it"
        ) from error
    joined: list[tuple[int, int]] = []
    for start, end in spans:
        if joined and start < joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    known = fold(prompt)
    found = dict.fromkeys(fold(suffix[start:end]) for start, end in joined)
    return tuple(secret for secret in found if secret and secret not in known)[:MOST_SECRETS]


def _estimated(texts: Sequence[Text], others: Sequence[Text]) -> list[tuple[str, ...]]:
    """Runs of private words that are hard to guess: no other passage has them, and the prompt does not tell them."""
    whole = list(dict.fromkeys(fold(f"{prompt} {suffix}") for prompt, suffix in (*texts, *others)))
    everywhere, usual = "\n".join(whole), usual_words([text.split() for text in whole])
    found = []
    for (prompt, suffix), words in zip(texts, mark_private(texts, others), strict=True):
        known, own = fold(prompt), fold(f"{prompt} {suffix}")
        spans = [_trimmed(run, usual) for run in _runs(words, suffix)]
        runs = dict.fromkeys(fold(suffix[run[0].start : run[-1].end]) for run in spans if run)
        hard = [r for r in runs if _is_long(r) and r not in known and everywhere.count(r) == own.count(r)]
        found.append(tuple(hard[:MOST_SECRETS]))
    return found


def _trimmed(run: Sequence[Word], usual: set[str]) -> Sequence[Word]:
    """The run without usual words at its ends: with them a secret would hide behind another "with"."""
    chosen = [i for i, word in enumerate(run) if word.text not in usual]
    return run[chosen[0] : chosen[-1] + 1] if chosen else []


def _runs(words: Sequence[Word], suffix: str) -> Iterator[Sequence[Word]]:
    """Private words with nothing but white space between them, at most ``MOST_WORDS`` at a time."""
    runs: list[list[Word]] = [[]]
    for word in words:
        if word.is_sign or not word.is_private:
            runs.append([])
            continue
        if runs[-1] and suffix[runs[-1][-1].end : word.start].strip():
            runs.append([])
        runs[-1].append(word)
    for run in runs:
        count = -(-len(run) // MOST_WORDS)
        for part in range(count):
            yield run[part * len(run) // count : (part + 1) * len(run) // count]


def _is_long(run: str) -> bool:
    width = len(run) + len(_WIDE.findall(run))
    return width >= SHORTEST_ESTIMATE or _has_digits(FEWEST_DIGITS)(run)


def private_masks(
    passages: Sequence[Passage], decode: Callable[..., str], *, has_estimates: bool = True
) -> list[np.ndarray]:
    """For every passage, bool [suffix length]: which tokens of its suffix hold a part of a private word or a secret.

    Private words are estimated from the passages that are given; without ``has_estimates`` the secrets alone count.
    """
    texts = texts_of(passages, decode)
    masks = []
    for passage, (_, suffix), words in zip(passages, texts, mark_private(texts), strict=True):
        spans = [(word.start, word.end) for word in words if word.is_private and has_estimates]
        spans += [match.span() for secret in passage.secrets for match in _written(secret).finditer(suffix)]
        is_private = np.zeros(len(suffix) + 1, dtype=bool)
        for start, end in spans:
            is_private[start:end] = True
        ids = list(passage.suffix)
        ends = token_ends(ids, suffix, lambda part: without_surrogates(decode(list(part), skip_special_tokens=True)))
        masks.append(_of_tokens(is_private, ends))
    return masks


def _written(secret: str) -> regex.Pattern[str]:
    """An expression that finds a secret with any white space in the place of its spaces."""
    return regex.compile(r"\s+".join(map(regex.escape, secret.split())))


def _of_tokens(is_private: np.ndarray, ends: Sequence[int]) -> np.ndarray:
    """bool [tokens]. A token without a character of its own ends one that began before it, and is as that one is."""
    mask = np.zeros(len(ends), dtype=bool)
    for i, end in enumerate(ends):
        start = ends[i - 1] if i else 0
        mask[i] = is_private[start:end].any() if end > start else i > 0 and mask[i - 1]
    return mask
