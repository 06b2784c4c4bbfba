"""All that a step depends on, in one list: it is saved to a checkpoint and restored from one, and an update is undone.

The list: weights, critic, frozen copy, Adam's moments, KL coefficient, running moments of the scores, generators, the
order of the prompts, limits and counters. :mod:`ppo.checkpoint.folder` knows how the files are kept whole,
:mod:`ppo.checkpoint.snapshot` how a model is read.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..config import Config
from ..distributed.sharding import gathered
from ..io.files import naming
from ..io.plain_files import delete_links
from ..kl import KLPenalty
from ..optim.optimizer import Optimizer
from ..policy import Policy
from ..prompts import Prompt, PromptStream
from ..retain import RetainTexts
from ..run.limits import Limits
from ..scoring import Scorer
from .best import Best
from .folder import (
    OPTIMIZER,
    RANDOM,
    list_checkpoints,
    load_tensors,
    make_folder,
    prune,
    save_tensors,
    unchanged,
    write_atomically,
)
from .random_state import ALWAYS, random_state, set_random_state
from .schema import ids_sha256, limits_of
from .snapshot import Snapshot
from .weights import (
    FROZEN_WEIGHTS,
    REFERENCE,
    VALUE,
    all_weights,
    attention_of,
    kind_of,
    naming_folder,
    restore_frozen,
    restore_value,
    write_once,
    write_policy,
)  # fmt: skip


@dataclass
class Counters:
    """How far a run is; the one record that :class:`RunState`, the trainer and the learner share.

    step              PPO steps that are done
    skipped_in_a_row  updates skipped in a row because their loss or gradient was not finite
    critic_updates    updates in which the policy waited for its critic
    last_checkpoint   the checkpoint that was written or read last
    """

    step: int = 0
    skipped_in_a_row: int = 0
    critic_updates: int = 0
    last_checkpoint: Path | None = None

    def restore(self, step: int, skipped_in_a_row: int, critic_updates: int) -> None:
        """Go on from these numbers."""
        self.step, self.skipped_in_a_row, self.critic_updates = step, skipped_in_a_row, critic_updates

    def moved(self, *, is_critic_alone: bool) -> None:
        """An update moved the weights."""
        self.skipped_in_a_row = 0
        self.critic_updates += is_critic_alone

    def skipped(self) -> int:
        """An update was skipped; returns how many in a row that makes."""
        self.skipped_in_a_row += 1
        return self.skipped_in_a_row

    def saved(self, checkpoint: Path) -> None:
        """A checkpoint was written or read."""
        self.last_checkpoint = checkpoint


@dataclass(frozen=True)
class RunState:
    """The parts of a run, by name. It holds references; the parts own the state.

    frozen        the model as it was at the start, if the KL penalty or the retain loss needs it, else None; it may be
                  the policy's own model, with its adapter off
    retain_texts  of PPO-ptx, or None
    generator     the one from which prompt order, sampling seeds, minibatches and retain texts are drawn
    best          the best step so far, where the config names a metric for it, else None
    own           the functions that were not the library's, by the seam that they were given at
    """

    config: Config
    policy: Policy
    frozen: nn.Module | None
    optimizer: Optimizer
    kl: KLPenalty
    scorer: Scorer
    prompts: Sequence[Prompt]
    stream: PromptStream
    retain_texts: RetainTexts | None
    generator: torch.Generator
    counters: Counters
    tokenizer: Any | None
    own: Mapping[str, str] = field(default_factory=dict)
    best: Best | None = None

    def end_step(self) -> None:
        """Count a finished step. All processes continue with the smallest limits of any of them."""
        self.counters.step += 1
        self.policy.agree_on_limits()

    def check_sound(self) -> None:
        """Raise FloatingPointError if a trained weight, or a moment of one, holds NaN or an infinity.

        All processes must call this, and all of them raise.
        """
        broken = self.optimizer.first_broken()
        if self.policy.processes.any(broken is not None):
            last = self.counters.last_checkpoint
            remedy = f"go on from {last}" if last is not None else "start again"
            raise FloatingPointError(
                f"step {self.counters.step}: {broken or 'a part of another process'} holds NaN or an infinity, so no "
                f"checkpoint of it is written; {remedy}, with a lower learning rate or with max_grad_norm"
            )

    def is_best(self, metrics: Mapping[str, float], step: int) -> bool:
        """Whether a step is the best so far by the metric of the config; it is noted, so :meth:`save` holds it.

        The first process's number counts. All processes must call this.
        """
        if self.best is None:
            return False
        return self.best.take(self.policy.processes.broadcast(metrics.get(self.best.metric)), step)

    def save(self, path: Path) -> Path:
        """Write a checkpoint at ``path`` in the place of what is there, and return ``path``.

        All processes must call this, because split weights are gathered from all of them. The first one writes.
        """
        processes, reference = self.policy.processes, self._own_reference()
        policy = gathered(self.policy.model.state_dict(keep_vars=True))
        critic = gathered(self.policy.actor.value_state())
        moments = gathered(self.optimizer.state_tensors())
        old = processes.first(lambda: self._shared_file(REFERENCE))
        frozen = gathered(all_weights(reference)) if reference is not None and old is None else {}
        generators = {"trainer": self.generator.get_state(), "prompt_order": self.stream.order}
        for rank, states in enumerate(processes.all_gather(random_state())):
            generators |= {_of_rank(name, rank): state for name, state in states.items()}

        def fill(folder: Path) -> dict[str, Any]:
            self._write_policy(folder / "model", policy)
            save_tensors(folder / VALUE, critic)
            if reference is not None:
                write_once(old, folder / REFERENCE, frozen)
            save_tensors(folder / OPTIMIZER, moments)
            save_tensors(folder / RANDOM, generators)
            return self.numbers()

        with processes.together():
            if processes.is_first:
                write_atomically(path, fill)
        return path

    def save_model(self, folder: Path) -> None:
        """Write the policy alone, as a checkpoint holds it. All processes must call this."""
        policy = gathered(self.policy.model.state_dict(keep_vars=True))
        with self.policy.processes.together():
            if self.policy.processes.is_first:
                make_folder(folder)
                delete_links(folder)
                self._write_policy(folder, policy, is_alone=True)

    def save_value(self, folder: Path) -> None:
        """Write the value function alone, as a checkpoint holds it. All processes must call this."""
        critic = gathered(self.policy.actor.value_state())
        with self.policy.processes.together():
            if self.policy.processes.is_first:
                make_folder(folder)
                delete_links(folder)
                save_tensors(folder / VALUE, critic)

    def save_numbered(self, folder: Path) -> Path:
        """Write ``step-<n>`` in a folder of checkpoints, and delete all but the newest ``config.keep_checkpoints``."""
        path = self.save(folder / f"step-{self.counters.step:06d}")
        with self.policy.processes.together():
            if self.policy.processes.is_first:
                prune(folder, self.config.keep_checkpoints, newest=path)
        return path

    def finish_pruning(self, folder: Path) -> None:
        """Delete the checkpoints that a killed run had no time to delete, if this run continues from the newest."""
        newest = self.counters.last_checkpoint
        if newest is None or newest.parent != folder or not self.policy.processes.is_first:
            return
        if list_checkpoints(folder)[-1:] == [newest]:
            prune(folder, self.config.keep_checkpoints, newest=newest)

    def numbers(self) -> dict[str, Any]:
        """Everything that is a number, a name or a list of names, as state.json holds it."""
        model, moments = self.policy.model, self.scorer.moments
        optional: dict[str, Any] = {} if self.best is None else {"best": self.best.numbers()}
        if self.config.critic_warmup_steps > 0:
            optional["critic_updates"] = self.counters.critic_updates
        return {
            "step": self.counters.step,
            "num_updates": self.optimizer.num_updates,
            "kl_coef": self.kl.coef,
            "moments": asdict(moments) if moments is not None else None,
            "num_not_finite": self.counters.skipped_in_a_row,
            "limits": asdict(self.policy.limits),
            "num_prompts": len(self.prompts),
            "prompts_sha256": ids_sha256([prompt.ids for prompt in self.prompts]),
            "retain_sha256": ids_sha256(self.retain_texts.pieces) if self.retain_texts is not None else None,
            "config": self.config.to_dict(),
            "dtype": str(self.policy.dtype).removeprefix("torch."),
            "frozen": [name for name, p in model.named_parameters() if not p.requires_grad],
            "kind": kind_of(model),
            "attention": attention_of(model),
            "device": str(self.policy.device),
            "own": dict(self.own),
        } | optional

    def check_texts(self, snapshot: Snapshot) -> None:
        """Raise ValueError for other prompts than those that were saved: the saved order refers to them by index.

        Other texts to keep are only a RuntimeWarning: a model may have written them, and another machine may round
        differently. A checkpoint of format 1 holds only the number of prompts.
        """
        folder, state = snapshot.folder, snapshot.state
        count, prompts, retain = (state.get(name) for name in ("num_prompts", "prompts_sha256", "retain_sha256"))
        if count != len(self.prompts):
            raise ValueError(
                f"{folder} was saved with {count} prompts, resume got {len(self.prompts)} (num_prompts): pass the same"
            )
        if prompts is not None and prompts != ids_sha256([prompt.ids for prompt in self.prompts]):
            raise ValueError(
                f"{folder} was saved with other prompts, or in another order (prompts_sha256): pass the same as then"
            )
        if retain is not None and self.retain_texts is not None and retain != ids_sha256(self.retain_texts.pieces):
            warnings.warn(
                f"{folder} was saved with other texts to keep (retain_sha256): the run will not go on to the same bits",
                RuntimeWarning,
                stacklevel=3,
            )

    def restore(self, snapshot: Snapshot) -> None:
        """Put everything but the policy's weights back into a new run, whose policy is the snapshot's model.

        Raises ValueError for what does not fit the parts of this run.
        """
        folder, state = snapshot.folder, snapshot.state
        with naming(folder):
            restore_value(self.policy, folder)
            if (reference := self._own_reference()) is not None:
                restore_frozen(reference, folder)
            is_untold = self.config.critic_warmup_steps > 0 and "critic_updates" not in state  # by an older version
            self.optimizer.load_state_tensors(
                load_tensors(folder / OPTIMIZER),
                state["num_updates"],
                num_waiting=None if is_untold else state.get("critic_updates", 0),
            )
            generators = load_tensors(folder / RANDOM)
            self._take_generators(generators, folder / RANDOM)
            # A process that the saved run did not have keeps its own state, or it would repeat another one's numbers.
            named = {name: _of_rank(name, self.policy.processes.rank) for name in random_state()}
            set_random_state({name: generators[of] for name, of in named.items() if of in generators})
            self._take_numbers(state)
        self.counters.saved(folder)

    @contextmanager
    def undone(self) -> Iterator[None]:
        """Within the context updates may be made; at its end, also after an error, what they changed is put back.

        Weights, moments, counters, KL coefficient and generators are put back. Limits that an out-of-memory error
        lowered stay lowered. The context holds a copy of all trained weights and their moments.
        """
        trained, counters, kl_coef = self.policy.actor.trained_parameters(), self.counters, self.kl.coef
        weights = {name: p.detach().clone() for name, p in trained.items()}
        moments = {name: x.clone() for name, x in self.optimizer.state_tensors().items()}
        num_updates, counted = self.optimizer.num_updates, replace(counters)
        generator, other_generators = self.generator.get_state(), random_state()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, p in trained.items():
                    p.copy_(weights[name])
            self.optimizer.zero_grad()
            self.optimizer.load_state_tensors(moments, num_updates)
            counters.restore(counted.step, counted.skipped_in_a_row, counted.critic_updates)
            self.kl.take(kl_coef)
            self.generator.set_state(generator)
            set_random_state(other_generators)

    def _take_numbers(self, state: Mapping[str, Any]) -> None:
        """Put back the numbers that change from step to step. The run was built with all others."""
        self.counters.restore(state["step"], state.get("num_not_finite") or 0, state.get("critic_updates", 0))
        self.kl.take(state["kl_coef"])
        if (limits := limits_of(state)) is not None:
            self.policy.limits.take(Limits(**limits))
        if self.scorer.moments is not None:
            self.scorer.moments.take(state["moments"])
        if self.best is not None:
            self.best.restore(state.get("best"))

    def _take_generators(self, tensors: Mapping[str, Tensor], file: Path) -> None:
        """Put back the run's own generator and the order of the prompts. Raises ValueError where one is damaged."""
        order = tensors.get("prompt_order", torch.empty(0, device="cpu"))
        is_order = order.dtype == torch.long and order.dim() == 1 and len(set(order.tolist())) == len(order)
        if not is_order or bool(((order < 0) | (order >= len(self.prompts))).any()):
            raise ValueError(f"{file} is damaged: prompt_order is no order of {len(self.prompts)} prompts, each once")
        if missing := sorted(ALWAYS - tensors.keys()):
            raise ValueError(f"{file} is damaged: the generators' state {missing[0]!r} is missing")
        try:
            self.generator.set_state(tensors["trainer"])
        except (KeyError, RuntimeError, TypeError) as error:
            raise ValueError(f"{file} is damaged: it holds no state of the trainer's generator") from error
        self.stream.restore(order)

    def _own_reference(self) -> nn.Module | None:
        """The frozen copy, if it is another model than the policy's, else None."""
        return self.frozen if self.frozen is not self.policy.model else None

    def _write_policy(self, target: Path, state: dict[str, Tensor], *, is_alone: bool = False) -> None:
        """Write the policy's weights ``state``, and the tokenizer beside them. ``is_alone``: no run goes on from it."""
        shared = self._shared_file(f"model/{FROZEN_WEIGHTS}")
        write_policy(self.policy.model, target, state, shared=shared, is_alone=is_alone)
        if self.tokenizer is not None:
            with naming_folder(target):
                self.tokenizer.save_pretrained(target)

    def _shared_file(self, name: str) -> Path | None:
        """A file of the last checkpoint, to link to instead of writing it again; None if there is none.

        A file that was damaged since is not shared: the new checkpoint's checksum would declare it whole.
        """
        return None if self.counters.last_checkpoint is None else unchanged(self.counters.last_checkpoint, name)


def _of_rank(name: str, rank: int) -> str:
    return name if rank == 0 else f"{name}.{rank}"
