"""How fast deduplication is: texts of several sizes with repeats in them, on one core.

    python -m benchmarks.dedup --megabytes 1 2 4 8

The texts are paragraphs of Python's documentation, drawn with repeats, so that much of them has to be removed. Speed is
in bytes of UTF-8 a second, the best of a few rounds. The time is near-linear if the speed hardly falls with the size.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.machine import timed, write_json
from data.dedup import LENGTH, deduplicate_texts
from data.english import retain_and_holdout


def sample_texts(num_bytes: int, *, paragraphs_each: int = 20, seed: int = 0) -> list[str]:
    """Documents of about ``num_bytes`` together: paragraphs of Python's documentation, drawn again and again."""
    known = [p for document in retain_and_holdout()[0] for p in document.split("\n") if len(p) >= LENGTH]
    random = np.random.default_rng(seed)
    texts: list[str] = []
    size = 0
    while size < num_bytes:
        texts.append("\n".join(known[i] for i in random.integers(len(known), size=paragraphs_each)))
        size += len(texts[-1].encode())
    return texts


def measure(megabytes: float, *, rounds: int) -> dict[str, Any]:
    """Seconds and bytes a second for texts of one size, and the share that was removed."""
    texts = sample_texts(int(megabytes * 1e6))
    size = sum(len(text.encode()) for text in texts)
    reports = []
    seconds = min(timed(lambda: reports.append(deduplicate_texts(texts)[1])) for _ in range(rounds))
    report = reports[0]
    return {
        "megabytes": size / 1e6,
        "seconds": seconds,
        "megabytes_per_second": size / 1e6 / seconds,
        "removed_share": report.removed / report.total,
        "spans": len(report.spans),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line for every size; ``--out`` keeps them as JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dedup", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--megabytes", type=float, nargs="+", default=[1, 2, 4, 8], help="sizes (default: 1 2 4 8)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of which the best counts (default: 3)")
    parser.add_argument("--out", help="write the figures as JSON here")
    options = parser.parse_args(arguments)
    rows = []
    for megabytes in options.megabytes:
        row = measure(megabytes, rounds=options.rounds)
        rows.append(row)
        print(
            f"{row['megabytes']:6.2f} MB  {row['seconds']:7.2f} s  {row['megabytes_per_second']:6.2f} MB/s  "
            f"{row['removed_share']:.1%} removed in {row['spans']} spans",
            flush=True,
        )
    write_json(options.out, {"sizes": rows})


if __name__ == "__main__":
    sys.exit(main())
