"""The runs of tests/killed.py in several processes. One of them may be killed at a chosen call.

torchrun --nproc-per-node 2 -m tests.killed_two FOLDER STEPS [RANK PHASE CALL]
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import ppo
from ppo.log import RunLog
from tests.killed import Calls, train


def close_slowly() -> None:
    """Make closing the log one second slower, so that torchrun, which polls every 0.1 s, sends SIGTERM meanwhile."""
    close = RunLog.close

    def slowly(log: RunLog) -> None:
        time.sleep(1)
        close(log)

    RunLog.close = slowly  # type: ignore[method-assign]


def main(folder: Path, steps: int, kill: list[str]) -> None:
    with ppo.process_group() as processes:
        if kill:
            close_slowly()
        is_chosen = bool(kill) and processes.rank == int(kill[0])
        train("tiny", folder, steps, Calls((kill[1], int(kill[2])) if is_chosen else None))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
