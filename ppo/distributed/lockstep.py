"""Forwards of split weights outside the update: every process makes the same ones, in the same order.

Where the blocks of a model are split (:mod:`ppo.distributed.sharding`), a forward on one process needs all the others
in the same forward, for each block is put together by all of them. In a rollout every process has its own prompts, and
needs more forwards than one and fewer than another. So before each forward the processes agree whose model goes next;
whoever has no use for it, or has finished, makes one of four tokens along with the others and throws the result away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial, wraps
from typing import Any

import torch
from torch import nn

from ..lm.backbone import causal_lm, probe_ids, swapped_forwards
from .processes import OutOfStepError, Processes

_NOTHING = -1


@contextmanager
def in_step(models: Sequence[nn.Module], processes: Processes) -> Iterator[None]:
    """Within the context every process may call the given causal LMs as often as it likes; without gradients.

    All processes must enter with the same models, and the context ends when the last one has finished. Raises
    OutOfStepError where this process failed inside a forward, because the others are in it still.
    """
    step = _Lockstep([causal_lm(model) for model in models], processes)
    with step.watching():
        try:
            yield
        except Exception:
            if step.cause is not None:
                raise OutOfStepError(f"in a forward that all processes share: {step.cause}") from step.cause
            step.finish()  # the others do not know yet, and go on
            raise
        step.finish()


class _Lockstep:
    def __init__(self, models: Sequence[Any], processes: Processes) -> None:
        self._models = models
        self._trunks = [getattr(model, "base_model", model) for model in models]
        self._processes = processes
        self._is_inside = False
        self.cause: BaseException | None = None  # why a shared forward did not come to its end here

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Every forward of a model, or of its trunk alone, asks the others first."""
        with ExitStack() as stack:
            for index, parts in enumerate(zip(self._models, self._trunks, strict=True)):
                stack.enter_context(swapped_forwards(list(dict.fromkeys(parts)), partial(self._shared, index)))
            yield

    def _shared(self, index: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(forward)  # keeps the signature, by which others tell what a model takes
        def shared(*arguments: Any, **named: Any) -> Any:
            if self._is_inside:  # a model calling its trunk
                return forward(*arguments, **named)
            if self.cause is not None:
                raise OutOfStepError("a forward that all processes share has failed here, so no other one can begin")
            while (chosen := self._agreed(index)) != index:
                self._go_along(chosen)
            with self._inside():
                return forward(*arguments, **named)

        return shared

    @contextmanager
    def _inside(self) -> Iterator[None]:
        self._is_inside = True
        try:
            yield
        except BaseException as error:
            self.cause = error
            raise
        finally:
            self._is_inside = False

    def finish(self) -> None:
        """Go along until nobody needs a forward any more."""
        while (chosen := self._agreed(_NOTHING)) != _NOTHING:
            self._go_along(chosen)

    def _agreed(self, wanted: int) -> int:
        """Of what the processes want to call next the one with the highest index."""
        return int(self._processes.max(wanted))

    @torch.no_grad()
    def _go_along(self, index: int) -> None:
        with self._inside():
            self._trunks[index](input_ids=probe_ids(self._models[index]))
