"""Which findings are memories, and what may be said of the whole: no verdict without controls.

A finding is *predictable* where a model need not have seen it: it adds little under compression, one of its own
controls is recited, another model recites it, too, or the model copies it from its context. This module knows numbers
of findings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Row = dict[str, Any]
LEAST_BITS = 2.0  # a character: English prose adds 3 to 5, a table of numbers 1 to 2, a repeated line next to nothing
FORM_NGRAM = 0.5  # mean probability of a token by short runs elsewhere: forms have more, blanks and all
FORM = "much of it stands elsewhere in the corpus: a form, or its own copies with changes"
MEMORISED, PREDICTABLE, OTHER, UNJUDGED = "memorised", "predictable", "other", "unjudged"
WITHOUT_OWN = "recited texts had no controls of their own, because the first ones took all that are made"
REASONS = {
    "compression": f"its prompt predicts it: it adds fewer than {LEAST_BITS:g} bits a character under zlib",
    "shuffled control": "with its sentences shuffled it is recited, too",
    "swapped control": "with its names and numbers swapped it is recited, too",
    "reference model": "another model recites it, too",
    "context": "it stands earlier in its context: without that it is not recited",
}
"""Why a finding is called predictable, by name."""


def reasons(
    scores: Mapping[str, Any], own: Mapping[str, int], reference: int | None, alone: int | None = None, *, suffix: int
) -> list[str]:
    """The names of what speaks against a memory.

    ``scores``: "added_bits". ``own``: the longest run of each of its controls. ``reference``: the longest
    run of another model; None: it was not asked. ``alone``: the longest run behind its prompt alone, where its context
    shows it before; None: it does not. ``suffix``: tokens of a run that counts as recited.
    """
    found = {
        "compression": scores["added_bits"] < LEAST_BITS,
        "shuffled control": own.get("shuffled", 0) >= suffix,
        "swapped control": own.get("swapped", 0) >= suffix,
        "reference model": reference is not None and reference >= suffix,
        "context": alone is not None and alone < suffix,
    }
    return [name for name, speaks in found.items() if speaks]


def is_form(scores: Mapping[str, Any]) -> bool:
    """Whether much of a text stands elsewhere. It is a mark, for forms can be memories, and quotes are."""
    return bool(scores["ngram"] >= FORM_NGRAM)


def status(against: Sequence[str], *, is_wanted: bool, has_controls: bool) -> str:
    """What a finding is called. ``is_wanted``: whether it holds what was asked for (``--only pii``)."""
    if not has_controls:
        return UNJUDGED
    if against:
        return PREDICTABLE
    return MEMORISED if is_wanted else OTHER


def verdict(findings: Sequence[Mapping[str, Any]], controls: Mapping[str, Any], *, passes: int) -> Row:
    """The state of a scan, "memorised", "nothing found" or "no verdict", with the bound of what chance explains.

    ``by_chance_at_most``: of the ``passes``, as many would hold a finding if the true false-positive rate were at the
    upper end of its interval.
    """
    everything = controls.get("all", {})
    if not everything.get("controls"):
        return {"state": "no verdict", "why": "there were no controls"}
    count = sum(f["status"] == MEMORISED for f in findings)
    return {
        "state": "memorised" if count else "nothing found", "findings": count,
        "false_positive_rate": everything["rate"], "false_positive_rate_at_most": everything["interval"][1],
        "by_chance_at_most": everything["interval"][1] * passes,
    }  # fmt: skip
