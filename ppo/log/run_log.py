"""What a run writes about itself: metrics.jsonl, metrics.csv, samples.jsonl, and TensorBoard files if it is installed.

Every metric is named ``area/quantity``. This module knows nothing about what the numbers mean.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import count as every_number
from pathlib import Path
from typing import Any

from ..checkpoint.folder import list_checkpoints
from ..io.console import shown_errors
from ..io.files import flush, naming_file, replace_text
from ..io.plain_files import append_text, check_appendable, refuse_links
from ..io.rows import byte_lines
from ..io.surrogates import refuse_written_surrogates, without_surrogates
from ..io.visible import visible
from ..run.lock import only_writer
from ..types import Rollout
from .csv_table import CsvTable
from .tensorboard import TensorBoard, open_tensorboard

HEADLINE = {"score": "score/mean", "kl": "kl/per_sequence"}
"""What the progress bar shows: each label, and the metric whose last known value it shows."""

MOST_BYTES = 2**30  # of a JSONL file that is held in memory as a whole, which takes several times as much
FOLDERS = ("checkpoints", "best", "dumps", "tensorboard")
"""What a run makes beside its log."""


class RunLog:
    """Appends to the files of a run folder after each step; each line is flushed at once. ``folder=None``: no files.

    Until it is closed, it is the folder's only writer (:mod:`ppo.run.lock`). ``first_step``: a resumed run drops the
    lines that an interrupted run wrote from that step on. ``use_tensorboard``: None means "if it is installed". Raises
    ValueError when a run starts from step 0 in a folder with another run's metrics, and while another process writes
    to the folder.
    """

    def __init__(self, folder: Path | None, *, first_step: int = 0, use_tensorboard: bool | None = False) -> None:
        self._folder = folder
        self._csv: CsvTable | None = None
        self._tensorboard: TensorBoard | None = None
        with ExitStack() as stack:
            stack.enter_context(only_writer(folder))
            if folder is not None:
                self._open(folder, first_step, use_tensorboard)
            self._opened = stack.pop_all()

    def _open(self, folder: Path, first_step: int, use_tensorboard: bool | None) -> None:
        metrics = folder / "metrics.jsonl"
        refuse_links(folder, FOLDERS)
        for name in ("metrics.jsonl", "samples.jsonl"):
            check_appendable(folder / name)
        if first_step == 0 and metrics.exists() and metrics.stat().st_size > 0:
            if list_checkpoints(folder / "checkpoints") or (folder / "best").is_dir():
                raise ValueError(f"{folder} holds another run: resume it with Trainer.resume, or name another folder")
            raise ValueError(
                f"{folder} holds a run without a checkpoint (save_every_steps=0, or it ended before the first one), "
                "which cannot be resumed: delete the folder, or name another one"
            )
        if first_step > 0 and list_checkpoints(folder / "checkpoints"):
            _warn_of_gap(metrics, first_step)
        for name in ("metrics.jsonl", "samples.jsonl"):
            _drop_from(folder / name, first_step)
        self._csv = CsvTable(folder / "metrics.csv", read_jsonl(metrics) if metrics.exists() else [])
        self._tensorboard = open_tensorboard(folder / "tensorboard", first_step=first_step, is_wanted=use_tensorboard)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Write the numbers of a finished step."""
        values = {without_surrogates(name): value for name, value in values.items()}
        self._append("metrics.jsonl", {"step": step, **values})
        if self._csv is not None:
            self._csv.append({"step": step, **values})
        if self._tensorboard is not None:
            self._tensorboard.metrics(step, values)

    def samples(self, step: int, rollout: Rollout, *, count: int = 4) -> None:
        """Write the first ``count`` samples of a step with their scores.

        At forced states nobody wrote a response: there the first action of each state is called ``first_actions``.
        """
        name = "response" if rollout.generation.context is None else "first_actions"
        for sample, score in zip(rollout.samples[:count], rollout.scores.tolist(), strict=False):
            self._append("samples.jsonl", {"step": step, "prompt": sample.prompt, name: sample.text, "score": score})

    def flush(self) -> None:
        """Force the lines to disk. A checkpoint calls this first, because it counts on them."""
        for name in ("metrics.jsonl", "samples.jsonl"):
            if self._folder is not None and (self._folder / name).exists():
                flush(self._folder / name)

    def close(self) -> None:
        """Close what is open, and let others write to the folder."""
        if self._tensorboard is not None:
            self._tensorboard.close()
        self._opened.close()

    def _append(self, name: str, record: Mapping[str, Any]) -> None:
        if self._folder is None:
            return
        path = self._folder / name
        with naming_file(path), append_text(path) as file:
            file.write(without_surrogates(json.dumps(record, ensure_ascii=False)) + "\n")


def headline(labels: Mapping[str, str], metrics: Mapping[str, float]) -> dict[str, str]:
    """What a progress bar shows: each label with its metric as text. Metrics that are missing are left out."""
    return {label: f"{metrics[name]:.3f}" for label, name in labels.items() if name in metrics}


@shown_errors()
def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The records of a JSONL file. A last line that is not JSON is left out, because a kill may have cut it off.

    Raises ValueError, with the line's number, for any other line that is not a JSON object in UTF-8, for a line that is
    too long, for what comes after ``MOST_BYTES``, and for half a character (:mod:`ppo.io.surrogates`).
    """
    records: list[dict[str, Any]] = []
    refused = None  # the error of the line before, which would have been the last one
    num_bytes = 0
    for place, line in byte_lines(path):
        if refused is not None:
            raise refused
        num_bytes += len(line)
        if num_bytes > MOST_BYTES:
            raise ValueError(f"{place} is beyond the first {MOST_BYTES} bytes, and no more are read")
        try:
            text = line.decode("utf-8")
            record = json.loads(text)
        except (ValueError, RecursionError) as error:  # a kill can also cut a character of several bytes
            refused = ValueError(f"{place} is not JSON: {str(error)[:200]}")
            continue
        refuse_written_surrogates(record, text, place)
        if not isinstance(record, dict):
            raise ValueError(f"{place} is not a JSON object: {record!r:.80}")
        records.append(record)
    return records


def _warn_of_gap(metrics: Path, first_step: int) -> None:
    """Warn of a log that lacks steps before the first one of a resumed run: it was deleted, or cut."""
    logged = {_step(record, metrics) for record in read_jsonl(metrics)} if metrics.exists() else set()
    missing = first_step - sum(0 <= step < first_step for step in logged)  # a checkpoint may name any step: no list
    if missing:
        first = next(step for step in every_number() if step not in logged)
        warnings.warn(
            f"{metrics} does not hold {missing} of the {first_step} steps before this one, such as step "
            f"{first}: the run goes on, but its log is not whole",
            RuntimeWarning,
            stacklevel=4,
        )
    elif not (samples := metrics.with_name("samples.jsonl")).exists():
        text = f"{samples} was deleted: the run goes on, but its samples so far are lost"
        warnings.warn(text, RuntimeWarning, stacklevel=4)


def _drop_from(path: Path, first_step: int) -> None:
    if not path.exists():
        return
    kept: Sequence[dict[str, Any]] = [record for record in read_jsonl(path) if _step(record, path) < first_step]
    replace_text(path, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in kept))


def _step(record: Mapping[str, Any], path: Path) -> int:
    step = record.get("step")
    if not isinstance(step, int):
        raise ValueError(f"{visible(str(path))} holds a line without a step: {record!r:.80}")
    return step
