"""A causal LM as the policy, with a value function beside it.

The value function is a small head on the policy's hidden states ("linear", "mlp"), or a separate copy of the model with
a head of its own ("critic"), or absent (group-relative advantages). Dropout stays off in rollouts *and* updates: with
it, the ratio of a token's new and old probability would be random. This module knows nothing about losses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .buffer import Aligned, align
from .config import Sampling
from .io.named import described, wrong_answer
from .lm.adapters import copy_trained
from .lm.backbone import Backbone, blocks, swapped_forwards
from .lm.frozen_blocks import FrozenBlocks
from .lm.logprobs import kept_sets, response_positions, token_logprobs
from .lm.precision import as_statistics, statistics_dtype
from .types import Evaluation, Generation, ValueFn

Result = TypeVar("Result")


class ValueHead(nn.Module):
    """A value head: hidden states [..., H] to values [...].

    It computes in its own precision: float32, or float64 for a policy in float64. Its last layer starts at 0, so the
    first values are 0 and the first advantages come from the rewards alone. ``seed`` is for the first layer of "mlp",
    which starts uniform within ±1/√H.
    """

    def __init__(self, hidden_size: int, kind: Literal["linear", "mlp"], *, seed: int = 0) -> None:
        super().__init__()
        last = nn.Linear(hidden_size, 1, dtype=torch.float32, device="cpu")
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(last)
        if kind == "mlp":
            first, generator = (
                nn.Linear(hidden_size, hidden_size, dtype=torch.float32, device="cpu"),
                torch.Generator().manual_seed(seed),
            )
            for parameter in first.parameters():
                nn.init.uniform_(parameter, -(hidden_size**-0.5), hidden_size**-0.5, generator=generator)
            self.layers = nn.Sequential(first, nn.Tanh(), last)

    def forward(self, hidden: Tensor) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            values: Tensor = self.layers(hidden.to(next(self.layers.parameters()).dtype))
        return values.squeeze(-1)


class ActorCritic(nn.Module):
    """The policy and its value function, in one module.

    policy            the causal LM; it is trained in place
    value_head        "linear", "mlp", "critic" (a separate copy of the model with a linear head), or None
    is_head_detached  True keeps the value loss away from the policy's weights; with "critic" it is always kept away
    frozen_blocks     the leading blocks that no training reaches; they are skipped if a generation holds their output
    seed              of the value head

    A separate critic shares the frozen parameters of the policy.
    """

    def __init__(
        self,
        policy: nn.Module,
        *,
        value_head: Literal["linear", "mlp", "critic"] | None = "linear",
        is_head_detached: bool = False,
        critic: nn.Module | None = None,
        frozen_blocks: FrozenBlocks | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.backbone = Backbone(policy)
        self.policy = policy
        self.frozen_blocks = frozen_blocks
        self.critic = copy_trained(policy) if value_head == "critic" else critic
        self.critic_backbone = Backbone(self.critic) if value_head == "critic" and self.critic is not None else None
        self.is_head_detached = is_head_detached
        self.value_head: ValueHead | None = None
        if value_head is not None:
            kind: Literal["linear", "mlp"] = "mlp" if value_head == "mlp" else "linear"
            head = ValueHead(self.backbone.hidden_size, kind, seed=seed)
            own = next(policy.parameters())
            self.value_head = head.to(own.device, statistics_dtype(own.dtype))
        self.eval()

    @property
    def has_own_critic(self) -> bool:
        """Whether the critic is a module of the caller's own, from token ids to values, no copy of the policy."""
        return self.critic is not None and self.critic_backbone is None

    @property
    def value_fn(self) -> ValueFn | None:
        """The value head, if it reads the policy's own hidden states; else None. The sampler records values with it."""
        return self.value_head if self.critic is None else None

    def run(self, function: Callable[[], Result]) -> Result:
        """Call ``function`` and return its result. Split weights are gathered here: :mod:`ppo.distributed.sharding`."""
        return function()

    def evaluate(
        self, generation: Generation, sampling: Sampling, *, chunk_tokens: int, has_entropy_gradient: bool = True
    ) -> Evaluation:
        """Log-probs, entropy and values of given responses under the distribution of ``sampling``; differentiable.

        ``chunk_tokens`` response tokens pass the output layer at once. ``has_entropy_gradient=False`` saves the
        gradient of the entropy, where no loss needs it.
        """
        rows, length = align(generation), generation.num_states
        with self._skipping_frozen_blocks(self.policy, generation, rows):
            features = self.backbone(rows.input_ids, rows.attention_mask)
        # ``before_logits`` feed the output layer, ``hidden`` the value head; in most models they are one tensor.
        logprobs, entropy = token_logprobs(
            response_positions(features.before_logits, rows.prompt_lengths, length),
            self.backbone.output_layer,
            generation,
            sampling,
            chunk_tokens=chunk_tokens,
            has_entropy_gradient=has_entropy_gradient,
        )
        if self.critic is None:
            hidden = response_positions(features.hidden, rows.prompt_lengths, length)
            values = self._values(hidden.detach() if self.is_head_detached else hidden, generation)
        else:
            values = self.critic_values(generation)
        return Evaluation(logprobs, entropy, values)

    @torch.no_grad()
    def kept_sets(self, generation: Generation, sampling: Sampling, *, chunk_tokens: int) -> Tensor:
        """The tokens that the filters leave before each response token: :func:`ppo.lm.logprobs.kept_sets`."""
        rows, length = align(generation), generation.tokens.shape[1]
        with self._skipping_frozen_blocks(self.policy, generation, rows):
            features = self.backbone(rows.input_ids, rows.attention_mask)
        before = response_positions(features.before_logits, rows.prompt_lengths, length)
        return kept_sets(before, self.backbone.output_layer, generation, sampling, chunk_tokens=chunk_tokens)

    def critic_values(self, generation: Generation) -> Tensor:
        """Values of the separate critic, float32 [B, T], 0 off the action mask. Raises ValueError if there is none."""
        if self.critic is None:
            raise ValueError("there is no separate critic: value_head is not 'critic'")
        rows = align(generation)
        if self.critic_backbone is None:
            values = _ask_own_critic(self.critic, rows).unsqueeze(-1)
            values = response_positions(values, rows.prompt_lengths, generation.num_states).squeeze(-1)
            return _at_actions(as_statistics(values), generation)
        with self._skipping_frozen_blocks(self.critic_backbone.model, generation, rows):
            hidden = self.critic_backbone(rows.input_ids, rows.attention_mask).hidden
        return self._values(response_positions(hidden, rows.prompt_lengths, generation.num_states), generation)

    def _skipping_frozen_blocks(
        self, model: nn.Module, generation: Generation, rows: Aligned
    ) -> AbstractContextManager[None]:
        if self.frozen_blocks is None or generation.frozen_hidden is None:
            return nullcontext()
        return self.frozen_blocks.replayed(model, generation.frozen_hidden[:, : rows.input_ids.shape[1]])

    def _values(self, hidden: Tensor, generation: Generation) -> Tensor:
        """Values [B, T] from the hidden states [B, S, H] that predict the tokens; 0 on padding and without a head."""
        if self.value_head is None:
            return torch.zeros(generation.mask.shape, dtype=statistics_dtype(hidden.dtype), device=hidden.device)
        return _at_actions(self.value_head(hidden), generation)

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """Every parameter that an optimiser should move, by name."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def value_parameter_names(self) -> set[str]:
        """The names of the parameters that belong to the value function alone."""
        return {name for name, _ in self.named_parameters() if _is_of_value(name)}

    def value_state(self) -> dict[str, Tensor]:
        """The weights of the value function by name, as a checkpoint holds them. They may be split among processes."""
        return {name: tensor for name, tensor in self.state_dict().items() if _is_of_value(name)}


def _at_actions(values: Tensor, generation: Generation) -> Tensor:
    """Values of states [B, S] at their actions, [B, T]; 0 off the action mask."""
    values = values.repeat_interleave(generation.actions_per_state, dim=1)
    return torch.where(generation.action_mask, values, 0.0)


def _ask_own_critic(critic: nn.Module, rows: Aligned) -> Tensor:
    """V before the next token at every position, [B, S].

    Raises ValueError for an answer of another shape, for one that is not of floats, and, where gradients are taken, for
    one without a gradient although the critic has parameters that should move.
    """
    values = critic(rows.input_ids, rows.attention_mask)
    wanted = list(rows.input_ids.shape)
    if not isinstance(values, Tensor) or values.shape != rows.input_ids.shape or not values.is_floating_point():
        raise wrong_answer("value", critic, f"returned {described(values)}: wanted values [B, S] = {wanted}, floats")
    is_trained = torch.is_grad_enabled() and any(p.requires_grad for p in critic.parameters())
    if is_trained and not values.requires_grad:
        raise wrong_answer(
            "value", critic, "returned values without a gradient: do not detach them, or freeze its parameters"
        )
    return values


def _is_of_value(name: str) -> bool:
    return name.split(".")[0] in ("critic", "value_head")


@contextmanager
def checkpointed_layers(model: nn.Module) -> Iterator[int]:
    """Within the context, every transformer block of ``model`` is computed again in the backward pass.

    Yields the number of blocks. Transformers' own switch works in training mode only, where dropout would be on too.
    So the context wraps the forward of each block, and restores it at the end.
    """
    layers = blocks(model)
    with swapped_forwards(layers, lambda forward: partial(checkpoint, forward, use_reentrant=False)):
        yield len(layers)
