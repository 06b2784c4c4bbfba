"""The lab study: what each ingredient of DeMem adds, and what size, repetition and record shape do to forgetting.

    python -m benchmarks.study --list                              # the points, and the minutes that are left
    python -m benchmarks.study --part ingredients --out results/study    # goes on where it was stopped
    python -m benchmarks.study --quick                             # try whether it runs: two steps, few records
    python -m benchmarks.study --render                            # measure nothing: the pages of what is there
    python -m benchmarks.plots                                     # the pictures, from what is there

Every point (variant, number of records, seed) is one JSON file under ``points/``, which is whole or not there. The
pages (``ingredients.md``, ``size.md``, ``repeats.md``, ``shapes.md``) are written again after each point. Set
OMP_NUM_THREADS=1 to measure on one core: the numbers of a seed depend on the number of threads. Two processes may work
on different parts side by side, each with its own ``--work``. points.py lists the parts. ``python -m benchmarks.points
results/study`` packs the files into ``points.jsonl`` before they are committed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import transformers

from benchmarks.study.points import (
    NUM_SEEDS,
    ORIGINAL,
    PARTS,
    QUICK,
    Point,
    Settings,
    minutes,
    missing,
    plan,
    read_points,
)  # fmt: skip
from benchmarks.study.tables import write_pages
from benchmarks.study.train import Workshop, make_point
from benchmarks.study.variants import VARIANTS
from eval.points import read_point, store_point
from unlearning.run import say


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0, 2 for an error in the input (one line on stderr), 130 after Ctrl-C."""
    transformers.utils.logging.disable_progress_bar()
    options = read_options(arguments)
    try:
        work(options, QUICK if options.quick else Settings())
    except (ValueError, OSError) as error:
        print(f"study: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("study: interrupted; the same command goes on", file=sys.stderr)
        return 130
    return 0


def work(options: argparse.Namespace, settings: Settings) -> None:
    """List the points, or measure those that are missing, and write the pages."""
    points = plan(options.part, seeds=options.seeds, variants=options.variants)
    found = read_points(options.out, settings)
    left = missing(points, found)
    if options.list:
        list_points(points, left, found)
        return
    if not options.render:
        workshop = Workshop(settings, options.work)
        for number, point in enumerate(left):
            if not missing([point], read_points(options.out, settings)):
                continue  # another process has measured it meanwhile
            measure_point(point, workshop, options.out, label=f"{number + 1}/{len(left)}")
            write_pages(options.out, read_points(options.out, settings))
    pages = write_pages(options.out, read_points(options.out, settings))
    say("pages: " + (", ".join(map(str, pages)) if pages else f"none yet, {options.out} holds no point"))


def measure_point(point: Point, workshop: Workshop, out: Path, *, label: str) -> None:
    """Measure one point and write its file."""
    say(f"{label} {point.key} …")
    before = read_point(out, point.original.key)["summary"] if point.variant != ORIGINAL else {}
    result = make_point(point, workshop, before)
    store_point(out, point.key, result)
    spent = sum(result["seconds"].values()) / 60
    broken = f"; broke off: {result['error']}" if result["error"] else ""
    share = result["summary"].get("forget/exact")
    say(f"{label} {point.key}: {spent:.1f} min" + (f", forget {share:.1%}" if share is not None else "") + broken)


def list_points(points: Sequence[Point], left: Sequence[Point], found: Sequence[Mapping[str, Any]]) -> None:
    """Print every point and whether it is there, and the minutes on one core that the rest will take."""
    total = 0.0
    for point in points:
        if point not in left:
            say(f"  there      {point.key}")
            continue
        needed = minutes(point, found)
        total += needed
        say(f"  {needed:5.1f} min  {point.key}")
    say(f"{len(left)} of {len(points)} points are left: about {total:.0f} minutes on one core")


def read_options(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line; ``part`` and ``variants`` as lists."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--part", default=",".join(PARTS), help="names, separated by commas (default: all)")
    parser.add_argument("--variants", default=",".join(VARIANTS), help="of the ingredients (default: all)")
    parser.add_argument("--seeds", type=int, default=None, help=f"seeds 0, 1, … (default {NUM_SEEDS})")
    parser.add_argument("--out", type=Path, default=None, help="folder of points and pages (default results/study)")
    parser.add_argument(
        "--work", type=Path, default=Path("runs/study"), help="folder for temporary files, and for the graded lab"
    )
    parser.add_argument("--quick", action="store_true", help="two steps, few records, 1 seed, into runs/study-quick")
    parser.add_argument("--list", action="store_true", help="measure nothing: print the points and an estimate")
    parser.add_argument("--render", action="store_true", help="measure nothing: write the pages of what is there")
    options = parser.parse_args(arguments)
    for name, known in (("part", PARTS), ("variants", tuple(VARIANTS))):
        names = [n.strip() for n in getattr(options, name).split(",") if n.strip()]
        setattr(options, name, names)
        if unknown := [n for n in names if n not in known]:
            parser.error(f"unknown --{name} {unknown[0]!r}; choose from {', '.join(known)}")
    options.seeds = (1 if options.quick else NUM_SEEDS) if options.seeds is None else options.seeds
    if options.seeds < 1:
        parser.error(f"--seeds {options.seeds} must be at least 1")
    options.out = options.out or Path("runs/study-quick" if options.quick else "results/study")
    return options
