"""What a run writes about itself: metrics and samples."""

from .run_log import HEADLINE, RunLog, headline, read_jsonl

__all__ = ["HEADLINE", "RunLog", "headline", "read_jsonl"]
