"""What the KL penalty is measured against.

A reference answers one question: how likely is each response token under it? It is asked once per rollout, without
gradients. This module knows nothing about rewards or about how KL is used.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .actor_critic import ActorCritic
from .buffer import microbatches, trim
from .config import Config, Sampling
from .io.named import described, wrong_answer
from .lm.adapters import adapter_acts, adapter_off, base_is_trained, copy_trained, has_adapter
from .lm.backbone import vocabulary_size
from .lm.device import device_of
from .lm.frozen_blocks import FrozenBlocks
from .lm.precision import as_statistics, statistics_dtype
from .types import Generation, Reference, Sample


class FrozenReference:
    """A frozen causal LM as the reference.

    model           the causal LM, on any device: rows go to it, and log-probs come back
    sampling        the distribution that the policy samples from; its temperature and filters apply here too, so that
                    KL(reference, reference) is 0
    chunk_tokens    response tokens that pass the output layer at once
    batch_tokens    padded prompt+response tokens that pass the model at once
    is_adapter_off  True switches the adapter off while the model is asked, if it has one
    frozen_blocks   blocks that it shares with the policy; they are skipped if a generation holds their output
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
        """Log-probs of the response tokens, float32 [B, T], 0 on padding. ``samples`` are not used."""
        dtype = statistics_dtype(next(self.model.parameters()).dtype)
        back, generation = generation.mask.device, generation.to(device_of(self.model))
        result = torch.zeros(generation.mask.shape, dtype=dtype, device=generation.mask.device)
        with adapter_off(self.model) if self.is_adapter_off else nullcontext():
            for indices in microbatches(generation.layout.attention_mask, tokens=self.batch_tokens):
                part = trim(generation.rows(indices))
                logprobs = self._actor.evaluate(part, self.sampling, chunk_tokens=self.chunk_tokens).logprobs
                result[indices, : logprobs.shape[1]] = logprobs
        return result.to(back)


@dataclass(frozen=True)
class CallableReference:
    """Any function ``(generation, samples) -> [B, T]`` as a reference."""

    function: Callable[[Generation, Sequence[Sample]], Tensor]

    def logprobs(self, generation: Generation, samples: Sequence[Sample]) -> Tensor:
        """The function's answer, set to 0 on padding. Raises ValueError for one that is no [B, T] of floats."""
        return _checked(self.function, self.function(generation, samples), generation)


@dataclass(frozen=True)
class OwnReference:
    """A :class:`ppo.types.Reference` of somebody else's, whose answer is looked at."""

    reference: Reference

    def logprobs(self, generation: Generation, samples: Sequence[Sample]) -> Tensor:
        """Its answer, set to 0 on padding. Raises ValueError for one that is no [B, T] of floats."""
        return _checked(self.reference, self.reference.logprobs(generation, samples), generation)


def _checked(reference: Any, answer: Any, generation: Generation) -> Tensor:
    mask = generation.action_mask
    if not isinstance(answer, Tensor) or answer.shape != mask.shape or not answer.is_floating_point():
        wanted = f"log-probs [B, T] = {list(mask.shape)}, floats"
        raise wrong_answer("reference", reference, f"returned {described(answer)}: wanted {wanted}")
    return torch.where(mask, as_statistics(answer).to(mask.device), 0.0).detach()


def resolve_adapter(model: nn.Module, config: Config) -> Config:
    """The config with ``reference_adapter="auto"`` replaced by "off" or "snapshot", for a model with an adapter.

    The reference is the model as it is now. An adapter that does nothing yet can be switched off to get it back, if
    nothing outside it is trained. An adapter that acts, such as one from fine-tuning, has to be copied, or KL would be
    measured against the model before fine-tuning. The answer is saved with the config, so a resumed run, whose adapter
    does act, does not ask again.
    """
    if config.reference_adapter != "auto" or not has_adapter(model):
        return config
    is_copied = adapter_acts(model) or base_is_trained(model)
    return config.replace(reference_adapter="snapshot" if is_copied else "off")


def freeze(model: nn.Module, config: Config, *, has_own_reference: bool) -> nn.Module | None:
    """A frozen copy of the model as it is now, if the KL penalty or the retain loss will ask for it, else None.

    A model whose adapter is switched off for the reference is its own copy. Any other model is copied: its trained
    parameters are new tensors, its frozen parameters are shared. ``reference_dtype="bfloat16"`` shares nothing.
    Raises ValueError for a reference that training would move.
    """
    needs_reference = config.kl_coef > 0 and not has_own_reference
    needs_retain = config.retain_coef > 0 and config.retain_loss == "kl"
    if not needs_reference and not needs_retain:
        return None
    if has_adapter(model) and resolve_adapter(model, config).reference_adapter == "off":
        if base_is_trained(model):
            raise ValueError(
                "reference_adapter='off', but weights outside the adapter are trained (a bias, a norm, an embedding), "
                "so the reference would move with them: take 'snapshot'"
            )
        return model
    is_cast = config.reference_dtype == "bfloat16"
    copied = copy.deepcopy(model).to(torch.bfloat16) if is_cast else copy_trained(model)
    copied.requires_grad_(False)
    return copied.eval()


def _check_vocabulary(model: nn.Module, policy: nn.Module) -> None:
    """Raise ValueError for a reference that has no log-prob for some tokens of the policy."""
    known, needed = vocabulary_size(model), vocabulary_size(policy)
    if known < needed:
        raise ValueError(
            f"the reference has a vocabulary of {known} tokens, the policy one of {needed}: give a reference with the "
            "policy's tokenizer"
        )


def make_reference(
    given: Reference | Callable[[Generation, Sequence[Sample]], Tensor] | None,
    frozen: nn.Module | None,
    sampling: Sampling,
    config: Config,
    frozen_blocks: FrozenBlocks | None = None,
    *,
    policy: nn.Module | None = None,
) -> Reference | None:
    """The reference that the caller gave, else the frozen model if there is a KL penalty, else None.

    ``policy``: the model that is trained. Raises ValueError for a given model that lacks some of its tokens.
    """
    if isinstance(given, FrozenReference) and policy is not None:
        _check_vocabulary(given.model, policy)
    if isinstance(given, FrozenReference):
        return given
    if isinstance(given, Reference):
        return OwnReference(given)
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
