"""Forwards of split weights outside the update: all processes make the same forwards in the same order.

When the blocks of a model are split (:mod:`ppo.distributed.sharding`), all processes together gather the weights of
each block. So a forward on one process needs all the others in the same forward. But in a rollout every process has its
own prompts, and the processes need different numbers of forwards. So before each forward the processes agree which
model runs next. A process that does not need that forward, or has finished, still takes part: it runs the model on a
few tokens and throws the result away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial, wraps
from typing import Any

import torch
from torch import nn

from ..lm.backbone import causal_lm, probe_ids, swapped_forwards
from .errors import OutOfStepError
from .processes import Processes

_NO_MODEL = -1  # what a process asks for that needs no forward


@contextmanager
def in_step(models: Sequence[nn.Module], critics: Sequence[nn.Module], processes: Processes) -> Iterator[None]:
    """Within the context every process may call the given models as often as it likes, without gradients.

    ``models``: causal LMs, at least one. ``critics``: modules from token ids and their mask, both [B, S], to values;
    they read the ids of the first model. All processes must enter with the same ones. The context ends when the last
    process has finished. Raises OutOfStepError when this process failed inside a forward, because the others are still
    in it.
    """
    step = _Lockstep([causal_lm(model) for model in models], critics, processes)
    with step.watching():
        try:
            yield
        except Exception:
            if step.cause is not None:
                raise OutOfStepError(f"in a forward that all processes share: {step.cause}") from step.cause
            step.finish()  # the others do not know of the error yet, and still need this process
            raise
        step.finish()


class _Lockstep:
    def __init__(self, models: Sequence[Any], critics: Sequence[nn.Module], processes: Processes) -> None:
        base_models = [getattr(model, "base_model", model) for model in models]
        self._watched = [*zip(models, base_models, strict=True), *((critic,) for critic in critics)]
        self._forwards = [partial(_run_lm, *pair) for pair in zip(base_models, models, strict=True)]
        self._forwards += [partial(_run_critic, critic, models[0]) for critic in critics]
        self._processes = processes
        self._is_inside = False
        self.cause: BaseException | None = None  # the error that ended a shared forward on this process

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Within the context every forward of a model, or of its base model alone, first asks the other processes."""
        with ExitStack() as stack:
            for index, parts in enumerate(self._watched):
                stack.enter_context(swapped_forwards(list(dict.fromkeys(parts)), partial(self._shared, index)))
            yield

    def _shared(self, index: int, forward: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(forward)  # keeps the signature: callers read from it which arguments the model takes
        def shared(*arguments: Any, **named: Any) -> Any:
            if self._is_inside:  # a model calls its base model
                return forward(*arguments, **named)
            if self.cause is not None:
                raise OutOfStepError("a forward that all processes share has failed here, so no other one can begin")
            while (chosen := self._agreed(index)) != index:
                self._take_part(chosen)
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
        """Take part in the forwards of the others until no process needs one any more."""
        while (chosen := self._agreed(_NO_MODEL)) != _NO_MODEL:
            self._take_part(chosen)

    def _agreed(self, wanted: int) -> int:
        """The index of the model that runs next: the highest that any process wants."""
        return int(self._processes.max(wanted))

    @torch.no_grad()
    def _take_part(self, index: int) -> None:
        with self._inside():
            self._forwards[index]()


def _run_lm(base_model: Any, model: Any) -> None:
    """A forward of a causal LM on a few tokens."""
    base_model(input_ids=probe_ids(model))


def _run_critic(critic: nn.Module, model: Any) -> None:
    """A forward of a critic on a few tokens that the policy ``model`` can read."""
    ids = probe_ids(model)
    critic(ids, torch.ones_like(ids, dtype=torch.bool))
