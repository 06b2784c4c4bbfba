"""Losses that are a sum over tokens of a function of the logits, computed in chunks of the vocabulary's rows.

The rivals of one family differ in that function alone. It may also see the logits of a frozen model at the same places.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ppo.lm.backbone import Backbone

from .training import Pair

PerToken = Callable[..., Tensor]
"""(logits [N, V], labels [N]) → loss [N]; with a frozen model (logits [N, V], its logits [N, V], labels [N]).

With numbers beside the labels they come last, [N].
"""


def token_loss(
    backbone: Backbone,
    pairs: Sequence[Pair],
    per_token: PerToken,
    *,
    chunk_tokens: int,
    frozen: Backbone | None = None,
    labels: Sequence[Sequence[int]] | None = None,
    beside: Sequence[Sequence[float]] | None = None,
) -> Tensor:
    """Sum over passages of the loss, mean over the passage's tokens; a differentiable scalar.

    ``beside``: a number for each token to forget, which the loss sees as well.
    ``labels``: a token for each token to forget, which the loss sees in place of the true one; None: the true ones.
    """
    device = next(backbone.model.parameters()).device
    rows = [[*context, *tokens] for context, tokens in pairs]
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=device)
    place = torch.arange(width, device=device)
    mask = place < torch.tensor([[len(row)] for row in rows], device=device)
    is_scored = mask & (place >= torch.tensor([[len(context)] for context, _ in pairs], device=device))
    weights = (1 / is_scored.sum(dim=1, keepdim=True)).expand(is_scored.shape)[is_scored]
    given = ids[is_scored]
    if labels is not None:
        given = torch.tensor([token for row in labels for token in row], device=device)
    numbers = [x for row in beside or [] for x in row]
    more = None if beside is None else torch.tensor(numbers, dtype=torch.float32, device=device)
    return _weighted(backbone, frozen, ids, mask, is_scored, given, weights, per_token, chunk_tokens, more)


class FrozenRetain:
    """A loss on text to keep that holds the model to a frozen one, called as :class:`ppo.retain.RetainLoss` is.

    ``reference``: the model whose distribution stays. ``per_token``: (logits, its logits, labels) → [N].
    """

    def __init__(self, reference: nn.Module, per_token: PerToken, *, chunk_tokens: int) -> None:
        self._reference = Backbone(reference)
        self._per_token = per_token
        self._chunk_tokens = chunk_tokens

    def __call__(self, policy: Backbone, ids: Tensor, mask: Tensor, *, num_tokens: int) -> Tensor:
        """The loss summed over the predicted tokens of ``ids`` [r, L] and divided by ``num_tokens``: a scalar."""
        is_scored = mask.clone()
        is_scored[:, 0] = False
        is_scored[:, 1:] &= mask[:, :-1]
        weights = torch.full((int(is_scored.sum()),), 1 / num_tokens, device=ids.device)
        return _weighted(
            policy, self._reference, ids, mask, is_scored, ids[is_scored], weights, self._per_token, self._chunk_tokens
        )


def _weighted(
    backbone: Backbone,
    frozen: Backbone | None,
    ids: Tensor,
    mask: Tensor,
    is_scored: Tensor,
    labels: Tensor,
    weights: Tensor,
    per_token: PerToken,
    chunk_tokens: int,
    beside: Tensor | None = None,
) -> Tensor:
    """Sum of ``weights`` [N] times the loss of each scored token. ``ids``, ``mask``, ``is_scored`` [B, S].

    ``beside`` [N]: a number for each scored token, which the loss sees last.
    """
    targets: Tensor | None = None
    if frozen is not None:
        with torch.no_grad():
            targets = frozen(ids, mask).before_logits[:, :-1][is_scored[:, 1:]]
    states = backbone(ids, mask).before_logits[:, :-1][is_scored[:, 1:]]

    def one_chunk(
        states: Tensor, labels: Tensor, weights: Tensor, targets: Tensor | None, beside: Tensor | None
    ) -> Tensor:
        inputs = [backbone.output_layer(states).float()]
        if frozen is not None and targets is not None:
            inputs.append(frozen.output_layer(targets).float())
        inputs += [labels] if beside is None else [labels, beside]
        return (per_token(*inputs) * weights).sum()

    total = torch.zeros((), dtype=torch.float32, device=ids.device)
    for start in range(0, len(labels), chunk_tokens):
        part = slice(start, start + chunk_tokens)
        theirs, more = (None if column is None else column[part] for column in (targets, beside))
        total = total + checkpoint(
            one_chunk, states[part], labels[part], weights[part], theirs, more, use_reentrant=False
        )
    return total
