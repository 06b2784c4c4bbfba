"""Where a causal LM is cut: hidden states on one side, the output layer on the other.

Log-probs are computed from hidden states in chunks, so that a [B, T, V] tensor never exists. That needs the model in
two parts. Most models are ``output_layer(backbone(x))`` and nothing else; some scale or squash their logits afterwards
(Gemma 2, Cohere, Granite). For those the cut lies behind the logits, at the price of memory: right before lean.

This module knows nothing about sampling, losses or value functions.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

_LOGIT_TRANSFORMS = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier")


@dataclass(frozen=True)
class Features:
    """``hidden`` [B, S, H] feeds a value head; ``output_layer(before_logits)`` gives logits [B, S, V].

    For a model that was cut before its output layer the two are the same tensor. ``cache`` is the model's own
    key/value cache when one was asked for.
    """

    hidden: Tensor
    before_logits: Tensor
    cache: Any = None


class Backbone:
    """Calls a causal LM for its features; see :class:`Features`. Holds no weights of its own.

    ``model`` may be any Hugging Face causal LM, or a PEFT model around one. Raises ValueError for a model without an
    output layer over its vocabulary.
    """

    def __init__(self, model: nn.Module) -> None:
        inner: Any = model
        if hasattr(model, "get_base_model"):  # a PEFT model wraps the causal LM; its adapters live inside the layers
            inner = cast(Any, model).get_base_model()
        output_layer = inner.get_output_embeddings() if hasattr(inner, "get_output_embeddings") else None
        if output_layer is None:
            raise ValueError(f"{type(inner).__name__} is no causal LM: it has no output embeddings")
        self.model = inner
        trunk = getattr(inner, "base_model", inner)
        self.is_cut_before_logits = trunk is not inner and _is_plain_head(inner, trunk, output_layer)
        self._called: nn.Module = trunk if self.is_cut_before_logits else inner
        self.output_layer: Callable[[Tensor], Tensor] = output_layer if self.is_cut_before_logits else _identity
        parameters = inspect.signature(self._called.forward).parameters
        self.accepts_positions = "position_ids" in parameters
        self.accepts_cache = "past_key_values" in parameters
        self.hidden_size = _hidden_size(output_layer)

    def __call__(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        *,
        position_ids: Tensor | None = None,
        cache: Any = None,
        use_cache: bool = False,
    ) -> Features:
        """Features of every position. ``input_ids`` int64 [B, S]; ``attention_mask`` bool [B, S + cached].

        Positions count real tokens only, so left padding changes nothing; models without ``position_ids`` (ALiBi)
        work from the mask alone.
        """
        arguments: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask.long()}
        if self.accepts_positions:
            if position_ids is None:
                position_ids = positions(attention_mask)[:, -input_ids.shape[1] :]
            arguments["position_ids"] = position_ids
        if self.accepts_cache and cache is not None:
            arguments["past_key_values"] = cache
        arguments["use_cache"] = use_cache
        if self.is_cut_before_logits:
            output = self._called(**arguments)
            hidden = output.last_hidden_state
            return Features(hidden, hidden, getattr(output, "past_key_values", None))
        output = self._called(output_hidden_states=True, **arguments)
        return Features(output.hidden_states[-1], output.logits, getattr(output, "past_key_values", None))


def positions(attention_mask: Tensor) -> Tensor:
    """Position ids that skip padding: [0 0 1 1 1] -> [0 0 0 1 2]. int64, same shape as the mask."""
    return (attention_mask.long().cumsum(dim=-1) - 1).clamp(min=0)


def _identity(logits: Tensor) -> Tensor:
    return logits


def _hidden_size(output_layer: nn.Module) -> int:
    size = getattr(output_layer, "in_features", None)
    return int(size if size is not None else output_layer.weight.shape[-1])  # type: ignore[arg-type,union-attr,index]


@torch.no_grad()
def _is_plain_head(model: Any, trunk: nn.Module, output_layer: nn.Module) -> bool:
    """Whether the model's logits are its output layer on its trunk's last hidden state, and nothing more."""
    for name in _LOGIT_TRANSFORMS:
        if getattr(model.config, name, None) not in (None, 1, 1.0):
            return False
    was_training = model.training
    model.eval()
    try:
        device = next(model.parameters()).device
        probe = torch.arange(4, device=device).unsqueeze(0) % model.config.get_text_config().vocab_size
        logits = model(input_ids=probe).logits
        rebuilt = output_layer(trunk(input_ids=probe).last_hidden_state)
    finally:
        model.train(was_training)
    return bool(torch.allclose(logits.float(), rebuilt.float(), rtol=1e-5, atol=1e-5))


def vocabulary_size(model: Any) -> int:
    """V: how many ids the input embedding knows."""
    return int(model.get_input_embeddings().weight.shape[0])


def context_length(model: Any) -> int | None:
    """The most positions a model can take in; None for those without a limit (ALiBi, state-space)."""
    config = model.config.get_text_config()
    for name in ("max_position_embeddings", "n_positions", "n_ctx"):
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return None


def end_ids(model: Any) -> tuple[int, ...]:
    """The token ids that end a response, from the generation config or the config; () if there are none."""
    ids = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    if ids is None:
        ids = getattr(model.config, "eos_token_id", None)
    if ids is None:
        return ()
    listed = ids if isinstance(ids, (list, tuple)) else [ids]
    # A config may name an EOS beyond its own vocabulary; a token that cannot be sampled cannot end anything.
    return tuple(int(i) for i in listed if 0 <= int(i) < vocabulary_size(model))
