"""The verdict on an unlearned model in words and as HTML: clean or not, how sure that is, and what was not measured.

:mod:`eval.clean` judges. This module knows words and HTML.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from ppo.io.visible import as_html

from ..verdict import Finding, Verdict
from .terms import Terms

HEADS = {"clean": "Clean", "not clean": "Not clean", "unknown": "Not known"}
MOST_TOLD = 6  # reasons in a sentence; the table has all
STATES = {"beyond": "beyond the limit", "within": "within the limit", "unsure": "cannot tell"}
SUSPECT = "beyond the limit, perhaps by chance"
LESS = "it knows less than of a stranger's passage, which also tells that it was trained on"


def sentences(verdict: Verdict) -> list[str]:
    """The verdict, why, how sure it is, how much of the memory is left, and what was not measured."""
    count = len(verdict.traces)
    lines = [_head(verdict, count)]
    if verdict.left is not None:
        lines.append(
            f"Of the memory {100 * verdict.left:.0f} % is left (mean over {_numbers(count)}; 0 %: as passages that "
            "were never trained on, 100 %: every token is known)."
        )
    if verdict.suspects and verdict.state == "not clean":
        lines.append(f"Perhaps by chance: {_told(verdict.suspects)}.")
    open_ = [f for f in (*verdict.traces, *verdict.harms) if f.state == "unsure"]
    if open_ and verdict.state == "clean":
        lines.append(f"Not sure to be within the limit: {_list(open_, _reach)}.")
    if verdict.missing:
        lines.append(f"Not measured: {', '.join(verdict.missing)}.")
    return lines


def _head(verdict: Verdict, count: int) -> str:
    if verdict.state == "not clean":
        return f"Not clean: {_told(verdict.reasons)}."
    if verdict.state == "unknown":
        return f"Not known whether clean: {'; '.join(_doubts(verdict))}."
    sure = sum(f.state == "within" for f in verdict.traces)
    return (
        f"Clean as far as was measured: none of {_numbers(count)} tells the forget set from passages that the model "
        f"never saw by more than its limit. Of {sure} of them that is sure; all together hold at 95 %."
    )


def _told(findings: Sequence[Finding]) -> str:
    """What lies beyond its limit: memories, then what is known too little, then harms."""
    less = [f for f in findings if f.is_less]
    memories = [f for f in findings if f.full is not None and not f.is_less]
    lost = [f for f in findings if f.full is None]
    parts = [_list(memories, _beyond)] if memories else []
    parts += [f"{LESS} ({_list(less, _beyond)})"] if less else []
    parts += [f"the model was harmed ({_list(lost, _beyond)})"] if lost else []
    return "; ".join(parts)


def _doubts(verdict: Verdict) -> list[str]:
    """Why it is not known whether the model is clean."""
    doubts = []
    if verdict.suspects:
        doubts.append(f"perhaps by chance, {_told(verdict.suspects)}")
    if not verdict.is_deep:
        doubts.append("depth was not measured, which needs never-trained passages")
    elif verdict.hiding:
        nothing = "" if verdict.suspects else "nothing was found, but "
        doubts.append(
            f"{nothing}there are so few passages that half of the memory could hide ({_list(verdict.hiding, _reach)})"
        )
    return doubts


def _numbers(count: int) -> str:
    return f"{count} number{'' if count == 1 else 's'}"


def _list(findings: Sequence[Finding], tell: Callable[[Finding], str]) -> str:
    told = [tell(f) for f in findings[:MOST_TOLD]]
    more = len(findings) - MOST_TOLD
    return "; ".join(told) + (f"; and {more} more" if more > 0 else "")


def _beyond(finding: Finding) -> str:
    """ "suffix accuracy 99.9 % against 56.4 %": the number, and what it is held against."""
    return f"{finding.label} {written(finding.value, finding)} against {written(finding.target, finding)}"


def _reach(finding: Finding) -> str:
    """How far the interval reaches on the side that counts, and the limit."""
    ends = [finding.gap if finding.high is None else finding.high]
    ends += [-finding.low] if finding.is_two_sided and finding.low is not None else []
    reach, limit = written(max(ends), finding), written(finding.limit, finding)
    return f"{finding.label}, up to {reach} beside the target (limit {limit})"


def written(value: float, finding: Finding) -> str:
    """A number in the finding's unit."""
    if not math.isfinite(value):
        return "no number"
    if abs(value) >= 1e5:
        return f"{value:.2g}"
    if finding.unit == "share":
        return f"{100 * value:z.1f} %"
    return f"{value:z.{ {'score': 1, 'number': 2, 'ratio': 3}[finding.unit] }f}"


def verdict_section(verdict: Verdict, terms: Terms) -> str:
    """The sentences and a table of all findings, as HTML."""
    head, *rest = sentences(verdict)
    lines = "".join(_row(f, terms) for f in (*verdict.traces, *verdict.harms))
    names = ("value", "target", "beside it", "limit", terms.label("verdict", "judged"))
    heads = "".join(f'<th scope="col">{name}</th>' for name in names)
    table = (
        '<div class="scroll" role="region" aria-label="Verdict" tabindex="0"><table>'
        f"<thead><tr><td></td>{heads}</tr></thead><tbody>{lines}</tbody></table></div>"
    )
    said = f"<p><b>{as_html(head)}</b></p>" + "".join(f"<p>{as_html(line)}</p>" for line in rest)
    return f"{said}{table if lines else ''}"


def _row(finding: Finding, terms: Terms) -> str:
    ends, mark = "", terms.mark("judged")
    if finding.low is not None and finding.high is not None:
        low, high = (written(end, finding).removesuffix(" %") for end in (finding.low, finding.high))
        ends = f'<span class="range"{mark}>{as_html(low)} &ndash; {as_html(high)}</span>'
    cells = [written(value, finding) for value in (finding.value, finding.target, finding.gap, finding.limit)]
    shown = "".join(f"<td{mark}>{as_html(text)}{ends if i == 2 else ''}</td>" for i, text in enumerate(cells))
    judged = SUSPECT if finding.is_over and finding.state == "unsure" else STATES[finding.state]
    return f'<tr><th scope="row">{as_html(finding.label)}</th>{shown}<td{mark}>{judged}</td></tr>'
