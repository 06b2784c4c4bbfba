"""Try every kind of causal LM that transformers can build, small and random, and print what each check found.

    python -m tests.zoo [--json FILE] [KIND …]

A line for each kind. "not built": no small config of it is known here. The exit status is 1 if a kind failed that is
not in ``KNOWN``. It takes about ten minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
import warnings
from pathlib import Path
from types import FrameType

import torch
import transformers

from .checks import CHECKS, own_forward
from .configs import kinds

SECONDS = 60  # for one check

KNOWN: dict[str, str] = {
    "big_bird": "changes its own modules for short texts, so a resume needs model=",
    "cpmant": "reads no attention mask: refused before the first update, by the check of the ratio",
    "inkling2_text": "cannot be run in bfloat16: refused",
    "prophetnet": "lets a token see the tokens after it: refused as no causal LM",
    "xlnet": "lets a token see the tokens after it: refused as no causal LM",
    "xlstm": "does not compute texts of some lengths in bfloat16",
    "reformer": "has no gradient without its dropout: ends in the first update",
}


class TooLong(Exception):
    """A check took more than its time."""


def _stop(_: int, __: FrameType | None) -> None:
    raise TooLong(f"more than {SECONDS} s")


def outcome(kind: str) -> dict[str, str]:
    """What each check of a kind found: "ok", or the error; or one entry "not built"."""
    signal.signal(signal.SIGALRM, _stop)
    found = {}
    for name, check in {"not built": own_forward, **CHECKS}.items():
        signal.alarm(SECONDS)
        try:
            check(kind)
            found[name] = "ok"
        except Exception as error:  # whatever a model raises is its finding
            found[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
            if name == "not built":
                return found
        finally:
            signal.alarm(0)
    del found["not built"]
    return found


def main(arguments: list[str] | None = None) -> int:
    """Run the checks; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.zoo", description=__doc__.splitlines()[0])
    parser.add_argument("kinds", nargs="*", metavar="KIND", help="model types; all of them if none is named")
    parser.add_argument("--json", type=Path, help="write what was found to this file as well")
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    results = {}
    for kind in options.kinds or kinds():
        results[kind] = found = outcome(kind)
        faults = {name: text for name, text in found.items() if text != "ok"}
        print(f"{kind:24} " + (" | ".join(f"{name}: {text}" for name, text in faults.items()) or "ok"), flush=True)
    missing = [kind for kind, found in results.items() if "not built" in found]
    failed = [kind for kind, found in results.items() if kind not in missing and set(found.values()) != {"ok"}]
    whole = len(results) - len(missing) - len(failed)
    print(f"{whole} kinds passed every check, {len(failed)} failed one, {len(missing)} were not built")
    if options.json is not None:
        versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        options.json.write_text(json.dumps({"versions": versions, "kinds": results}, indent=1) + "\n")
    return int(bool(set(failed) - KNOWN.keys()))


if __name__ == "__main__":
    sys.exit(main())
