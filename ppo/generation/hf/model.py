"""A transformers causal LM as a function from token ids to the features of the last position."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...lm.backbone import Backbone, as_input_of, call_with_hidden, context_length, positions, vocabulary_size
from ..decoders.weights import STATIC_ROTATIONS

_CACHE_NAMES = ("past_key_values", "cache_params")


@dataclass(frozen=True)
class Features:
    """Of each row's last position: what a value head sees, and what the output layer takes; and the model's cache."""

    hidden: Tensor
    before_logits: Tensor
    cache: Any


class LastPosition:
    """A causal LM as a function from token ids to the features of the last position. [B, T, V] never exists.

    ``is_lasting``: what the model computes for a token stays right when its sequence, or another in the batch, grows.
    """

    def __init__(self, model: nn.Module) -> None:
        backbone = Backbone(model)
        inner: Any = backbone.model
        self.output_layer = backbone.output_layer
        self.vocab = vocabulary_size(inner)
        self.context = context_length(inner)
        self.is_lasting = not any(_turns_anew(module) for module in inner.modules())
        self._is_cut = backbone.is_cut_before_logits
        self._called: Any = inner.base_model if self._is_cut else inner
        parameters = inspect.signature(self._called.forward).parameters
        self._accepts_positions = "position_ids" in parameters
        self._accepts_columns = "cache_position" in parameters
        self._first_position = backbone.first_position
        self._keeps_last = "logits_to_keep" in parameters
        self.cache_name = next((name for name in _CACHE_NAMES if name in parameters), None)

    def __call__(self, ids: Tensor, mask: Tensor, cache: Any = None, *, use_cache: bool = False) -> Features:
        """``ids`` int64 [N, S] are the new tokens; ``mask`` bool [N, cached + S] is about cached and new ones."""
        # A state-space model has no keys to mask, so its mask is about the new tokens only.
        seen = mask[:, -ids.shape[1] :] if self.cache_name == "cache_params" else mask
        arguments: dict[str, Any] = {"input_ids": ids, "attention_mask": seen.long(), "use_cache": use_cache}
        if self._accepts_positions:
            arguments["position_ids"] = positions(mask)[:, -ids.shape[1] :] + self._first_position
        if cache is not None and self.cache_name is not None:
            arguments[self.cache_name] = cache
            if self._accepts_columns:
                arguments["cache_position"] = self._columns(ids, mask)
        if self._is_cut:
            output = self._called(**arguments)
        else:
            if self._keeps_last:
                arguments["logits_to_keep"] = 1
            output, hidden = call_with_hidden(self._called, arguments)
        new_cache = getattr(output, self.cache_name, None) if use_cache and self.cache_name is not None else None
        if self._is_cut:
            last = output.last_hidden_state[:, -1]
            return Features(last, as_input_of(self.output_layer, last), new_cache)
        return Features(hidden[:, -1], output.logits[:, -1], new_cache)

    def _columns(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Where the new tokens come in the cache, as transformers before 5.4 wants to be told.

        A state-space model counts from behind its convolution's window, which even a short prompt fills.
        """
        window = getattr(self._called.config, "conv_kernel", 0) if self.cache_name == "cache_params" else 0
        return torch.arange(mask.shape[1] - ids.shape[1], mask.shape[1], device=ids.device) + window


def _turns_anew(module: nn.Module) -> bool:
    """Whether it is a rotary embedding that rotates all positions in another way once one is far out ("longrope")."""
    kinds = getattr(module, "rope_type", "default")
    return any(kind not in STATIC_ROTATIONS for kind in (kinds.values() if isinstance(kinds, dict) else [kinds]))
