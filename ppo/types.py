"""The words and the records that every room of the library shares.

Glossary
--------
B            sequences in a batch
P            prompt length; prompts are padded on the left
T            response length; responses are padded on the right
S            states of a response, at each of which a token is chosen; S = T, but with several actions a state S < T
V            vocabulary size
H            width of the hidden states
mask         bool [B, T], True on real response tokens *including EOS*; made by the generator, not read off pad ids
action_mask  bool [B, T], True on the tokens that the policy chose; the other real tokens were written by an environment
score        [B], one number a sequence, as the reward function gives it
reward       [B, T], per token, after the KL penalty; the score lands on the last action
value        [B, T], ``values[b, t]`` is V(state) *before* token t is chosen
return       [B, T], what the value is trained towards
``old_``     measured before the update, ``ref_`` measured under the reference
passage      pre-prefix + prefix + suffix, a text that a model may have memorised
forget set   passages to unlearn; *retain set*, text to keep; *holdout*, text or passages never trained on
N-BLEU       100 - SacreBLEU

Every [B, T] tensor is about response tokens: index t is response token t. Statistics are float32 (float64 where the
model is).

This module knows nothing about models, losses or files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

Row = Mapping[str, Any]
"""What the caller knows about one prompt: a dict with at least "prompt"; the reward sees it unchanged."""


@dataclass(frozen=True)
class Sample:
    """One prompt with one sampled response, as a reward function sees it.

    ``text`` is the decoded response without special tokens ("" for models without a tokenizer), ``ids`` are its
    token ids including EOS. Training never encodes ``text`` again. ``info``: what the sampler noted about this
    response, such as the turns of an environment; None: nothing.
    """

    prompt: str
    text: str
    prompt_ids: list[int]
    ids: list[int]
    row: Row
    is_ended: bool
    info: Any = None


@dataclass(frozen=True)
class Layout:
    """Which places of a batch hold what, known to the host: bool on the CPU.

    ``prompt_mask`` [B, P], ``mask`` and ``action_mask`` [B, T], ``is_ended`` [B] and ``actions_per_state`` are those of
    a :class:`Generation`.
    """

    prompt_mask: Tensor
    mask: Tensor
    action_mask: Tensor
    is_ended: Tensor
    actions_per_state: int = 1

    @property
    def attention_mask(self) -> Tensor:
        """True on the real tokens that the model reads, bool [B, P+S]."""
        return torch.cat([self.prompt_mask, self.mask[:, :: self.actions_per_state]], dim=1)

    def rows(self, indices: Tensor) -> Layout:
        """That of some rows; ``indices`` int64 on the CPU."""
        masks = [mask[indices] for mask in (self.prompt_mask, self.mask, self.action_mask, self.is_ended)]
        return Layout(masks[0], masks[1], masks[2], masks[3], self.actions_per_state)


@dataclass(frozen=True)
class Generation:
    """A batch of responses with what the sampler knew when it chose them.

    ``prompt_ids`` int64 [B, P] (left-padded), ``prompt_mask`` bool [B, P], ``tokens`` int64 [B, T] (right-padded),
    ``mask`` bool [B, T]. ``logprobs`` float32 [B, T]: log-probability of each token under the distribution that was
    sampled from (temperature and filters applied; for greedy decoding, the model's own distribution at temperature 1).
    ``entropy`` float32 [B, T] of that distribution, in nats. ``values`` float32 [B, T] where a value head was given.
    ``is_ended`` bool [B]: the response ended by itself, with an EOS. Padding holds 0 in every statistic.
    ``kept_sets`` uint8 [B, T, ceil(V / 8)]: the tokens that top-k and top-p left (:mod:`ppo.lm.kept_sets`), or None.
    ``frozen_hidden`` [B, S, H]: the output of the policy's frozen blocks for the rows as :func:`ppo.buffer.align` lays
    them out; None: the blocks are run again.

    ``action_mask`` bool [B, T]: the tokens that the policy chose; None: all real ones. An environment wrote the others:
    they are attended to and never trained on, and hold 0 in every statistic. ``mask`` has no holes, ``action_mask`` may
    have some. ``info``: what a sampler noted, one entry a row; see :class:`Sample`.
    """

    prompt_ids: Tensor
    prompt_mask: Tensor
    tokens: Tensor
    mask: Tensor
    logprobs: Tensor
    entropy: Tensor
    is_ended: Tensor
    values: Tensor | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    frozen_hidden: Tensor | None = None
    action_mask: Tensor = None  # type: ignore[assignment]  # after construction there always is one
    info: Sequence[Any] | None = None
    kept_sets: Tensor | None = None
    context: Tensor | None = None
    state_temperatures: Tensor | None = None

    def __post_init__(self) -> None:
        if self.action_mask is None:
            object.__setattr__(self, "action_mask", self.mask)

    def __len__(self) -> int:
        return self.tokens.shape[0]

    @property
    def prompt_length(self) -> int:
        """P, the width of the padded prompts."""
        return self.prompt_ids.shape[1]

    @property
    def num_states(self) -> int:
        """S, the states of the longest response: T, or the width of ``context``."""
        return self.tokens.shape[1] if self.context is None else self.context.shape[1]

    @property
    def actions_per_state(self) -> int:
        """K, the actions at each state: 1 where a response leads from state to state."""
        return 1 if self.context is None else self.tokens.shape[1] // self.context.shape[1]

    @property
    def input_ids(self) -> Tensor:
        """What the model reads, int64 [B, P+S]: prompt and response side by side, or prompt and ``context``."""
        return torch.cat([self.prompt_ids, self.tokens if self.context is None else self.context], dim=1)

    @property
    def attention_mask(self) -> Tensor:
        """True on real tokens of ``input_ids``, bool [B, P+S]."""
        return torch.cat([self.prompt_mask, self.mask[:, :: self.actions_per_state]], dim=1)

    @property
    def lengths(self) -> Tensor:
        """Real response tokens per sequence, int64 [B]."""
        return self.mask.sum(dim=1)

    @cached_property
    def layout(self) -> Layout:
        """The masks on the CPU. If they are on another device, the host waits for it, once for each batch.

        :meth:`rows` and :func:`ppo.buffer.trim` hand it on to what they return.
        """
        if self.mask.device.type == "cpu":
            return Layout(self.prompt_mask, self.mask, self.action_mask, self.is_ended, self.actions_per_state)
        masks = [self.prompt_mask, self.mask, self.action_mask, self.is_ended.unsqueeze(1)]
        read = torch.split(torch.cat(masks, dim=1).cpu(), [mask.shape[1] for mask in masks], dim=1)
        return Layout(read[0], read[1], read[2], read[3].squeeze(1), self.actions_per_state)

    def rows(self, indices: Sequence[int] | Tensor) -> Generation:
        """The same batch with the given sequences only, in the given order; padding is kept."""
        here = torch.as_tensor(indices, dtype=torch.long, device="cpu")
        index = here.to(self.tokens.device)
        tensors: dict[str, Any] = {
            name: value[index] for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        info = None if self.info is None else [self.info[i] for i in here.tolist()]
        return self.handed_on(replace(self, **tensors, info=info), lambda layout: layout.rows(here))

    def handed_on(self, made: Generation, change: Callable[[Layout], Layout]) -> Generation:
        """``made``, a new batch out of this one, with this one's layout after ``change``: it is not read again."""
        if self.mask.device.type != "cpu":
            vars(made)["layout"] = change(self.layout)
        return made

    def to(self, device: torch.device) -> Generation:
        """The same batch with every tensor on ``device``."""
        tensors: dict[str, Any] = {name: x.to(device) for name, x in vars(self).items() if isinstance(x, Tensor)}
        return replace(self, **tensors)


@dataclass(frozen=True)
class Rollout:
    """Everything one PPO update needs. Tensors are float32 [B, T] and 0 off the action mask, unless said otherwise.

    ``old_logprobs``, ``old_values``: the policy and the critic before the update. ``ref_logprobs``: the reference, or
    None where no KL is taken. ``scores`` [B]. ``kl``: per-token estimate of KL(policy || reference). ``rewards`` after
    KL. ``advantages`` whitened if the config says so. ``returns``: targets of the value loss. ``token_rewards``: the
    shaped rewards before KL; they are for display, and no update reads them. ``importance_weights``: what multiplies
    the policy loss of each token (:mod:`ppo.importance`), or None. ``policy_version``: how many updates the
    policy had behind it when the old log-probs were taken, or None where nobody knows. While it has had no further
    update, the ratio must be 1.
    """

    generation: Generation
    samples: list[Sample]
    old_logprobs: Tensor
    old_values: Tensor
    ref_logprobs: Tensor | None
    scores: Tensor
    kl: Tensor
    rewards: Tensor
    advantages: Tensor
    returns: Tensor
    metrics: Mapping[str, float] = field(default_factory=dict)
    token_rewards: Tensor | None = None
    policy_version: int | None = None
    importance_weights: Tensor | None = None

    def __len__(self) -> int:
        return len(self.generation)


@dataclass(frozen=True)
class Evaluation:
    """What the training forward says about given responses; each float32 [B, T], 0 on padding."""

    logprobs: Tensor
    entropy: Tensor
    values: Tensor


@dataclass(frozen=True)
class Responses:
    """The responses to a step's prompts, prompt-major, and what was said about them.

    ``scores`` [B] and ``raw_token_rewards`` [B, T] are the reward's raw answers; ``raw_token_rewards`` is None for a
    reward of one score a sample. ``Rollout.token_rewards`` is the shaped answer. ``old_logprobs``, ``old_values`` and
    ``ref_logprobs`` are [B, T]. ``metrics``: the seconds that each part took on this process, ``time/…_s``.
    ``policy_version``: see :class:`Rollout`. ``is_compared``: sampler and training forward both measured log-probs, so
    the gap between them is reported. ``is_given``: another engine drew, so the gap is not checked.
    """

    generation: Generation
    samples: list[Sample]
    scores: Tensor
    raw_token_rewards: Tensor | None
    old_logprobs: Tensor
    old_values: Tensor
    ref_logprobs: Tensor | None
    metrics: dict[str, float]
    policy_version: int | None = None
    is_compared: bool = False
    is_given: bool = False


RewardFn = Callable[[list[Sample]], "Sequence[float] | Sequence[Sequence[float]] | Tensor"]
"""A reward: ``list[Sample] -> [B]`` scores, or ``[B][T]`` token rewards (ragged: one number a response token)."""

AdvantageFn = Callable[[Tensor, Tensor, Tensor, "list[Sample]"], "tuple[Tensor, Tensor]"]
"""What each token was worth: ``(rewards, values, mask, samples)`` to advantages and returns, each [B, T].

Rewards, values and ``mask``, the action mask, are [B, T]; both results are 0 outside it. B is the whole step,
prompt-major. With several processes each of them calls it with the same rows, and the first one's answer counts.
"""

PolicyLoss = Callable[..., "tuple[Tensor, Mapping[str, Tensor | float]]"]
"""The policy's loss on a microbatch: ``(new, part, *, num_tokens, num_sequences) -> (loss, statistics)``.

``new`` is an :class:`Evaluation`, ``part`` the :class:`Rollout` rows that it is about. ``num_tokens`` and
``num_sequences`` count the actions and the rows of the *whole* minibatch: a sum over the microbatch divided by one of
them adds up to the loss of the minibatch, however it is cut. The same holds for the statistics.
"""


@dataclass(frozen=True)
class Step:
    """A step that is over: its number, counted from 0, its rollout, and its metrics."""

    number: int
    rollout: Rollout
    metrics: Mapping[str, float]


OnStep = Callable[[Step], None]
"""Shown every step, on the first process: a logger, a page, a tracker."""

Sampler = Callable[..., Generation]
"""Where responses come from: ``(policy, prompts, *, seed, request_ids) -> Generation``, one response a prompt.

``policy`` is a :class:`ppo.policy.Policy`, ``prompts`` are :class:`ppo.prompts.Prompt`; see :mod:`ppo.sampler`.
"""


class Environment(Protocol):
    """What answers a policy in the middle of its response: a tool, a game, a user. One object plays one episode.

    See :class:`ppo.environment.EnvironmentSampler`. Token ids go in and out, so that no tokenizer stands between what
    was sampled and what is trained on.
    """

    def reset(self, row: Row) -> Sequence[int]:
        """Begin the episode of a prompt's row; returns the token ids that the policy starts from."""
        ...

    def step(self, ids: list[int]) -> tuple[Sequence[int] | None, float]:
        """Take the policy's turn, with the token that ended it.

        Returns what is written behind it, as token ids, or None where the episode is over; and the turn's reward.
        """
        ...


ValueFn = Callable[[Tensor], Tensor]
"""Hidden states [..., H] to values [...]."""


@runtime_checkable
class Reference(Protocol):
    """What the KL penalty is measured against."""

    def logprobs(self, generation: Generation, samples: Sequence[Sample]) -> Tensor:
        """Log-probability of every response token under the reference, float32 [B, T], 0 on padding."""
        ...


class Observer(Protocol):
    """Looks on while an update runs, and changes nothing. The library's own is :class:`ppo.trace.recorder.Recorder`."""

    def watch(self, part: Rollout, new: Evaluation, *, num_tokens: int) -> None:
        """Called before the backward pass of each microbatch. ``num_tokens``: actions of the whole minibatch."""
        ...

    def restart(self) -> None:
        """Called when memory ran out: the minibatch starts again, in smaller microbatches."""
        ...

    def close(
        self, statistics: Mapping[str, float], *, grad_norm: float | None = None, learning_rate: float | None = None
    ) -> None:
        """Called after the minibatch; ``grad_norm`` is None if its gradient was thrown away."""
        ...


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that the library uses."""

    def __call__(self, text: str, *, add_special_tokens: bool = True) -> Mapping[str, list[int]]: ...

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str: ...
