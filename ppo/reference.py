"""What the KL penalty is measured against.

A reference answers one question: how likely was each response token under it? It is asked once per rollout, in batches
of a token budget, without gradients. This module knows nothing about rewards or about how KL is used.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from .actor_critic import ActorCritic
from .buffer import microbatches, trim
from .config import Config, Sampling
from .types import Generation, Reference, Sample


class FrozenReference:
    """A frozen causal LM; one with an adapter is asked with the adapter off.

    ``sampling`` is the distribution that the policy samples from: its temperature and filters apply here too, so that
    KL(reference, reference) is 0. ``chunk_tokens`` pass the output layer at once, ``batch_tokens`` the model.
    """

    def __init__(
        self,
        model: nn.Module,
        sampling: Sampling,
        *,
        chunk_tokens: int = 1024,
        batch_tokens: int = 8192,
    ) -> None:
        self.model = model
        self.sampling = sampling
        self.chunk_tokens = chunk_tokens
        self.batch_tokens = batch_tokens
        self._actor = ActorCritic(model, value_head=None)

    @torch.no_grad()
    def logprobs(self, generation: Generation, samples: Sequence[Sample]) -> Tensor:
        """Log-probs of the response tokens, float32 [B, T], 0 on padding; ``samples`` are not looked at."""
        result = torch.zeros(generation.mask.shape, device=generation.mask.device)
        with adapter_off(self.model):
            for indices in microbatches(generation.attention_mask, tokens=self.batch_tokens):
                part = trim(generation.rows(indices))
                logprobs = self._actor.evaluate(part, self.sampling, chunk_tokens=self.chunk_tokens).logprobs
                result[indices, : logprobs.shape[1]] = logprobs
        return result


@dataclass(frozen=True)
class CallableReference:
    """Any function ``(generation, samples) -> [B, T]`` as a reference."""

    function: Callable[[Generation, Sequence[Sample]], Tensor]

    def logprobs(self, generation: Generation, samples: Sequence[Sample]) -> Tensor:
        """What the function says, checked for its shape (ValueError) and set to 0 on padding."""
        result = self.function(generation, samples)
        if result.shape != generation.mask.shape:
            raise ValueError(
                f"the reference returned {tuple(result.shape)}, expected [B, T] = {tuple(generation.mask.shape)}"
            )
        return torch.where(generation.mask, result.float(), 0.0).detach()


def adapter_off(model: nn.Module) -> AbstractContextManager[Any]:
    """The context in which a model with an adapter (PEFT, or anything with ``disable_adapter``) is its own base."""
    if hasattr(model, "disable_adapter"):
        context: AbstractContextManager[Any] = cast(Any, model).disable_adapter()
        return context
    return nullcontext()


def freeze(model: nn.Module, config: Config, *, has_own_reference: bool) -> nn.Module | None:
    """The model as it is now, if the KL penalty or the retain loss will ask for it, else None.

    A model with an adapter is its own frozen copy, with the adapter off; any other is copied.
    """
    needs_reference = config.kl_coef > 0 and not has_own_reference
    needs_retain = config.retain_coef > 0 and config.retain_loss == "kl"
    if not needs_reference and not needs_retain:
        return None
    if hasattr(model, "disable_adapter"):
        return model
    copied = copy.deepcopy(model)
    copied.requires_grad_(False)
    return copied.eval()


def make_reference(
    given: Reference | Callable[[Generation, Sequence[Sample]], Tensor] | None,
    frozen: nn.Module | None,
    sampling: Sampling,
    config: Config,
) -> Reference | None:
    """What the caller gave, or the frozen model if KL is wanted, or None."""
    if isinstance(given, Reference):
        return given
    if given is not None:
        return CallableReference(given)
    if frozen is None or config.kl_coef == 0:
        return None
    return FrozenReference(frozen, sampling, chunk_tokens=config.logprob_chunk_tokens)
