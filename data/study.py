"""All data of an unlearning experiment: passages in groups, text to keep, text to test on.

The lab has all of it. Other passages may name their groups. If they do not, all of them are to be forgotten; on request
some are drawn into *forget_holdout* and *never*, which share no 20-gram. Without text to keep, Python's
documentation is used. This module knows token ids and files, and nothing about models or training.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from data.lab import lab_holdout, lab_retain
from data.passages import load_passages
from data.retain import load_retain
from data.secrets import with_secrets
from data.splits import NGRAM, leak_free_split, ngram_groups, overlapping, split_holdout
from data.subjects.load import evenly, named_subject
from data.types import Passage
from ppo.io.visible import visible

_LEAK = "give each text to one group"
_HARM = {
    frozenset(("forget", "never")): "the chance floor would be that of memorised text: give each text to one group",
    frozenset(("forget", "keep")): "what is to be forgotten is to be kept as well: give each text to one group",
}
GENERAL_TOKENS = 128  # length of a retain or holdout sequence
HOLDOUT_SHARE = 0.2  # of the text to keep, if the caller gives it


@dataclass(frozen=True)
class Study:
    """``passages``: of all groups. ``retain`` and ``holdout``: general text as token ids, disjoint.

    ``num_left_out``: number of passages in the data that are in no group, because fewer were requested.
    ``secrets_by``: how the passages' secrets were found (:mod:`data.secrets`).
    """

    passages: list[Passage]
    retain: list[list[int]]
    holdout: list[list[int]]
    num_left_out: int = 0
    secrets_by: str = "none"

    def group(self, name: str) -> list[Passage]:
        """The passages of one group, in order."""
        return [p for p in self.passages if p.group == name]


def load_study(
    data: str,
    tokenizer: Any,
    vocab_size: int,
    *,
    split: str | None = None,
    retain: Sequence[str] = (),
    num_forget: int | None = None,
    num_holdout: int | None = None,
    num_never: int | None = None,
    seed: int = 0,
    secrets: str | None = None,
) -> Study:
    """The data of an experiment, from ``data``: whatever :func:`data.passages.load_passages` takes.

    ``retain``: text or JSONL files; () means Python's documentation. If the data names no groups, they are drawn by
    ``seed`` (:func:`draw_groups`); without any of the numbers all passages are to be forgotten. Of a benchmark
    ("hubble:FOLDER") the numbers are drawn within the groups that it names (:func:`draw_within`). ``secrets``: None,
    "pii", "none" or "re:PATTERN" (:mod:`data.secrets`). ValueError names the file, the place and the remedy. A
    RuntimeWarning tells of passages that share a run of 20 tokens with another group, with the text to keep or with the
    held-out text.
    """
    if retain:
        chunks = load_retain(retain, tokenizer, GENERAL_TOKENS)
        kept, held = split_holdout(chunks, holdout_share=HOLDOUT_SHARE, seed=seed)
    else:
        kept, held = lab_retain(tokenizer, GENERAL_TOKENS), lab_holdout(tokenizer, GENERAL_TOKENS)
    rows = load_passages(data, tokenizer, vocab_size, split=split)
    ungrouped = [p.id for p in rows if not p.group]
    if ungrouped and len(ungrouped) < len(rows):
        raise ValueError(
            f"{visible(data)}: passage {visible(ungrouped[0])} names no group while others do; name it for all "
            "or for none"
        )
    has_numbers = (num_forget, num_holdout, num_never) != (None, None, None)
    if not ungrouped and has_numbers and named_subject(data):
        passages = draw_within(rows, num_forget=num_forget, num_holdout=num_holdout, num_never=num_never, seed=seed)
    elif not ungrouped:
        if has_numbers:
            raise ValueError(
                f"{visible(data)} names the group of every passage: --num-forget, --num-holdout and --num-never do not "
                "apply"
            )
        passages = rows
    else:
        passages = draw_groups(
            rows,
            num_forget=num_forget,
            num_holdout=num_holdout or 0,
            num_never=num_never or 0,
            seed=seed,
        )
    passages, how = with_secrets(passages, tokenizer.decode, secrets, others=rows)
    _warn_of_shared_text(passages, kept, held)
    return Study(passages, kept, held, len(rows) - len(passages), how)


def _warn_of_shared_text(passages: Sequence[Passage], retain: Sequence[Any], holdout: Sequence[Any]) -> None:
    """Warn where a passage to forget stands elsewhere too, or where two groups share a text.

    Records of one form share runs of tokens and are still several records, so this is no error.
    """
    groups: dict[str, list[Passage]] = {}
    for p in passages:
        groups.setdefault(p.group, []).append(p)
    for one, other in combinations(groups, 2):
        found = overlapping([p.ids for p in groups[one]], [p.ids for p in groups[other]])
        if found:
            _warn(groups[one], found, f"passages of the group {other!r}", _HARM.get(frozenset((one, other)), _LEAK))
    forget = groups.get("forget", [])
    for texts, where, harm in (
        (retain, "the text to keep", "training would teach them again: take them out of --retain"),
        (holdout, "the held-out text", "its perplexity would count forgetting as damage: take them out of --retain"),
    ):
        if found := overlapping([p.ids for p in forget], texts):
            _warn(forget, found, where, harm)


def _warn(passages: Sequence[Passage], found: Sequence[int], where: str, harm: str) -> None:
    first = passages[found[0]]
    warnings.warn(
        f"{len(found)} of {len(passages)} passages of the group {first.group!r} (such as {visible(first.id)}) share a "
        f"run of {NGRAM} tokens with {where}: {harm}",
        RuntimeWarning,
        stacklevel=4,
    )


def draw_groups(
    rows: Sequence[Passage], *, num_forget: int | None, num_holdout: int, num_never: int, seed: int
) -> list[Passage]:
    """Draw passages into the groups forget, forget_holdout and never.

    With ``num_forget`` no two groups share a 20-gram, and no two of the passages do. The never group is drawn last, so
    that its number does not change the others. Without it, all that the other two leave is to be forgotten, whatever it
    shares with them. ValueError for too few rows.
    """
    sizes = {"forget": num_forget or 0, "forget_holdout": num_holdout}
    groups = leak_free_split(rows, asked, seed=seed) if (asked := {n: s for n, s in sizes.items() if s}) else {}
    if num_never:
        taken = {p.id for members in groups.values() for p in members}
        labels = ngram_groups([p.ids for p in rows])
        used = {label for p, label in zip(rows, labels, strict=True) if p.id in taken}
        rest = [p for p, label in zip(rows, labels, strict=True) if label not in used]
        groups |= leak_free_split(rest, {"never": num_never}, seed=seed)
    if num_forget is None:
        taken = {p.id for members in groups.values() for p in members}
        groups = {"forget": [p for p in rows if p.id not in taken], **groups}
    return [replace(p, group=name) for name, members in groups.items() for p in members]


def draw_within(
    rows: Sequence[Passage], *, num_forget: int | None, num_holdout: int | None, num_never: int | None, seed: int
) -> list[Passage]:
    """Draw from each group that the rows name; forget and forget_holdout both come from what is to be forgotten.

    As many are kept as are to be forgotten, evenly spaced, and so are those that were never seen unless ``num_never``
    says how many. ValueError for too few rows.
    """
    of = {group: [p for p in rows if p.group == group] for group in ("forget", "keep", "never")}
    drawn = draw_groups(of["forget"], num_forget=num_forget, num_holdout=num_holdout or 0, num_never=0, seed=seed)
    never = of["never"]
    if num_never:
        never = leak_free_split(never, {"never": num_never}, seed=seed)["never"]
    return [*drawn, *evenly(of["keep"], len(drawn)), *(never if num_never else evenly(never, len(drawn)))]


def windows(passage: Passage, count: int) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(prompt, continuation) pairs at up to ``count`` places of a passage, each half a suffix earlier than the last.

    The first pair is the passage's own prefix and suffix. A pair that would begin before the passage is skipped.
    Example: with ``pre_prefix``, ``prefix`` and ``suffix`` of 4 tokens each, the pairs are (4 … 7 → 8 … 11),
    (2 … 5 → 6 … 9) and (0 … 3 → 4 … 7).
    """
    step = max(1, len(passage.suffix) // 2)
    first = len(passage.pre_prefix)
    starts = [first - step * k for k in range(count) if first >= step * k]
    middle, size = len(passage.prefix), len(passage.prefix) + len(passage.suffix)
    return [(passage.ids[start : start + middle], passage.ids[start + middle : start + size]) for start in starts]


def check_fits(study: Study, context: int | None, response_length: int) -> None:
    """Raise ValueError, before any work, for a passage or response longer than ``context`` tokens (None: no limit)."""
    longest = max(len(p.suffix) for p in study.passages)  # every continuation is as long as the longest suffix
    for p in study.passages if context is not None else []:
        needed = max(len(p.ids), len(p.prefix) + max(response_length, longest))
        if needed > context:
            raise ValueError(
                f"passage {visible(p.id)} needs {needed} tokens (its own {len(p.ids)}; prefix {len(p.prefix)} + "
                f"response_length {response_length}), which exceeds the model's context of {context}: shorten it or "
                "--response-length"
            )
