"""Before and after, side by side: a table for the terminal and one self-contained HTML page.

Takes plain dicts: summaries as :class:`eval.evaluate.Evaluation` gives them, records of passages, metrics.jsonl rows.
"""

from .page import render_page
from .rows import pair_records, render_passage, render_table

__all__ = ["pair_records", "render_page", "render_passage", "render_table"]
