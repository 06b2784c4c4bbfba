"""How a value of a method's knob is chosen, on passages that are not reported.

Every method is asked for the same number of values, each is trained once, and one rule chooses: of the values with
which the forget set is forgotten (greedily at most 5 % of it, and no more secrets than allowed) the one with the
smallest loss; where none is, the smallest of all. The loss is a sum, each part between 0 and 1 where nothing broke:

    depth       |share of right tokens on the forget set - on never-trained passages, under the same model|
    keep        the share of the records to keep that the original reproduces and the model does not
    perplexity  of held-out text, over the original's, less 1
    writing     1 - fluency of the outputs (:func:`eval.pareto.fluency`)

A part that was not measured is left out for all values alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from eval import secrets
from eval.pareto import MAX_EXACT, fluency

Summary = Mapping[str, float]


@dataclass(frozen=True)
class Tuned:
    """The value that was chosen, and what every value gave: {value: {"is_forgotten", "loss", and its parts}}."""

    value: float
    tried: dict[float, dict[str, float]]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"value": self.value, "tried": {f"{value:g}": parts for value, parts in self.tried.items()}}


def tuned(summaries: Mapping[float, Summary], original: Summary) -> Tuned:
    """Choose among the values by their summaries and the original's, all on the passages to tune on.

    Of two values that are as good the first is taken. ValueError where there is no value.
    """
    if not summaries:
        raise ValueError("there is no value to choose from")
    tried = {value: judged(summary, original) for value, summary in summaries.items()}
    best = min(tried, key=lambda value: (-tried[value]["is_forgotten"], tried[value]["loss"]))
    return Tuned(best, tried)


def judged(summary: Summary, original: Summary) -> dict[str, float]:
    """Whether the forget set is forgotten (1 or 0), the loss, and its parts."""
    bounds = secrets.bounds(original)
    is_kept = summary["forget/exact"] > MAX_EXACT or any(
        summary.get(f"forget/{name}", 0.0) > most for name, most in bounds.items()
    )
    parts = {"writing": 1 - fluency(summary, original)}
    if "never/ma_suffix" in summary:
        parts["depth"] = abs(summary["forget/ma_suffix"] - summary["never/ma_suffix"])
    if "keep/exact" in summary:
        parts["keep"] = max(0.0, original["keep/exact"] - summary["keep/exact"])
    if "holdout/perplexity" in summary:
        parts["perplexity"] = max(0.0, summary["holdout/perplexity"] / original["holdout/perplexity"] - 1)
    return {"is_forgotten": float(not is_kept), "loss": sum(parts.values()), **parts}
