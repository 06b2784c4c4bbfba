"""The metrics of a run as TensorBoard event files, if tensorboard is installed. No other module imports tensorboard."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


class TensorBoard:
    """Scalars through a ``SummaryWriter``, flushed every step."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Add one point to the curve of every metric."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Stop the thread that writes."""
        self._writer.close()


def open_tensorboard(folder: Path, *, first_step: int, is_wanted: bool | None) -> TensorBoard | None:
    """Event files in ``folder``, or None if they are not wanted. ``is_wanted=None``: if the package is installed.

    Points that an earlier run wrote there from ``first_step`` on are hidden. Raises ValueError if ``is_wanted`` is True
    and the package is not installed.
    """
    if is_wanted is False:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        if is_wanted is None:
            return None
        raise ValueError("use_tensorboard=True needs the package tensorboard: pip install tensorboard") from error
    return TensorBoard(SummaryWriter(str(folder), purge_step=first_step))  # type: ignore[no-untyped-call]
