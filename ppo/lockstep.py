"""Forwards of split weights outside the update: every process makes the same ones, in the same order.

Where the blocks of a model are split (:mod:`ppo.sharding`), a forward on one process needs all the others in the same
forward, for each block is put together by all of them. In a rollout every process has its own prompts, and needs more
forwards than one and fewer than another. So before each forward the processes agree whose model goes next; whoever has
no use for it, or has finished, makes one of four tokens along with the others and throws the result away.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from .backbone import causal_lm, probe_ids
from .distributed import OutOfStepError, Processes

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
        except Exception as error:
            if step.is_inside:
                raise OutOfStepError(f"in a forward that all processes share: {error}") from error
            step.finish()  # the others do not know yet, and go on
            raise
        step.finish()


class _Lockstep:
    def __init__(self, models: Sequence[Any], processes: Processes) -> None:
        self._models = models
        self._trunks = [getattr(model, "base_model", model) for model in models]
        self._processes = processes
        self._is_idle = False
        self.is_inside = False

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Every forward of the models asks the others first."""
        with ExitStack() as hooks:
            for index, trunk in enumerate(self._trunks):
                for hook in (
                    trunk.register_forward_pre_hook(partial(self._before, index)),
                    trunk.register_forward_hook(self._after),
                ):
                    hooks.callback(hook.remove)
            yield

    def _before(self, index: int, *_: Any) -> None:
        if self._is_idle:
            return
        if self.is_inside:
            raise OutOfStepError("a forward that all processes share has failed here, so no other one can begin")
        while (chosen := self._agreed(index)) != index:
            self._go_along(chosen)
        self.is_inside = True

    def _after(self, *_: Any) -> None:
        if not self._is_idle:
            self.is_inside = False

    def finish(self) -> None:
        """Go along until nobody needs a forward any more."""
        while (chosen := self._agreed(_NOTHING)) != _NOTHING:
            self._go_along(chosen)

    def _agreed(self, wanted: int) -> int:
        """Of what the processes want to call next the one with the highest index."""
        return int(self._processes.most(wanted))

    @torch.no_grad()
    def _go_along(self, index: int) -> None:
        self._is_idle = True
        try:
            self._trunks[index](input_ids=probe_ids(self._models[index]))
        finally:
            self._is_idle = False
