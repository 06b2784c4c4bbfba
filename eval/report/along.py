"""One picture that shows depth: at which tokens of the suffix the true one is the model's first choice.

This module knows stored evaluations and lines; what they mean is in :mod:`eval.along`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..along import curve_of
from .rows import group_label
from .svg import curves_chart
from .terms import Terms

Evaluated = Mapping[str, Any]


def along_chart(before: Evaluated, after: Evaluated | None, terms: Terms) -> str:
    """A line each for the forget set before and after and for never-trained passages; "" where none was stored."""
    shown = before if after is None else after
    forget = group_label("forget")
    lines = [
        ("before", forget if after is None else f"{forget}, before", curve_of(before, "forget")),
        ("after", f"{forget}, after", [] if after is None else curve_of(after, "forget")),
        ("never", group_label("never") + ("" if after is None else ", after"), curve_of(shown, "never")),
    ]
    lines = [line for line in lines if line[2]]
    if not any(kind != "never" for kind, _, _ in lines):
        return ""
    title = "The true token as first choice, along the suffix"
    chart = curves_chart(lines, label=title, axes=("token of the suffix", "of the passages"))
    key = "".join(f'<span><i class="{kind[0]}"></i>{label}</span>' for kind, label, _ in lines)
    return (
        f'<h3{terms.mark("along")}>{terms.label(title, "along")}</h3><p class="key small soft">{key}</p>'
        f'<div class="along" role="region" aria-label="{title}" tabindex="0">{chart}</div>'
    )
