"""Protects a run from somebody else's reward function: it gets copies, it has a time limit, and its errors name rows.

This module knows samples and functions, nothing about what a reward means.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from queue import Empty, SimpleQueue
from typing import Any

import torch

from ..lm.device import accelerator
from ..types import RewardFn, Sample

_SHOWN = 4  # prompts shown in an error's note


def own_copies(samples: list[Sample]) -> list[Sample]:
    """Copies of the samples for a function that may change them. Training and the next step do not see its changes.

    Dicts, lists and sets in ``row`` and ``info`` are copied at every depth. Other objects there, such as a tensor, are
    not copied.
    """
    return [
        replace(
            s,
            prompt_ids=list(s.prompt_ids),
            ids=list(s.ids),
            row=_copied(s.row) if isinstance(s.row, dict) else s.row,
            info=_copied(s.info),
        )
        for s in samples
    ]


def _copied(value: Any) -> Any:
    if type(value) is dict:
        return {key: _copied(item) for key, item in value.items()}
    if type(value) is list:
        return [_copied(item) for item in value]
    return set(value) if type(value) is set else value


def in_time(reward: RewardFn, seconds: float | None) -> RewardFn:
    """The same function, but it raises TimeoutError when it takes more than ``seconds``. None: no time limit.

    The function runs in a thread of its own. When it hangs, that thread is left behind.
    """
    if seconds is None:
        return reward

    def asked(samples: list[Sample]) -> Any:
        answers: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()
        with_gradients = torch.is_grad_enabled()  # a new thread does not inherit this setting, nor the device
        device = torch.accelerator.current_device_index() if accelerator() else None

        def work() -> None:
            if device is not None:
                torch.accelerator.set_device_index(device)
            with torch.set_grad_enabled(with_gradients):
                try:
                    answers.put((reward(samples), None))
                except BaseException as error:  # every kind: it is raised again in the calling thread
                    answers.put((None, error))

        threading.Thread(target=work, name="reward", daemon=True).start()
        try:
            answer, error = answers.get(timeout=seconds)
        except Empty:
            raise TimeoutError(f"the reward function took more than reward_timeout_seconds={seconds:g}") from None
        if error is not None:
            raise error
        return answer

    return asked


@contextmanager
def named(samples: list[Sample], *, step: int) -> Iterator[None]:
    """Add a note to any error raised inside: the step in which, and the rows about which, the reward was asked."""
    try:
        yield
    except Exception as error:  # every kind: it is raised again, with the note
        prompts = [sample.prompt or sample.prompt_ids[-8:] for sample in samples[:_SHOWN]]
        more = ", …" if len(samples) > _SHOWN else ""
        listed = ", ".join(f"{prompt!r:.60}" for prompt in prompts)
        error.add_note(
            f"in step {step}, when the reward was asked about {len(samples)} responses to the prompts {listed}{more}; "
            "no checkpoint holds this step, and a resumed run begins it again"
        )
        raise
