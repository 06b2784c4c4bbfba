"""Other people's functions in the places of the library's own: what they are called, and what they must give back.

Whatever they return is checked at once. The error is one line that names the seam, the function, what it returned and
what was wanted, and no weight has moved by then. This module knows shapes, nothing about algorithms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..config import Config
from ..lm.backbone import context_length, vocabulary_size
from ..policy import Policy
from ..prompts import Prompt
from ..types import AdvantageFn, Evaluation, Generation, PolicyLoss, Rollout, Sample, Sampler
from .sampled import described, wrong_generation

RESERVED = frozenset({"loss", "entropy", "ratio", "log_ratio", "approx_kl"})
"""Statistics of a policy loss that the library computes itself, under any loss: the brakes of an update go by them."""


_DEFAULTS = Config()
SEAMS = ("sampler", "advantage", "policy_loss", "value")
"""The arguments of :class:`ppo.Trainer` that change the algorithm, and so belong to a checkpoint by name."""


def names_of(own: Mapping[str, Any]) -> dict[str, str]:
    """Seam by seam the name of what was given; a seam where nothing was given (None) is left out."""
    return {seam: name_of(part) for seam, part in own.items() if part is not None}


def name_of(function: Any) -> str:
    """What a checkpoint calls a function or an object: its ``name`` if it has one, or module and qualified name."""
    if isinstance(function, partial):
        return name_of(function.func)
    if isinstance(own := getattr(function, "name", None), str):
        return own
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"


def checked_sampler(sampler: Sampler, model: nn.Module) -> Sampler:
    """The sampler, with what it returns looked at; ``model``: the one that is to read it."""
    vocab_size, context = vocabulary_size(model), context_length(model)

    def sample(policy: Policy, prompts: Sequence[Prompt], *, seed: int, request_ids: Sequence[int]) -> Generation:
        generation = sampler(policy, prompts, seed=seed, request_ids=request_ids)
        if not isinstance(generation, Generation):
            raise _error("sampler", sampler, f"returned {described(generation)}, not a ppo.Generation")
        if problem := wrong_generation(generation, prompts, policy, vocab_size=vocab_size, context=context):
            raise _error("sampler", sampler, problem)
        return generation

    return sample


def checked_advantage(advantage: AdvantageFn) -> AdvantageFn:
    """The estimator, with what it returns looked at."""

    def estimate(rewards: Tensor, values: Tensor, mask: Tensor, samples: list[Sample]) -> tuple[Tensor, Tensor]:
        answer = advantage(rewards, values, mask, samples)
        if not isinstance(answer, tuple) or len(answer) != 2 or not all(isinstance(x, Tensor) for x in answer):
            raise _error(
                "advantage", advantage, f"returned {described(answer)}: wanted (advantages, returns), two tensors"
            )
        for name, x in zip(("advantages", "returns"), answer, strict=True):
            if x.shape != mask.shape:
                raise _error("advantage", advantage, f"returned {name} {_shape(x)}: wanted [B, T] = {_shape(mask)}")
            if not bool(x.isfinite().all()):
                raise _error("advantage", advantage, f"returned {name} that are NaN or infinite")
            if bool(((x != 0) & ~mask.to(x.device)).any()):
                raise _error("advantage", advantage, f"returned {name} outside the action mask: multiply them by it")
        advantages, returns = (x.detach().to(rewards) for x in answer)
        return advantages, returns

    return estimate


def checked_policy_loss(loss_fn: PolicyLoss) -> PolicyLoss:
    """The loss, with what it returns looked at."""

    def policy_loss(
        new: Evaluation, part: Rollout, *, num_tokens: int, num_sequences: int
    ) -> tuple[Tensor, Mapping[str, Tensor | float]]:
        answer = loss_fn(new, part, num_tokens=num_tokens, num_sequences=num_sequences)
        if not isinstance(answer, tuple) or len(answer) != 2 or not isinstance(answer[1], Mapping):
            raise _error("policy_loss", loss_fn, f"returned {described(answer)}: wanted (loss, statistics)")
        loss, statistics = answer
        if not isinstance(loss, Tensor) or loss.dim() != 0:
            raise _error(
                "policy_loss", loss_fn, f"returned a loss that is {described(loss)}: wanted a tensor of one number"
            )
        if not loss.requires_grad:
            raise _error("policy_loss", loss_fn, "returned a loss without a gradient: it must come from new.logprobs")
        if taken := sorted(RESERVED & statistics.keys()):
            raise _error(
                "policy_loss", loss_fn, f"returned the statistic {taken[0]!r}, which the library measures itself"
            )
        for name, value in statistics.items():
            if not isinstance(value, int | float) and not (isinstance(value, Tensor) and value.dim() == 0):
                found = described(value)
                raise _error(
                    "policy_loss", loss_fn, f"returned the statistic {name!r} that is {found}: wanted a number"
                )
        return loss, {
            name: value.detach() if isinstance(value, Tensor) else value for name, value in statistics.items()
        }

    return policy_loss


def check_seams(own: Mapping[str, Any], config: Config) -> None:
    """Raise ValueError for a critic that is no module or not asked for, where GAE has none, and for settings that what
    was given makes useless. ``own``: what was given at each of :data:`SEAMS`, or None.
    """
    value, advantage = own["value"], own["advantage"]
    if value is not None and not isinstance(value, nn.Module | str | Path):
        raise _error("value", value, f"is {described(value)}: wanted a torch.nn.Module, or a folder of weights")
    if value is not None and not config.has_critic:
        why = f"advantage={config.advantage!r}" if config.advantage != "gae" else "value_head='none'"
        shown = value if isinstance(value, str | Path) else name_of(value)
        raise ValueError(f"value={shown} would never be asked: Config({why}) has no critic")
    for seam, fields in _useless(config).items():
        changed = [f"{name}={x!r}" for name in fields if (x := getattr(config, name)) != getattr(_DEFAULTS, name)]
        if own[seam] is not None and changed:
            raise _error(seam, own[seam], f"would never read Config({', '.join(changed)}): leave out what it sets")
    if advantage is None and config.advantage == "gae" and config.value_head == "none":
        raise ValueError(
            "Config.value_head='none' goes with an estimator of your own: GAE needs values, pass advantage=…"
        )


def _useless(config: Config) -> dict[str, list[str]]:
    """The settings that nothing reads any more once something was given at a seam."""
    means = config.entropy_coef > 0 or (config.kl_as == "loss" and config.kl_coef > 0)  # their terms read loss_mean
    return {
        "sampler": ["compiled_rollout"],
        "advantage": [
            "advantage", "gamma", "gae_lambda", "value_gae_lambda", "gae_length_alpha", "whiten_advantages",
        ],
        "policy_loss": [
            "policy_loss", "policy_clip", "policy_clip_high", "policy_dual_clip", *([] if means else ["loss_mean"]),
        ],
    }  # fmt: skip


def _error(seam: str, function: Any, problem: str) -> ValueError:
    return ValueError(f"{seam}={name_of(function)} {problem}")


def _shape(tensor: Tensor) -> str:
    return str(list(tensor.shape))
