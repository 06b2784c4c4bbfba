"""Between the trainer and somebody else's reward function: what it is given, how long it may take, what its errors say.

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

from ..types import RewardFn, Sample

_SHOWN = 4  # prompts that an error names


def own_copies(samples: list[Sample]) -> list[Sample]:
    """Samples for a function that may change what it is given: neither training nor the next step would see it.

    Dicts, lists and sets in a row are copied however deep; anything else in it, a tensor say, is the caller's own.
    """
    return [
        replace(
            s, prompt_ids=list(s.prompt_ids), ids=list(s.ids), row=_copied(s.row) if isinstance(s.row, dict) else s.row
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
    """The same function, but TimeoutError where it takes more than ``seconds``; None: as it is.

    It runs in a thread of its own, for no other thread can be left behind when it hangs.
    """
    if seconds is None:
        return reward

    def asked(samples: list[Sample]) -> Any:
        answers: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()
        with_gradients = torch.is_grad_enabled()  # a thread has its own settings
        device = torch.cuda.current_device() if torch.cuda.is_available() else None

        def work() -> None:
            if device is not None:
                torch.cuda.set_device(device)
            with torch.set_grad_enabled(with_gradients):
                try:
                    answers.put((reward(samples), None))
                except BaseException as error:  # whatever it is, it is raised again below
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
    """Give whatever is raised inside a note that says in which step, and about which rows, the reward was asked."""
    try:
        yield
    except Exception as error:  # of whatever kind: it goes on its way, with the note
        prompts = [sample.prompt or sample.prompt_ids[-8:] for sample in samples[:_SHOWN]]
        more = ", …" if len(samples) > _SHOWN else ""
        listed = ", ".join(f"{prompt!r:.60}" for prompt in prompts)
        error.add_note(
            f"in step {step}, the reward being asked about {len(samples)} responses, to the prompts {listed}{more}; "
            "the step is not part of any checkpoint, and a resumed run begins it again"
        )
        raise
