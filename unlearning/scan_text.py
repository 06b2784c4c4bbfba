"""What ``demem.py scan`` tells in the terminal: counts, rates and places, and no word of the corpus's text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from eval.scan.judge import FORM, MEMORISED, REASONS, UNJUDGED, WITHOUT_OWN
from eval.scan.results import LIKELY_SAMPLES

MOST_LINES = 20


def told(summary: Mapping[str, Any], findings: Sequence[Mapping[str, Any]]) -> str:
    """The result of a scan: windows, findings with their places, controls, the verdict."""
    lines = ["", f"{'prefix':>8} {'text':>12} {'windows':>9} {'recited':>18} {f'in {LIKELY_SAMPLES} draws':>14}"]
    for row in summary["windows"]:
        low, high = row["exact_interval"]
        share = f"{row['exact_share']:.2%} [{low:.1%}, {high:.1%}]"
        lines.append(
            f"{row['prefix']:>8} {row['reading']:>12} {row['windows']:>9,} {share:>18} "
            f"{row[f'in_{LIKELY_SAMPLES}_samples_share']:>14.2%}"
        )  # fmt: skip
    if summary["windows_copied"]:
        lines.append(f"{summary['windows_copied']:,} windows stand earlier in their own context and do not count")
    counts = summary["findings"]
    lines += ["", ", ".join(f"{count} {name}" for name, count in counts.items() if count) or "no span is recited"]
    listed = [row for row in findings if row["status"] in (MEMORISED, UNJUDGED)]
    for row in listed[:MOST_LINES]:
        lines.append(f"  {place_of(row)}  {row['tokens'][1] - row['tokens'][0]} tokens{_marks(row)}")
    if len(listed) > MOST_LINES:
        lines.append(f"  and {len(listed) - MOST_LINES} more")
    for name, count in summary["against"].items():
        lines.append(f"predictable, {count}: {REASONS[name]}")
    if summary["forms"]:
        lines.append(f"memorised, {summary['forms']}: {FORM}")
    if summary["without_own_controls"]:
        lines.append(f"{summary['without_own_controls']:,} more {WITHOUT_OWN}")
    return "\n".join([*lines, "", verdict_line(summary)])


def place_of(row: Mapping[str, Any]) -> str:
    """file:line of a finding, and the last line where it has several."""
    first, last = row["lines"]
    return f"{row['path']}:{first}" + (f"-{last}" if last != first else "")


def _marks(row: Mapping[str, Any]) -> str:
    kinds = [mark["kind"] for mark in row["personal"]]
    return "".join(f", {kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))


def verdict_line(summary: Mapping[str, Any]) -> str:
    """The verdict with the bound of what chance explains."""
    found = summary["verdict"]
    if found["state"] == "no verdict":
        return f"verdict: none, {found['why']}"
    controls, count = summary["controls"]["all"], found["findings"]
    texts = f", {count} text{'s' * (count != 1)}, {summary['different']} different" if count else ""
    return (
        f"verdict: {found['state']}{texts}; {controls['flagged']} of {controls['texts']} texts have a recited control, "
        f"a rate of at most {found['false_positive_rate_at_most']:.1%}: by chance at most "
        f"{found['by_chance_at_most']:.1f} of {summary['passes']} passes"
    )
