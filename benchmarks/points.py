"""Pack measured points into one file a folder: ``points/KEY.json``, a file a point, become lines of ``points.jsonl``.

    python -m benchmarks.points results/study results/ablations

A folder is packed before its points are committed, and while no process is measuring into it. A point that is in both
places counts as its file says. :mod:`eval.points` knows the two forms, and reads both.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from eval.points import PACKED, pack


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0, or 2 for a folder without points or with a damaged one (one line on stderr)."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER", help="a folder that holds points/")
    for folder in parser.parse_args(arguments).folders:
        try:
            print(f"{folder / PACKED}: {pack(folder)} points")
        except (ValueError, OSError) as error:
            print(f"points: {error}", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
