"""How a command ends: its exit status and its last words, told once where several processes work together."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import ppo
from ppo.distributed import LostProcessError, OtherProcessError, Processes
from ppo.io.visible import visible


def exit_status(work: Callable[[], int], command: str, out: Path, processes: Processes) -> int:
    """Do the work. Its own status, 2 for bad input and failed checks (one line on stderr), 130 after Ctrl-C or SIGTERM.

    With several processes, only the one that failed prints its error. Another RuntimeError is raised again.
    """
    try:
        with processes.last_words():
            status = work()
    except OtherProcessError:
        return 2
    except (ValueError, OSError, FloatingPointError, ppo.CheckError, LostProcessError) as error:
        if processes.claim("end"):
            told = "; ".join([str(error), *getattr(error, "__notes__", [])])
            print(f"demem: {visible(' '.join(told.split()))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if processes.claim("end"):
            print(f"demem: interrupted{visible(how_to_go_on(command, out))}", file=sys.stderr)
        return 130
    except RuntimeError:  # a process that failed before this one has said why
        if processes.count == 1 or processes.claim("end"):
            raise
        return 2
    return status


def how_to_go_on(command: str, out: Path) -> str:
    """What to type after an interruption; empty where there is nothing to go on with."""
    if command == "compare":
        return "; the same command goes on"
    can_resume = command in ("run", "train", "memorise", "scan") and (out / "config.json").is_file()
    return f"; go on with: python demem.py {command} --resume --out {out}" if can_resume else ""


@contextmanager
def silent(is_silent: bool, *redirections: Callable[[Any], Any]) -> Iterator[None]:
    """A context in which a process prints nothing where ``is_silent``: work that all processes do is told once."""
    with ExitStack() as stack:
        if is_silent:
            nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            for redirection in redirections:
                stack.enter_context(redirection(nowhere))
        yield
