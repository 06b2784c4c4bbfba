"""Before and after, side by side: a table for the terminal and one self-contained HTML page.

Both take plain dicts: summaries as in :class:`eval.evaluate.Evaluation`, records of passages, rows of metrics.jsonl.
"""

from .page import render_page
from .rows import pair_records, render_passage, render_table

__all__ = ["pair_records", "render_page", "render_passage", "render_table"]
