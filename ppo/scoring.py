"""The reward function is asked; its answer is checked, scaled, clipped and placed on the response tokens.

This module knows samples and numbers, nothing about models.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from .advantages import ROUNDING, overlong_charges, place_scores
from .config import Config
from .io.named import described, name_of, wrong_answer
from .run.reward_guard import in_time, named, own_copies
from .types import Generation, RewardFn, Sample


@dataclass
class RunningMoments:
    """Mean and variance of all numbers seen so far (Chan et al. 1979)."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0  # sum of squared distances to the mean

    def update(self, values: Tensor) -> None:
        """Include a batch of numbers, of any shape."""
        flat = values.double().flatten()
        if flat.numel() == 0:
            return
        mean = float(flat.mean())
        total = self.count + flat.numel()
        shift = mean - self.mean
        self.squares += float(((flat - mean) ** 2).sum()) + shift**2 * self.count * flat.numel() / total
        self.mean += shift * flat.numel() / total
        self.count = total

    def take(self, numbers: Mapping[str, Any]) -> None:
        """Continue from the numbers of a checkpoint, which have the names of the fields."""
        self.count, self.mean, self.squares = numbers["count"], numbers["mean"], numbers["squares"]

    @property
    def std(self) -> float:
        """Root of the unbiased variance; 1 until two numbers were seen that differ by more than rounding.

        Rewards are float32 as a rule, so that rounding is that of float32 (:data:`ppo.advantages.ROUNDING`).
        """
        std = math.sqrt(self.squares / (self.count - 1)) if self.count > 1 else 0.0
        return std if std > ROUNDING * torch.finfo(torch.float32).eps * abs(self.mean) else 1.0

    @property
    def divisor(self) -> float:
        """What numbers are divided by: ``std``, but at least 1e-6, or numbers that hardly vary would explode."""
        return max(self.std, 1e-6)


def call_reward(
    reward: RewardFn, samples: list[Sample], *, seconds: float | None = None
) -> tuple[Tensor, Tensor | None]:
    """Ask the reward function: scores float64 [B], and token rewards float64 [B, T] if it gave those, else None.

    ``seconds``: how long it may take (:func:`ppo.run.reward_guard.in_time`); None: no limit.
    The score of a sample with token rewards is their sum. Raises ValueError for a wrong number of answers. Raises
    ValueError that names the sample for too few or too many token rewards, and for what is not a finite number.
    """
    answer = in_time(reward, seconds)(own_copies(samples))
    _check_shape(answer, samples)
    values = _plain(answer)
    if not isinstance(values, Sequence) or len(values) != len(samples):
        found = f"{len(values)} values" if isinstance(values, Sequence) else described(values)
        wanted = f"one number a sample, or one list a sample with a number a token: {len(samples)} of them"
        raise wrong_answer("reward", reward, f"returned {found} for {len(samples)} samples: wanted {wanted}")
    values = [_plain(value) for value in values]
    if any(isinstance(value, Sequence) and not isinstance(value, str) for value in values):
        return _token_rewards(values, samples)
    scores = [_number(value, f"sample {i}") for i, value in enumerate(values)]
    return torch.tensor(scores, dtype=torch.float64, device="cpu"), None


def _check_shape(answer: Any, samples: Sequence[Sample]) -> None:
    """Raise ValueError for one column, [B, 1], of responses that are longer: a classifier's logits."""
    shape = tuple(getattr(answer, "shape", ()))
    if len(shape) == 2 and shape[1] == 1 and max(len(sample.ids) for sample in samples) > 1:
        raise ValueError(f"the reward has the shape {shape}: scores are [B]: return its .squeeze(-1)")


def _plain(value: Any) -> Any:
    """A tensor or an array as Python numbers; anything else unchanged."""
    return value.tolist() if hasattr(value, "tolist") else value


def _token_rewards(values: Sequence[Any], samples: list[Sample]) -> tuple[Tensor, Tensor]:
    """Scores [B] and token rewards [B, T] from one list a sample; a list may have zeros after the response."""
    length = max(len(sample.ids) for sample in samples)
    rewards = torch.zeros(len(samples), length, dtype=torch.float64, device="cpu")
    for i, (numbers, sample) in enumerate(zip(values, samples, strict=True)):
        if not isinstance(numbers, Sequence) or len(numbers) < len(sample.ids):
            raise ValueError(f"sample {i} has {len(sample.ids)} response tokens but got token rewards {numbers!r:.60}")
        checked = [_number(value, f"sample {i}, token {t}") for t, value in enumerate(numbers[: len(sample.ids)])]
        rewards[i, : len(checked)] = torch.tensor(checked, dtype=torch.float64, device="cpu")
        if any(float(value) != 0 for value in numbers[len(sample.ids) :]):
            raise ValueError(f"sample {i} got a token reward after its {len(sample.ids)} response tokens")
    return rewards.sum(dim=1), rewards


def _number(value: Any, where: str) -> float:
    try:
        number = float(value)
    except OverflowError as error:
        raise ValueError(f"the reward of {where} is {value!r:.40}…, too large for a float: scale it down") from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"the reward of {where} is {value!r:.60}, not a number") from error
    if not math.isfinite(number):
        raise ValueError(f"the reward of {where} is {number}: rewards must be finite")
    return number


def _check_written(per_token: Tensor, generation: Generation, giver: str) -> None:
    """Raise ValueError for a token reward on a token that an environment wrote: nobody chose it.

    ``giver``: who gave the rewards, for the message.
    """
    is_written = (generation.mask & ~generation.action_mask)[:, : per_token.shape[1]].cpu()
    wrong = ((per_token != 0) & is_written).nonzero()
    if len(wrong):
        sample, token = wrong[0].tolist()
        raise ValueError(
            f"{giver} gave a reward for token {token} of sample {sample}, which an environment wrote: give it 0"
        )


class Scorer:
    """Calls the reward function, and turns its answer into token rewards [B, T].

    :meth:`ask` takes one process's responses. :meth:`shape` takes the whole step, because the running moments are those
    of whole steps. ``moments``: the running moments of all raw rewards with ``config.scale_scores``, else None.
    ``dtype``: of all tensors that come out. ``reward=None``: the caller brings scores along, and :meth:`ask` raises
    ValueError.
    """

    def __init__(self, reward: RewardFn | None, config: Config, *, dtype: torch.dtype = torch.float32) -> None:
        self._reward = reward
        self._config = config
        self._dtype = dtype
        self.moments = RunningMoments() if config.scale_scores else None

    def __call__(self, samples: list[Sample], generation: Generation) -> tuple[Tensor, Tensor]:
        """Raw scores [B] and shaped token rewards [B, T]: :meth:`ask`, then :meth:`shape`."""
        scores, per_token = self.ask(samples)
        return scores.to(generation.mask.device), self.shape(scores, per_token, generation)

    def ask(self, samples: list[Sample], *, step: int = 0) -> tuple[Tensor, Tensor | None]:
        """Raw scores [B], and raw token rewards [B, T] if the function gives those, else None.

        An error gets a note that names ``step`` and the prompts. Raises what the function raises, TimeoutError after
        ``config.reward_timeout_seconds``, and ValueError for a bad answer or without a function.
        """
        if self._reward is None:
            raise ValueError("there is no reward to ask: pass reward=… to the Trainer, or bring scores of your own")
        with named(samples, step=step):
            scores, per_token = call_reward(self._reward, samples, seconds=self._config.reward_timeout_seconds)
        for numbers in (scores, per_token):
            self._check_size(numbers)
        return scores.to(self._dtype), per_token.to(self._dtype) if per_token is not None else None

    def _check_size(self, numbers: Tensor | None) -> None:
        """Raise ValueError for a finite number that would be infinite in the type of the statistics."""
        if numbers is None or bool(numbers.to(self._dtype).isfinite().all()):
            return
        place = (~numbers.to(self._dtype).isfinite()).nonzero()[0].tolist()
        name = str(self._dtype).removeprefix("torch.")
        raise ValueError(
            f"the reward of sample {place[0]} is {float(numbers[*place]):g}, too large for {name}: scale it"
        )

    def shape(self, scores: Tensor, per_token: Tensor | None, generation: Generation) -> Tensor:
        """Token rewards [B, T] from the raw answers about a whole step, 0 on padding.

        ``scores`` [B]; ``per_token`` [B, up to T], or None for a reward of one score a sample. In this order:

        1. With ``config.scale_scores``, the moments take in the raw numbers, and the numbers are divided by their
           standard deviation. The mean is not subtracted.
        2. The numbers are clipped to ±``config.clip_scores``.
        3. A score goes to the last action of its response. Token rewards stay where they are.
        4. ``config.missing_eos_penalty`` is subtracted there from responses that did not end by themselves.
        5. So is what ``config.overlong_penalty`` charges for the length (:func:`ppo.advantages.overlong_charges`).

        Example: score 7, penalty 2, a response of three tokens without EOS, T = 4: [0 0 5 0].
        """
        mask = generation.action_mask
        if per_token is not None:
            giver = "token_rewards" if self._reward is None else f"reward={name_of(self._reward)}"
            _check_written(per_token, generation, giver)
            adjusted = self._scale_and_clip(per_token, mask[:, : per_token.shape[1]].cpu())
            token_rewards = pad(adjusted, (0, mask.shape[1] - adjusted.shape[1])).to(mask.device)
        else:
            adjusted = self._scale_and_clip(scores, torch.ones_like(scores, dtype=torch.bool))
            token_rewards = place_scores(adjusted.to(mask.device), mask)
        if self._config.missing_eos_penalty > 0:
            penalties = generation.is_ended.logical_not().to(token_rewards.dtype) * -self._config.missing_eos_penalty
            token_rewards = token_rewards + place_scores(penalties, mask)
        if self._config.overlong_penalty > 0:
            charges = overlong_charges(
                generation.lengths, response_length=self._config.response_length,
                buffer_tokens=self._config.overlong_tokens, penalty=self._config.overlong_penalty,
            )  # fmt: skip
            token_rewards = token_rewards - place_scores(charges.to(token_rewards), mask)
        return token_rewards * mask

    def metrics(self) -> dict[str, float]:
        """``score/running_std``, by which the newest rewards were divided; nothing without ``config.scale_scores``."""
        return {} if self.moments is None else {"score/running_std": self.moments.divisor}

    def _scale_and_clip(self, values: Tensor, mask: Tensor) -> Tensor:
        if self.moments is not None:
            self.moments.update(values[mask])
            values = values / self.moments.divisor
        limit = self._config.clip_scores
        return values if limit is None else values.clamp(-limit, limit)
