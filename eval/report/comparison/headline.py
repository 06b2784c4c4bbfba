"""What a comparison says first: who beats whom and how sure that is, then one table of the methods at their defaults.

:mod:`eval.beats` decides; the numbers behind it stand in :mod:`.verdict`. This module knows no HTML.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...beats import LEVEL, Contest, Duel, Word
from ...pareto import MOST_COMPARED, Mean, contest
from .given import NOTHING, listed, settings, source
from .text import Column, cell, marks
from .verdict import KINDS, NOT_MEASURED, OWN, SHORT, states

COLUMNS: tuple[Column, ...] = (
    ("forget/secret_emitted", "secrets still emitted", "share"),
    ("forget/exact_sampled", "forget, sampled", "share"),
    ("forget_holdout/exact_sampled", "holdout, sampled", "share"),
    ("depth/ma_suffix", "right tokens, forget less never", "share"),
    ("membership/loss_auc", "membership AUC", "number"),
    ("keep/exact", "keep survives", "share"),
    ("perplexity_ratio", "perplexity ratio", "ratio"),
    ("fluency", "fluency", "number"),
)
TOLD = {  # of one method against others, by outcome
    "beats": "beats",
    "beaten": "is beaten by",
    "mixed": "neither beats nor is beaten by",
    "same": "does not differ by more than the margins from",
    "unsure": "cannot be told from",
}
WORDS_TOLD: tuple[Word, ...] = ("better", "worse")
NOBODY = "Nobody surely beats anybody."


def headline(all_means: Sequence[Mean]) -> list[str]:
    """A sentence a finding, of the methods at their defaults: DeMem's, or all methods' where DeMem was not measured.

    The last one says how sure all of them are.
    """
    lines, found = [], False
    sizes = list(dict.fromkeys(m.size for m in all_means))
    for size in sizes:
        rivals, held = _rivals(all_means, size)
        if len(rivals) < 2:
            continue
        found = True
        of = f"Of {size} records to forget: " if len(sizes) > 1 else ""
        own = sorted((m for m in rivals if m.method in OWN), key=lambda m: m.method != "deep")
        told = [line for m in own or rivals for line in _findings(held, m, rivals, is_own=bool(own))]
        lines += [of + line for line in told or [NOBODY]]
        if (fallen := [m.method for m in rivals if m.collapsed]) and own:
            lines.append(f"{of}Collapsed, so beating nobody: {listed(fallen)}.")
    return [*lines, _sureness(all_means)] if found else [NOT_MEASURED]


def _rivals(all_means: Sequence[Mean], size: int) -> tuple[list[Mean], Contest]:
    """The methods of a size at their defaults whose single passages were measured, and their contest."""
    held = contest(all_means, size)
    chosen = [m for m in all_means if m.size == size and m.is_default and m.kind in KINDS][:MOST_COMPARED]
    return [m for m in chosen if held.is_measured(m.points)], held


def _findings(held: Contest, mean: Mean, rivals: Sequence[Mean], *, is_own: bool) -> list[str]:
    """A sentence for each outcome. Where no method is ours, only what a method beats is said, once for each pair."""
    if mean.collapsed:
        return []
    duels = [(r, held.duel(mean.points, r.points)) for r in rivals if r is not mean and not r.collapsed]
    lines = []
    for outcome, verb in TOLD.items():
        named = [f"{r.method}{_areas(duel)}" for r, duel in duels if duel.outcome == outcome]
        if named and (is_own or outcome == "beats"):
            lines.append(f"{mean.method} {verb} {'; '.join(named)}.")
    return lines


def _areas(duel: Duel) -> str:
    """In what the first of a pair is better and worse, in brackets; "" for nothing.

    An area in which it is both is told by its quantities.
    """
    said = {word: duel.said(word) for word in WORDS_TOLD}
    both = set.intersection(*({d.quantity.area for d in found} for found in said.values()))
    parts = []
    for word, found in said.items():
        names = dict.fromkeys(d.quantity.label if d.quantity.area in both else d.quantity.area for d in found)
        parts += [f"{word} in {listed(list(names))}"] if names else []
    return f" ({'; '.join(parts)})" if parts else ""


def _sureness(all_means: Sequence[Mean]) -> str:
    trainings = sorted({m.seeds for m in all_means if m.is_default and m.kind == "training"})
    once = " A method that was trained once may do otherwise with another seed." if trainings[:1] == [1] else ""
    return (
        f"How sure: {100 * LEVEL:.0f} %, passage by passage, for all differences of a pair together. To beat is to be "
        'better in something by a margin or more, and worse in nothing. "Cannot be told" means that the passages are '
        f"too few.{once}"
    )


def first_table(all_means: Sequence[Mean]) -> list[list[str]]:
    """Head and rows: each method at its default, its numbers, where its formula is from, and whether it was tuned."""
    present = [c for c in COLUMNS if any(m.get(c[0]) is not None for m in all_means)]
    shown = [m for m in all_means if m.is_default]
    sizes = list(dict.fromkeys(m.size for m in shown))
    contests = {size: _rivals(all_means, size) for size in sizes}
    ours = {size: _ours(rivals) for size, (rivals, _) in contests.items()}
    beside = list(dict.fromkeys(m.method for m in ours.values() if m is not None))
    first = ["method", *(["records"] if len(sizes) > 1 else []), "verdict", *(f"beside {name}" for name in beside[:1])]
    has_source = any(source(m) != NOTHING for m in shown)  # older points have none
    last = ["seeds", *(["formula"] if has_source else []), "settings"]
    rows = [[*first, *(head for _, head, _ in present), *last]]
    for m in shown:
        row = [m.method, *([str(m.size)] if len(sizes) > 1 else []), ", ".join(states(all_means, m)) or marks(m) or "-"]
        row += [_beside(m, ours[m.size], *contests[m.size])] if beside else []
        row += [*(cell(m, c) for c in present), str(m.seeds), *([source(m)] if has_source else []), settings(m)]
        rows.append(row)
    return rows


def _ours(rivals: Sequence[Mean]) -> Mean | None:
    """The method that the others stand beside in the table: the preset deep, or else DeMem; None without either."""
    found = {m.method: m for m in rivals if m.method in OWN}
    return found.get("deep", found.get("demem"))


def _beside(mean: Mean, ours: Mean | None, rivals: Sequence[Mean], held: Contest) -> str:
    if ours is None or mean is ours or mean not in rivals:
        return "-"
    if mean.collapsed:
        return "collapsed"
    return "it collapsed" if ours.collapsed else SHORT[held.duel(mean.points, ours.points).outcome]
