"""The gradient of an input embedding that is tied to the output layer, without a second matrix of its size.

Autograd adds up two gradients [V, D] of such a weight: the output layer's and the embedding's. The embedding's is 0
except in the rows of the tokens in the batch. Here the embedding adds only those rows to the gradient that the output
layer left in ``weight.grad``. So the memory that a step needs beside weights, gradients and moments does not grow with
the vocabulary.

This module knows modules and their gradients, nothing about PPO.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .backbone import causal_lm, is_split, swapped_forwards

_WORTHWHILE = 2**23  # weights; below this a second gradient is cheap, and small models keep their bits


@contextmanager
def lean_tied_gradient(model: nn.Module) -> Iterator[None]:
    """Within the context a large tied embedding of a causal LM adds its gradient to ``weight.grad`` itself.

    It is for passes that end in ``backward()``: ``torch.autograd.grad`` would miss this part. The sum is the same up
    to rounding. It does nothing if the embedding is small, frozen, not tied, more than a table, or split among
    processes.
    """
    embedding = None if is_split(model) else _large_tied_embedding(model)
    if embedding is None:
        yield
        return
    with swapped_forwards([embedding], lambda _: partial(_look_up, embedding)):
        yield


def _large_tied_embedding(model: nn.Module) -> nn.Embedding | None:
    inner = causal_lm(model)
    embedding = inner.get_input_embeddings()
    if not isinstance(embedding, nn.Embedding) or not _is_plain_table(embedding):
        return None
    weight = embedding.weight
    is_tied = getattr(inner.get_output_embeddings(), "weight", None) is weight
    return embedding if is_tied and weight.requires_grad and weight.numel() >= _WORTHWHILE else None


def _is_plain_table(embedding: nn.Embedding) -> bool:
    """Whether the layer looks up rows and does nothing more."""
    hooks = (embedding._forward_hooks, embedding._forward_pre_hooks, embedding._backward_hooks)
    is_special = embedding.max_norm is not None or embedding.scale_grad_by_freq or embedding.sparse
    is_own_forward = type(embedding) is nn.Embedding and "forward" not in vars(embedding)
    return is_own_forward and not is_special and not any(hooks) and type(embedding.weight) is nn.Parameter


def _look_up(embedding: nn.Embedding, ids: Tensor) -> Tensor:
    """Rows [..., D] of tokens int64 [...]. A hook takes their gradient, so that autograd does not sum it up."""
    rows = F.embedding(ids, embedding.weight.detach())
    if torch.is_grad_enabled():
        rows.requires_grad_().register_hook(partial(_add_gradient, embedding, ids))  # type: ignore[no-untyped-call]
    return rows


@torch.no_grad()
def _add_gradient(embedding: nn.Embedding, ids: Tensor, gradient: Tensor) -> None:
    """Add the rows' gradient [..., D] to the weight's. The padding token has none, as in ``nn.Embedding``."""
    weight = embedding.weight
    if weight.grad is None:
        weight.grad = torch.zeros_like(weight)
    if embedding.padding_idx is not None:
        gradient = gradient.masked_fill((ids == embedding.padding_idx).unsqueeze(-1), 0.0)
    weight.grad.index_add_(0, ids.flatten(), gradient.reshape(-1, weight.shape[1]))
