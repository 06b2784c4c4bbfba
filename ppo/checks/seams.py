"""Other people's functions in the places of the library's own: what they are called, and what they must give back.

Whatever they return is checked at once. The error is one line that names the seam, the function, what it returned and
what was wanted, and no weight has moved by then. This module knows shapes, nothing about algorithms.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from numbers import Real
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..config import Config
from ..io.named import described, name_of, wrong_answer
from ..lm.backbone import context_length, vocabulary_size
from ..metrics import named_numbers
from ..policy import Policy
from ..prompts import Prompt
from ..run.reward_guard import own_copies
from ..types import AdvantageFn, Evaluation, Generation, PolicyLoss, Reference, Rollout, Sample, Sampler
from .sampled import wrong_generation

RESERVED = frozenset({"loss", "entropy", "ratio", "log_ratio", "approx_kl"})
"""Statistics of a policy loss that the library computes itself, under any loss: the brakes of an update go by them."""


_DEFAULTS = Config()
_MOST_LOG_RATIO = 40.0  # nats of a row: far from where exp overflows in float32, at 88
_SIGNATURES = {
    "reward": "(samples) -> one number a sample, or one list a sample",
    "reference": "(generation, samples) -> [B, T] log-probs, or an object with a method logprobs",
    "sampler": "(policy, prompts, *, seed, request_ids) -> ppo.Generation",
    "advantage": "(rewards, values, mask, samples) -> (advantages, returns)",
    "policy_loss": "(new, part, *, num_tokens, num_sequences) -> (loss, statistics)",
    "on_step": "(step) -> None",
    "probe": "(trainer) -> a dict of metrics",
    "stop_when": "(metrics) -> bool",
}
SEAMS = ("sampler", "advantage", "policy_loss", "value")
"""The arguments of :class:`ppo.Trainer` that change the algorithm, and so belong to a checkpoint by name."""


def names_of(own: Mapping[str, Any]) -> dict[str, str]:
    """Seam by seam the name of what was given; a seam where nothing was given (None) is left out."""
    return {seam: name_of(part) for seam, part in own.items() if part is not None}


def checked_sampler(sampler: Sampler, model: nn.Module) -> Sampler:
    """The sampler, with what it returns looked at; ``model``: the one that is to read it."""
    vocab_size, context = vocabulary_size(model), context_length(model)

    def sample(policy: Policy, prompts: Sequence[Prompt], *, seed: int, request_ids: Sequence[int]) -> Generation:
        own = [replace(prompt, ids=list(prompt.ids)) for prompt in prompts]  # they may be changed in place
        generation = sampler(policy, own, seed=seed, request_ids=request_ids)
        if not isinstance(generation, Generation):
            raise wrong_answer("sampler", sampler, f"returned {described(generation)}, not a ppo.Generation")
        if problem := wrong_generation(generation, prompts, policy, vocab_size=vocab_size, context=context):
            raise wrong_answer("sampler", sampler, problem)
        return generation

    return sample


def checked_advantage(advantage: AdvantageFn) -> AdvantageFn:
    """The estimator, with what it returns looked at. It gets copies, so that what it changes in place stays its own."""

    def estimate(rewards: Tensor, values: Tensor, mask: Tensor, samples: list[Sample]) -> tuple[Tensor, Tensor]:
        answer = advantage(rewards.clone(), values.clone(), mask.clone(), own_copies(samples))
        if not isinstance(answer, tuple) or len(answer) != 2 or not all(isinstance(x, Tensor) for x in answer):
            raise wrong_answer(
                "advantage", advantage, f"returned {described(answer)}: wanted (advantages, returns), two tensors"
            )
        for name, x in zip(("advantages", "returns"), answer, strict=True):
            if x.shape != mask.shape:
                raise wrong_answer(
                    "advantage", advantage, f"returned {name} {_shape(x)}: wanted [B, T] = {_shape(mask)}"
                )
            if not bool(x.isfinite().all()):
                raise wrong_answer("advantage", advantage, f"returned {name} that are NaN or infinite")
            if bool(((x != 0) & ~mask.to(x.device)).any()):
                raise wrong_answer(
                    "advantage", advantage, f"returned {name} outside the action mask: multiply them by it"
                )
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
            found = described(answer)
            raise wrong_answer(
                "policy_loss", loss_fn, f"returned {found}: wanted (loss, statistics), the second a dict"
            )
        loss, statistics = answer
        if not isinstance(loss, Tensor) or loss.dim() != 0:
            raise wrong_answer(
                "policy_loss", loss_fn, f"returned a loss that is {described(loss)}: wanted a tensor of one number"
            )
        if not loss.requires_grad:
            raise wrong_answer(
                "policy_loss", loss_fn, "returned a loss without a gradient: it must come from new.logprobs"
            )
        if not _comes_from(loss, (new.logprobs, new.entropy)):
            raise wrong_answer("policy_loss", loss_fn, "returned a loss whose gradient does not reach new.logprobs")
        if taken := sorted(RESERVED & statistics.keys()):
            raise wrong_answer(
                "policy_loss", loss_fn, f"returned the statistic {taken[0]!r}, which the library measures itself"
            )
        for name, value in statistics.items():
            if not isinstance(value, Real) and not (isinstance(value, Tensor) and value.dim() == 0):
                found = described(value)
                raise wrong_answer(
                    "policy_loss", loss_fn, f"returned the statistic {name!r} that is {found}: wanted a number"
                )
        numbers = {x: value.detach() if isinstance(value, Tensor) else value for x, value in statistics.items()}
        for name, value in named_numbers({"loss": loss.detach(), **numbers}).items():
            if not math.isfinite(value) and _is_tame(new, part):
                what = "a loss" if name == "loss" else f"the statistic {name!r}"
                raise wrong_answer(
                    "policy_loss", loss_fn, f"returned {what} that is {float(value)}: wanted finite numbers"
                )
        return loss, numbers

    return policy_loss


def _comes_from(loss: Tensor, sources: Sequence[Tensor]) -> bool:
    """Whether one of the sources is behind the loss, by the graph of autograd; nothing is computed."""
    wanted = {(x.grad_fn, x.output_nr) for x in sources if x.grad_fn is not None}
    waiting, seen = [(loss.grad_fn, loss.output_nr)], set()
    while waiting:
        if (node := waiting.pop()) in wanted:
            return True
        if node not in seen and node[0] is not None:
            seen.add(node)
            waiting.extend(node[0].next_functions)
    return False


def _is_tame(new: Evaluation, part: Rollout) -> bool:
    """Whether all that a loss reads is finite and near the old policy, so that it did not overflow by itself."""
    log_ratio = ((new.logprobs.detach() - part.old_logprobs) * part.generation.action_mask).abs().sum(dim=1)
    read = (new.entropy.detach(), new.values.detach(), part.advantages, part.returns)
    return bool((log_ratio < _MOST_LOG_RATIO).all()) and all(bool(x.isfinite().all()) for x in read)


def check_callables(parts: Mapping[str, Any]) -> None:
    """Raise ValueError for what is given as a function and cannot be called; None is no function and passes.

    ``parts``: by the name of the argument; a reference may also be an object with a method ``logprobs``.
    """
    for argument, part in parts.items():
        if part is None or callable(part) or (argument == "reference" and isinstance(part, Reference)):
            continue
        if isinstance(part, str) and argument in ("advantage", "policy_loss"):
            remedy = f"for the library's own, Config({argument}={part!r})"
            raise ValueError(f"{argument}={part!r} is a string: {remedy}")
        raise ValueError(f"{argument}={part!r:.60} is {described(part)}: wanted a function {_SIGNATURES[argument]}")


def check_config(config: Any) -> None:
    """Raise ValueError for settings that are no Config."""
    if not isinstance(config, Config):
        raise ValueError(
            f"config={config!r:.60} is {described(config)}: wanted a ppo.Config, such as ppo.Config(seed=0)"
        )


def check_seams(own: Mapping[str, Any], config: Config) -> None:
    """Raise ValueError for a critic that is no module or not asked for, where GAE has none, and for settings that what
    was given makes useless. ``own``: what was given at each of :data:`SEAMS`, or None.
    """
    check_callables({seam: part for seam, part in own.items() if seam != "value"})
    value, advantage = own["value"], own["advantage"]
    if value is not None and not isinstance(value, nn.Module | str | Path):
        raise wrong_answer("value", value, f"is {described(value)}: wanted a torch.nn.Module, or a folder of weights")
    if value is not None and not config.has_critic:
        why = f"advantage={config.advantage!r}" if config.advantage != "gae" else "value_head='none'"
        shown = value if isinstance(value, str | Path) else name_of(value)
        raise ValueError(f"value={shown} would never be asked: Config({why}) has no critic")
    for seam, fields in _useless(config).items():
        changed = [name for name in fields if getattr(config, name) != getattr(_DEFAULTS, name)]
        if own[seam] is not None and not isinstance(own[seam], str | Path) and changed:
            shown = ", ".join(f"{name}={getattr(config, name)!r}" for name in changed)
            remedy = f"leave {' and '.join(changed)} at {'its default' if len(changed) == 1 else 'their defaults'}"
            raise wrong_answer(seam, own[seam], f"would never read Config({shown}): {remedy}")
    if advantage is None and config.advantage == "gae" and config.value_head == "none":
        raise ValueError(
            "Config.value_head='none' goes with an estimator of your own: GAE needs values, pass advantage=…"
        )
    is_apart = isinstance(value, nn.Module) or config.value_head == "critic" or config.detach_value_head
    if config.critic_warmup_steps > 0 and not is_apart:
        raise ValueError(
            f"Config.critic_warmup_steps={config.critic_warmup_steps} needs detach_value_head=True, "
            "value_head='critic' or a critic of your own (value=…): else the value loss would move the policy"
        )


def _useless(config: Config) -> dict[str, list[str]]:
    """The settings that nothing reads any more once something was given at a seam."""
    means = config.entropy_coef > 0 or (config.kl_as == "loss" and config.kl_coef > 0)  # their terms read loss_mean
    return {
        "sampler": ["compiled_rollout"],
        "value": ["value_head"],
        "advantage": [
            "advantage", "gamma", "gae_lambda", "value_gae_lambda", "gae_length_alpha", "whiten_advantages",
        ],
        "policy_loss": [
            "policy_loss", "policy_clip", "policy_clip_high", "policy_dual_clip", *([] if means else ["loss_mean"]),
        ],
    }  # fmt: skip


def _shape(tensor: Tensor) -> str:
    return str(list(tensor.shape))
