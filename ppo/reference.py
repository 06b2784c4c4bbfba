"""What the KL penalty is measured against.

A reference answers one question: how likely was each response token under it? It is asked once per rollout, in batches
of a token budget, without gradients. This module knows nothing about rewards or about how KL is used.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .actor_critic import ActorCritic
from .buffer import microbatches, trim
from .config import Config, Sampling
from .lm.adapters import adapter_acts, adapter_off, copy_trained, has_adapter
from .lm.frozen_blocks import FrozenBlocks
from .lm.precision import as_statistics, statistics_dtype
from .types import Generation, Reference, Sample


class FrozenReference:
    """A frozen causal LM; one with an adapter is asked with the adapter off, unless ``is_adapter_off=False``.

    ``sampling`` is the distribution that the policy samples from: its temperature and filters apply here too, so that
    KL(reference, reference) is 0. ``chunk_tokens`` pass the output layer at once, ``batch_tokens`` the model.
    ``frozen_blocks``: the blocks that it shares with the policy, skipped where a generation brings their output along.
    """

    def __init__(
        self,
        model: nn.Module,
        sampling: Sampling,
        *,
        chunk_tokens: int = 1024,
        batch_tokens: int = 8192,
        is_adapter_off: bool = True,
        frozen_blocks: FrozenBlocks | None = None,
    ) -> None:
        self.model = model
        self.sampling = sampling
        self.chunk_tokens = chunk_tokens
        self.batch_tokens = batch_tokens
        self.is_adapter_off = is_adapter_off
        self._actor = ActorCritic(model, value_head=None, frozen_blocks=frozen_blocks)

    @torch.no_grad()
    def logprobs(self, generation: Generation, samples: Sequence[Sample]) -> Tensor:
        """Log-probs of the response tokens, float32 [B, T], 0 on padding; ``samples`` are not looked at."""
        dtype = statistics_dtype(next(self.model.parameters()).dtype)
        result = torch.zeros(generation.mask.shape, dtype=dtype, device=generation.mask.device)
        with adapter_off(self.model) if self.is_adapter_off else nullcontext():
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
        return torch.where(generation.mask, as_statistics(result), 0.0).detach()


def resolve_adapter(model: nn.Module, config: Config) -> Config:
    """Settle ``reference_adapter="auto"`` for a model with an adapter, which is asked about only once in its life.

    The reference is the model as it is now. An adapter that does nothing yet can be switched off for it; one that acts,
    such as one from fine-tuning, has to be copied, or KL would be measured against the model before fine-tuning.
    """
    if config.reference_adapter != "auto" or not has_adapter(model):
        return config
    return config.replace(reference_adapter="snapshot" if adapter_acts(model) else "off")


def freeze(model: nn.Module, config: Config, *, has_own_reference: bool) -> nn.Module | None:
    """The model as it is now, if the KL penalty or the retain loss will ask for it, else None.

    With ``reference_adapter="off"`` a model is its own frozen copy. Of any other what is trained is copied, and what is
    frozen shared, unless ``reference_dtype`` is another one.
    """
    needs_reference = config.kl_coef > 0 and not has_own_reference
    needs_retain = config.retain_coef > 0 and config.retain_loss == "kl"
    if not needs_reference and not needs_retain:
        return None
    if has_adapter(model) and resolve_adapter(model, config).reference_adapter == "off":
        return model
    is_cast = config.reference_dtype == "bfloat16"
    copied = copy.deepcopy(model).to(torch.bfloat16) if is_cast else copy_trained(model)
    copied.requires_grad_(False)
    return copied.eval()


def make_reference(
    given: Reference | Callable[[Generation, Sequence[Sample]], Tensor] | None,
    frozen: nn.Module | None,
    sampling: Sampling,
    config: Config,
    frozen_blocks: FrozenBlocks | None = None,
) -> Reference | None:
    """What the caller gave, or the frozen model if KL is wanted, or None."""
    if isinstance(given, Reference):
        return given
    if given is not None:
        return CallableReference(given)
    if frozen is None or config.kl_coef == 0:
        return None
    return FrozenReference(
        frozen,
        sampling,
        chunk_tokens=config.logprob_chunk_tokens,
        batch_tokens=config.reference_batch_tokens,
        is_adapter_off=config.reference_adapter == "off",
        frozen_blocks=frozen_blocks,
    )
