"""Whether a response emits what it may not: the forbidden spans of its row, which is a reward that anybody can check.

PURGE (Zaradoukas et al., ICLR 2026, "Reinforcement Unlearning via Group Relative Policy Optimization") pays 1 for a
response without a forbidden term and 0 for one with any; group-relative advantages do not see which constant is added.
Its terms come from questions put to the model and a second model that names entities. Here they are the passage's
secrets, or runs of its words. So this is the reward of that paper and not its whole method.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ppo.types import Sample

SPAN_WORDS = 5  # of a forbidden run of words


@dataclass(frozen=True)
class SpansMeasure:
    """Measure: 1 for a response that holds one of its row's ``spans``, letter by letter with any white space, else 0.

    ValueError for a row without spans.
    """

    signature: str = "spans|any of the row's|case:kept|white space:any"

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        return [float(self._is_emitted(sample)) for sample in samples]

    def _is_emitted(self, sample: Sample) -> bool:
        spans = sample.row.get("spans")
        if not spans:
            raise ValueError(f"the row of {sample.prompt!r:.60} names no forbidden spans: give a list under 'spans'")
        text = f" {' '.join(sample.text.split())} "
        return any(" ".join(span.split()) in text for span in spans)


def forbidden_spans(suffix: str, secrets: Sequence[str]) -> list[str]:
    """The secrets of a passage, or all runs of ``SPAN_WORDS`` words of its suffix where it has none.

    A suffix with fewer words is a span itself. ValueError for a suffix without words and secrets.
    """
    if secrets:
        return list(secrets)
    words = suffix.split()
    if not words:
        raise ValueError(f"the suffix {suffix!r:.60} has no words and no secrets: nothing can be forbidden")
    return [" ".join(words[i : i + SPAN_WORDS]) for i in range(max(len(words) - SPAN_WORDS + 1, 1))]
