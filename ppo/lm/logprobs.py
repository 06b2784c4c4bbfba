"""Log-probs and entropy of response tokens from hidden states, in chunks, so that a [B, T, V] tensor never exists.

The distribution is the one that was sampled from (:mod:`ppo.lm.distribution`). There are two ways to compute it. For a
plain linear output layer without filters :mod:`ppo.lm.tiled_logprobs` does it, in memory that does not grow with the
vocabulary. For any other output layer, and under top-k or top-p, this module computes whole rows of logits, a chunk of
rows at a time, and computes them again in the backward pass. It does not know how hidden states are made.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..config import Sampling
from ..types import Generation
from .distribution import (
    divisor,
    early_steps,
    entropy,
    has_filters,
    next_token_logits,
    next_token_logprobs,
    pick,
)
from .kept_sets import pack, unpack
from .precision import as_statistics
from .tiled_logprobs import OutputDistribution, output_logprobs

OutputLayer = Callable[[Tensor], Tensor]
Places = tuple[Tensor, ...]  # rows and columns, int64 [N] each
_CHUNK_LOGITS = 2**24  # most logits in one chunk of whole rows: 64 MiB in float32


def response_positions(features: Tensor, prompt_lengths: Tensor, length: int) -> Tensor:
    """The features that *predict* the response tokens: [B, S, D], [B] -> [B, T, D] with T = ``length``.

    :func:`ppo.buffer.align` lays out the rows. After a prompt of p tokens, token t of the response stands at position
    p + t, and the position before it predicts it. This is the one place where prompt and response are sliced apart.
    If a response is shorter than T, the rest of its row is filled with the row's last position, which nobody may use.
    """
    steps = torch.arange(length, device=features.device)
    index = (prompt_lengths.unsqueeze(1) - 1 + steps).clamp(max=features.shape[1] - 1)
    return features.gather(1, index.unsqueeze(-1).expand(-1, -1, features.shape[-1]))


def token_logprobs(
    before_logits: Tensor,
    output_layer: OutputLayer,
    generation: Generation,
    sampling: Sampling,
    *,
    chunk_tokens: int,
    has_entropy_gradient: bool = True,
) -> tuple[Tensor, Tensor]:
    """Log-probs of the response tokens and entropy of their distributions (nats), both float32 [B, T], 0 on padding.

    ``before_logits`` [B, T, D] are response positions. ``sampling.eos_ids`` must be given if ``min_response_length``
    > 0. Only real tokens pass the output layer, ``chunk_tokens`` at a time. A sampled token that the top-k/top-p
    filter of *this* policy would drop is kept, so its log-prob is finite. Where the generation holds ``kept_sets``,
    those tokens are kept instead, and no others. If the loss has no entropy term,
    ``has_entropy_gradient=False`` may save the entropy's gradient. Of a generation with a ``context``,
    ``before_logits`` are [B, S, D]: a state is computed once for all of its actions.
    """
    if generation.context is not None:
        return _state_logprobs(before_logits, output_layer, generation, sampling, chunk_tokens)
    actions = _actions(generation)
    rows, tokens = before_logits[actions], generation.tokens[actions]
    is_early = _is_early(generation, actions, sampling)
    if isinstance(output_layer, nn.Linear) and is_plain_linear(output_layer) and not has_filters(sampling):
        distribution = OutputDistribution(
            temperature=divisor(sampling),
            banned_ids=sampling.eos_ids or (),
            is_banned=is_early,
            dtype=_product_dtype(rows),
            chunk_rows=chunk_tokens,
        )
        picked = output_logprobs(
            rows,
            output_layer.weight,
            output_layer.bias,
            tokens,
            distribution,
            has_entropy_gradient=has_entropy_gradient,
        )
    else:
        sets = None if generation.kept_sets is None else generation.kept_sets[actions]
        picked = _whole_row_logprobs(rows, output_layer, tokens, is_early, sampling, chunk_tokens, sets)
    logprobs, entropy = (_laid_out(as_statistics(x), actions, generation.mask.shape) for x in picked)
    return logprobs, entropy


def _state_logprobs(
    before_logits: Tensor, output_layer: OutputLayer, generation: Generation, sampling: Sampling, chunk_tokens: int
) -> tuple[Tensor, Tensor]:
    """:func:`token_logprobs` for several actions at each forced state, from whole rows of logits."""
    count, shape = generation.actions_per_state, (len(generation), generation.num_states)
    is_state = generation.layout.action_mask[:, ::count]
    states = is_state.nonzero().to(generation.mask.device).unbind(dim=1)
    rows, tokens = before_logits[states], generation.tokens.view(*shape, count)[states]
    is_early = early_steps(states[1], sampling)
    heat = generation.state_temperatures
    temperatures = rows.new_ones(len(rows), dtype=torch.float32) if heat is None else heat[states]

    def one_chunk(rows: Tensor, tokens: Tensor, is_early: Tensor, temperatures: Tensor) -> tuple[Tensor, Tensor]:
        logits = as_statistics(output_layer(rows))
        logits = logits / temperatures.to(logits).unsqueeze(-1)
        all_logprobs = next_token_logprobs(logits, sampling, is_early=is_early)
        return all_logprobs.gather(-1, tokens), entropy(all_logprobs)

    if len(rows):
        columns = (rows, tokens, is_early, temperatures)
        found = _in_chunks(one_chunk, columns, _rows_at_once(output_layer, rows, chunk_tokens))
    else:
        nothing = as_statistics(rows.sum(dim=-1))
        found = nothing.unsqueeze(-1).expand(-1, count), nothing
    logprobs, spread = (_laid_out(x, states, torch.Size(shape)) for x in found)
    return logprobs.flatten(1), spread.repeat_interleave(count, dim=1)


@torch.no_grad()
def kept_sets(
    before_logits: Tensor, output_layer: OutputLayer, generation: Generation, sampling: Sampling, *, chunk_tokens: int
) -> Tensor:
    """The tokens that top-k and top-p leave before each response token, and that token: uint8 [B, T, ceil(V / 8)].

    They are packed by :mod:`ppo.lm.kept_sets`, and 0 off the action mask. The arguments are those of
    :func:`token_logprobs`.
    """
    actions = _actions(generation)
    rows, tokens = before_logits[actions], generation.tokens[actions]
    is_early = _is_early(generation, actions, sampling)
    chunk_tokens, packed = _rows_at_once(output_layer, rows, chunk_tokens), []
    for start in range(0, len(rows), chunk_tokens):
        part = slice(start, start + chunk_tokens)
        logits = as_statistics(output_layer(rows[part]))
        packed.append(
            pack(next_token_logits(logits, sampling, is_early=is_early[part], keep=tokens[part]) > -torch.inf)
        )
    return _laid_out(torch.cat(packed), actions, generation.mask.shape)


def _actions(generation: Generation) -> Places:
    """Rows and indices of the actions, int64 [N] each. As an index the mask itself would make the host wait."""
    return generation.layout.action_mask.nonzero().to(generation.mask.device).unbind(dim=1)


def _is_early(generation: Generation, actions: Places, sampling: Sampling) -> Tensor:
    """:func:`ppo.lm.distribution.early_tokens` of the actions, bool [N]."""
    return early_steps(generation.mask.cumsum(dim=1)[actions] - 1, sampling)


def _laid_out(numbers: Tensor, actions: Places, shape: torch.Size) -> Tensor:
    """Numbers of the actions, [N, …], put in their places in [B, T, …]; 0 elsewhere."""
    return numbers.new_zeros(*shape, *numbers.shape[1:]).index_put(actions, numbers)


def is_plain_linear(layer: nn.Module) -> bool:
    """Whether the layer computes ``F.linear`` with its weight and nothing more: no adapter, no hook, no sharding."""
    hooks = (layer._forward_hooks, layer._forward_pre_hooks, layer._backward_hooks, layer._backward_pre_hooks)
    is_own_forward = type(layer) is nn.Linear and "forward" not in vars(layer)
    return is_own_forward and not any(hooks) and type(layer.weight) in (nn.Parameter, Tensor)


def _product_dtype(rows: Tensor) -> torch.dtype:
    """The dtype that a linear layer would compute in, under the autocast that is active now."""
    device = rows.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else rows.dtype


def _whole_row_logprobs(
    rows: Tensor,
    output_layer: OutputLayer,
    tokens: Tensor,
    is_early: Tensor,
    sampling: Sampling,
    chunk_tokens: int,
    sets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(log-prob, entropy) [N] each, for flat rows [N, D] and tokens [N], from a whole row of logits for each token.

    ``sets`` uint8 [N, ceil(V / 8)]: the tokens that are kept, in place of the filters.
    """
    chunk_tokens = _rows_at_once(output_layer, rows, chunk_tokens)

    def one_chunk(rows: Tensor, tokens: Tensor, is_early: Tensor, sets: Tensor | None) -> tuple[Tensor, Tensor]:
        logits = as_statistics(output_layer(rows))
        kept = None if sets is None else unpack(sets, logits.shape[-1])
        all_logprobs = next_token_logprobs(logits, sampling, is_early=is_early, keep=tokens, kept=kept)
        return pick(all_logprobs, tokens), entropy(all_logprobs)

    if not len(rows):
        nothing = as_statistics(rows.sum(dim=-1))  # of no rows: empty, with a gradient as ever
        return nothing, nothing
    return _in_chunks(one_chunk, (rows, tokens, is_early, sets), chunk_tokens)


def _in_chunks(
    function: Callable[..., tuple[Tensor, Tensor]], columns: tuple[Tensor | None, ...], size: int
) -> tuple[Tensor, Tensor]:
    """Call a function on ``size`` rows of the columns at a time and join its answers; None stays None.

    What it computes is computed again in the backward pass.
    """
    answers = []
    for start in range(0, len(columns[0]), size):  # type: ignore[arg-type]
        inputs = [None if column is None else column[start : start + size] for column in columns]
        if torch.is_grad_enabled():
            answers.append(checkpoint(function, *inputs, use_reentrant=False))
        else:
            answers.append(function(*inputs))
    first, second = zip(*answers, strict=True)
    return torch.cat(first), torch.cat(second)


def _rows_at_once(output_layer: OutputLayer, rows: Tensor, chunk_tokens: int) -> int:
    """How many whole rows of logits are computed at once."""
    vocab = getattr(output_layer, "out_features", rows.shape[-1])
    return min(chunk_tokens, max(_CHUNK_LOGITS // vocab, 1))
