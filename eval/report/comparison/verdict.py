"""A comparison in words: who beats whom, how sure that is, which model is clean, and how far each is from the target.

Every sentence is computed from the means (:mod:`eval.beats`, :mod:`eval.clean`). This module knows no HTML.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import fmean

from ...beats import LEVEL, RESAMPLES, WORDS, Contest, Difference, Duel
from ...clean import judge
from ...margins import AREAS, COMPARED
from ...pareto import MOST_COMPARED, TARGET, Mean, contest, target
from ...verdict import Verdict
from ..verdict import HEADS
from .text import number

OWN = ("demem", "deep")
"""The methods whose every point is held against all others in words."""
KINDS = {"training": "methods that train", "decoding": "decoding defences"}
SHORT = {"beats": "better", "beaten": "worse", "mixed": "mixed", "same": "same", "unsure": "cannot tell",
         "not measured": "not measured"}  # fmt: skip
TOLD = (
    ("forget/ma_suffix", "suffix accuracy", "share"),
    ("forget/bleu", "BLEU", "score"),
    ("perplexity_ratio", "perplexity ratio", "ratio"),
    ("membership/loss_auc", "membership AUC", "number"),
)
"""What is told of the target."""
NOT_MEASURED = "Who beats whom was not measured: these points hold no values of single passages."
HEAD = (
    f"Who beats whom is decided passage by passage: a paired bootstrap ({RESAMPLES:,} draws of the passages, and of "
    f"the trainings where a method has several; with one training nothing is said of another). A method is better than "
    f"another if it is better in something and worse in nothing, among {', '.join(AREAS)}. A difference counts if its "
    f"interval leaves 0 out and it is as large as the margin below; the intervals of a pair hold together at "
    f"{LEVEL:.0%}. What has collapsed beats nobody."
)


def sentences(all_means: Sequence[Mean]) -> list[str]:
    """What the comparison says about DeMem: against methods that train first, then against decoding defences."""
    own = [m for m in all_means if m.method in OWN and m.kind == "training"]
    if not own:
        return [HEAD, "DeMem was not among the methods."]
    lines = [HEAD]
    for size in dict.fromkeys(m.size for m in own):
        held = contest(all_means, size)
        mine = sorted((m for m in own if m.size == size), key=lambda m: not m.is_default)
        lines.append(_goal(all_means, size))
        if not any(held.is_measured(m.points) for m in mine):
            lines.append(NOT_MEASURED)
        else:
            rivals = [m for m in all_means if m.size == size and m.kind in KINDS][:MOST_COMPARED]
            lines += [_against(held, m, rivals, kind) for m in mine for kind in KINDS]
    lines = [line for line in lines if line]
    if any(m.kind == "decoding" for m in all_means):
        lines.append("A decoding defence leaves the model as it is: whoever holds the weights still gets everything.")
    return lines


def _goal(all_means: Sequence[Mean], size: int) -> str:
    """What the target is, and its own numbers."""
    goal = target(all_means, size)
    if goal is None:
        return (
            f"The exact twin, trained without the {size} records to forget, was not measured. So the target of "
            "each model is what it does itself on records that were never trained on."
        )
    told = [f"{label} {number(goal.get(name), kind)}" for name, label, kind in TOLD if goal.get(name) is not None]
    return (
        f"The target is the exact twin ({TARGET}, {_count(goal.seeds, 'seed')}), trained as the original was, without "
        f"the {size} records to forget. On them it has: {', '.join(told)}."
    )


def _against(held: Contest, mean: Mean, rivals: Sequence[Mean], kind: str) -> str:
    """One point against all others of a kind; "" where there are none."""
    others = [r for r in rivals if r.kind == kind and r.method != mean.method]
    if not others:
        return ""
    who = (
        f"{mean.label}{' at its default' if mean.is_default else ''}, {_count(mean.seeds, 'seed')}, {mean.size} records"
    )
    if mean.collapsed:
        return f"{who}: has collapsed ({', '.join(mean.collapsed)}); it beats nobody."
    fallen = [r for r in others if r.collapsed]
    duels = [(r, held.duel(mean.points, r.points)) for r in others if not r.collapsed]
    parts = [_told(word, [(r, d) for r, d in duels if d.outcome == outcome]) for outcome, word in _PARTS.items()]
    parts += [f"Collapsed, so beating nobody: {', '.join(r.label for r in fallen)}."] if fallen else []
    return f"{who}, against {KINDS[kind]}. {' '.join(part for part in parts if part)}"


_PARTS = {
    "beaten": "BEATEN by",
    "mixed": "Neither beats the other:",
    "beats": "Better than",
    "same": "No difference beyond the margins:",
    "unsure": "Cannot tell from",
    "not measured": "Not measured against",
}


def _told(word: str, duels: Sequence[tuple[Mean, Duel]]) -> str:
    if not duels:
        return ""
    return f"{word} {'; '.join(f'{mean.label}{_why(duel)}' for mean, duel in duels)}."


def _why(duel: Duel) -> str:
    """In what the first of a pair is better and worse, and what cannot be told, in brackets."""
    parts = [f"{word} in {_list(found)}" for word in ("worse", "better") if (found := duel.said(word))]
    if unsure := duel.said("unsure"):
        parts.append(f"cannot tell: {', '.join(d.quantity.label for d in unsure)}")
    if duel.missing and duel.differences:
        parts.append(f"not measured: {', '.join(duel.missing)}")
    return f" ({'; '.join(parts)})" if parts else ""


def _list(differences: Sequence[Difference]) -> str:
    return ", ".join(map(_difference, differences))


def _difference(d: Difference) -> str:
    """ "suffix accuracy 38.0 % from the target against 2.0 %": both values, the first one's first."""
    kind = d.quantity.unit
    of = " from the target" if d.quantity.how == "distance" else ""
    return f"{d.quantity.label} {number(d.one, kind)} against {number(d.other, kind)}{of}"


def _count(count: int, name: str) -> str:
    return f"{count} {name}{'' if count == 1 else 's'}"


def margins() -> list[str]:
    """A line for each quantity of a comparison: its margin, and why it is that."""
    lines = []
    for q in COMPARED:
        margin = number(q.margin, q.unit).replace(" %", " points")
        of = ", distance from the target" if q.how == "distance" else ""
        lines.append(f"{q.label} ({q.area}{of}): {margin}; {q.reason}")
    return [*lines, f"The words: {'; '.join(WORDS.values())}."]


def standings(all_means: Sequence[Mean], size: int) -> list[list[str]]:
    """Who beats whom among the defaults of one size: row against column, as rows of cells; [] where it is not known."""
    chosen = [m for m in all_means if m.size == size and m.is_default and m.kind in KINDS][:MOST_COMPARED]
    held = contest(all_means, size)
    chosen = [m for m in chosen if held.is_measured(m.points)]
    if len(chosen) < 2:
        return []
    rows = [["row against column", *(m.method for m in chosen)]]
    for one in chosen:
        cells = [_cell(held, one, other) if one is not other else "" for other in chosen]
        rows.append([one.method, *cells])
    return rows


def _cell(held: Contest, one: Mean, other: Mean) -> str:
    if one.collapsed:
        return "collapsed"
    return "it collapsed" if other.collapsed else SHORT[held.duel(one.points, other.points).outcome]


def clean_table(all_means: Sequence[Mean]) -> list[list[str]]:
    """A row a point: clean or not in how many seeds, how much of the memory is left, why, and what was not measured.

    [] where no point has intervals.
    """
    rows = [["method", "records", "seeds", "verdict", "memory left", "why not", "not measured"]]
    for mean in all_means:
        found = verdicts(all_means, mean)
        lefts = [v.left for v in found if v.left is not None]
        if not lefts:
            continue
        reasons = Counter(f.label for v in found for f in v.reasons)
        told = [f"{name} ({count})" if len(found) > 1 else name for name, count in reasons.items()]
        words, left = _counted(found), number(fmean(lefts), "share")
        rows.append([mean.label, str(mean.size), str(mean.seeds), ", ".join(words), left, ", ".join(told) or "-",
                     ", ".join(found[0].missing) or "-"])  # fmt: skip
    return rows if len(rows) > 1 else []


def states(all_means: Sequence[Mean], mean: Mean) -> list[str]:
    """Clean, not clean or not known, and in how many trainings; [] where it was not judged."""
    return _counted([v for v in verdicts(all_means, mean) if v.left is not None])


def _counted(found: Sequence[Verdict]) -> list[str]:
    counts = Counter(HEADS[v.state].lower() for v in found)
    return [f"{name} in {count}" if len(found) > 1 else name for name, count in counts.items()]


def verdicts(all_means: Sequence[Mean], mean: Mean) -> list[Verdict]:
    """The verdict on each training of a mean. The exact twin's first training is the target where it was measured."""
    original = next(m for m in all_means if m.size == mean.size and m.kind == "original").points[0]
    goal = target(all_means, mean.size)
    twin = None if goal is None or mean is goal or not goal.points[0].get("intervals") else goal.points[0]
    return [
        judge(point, original=None if mean.kind == "original" else original, twin=twin,
              attacks=point.get("attacks", ()))
        for point in mean.points
        if point.get("intervals")
    ]  # fmt: skip
