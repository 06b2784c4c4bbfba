"""The heat along files: for each of them one strip, or two for before and after. This module knows digits and SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby, pairwise
from typing import Any

from ppo.io.visible import as_html

from .bounds import cut

Row = Mapping[str, Any]
BINS = 240
MOST_FILES = 200
CSS = """
.heat { display:grid; grid-template-columns:minmax(7rem,16rem) 4rem 1fr; gap:.25rem .8rem; align-items:center;
  font-size:.85rem; }
.heat > span { overflow-wrap:anywhere; } .heat .n { text-align:right; font-variant-numeric:tabular-nums; }
.heat svg { height:.9rem; border-radius:2px; background:var(--wash); } .heat svg + svg { margin-top:2px; }
.heat rect { fill:var(--bad); }
@media (max-width:36rem) { .heat { grid-template-columns:1fr 3rem; } .heat .strips { grid-column:1 / -1; } }
"""


def heat_rows(documents: Sequence[Row], earlier: Sequence[Row] | None, found: Mapping[str, int]) -> tuple[str, int]:
    """The grid of files as HTML, hottest first, and how many files it leaves out.

    ``documents``: rows of scan.jsonl, those of a file in order; ``earlier``: those of the scan before; ``found``: texts
    found in a file, by its path.
    """
    now, was = _strips(documents), _strips(earlier) if earlier is not None else None
    shown = was if was is not None else now
    order = sorted(now, key=lambda path: (-found.get(path, 0), -_heat(shown.get(path, "")), path))
    lines = []
    for path in order[:MOST_FILES]:
        strips = [("before", was.get(path, "")), ("after", now[path])] if was is not None else [("", now[path])]
        drawn = "".join(strip(digits, f"{kind} {path}".strip()) for kind, digits in strips)
        count = f'<span class="n">{found.get(path, 0):,}</span>'
        lines.append(f'<span>{as_html(cut(path))}</span>{count}<div class="strips">{drawn}</div>')
    return f'<div class="heat">{"".join(lines)}</div>', max(0, len(order) - MOST_FILES)


def strip(digits: str, label: str) -> str:
    """A strip of the digits 0 to 9, equal neighbours as one rectangle."""
    parts, at = [], 0
    for digit, run in groupby(digits):
        width = len(list(run))
        if digit != "0":
            parts.append(f'<rect x="{at}" width="{width}" height="1" opacity="{(int(digit) + 1) / 10:.1f}"/>')
        at += width
    share = sum(digit == "9" for digit in digits) / len(digits) if digits else 0.0
    return (
        f'<svg viewBox="0 0 {max(1, len(digits))} 1" preserveAspectRatio="none" role="img" '
        f'aria-label="{as_html(cut(label))}: {share:.0%} recited">{"".join(parts)}</svg>'
    )


def _strips(documents: Sequence[Row]) -> dict[str, str]:
    """The digits along each file: those of its documents after each other, at most ``BINS``."""
    whole: dict[str, list[str]] = {}
    for row in documents:
        whole.setdefault(str(row["path"]), []).append(str(row["heat"]))
    return {path: squeezed("".join(parts)) for path, parts in whole.items()}


def squeezed(digits: str) -> str:
    """At most ``BINS`` digits, each the highest of its part."""
    count = min(BINS, len(digits))
    cuts = [len(digits) * i // count for i in range(count + 1)] if count else [0]
    return "".join(max(digits[a:b]) for a, b in pairwise(cuts))


def _heat(digits: str) -> float:
    return sum(map(int, digits)) / len(digits) if digits else 0.0
