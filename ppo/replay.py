"""Replays what a failed check left behind: the same rows go through the same weights and are checked row by row.

This module knows dumps, a policy and its gradient. :mod:`ppo.checks` knows when a number is wrong.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from .checkpoint.run_state import Counters
from .checkpoint.snapshot import check_own, read_snapshot
from .checkpoint.weights import restore_frozen, restore_value
from .checks.checks import Checks, rollout_problems, sampler_gaps
from .checks.dump import Dumps, on_device, read_dump
from .checks.seams import checked_policy_loss, names_of
from .distributed.processes import Processes
from .io.console import shown_errors
from .kl import KLPenalty
from .learner import Learner
from .lm.backbone import context_length, vocabulary_size
from .lm.device import device_of, move, resolve_device
from .optim.optimizer import Optimizer
from .policy import Policy
from .policy_losses import policy_loss_of
from .reference import freeze
from .retain import RetainBatch, make_retain_loss
from .types import PolicyLoss, Rollout


@dataclass(frozen=True)
class Replay:
    """A failed check, computed once more.

    check, message   as the run reported them
    problems         what is wrong with the rows now; each problem has the indices of its rows
    row_gaps         nats per token between the policy's and the old log-probs, one number a row
    statistics       of the rows as one minibatch, with ``update/grad_norm`` before clipping
    rollout, policy, learner   for a closer look
    """

    check: str
    message: str
    problems: dict[str, list[int]]
    row_gaps: list[float]
    statistics: dict[str, float]
    rollout: Rollout
    policy: Policy
    learner: Learner


@shown_errors()
def replay(
    path: str | Path,
    *,
    model: nn.Module | None = None,
    policy_loss: PolicyLoss | None = None,
    value: nn.Module | None = None,
    device: str | torch.device | None = None,
) -> Replay:
    """Run the rows of a dump through the weights that were saved with them. Nothing is trained or written.

    ``path``: a folder under ``<out>/dumps``. ``model``: as for :meth:`Trainer.resume`, needed only where the policy
    was no plain Hugging Face model (an adapter, say). ``policy_loss``, ``value``: those that the run was given.
    ``device``: as for :meth:`Trainer.resume`; a critic is moved there, too. Raises ValueError for a damaged dump, and
    where ``policy_loss`` or ``value`` is missing.
    """
    folder, place = Path(path), None if device is None else resolve_device(device)
    found, rollout, retain = read_dump(folder)
    policy, learner, checks = _restored_parts(folder / "trainer", model, policy_loss, value, place)
    _check_ids(folder, rollout, retain, policy, learner)
    rollout = on_device(rollout, policy.device)
    gaps = policy.gaps(rollout)
    problems = _problems(str(found["check"]), rollout, gaps, checks.most_gap_nats)
    statistics, _ = learner.gradient(rollout, retain)
    norms = [p.grad.norm() for p in policy.actor.trained_parameters().values() if p.grad is not None]
    statistics["update/grad_norm"] = float(torch.stack(norms).norm()) if norms else math.nan
    learner.optimizer.zero_grad()
    return Replay(found["check"], found["message"], problems, gaps.tolist(), statistics, rollout, policy, learner)


def _problems(check: str, rollout: Rollout, gaps: torch.Tensor, most: float) -> dict[str, list[int]]:
    """What is wrong with the rows now, each problem with the indices of its rows."""
    problems = {name: is_bad.nonzero().squeeze(1).tolist() for name, is_bad in rollout_problems(rollout).items()}
    if check != "not_finite":  # this check may fail after other updates, which have moved the policy
        apart = f"log-probs are more than {most:g} nats per token apart"
        problems[apart] = [row for row, gap in enumerate(gaps.tolist()) if not gap <= most]
    if check == "sampler":
        apart = f"the sampler's log-probs are more than {most:g} nats per token from the training forward's"
        problems[apart] = (~(sampler_gaps(rollout) <= most)).nonzero().squeeze(1).tolist()
    return {name: which for name, which in problems.items() if which}


def _check_ids(folder: Path, rollout: Rollout, retain: RetainBatch | None, policy: Policy, learner: Learner) -> None:
    """Raise ValueError for rows that the model of the dump cannot have produced, or that do not match its config."""
    vocab, context = vocabulary_size(policy.model), context_length(policy.model)
    for ids in (rollout.generation.input_ids, *([] if retain is None else [retain.ids])):
        if int(ids.min()) < 0 or int(ids.max()) >= vocab:
            raise ValueError(f"{folder} is damaged: it holds token ids outside the model's vocabulary of {vocab}")
        if context is not None and ids.shape[1] > context:
            raise ValueError(f"{folder} is damaged: its rows are longer than the model's context of {context}")
    if (retain is not None) != (learner.retain_loss is not None):
        raise ValueError(
            f"{folder} is damaged: it must hold text to keep if the run's retain_coef is above 0, else none"
        )


def _restored_parts(
    folder: Path,
    model: nn.Module | None,
    loss: PolicyLoss | None,
    critic: nn.Module | None,
    device: torch.device | None,
) -> tuple[Policy, Learner, Checks]:
    """The parts of a run from the checkpoint of a dump. The rows hold what prompts, reward and reference gave."""
    snapshot = read_snapshot(folder, model, None, device)
    own = {"policy_loss": loss, "value": critic}
    check_own(snapshot, names_of(own), seams=tuple(own), asker="replay")
    config, processes = snapshot.config, Processes.current()
    if critic is not None:
        move(critic, device_of(snapshot.model))
    policy = Policy.of(snapshot.model, config, processes, critic=critic, has_own_loss=loss is not None)
    restore_value(policy, snapshot.folder)
    frozen = freeze(snapshot.model, config, has_own_reference=True)  # for the retain loss alone
    if frozen is not None and frozen is not snapshot.model:
        restore_frozen(frozen, snapshot.folder)
    kl = KLPenalty.of(config)
    kl.take(snapshot.state["kl_coef"])
    optimizer = Optimizer(policy.actor.trained_parameters(), policy.actor.value_parameter_names(), config)
    checks = Checks(policy, config, Dumps(None, lambda path: path, processes))
    retain_loss = make_retain_loss(frozen, config)
    counters = Counters(step=snapshot.state["step"])
    learner = Learner(
        policy, optimizer, kl, config, policy_loss=checked_policy_loss(loss) if loss else policy_loss_of(config),
        checks=checks, counters=counters, retain_loss=retain_loss,
    )  # fmt: skip
    return policy, learner, checks
