"""Several processes under torchrun that train one model: who they are, what each of them takes, how they agree.

The rule is that the number of processes changes the speed and nothing else. Every process holds the same generator, so
all of them draw the same prompts, seeds and orders. Each one samples, scores and measures its own share of the prompts.
The results are gathered, so that every process computes advantages, whitening, KL and metrics from the rollout of the
whole step. Each one computes the gradient of its own rows of every minibatch, divided by the number of tokens of the
whole minibatch. The sum of these gradients is the gradient that one process would compute.

The engine is torch.distributed. Gradients are summed once per minibatch by ``all_reduce``. DistributedDataParallel is
not used: its hooks expect one forward pass of one module per backward pass, but a minibatch is several passes over
responses and retain text. :mod:`ppo.distributed.sharding` splits the weights themselves.

With one process every function here returns what it was given. This module knows rows and numbers, nothing about PPO.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous
from torch.distributed.tensor import DTensor
from torch.nn.functional import pad

from ..config import Config
from ..lm.device import COLLECTIVES, accelerator, local_processes
from ..run.interrupt import ignore_sigterm
from ..types import Generation
from .errors import OtherProcessError, OutOfStepError, error_text, peer_errors

Value = TypeVar("Value")
Rows = TypeVar("Rows", Tensor, "Tensor | None")
PATIENCE = timedelta(hours=24)  # process 0 may evaluate for hours while the others wait; a dead one is noticed at once
BUCKET_ELEMENTS = 2**23  # gradient elements that are summed in one call


@contextmanager
def process_group() -> Iterator[Processes]:
    """Join the processes that torchrun started, and leave them at the end. Without torchrun, do nothing.

    Rank and address come from torchrun's environment variables. If the machine has an accelerator for every process on
    it, each process gets one (:mod:`ppo.lm.device`), and they communicate through its own library, such as NCCL, and
    through gloo for what lies on the CPU. Otherwise they communicate through gloo.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield Processes.current()
        return
    backend = _take_device()
    store, rank, count = next(rendezvous("env://", timeout=PATIENCE))
    dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=PATIENCE)
    processes = Processes(rank, count, store)
    try:
        with processes.last_words():
            yield processes
    finally:
        dist.destroy_process_group()


def _take_device() -> str:
    """Make this process's accelerator the current one, if each process here has one; and the backend to speak by."""
    kind, (rank, count) = accelerator(), local_processes()
    if kind not in COLLECTIVES or count > torch.accelerator.device_count():
        return "gloo"
    torch.accelerator.set_device_index(rank)
    return f"cpu:gloo,{kind}:{COLLECTIVES[kind]}"


def kind_of_group() -> str:
    """The kind of device that the processes speak by: their accelerator, else "cpu"."""
    kind = accelerator()
    return kind if kind in COLLECTIVES and COLLECTIVES[kind] in str(dist.get_backend_config()) else "cpu"


@dataclass(frozen=True)
class Processes:
    """This process among all of them: ``rank`` of ``count``. Process 0 is the one that writes files.

    ``store``: the key-value store that :func:`process_group` opened, for :meth:`claim`.
    """

    rank: int = 0
    count: int = 1
    store: Any = field(default=None, compare=False, repr=False)

    @classmethod
    def current(cls) -> Processes:
        """Rank and count from torch.distributed. Raises ValueError under torchrun outside :func:`process_group`."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        if dist.is_torchelastic_launched() and int(os.environ["WORLD_SIZE"]) > 1:
            raise ValueError(
                f"torchrun started {os.environ['WORLD_SIZE']} processes, but they do not know each other: put the "
                "program into `with ppo.process_group():`"
            )
        return cls()

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def check(self, config: Config) -> None:
        """Raise ValueError when a step or a minibatch cannot be divided evenly among the processes."""
        for name in ("prompts_per_step", "minibatch"):
            value = getattr(config, name)
            if value % self.count:
                raise ValueError(f"Config.{name}={value} counts over all processes and must be a multiple of their "
                                 f"number, {self.count}")  # fmt: skip

    # ------------------------------------------------------------------ what each one takes

    def share(self, total: int) -> slice:
        """This process's slice of ``total`` rows that follow each other (the prompts of a step).

        Each process takes ``total / count`` rows; where that is no whole number, some take one more than others, and
        with fewer rows than processes some take none.
        """
        return slice(total * self.rank // self.count, total * (self.rank + 1) // self.count)

    def deal(self, attention_mask: Tensor) -> Tensor:
        """Indices of this process's rows of a batch [B, S] that every process holds; each gets long and short rows."""
        if self.count == 1:
            return torch.arange(len(attention_mask), device=attention_mask.device)
        order = torch.argsort(attention_mask.sum(dim=1), descending=True, stable=True)
        return order[self.rank :: self.count]

    # ------------------------------------------------------------------ bringing it together

    def gather_rows(self, rows: Rows, *, pad_left: bool = False) -> Rows:
        """The rows of all processes, concatenated in rank order: [b], [b, t] or [b, t, n] -> [B, …], padded with 0."""
        if self.count == 1 or rows is None:
            return rows
        parts: list[Tensor] = self._exchange(rows.cpu())
        if rows.dim() >= 2:
            width, inner = max(part.shape[1] for part in parts), (0, 0) * (rows.dim() - 2)
            missing = [width - part.shape[1] for part in parts]
            parts = [pad(x, inner + ((n, 0) if pad_left else (0, n))) for x, n in zip(parts, missing, strict=True)]
        return torch.cat(parts).to(rows.device)

    def gather_generation(self, generation: Generation) -> Generation:
        """The responses of all processes. Metrics in tokens per second are summed; of other metrics the largest counts.

        Hidden states are not sent, because they are too large. Whoever needs them computes them again. Raises
        ValueError where one process knows of something, such as the sampler's values, and another does not.
        """
        if self.count == 1:
            return generation
        known = [set(names) for names in self._exchange(_known(generation))]
        if uneven := sorted(set.union(*known) - set.intersection(*known)):
            raise ValueError(f"the sampler gave {uneven[0]} on one process and not on another: always give the same")
        joined: dict[str, Any] = {
            name: self.gather_rows(value, pad_left=name.startswith("prompt_")) if name != "frozen_hidden" else None
            for name, value in vars(generation).items()
            if isinstance(value, Tensor)
        }
        noted = self._exchange(generation.info)
        joined["info"] = [one for part in noted for one in part] if all(part is not None for part in noted) else None
        metrics = self._exchange(dict(generation.metrics))
        joined["metrics"] = {
            name: (sum if name.endswith("_per_second") else max)(m[name] for m in metrics) for name in metrics[0]
        }
        return replace(generation, **joined)

    def of_first(self, tensor: Tensor) -> Tensor:
        """The tensor of process 0, on the device of this process's own."""
        return tensor if self.count == 1 else self.broadcast(tensor.cpu()).to(tensor)

    def sum_named(self, numbers: Mapping[str, float]) -> dict[str, float]:
        """:meth:`sum_numbers` where a process may lack some of the names. The names come in the order of process 0."""
        if self.count == 1:
            return dict(numbers)
        totals: dict[str, float] = {}
        for part in self._exchange(dict(numbers)):
            for name, number in part.items():
                totals[name] = totals.get(name, 0.0) + number
        return totals

    def sum_numbers(self, numbers: Mapping[str, float]) -> dict[str, float]:
        """Each number summed over the processes. All processes must pass the same names, in the same order."""
        if self.count == 1:
            return dict(numbers)
        totals = self._reduce(
            torch.tensor(list(numbers.values()), dtype=torch.float64, device="cpu"), dist.ReduceOp.SUM
        )
        return dict(zip(numbers, totals.tolist(), strict=True))

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace every gradient by its sum over the processes. A gradient that no process has stays None.

        Weights that :mod:`ppo.distributed.sharding` split are skipped: FSDP2 sums their gradients in the backward pass.
        """
        whole = [p for p in parameters if not isinstance(p, DTensor)]
        if self.count == 1 or not whole:
            return
        has_gradient = torch.tensor([p.grad is not None for p in whole], dtype=torch.int32, device="cpu")
        used = [p for p, is_used in zip(whole, self._reduce(has_gradient, dist.ReduceOp.MAX).tolist(), strict=True)
                if is_used]  # fmt: skip
        for parameter in used:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        for bucket in _buckets([p.grad for p in used if p.grad is not None]):
            flat = torch.cat([gradient.flatten() for gradient in bucket])
            with peer_errors():
                dist.all_reduce(flat)
            for gradient, total in zip(bucket, torch.split(flat, [g.numel() for g in bucket]), strict=True):
                gradient.copy_(total.view_as(gradient))

    def copy_first(self, model: nn.Module) -> None:
        """Give every process the parameters and buffers of process 0, so that all of them start from the same model."""
        if self.count > 1:
            with peer_errors():
                for tensor in (*model.parameters(), *model.buffers()):
                    dist.broadcast(tensor.detach(), src=0)

    # ------------------------------------------------------------------ agreeing

    @contextmanager
    def together(self) -> Iterator[None]:
        """If the block raises on one process, it raises on all of them, so that none waits for one that has left.

        Of the processes that failed, the one with the lowest rank raises its own error. All others raise
        :class:`OtherProcessError`. Nothing in the block may wait for another process, except the forwards of
        :mod:`ppo.distributed.lockstep`.
        """
        if self.count == 1:
            yield
            return
        error: Exception | None = None
        try:
            yield
        except OutOfStepError:
            raise  # the others are inside a forward and cannot be told
        except Exception as caught:  # every kind: it is raised again below, once the others know of it
            error = caught
        texts = self._exchange(None if error is None else error_text(error))
        failed = [rank for rank, text in enumerate(texts) if text is not None]
        if error is not None and failed[0] == self.rank:
            raise error
        if failed:
            raise OtherProcessError(f"process {failed[0]}: {texts[failed[0]]}")

    @contextmanager
    def last_words(self) -> Iterator[None]:
        """With several processes, a process that fails ignores SIGTERM from then on, so that its error is printed.

        torchrun sends SIGTERM to the others as soon as one process has ended, and SIGKILL half a minute later. Use this
        around a block whose errors end the process.
        """
        try:
            yield
        except Exception:
            if self.count > 1:
                ignore_sigterm()
            raise

    def first(self, function: Callable[[], Value]) -> Value:
        """Call ``function`` on process 0 only, and return its result on all processes."""
        answer: Any = None
        with self.together():
            if self.is_first:
                answer = function()
        return cast(Value, self.broadcast(answer))

    def broadcast(self, value: Value) -> Value:
        """The value of process 0, on all processes."""
        if self.count == 1:
            return value
        box: list[Any] = [value]
        with peer_errors():
            dist.broadcast_object_list(box, src=0)
        return cast(Value, box[0])

    def any(self, flag: bool) -> bool:
        """Whether the flag is True on any process."""
        return (
            flag
            if self.count == 1
            else bool(self._reduce(torch.tensor([int(flag)], device="cpu"), dist.ReduceOp.MAX).item())
        )

    def max(self, number: float) -> float:
        """The largest of the processes' numbers."""
        if self.count == 1:
            return number
        return float(self._reduce(torch.tensor([number], dtype=torch.float64, device="cpu"), dist.ReduceOp.MAX).item())

    def claim(self, name: str) -> bool:
        """Whether this process is the first to ask for ``name``. It waits for no other, so it works after an error.

        Without torchrun the answer is kept by process 0. Once that is lost, each process that is left is told yes.
        """
        try:
            return self.store is None or self.store.add(f"ppo/{name}", 1) == 1
        except RuntimeError:
            return True

    def all_gather(self, value: Value) -> list[Value]:
        """The values of all processes, in rank order."""
        return [value] if self.count == 1 else self._exchange(value)

    def _exchange(self, value: Any) -> list[Any]:
        values: list[Any] = [None] * self.count
        with peer_errors():
            dist.all_gather_object(values, value)
        return values

    def _reduce(self, numbers: Tensor, operation: Any) -> Tensor:
        """A small tensor reduced over the processes, on the CPU if the group has a CPU backend."""
        if "gloo" not in str(dist.get_backend_config()):
            numbers = numbers.to(accelerator())
        with peer_errors():
            dist.all_reduce(numbers, op=operation)
        return numbers


def _known(generation: Generation) -> list[str]:
    """What a generation holds: its fields that are not None, and its metrics by name."""
    names = [one.name for one in fields(generation) if one.name != "frozen_hidden"]
    known = [name for name in names if getattr(generation, name) is not None]
    return known + [f"metrics[{name!r}]" for name in generation.metrics]


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Consecutive gradients of one dtype, in lists of up to ``BUCKET_ELEMENTS`` elements (or one larger gradient)."""
    bucket: list[Tensor] = []
    for gradient in gradients:
        size = sum(g.numel() for g in bucket) + gradient.numel()
        if bucket and (size > BUCKET_ELEMENTS or bucket[0].dtype != gradient.dtype):
            yield bucket
            bucket = []
        bucket.append(gradient)
    if bucket:
        yield bucket
