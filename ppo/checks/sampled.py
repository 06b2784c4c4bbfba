"""The responses of somebody else's sampler: what can be wrong with a ``Generation`` before anything reads it.

Kinds, shapes, dtypes and devices come first, then numbers row by row, and at last the order of the rows. This module
knows the record and the prompts, nothing about how responses are drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from numbers import Real

import torch
from torch import Tensor

from ..config import Sampling
from ..io.named import described
from ..lm.distribution import has_filters
from ..policy import Policy
from ..prompts import Prompt
from ..types import Generation

_MOST_LOGPROB = 1e-3  # rounding alone lifts a log-prob above 0, by less than this


def wrong_generation(
    generation: Generation, prompts: Sequence[Prompt], policy: Policy, *, vocab_size: int, context: int | None
) -> str:
    """What is wrong with the responses to ``prompts``, in words that follow "the sampler", or "".

    ``policy``: the one that the sampler was given, with its ``sampling``. ``context``: the most tokens, prompt and
    response together, that its model reads; None: no limit.
    """
    return (
        _wrong_tensor(generation, len(prompts), policy.device, vocab_size)
        or _wrong_note(generation)
        or _wrong_filters(generation, policy.sampling)
        or _wrong_row(generation, vocab_size, context, policy.sampling.response_length)
        or _wrong_order(generation, prompts)
    )


def _wrong_tensor(generation: Generation, count: int, device: torch.device, vocab_size: int) -> str:
    """A field of the wrong kind, number of dimensions, shape, dtype or device."""
    tokens, prompt_ids = generation.tokens, generation.prompt_ids
    for name, ids, letters in (("tokens", tokens, "[B, T]"), ("prompt_ids", prompt_ids, "[B, P]")):
        if not isinstance(ids, Tensor) or ids.dtype != torch.long or ids.dim() != 2:
            return f"returned {name} that are {described(ids)}: wanted int64 {letters}"
    if len(generation) != count:
        return f"returned {len(generation)} responses to {count} prompts: give one to each"
    rows, columns = tokens.shape
    if problem := _wrong_context(generation):
        return problem
    states = (rows, generation.num_states)
    sets, prompt_shape = -(-vocab_size // 8), tuple(prompt_ids.shape)
    wanted: dict[str, tuple[str, tuple[int, ...], Callable[[torch.dtype], bool]]] = {
        "prompt_ids": ("int64", (rows, prompt_ids.shape[1]), _is(torch.long)),
        "tokens": ("int64", (rows, columns), _is(torch.long)),
        "prompt_mask": ("bool", prompt_shape, _is(torch.bool)),
        "mask": ("bool", (rows, columns), _is(torch.bool)),
        "action_mask": ("bool", (rows, columns), _is(torch.bool)),
        "logprobs": ("float", (rows, columns), _is_float),
        "entropy": ("float", (rows, columns), _is_float),
        "is_ended": ("bool", (rows,), _is(torch.bool)),
        "values": ("float", (rows, columns), _is_float),
        "kept_sets": ("uint8", (rows, columns, sets), _is(torch.uint8)),
        "context": ("int64", states, _is(torch.long)),
        "state_temperatures": ("float", states, _is_float),
    }
    for name, (dtype, shape, is_right) in wanted.items():
        value = getattr(generation, name)
        if value is None and name in ("values", "kept_sets", "context", "state_temperatures"):
            continue
        if not isinstance(value, Tensor) or value.shape != shape or not is_right(value.dtype):
            beside = f" beside tokens [B, T] = {list(tokens.shape)}"
            return f"returned {name} that are {described(value)}{beside}: wanted {dtype} {list(shape)}"
        if value.device != device:
            return f"returned {name} on {value.device}: wanted them where the policy is, on {device}"
    hidden = generation.frozen_hidden
    if hidden is not None:
        width = int(generation.attention_mask.sum(dim=1).max())
        if not isinstance(hidden, Tensor) or hidden.dim() != 3 or len(hidden) != rows or hidden.shape[1] < width:
            return f"returned frozen_hidden that are {described(hidden)}: leave them None, or [B, S, H] of this policy"
    return ""


def _wrong_context(generation: Generation) -> str:
    """A context that does not divide the tokens into states, or what goes with a context and stands alone."""
    context, tokens = generation.context, generation.tokens
    if context is None:
        return "" if generation.state_temperatures is None else "returned state_temperatures without a context"
    if not isinstance(context, Tensor) or context.dim() != 2 or context.shape[1] < 1:
        return f"returned a context that is {described(context)}: wanted int64 [B, S]"
    if tokens.shape[1] % context.shape[1]:
        return (
            f"returned {tokens.shape[1]} tokens a row for {context.shape[1]} states: wanted the same number of actions "
            "at each state"
        )
    if generation.kept_sets is not None:
        return "returned kept_sets beside a context: actions at forced states are drawn from the whole distribution"
    return ""


def _wrong_filters(generation: Generation, sampling: Sampling) -> str:
    if generation.context is None or not has_filters(sampling):
        return ""
    return (
        f"returned a context under top_k={sampling.top_k}, top_p={sampling.top_p:g}: actions at forced states "
        "are drawn from the whole distribution, with Config(top_k=0, top_p=1)"
    )


def _wrong_note(generation: Generation) -> str:
    """What stands beside the tensors: ``info`` and ``metrics``."""
    info, metrics = generation.info, generation.metrics
    if info is not None:
        if not isinstance(info, Sequence) or isinstance(info, str | bytes):
            return f"returned info that is {described(info)}: wanted a list, one entry a row"
        if len(info) != len(generation):
            return f"returned info of {len(info)} entries for {len(generation)} rows: wanted one a row"
    if not isinstance(metrics, Mapping):
        return f"returned metrics that are {described(metrics)}: wanted a dict of numbers"
    for name, value in metrics.items():
        if not isinstance(name, str) or not isinstance(value, Real):
            return f"returned the metric {name!r} that is {described(value)}: wanted a number by its name"
    return ""


def _wrong_row(generation: Generation, vocab_size: int, context: int | None, response_length: int) -> str:
    """A row whose ids, masks, lengths or numbers cannot be right."""
    mask, actions, prompt = generation.mask, generation.action_mask, generation.prompt_mask
    ids, totals = torch.cat([generation.input_ids, generation.tokens], dim=1), generation.attention_mask.sum(dim=1)
    count, read = generation.actions_per_state, generation.input_ids.shape[1]
    wrong: dict[str, Tensor] = {
        "a token id outside the vocabulary": ((ids < 0) | (ids >= vocab_size)).any(dim=1),
        "a prompt that is not padded on the left": (prompt[:, :-1] & ~prompt[:, 1:]).any(dim=1),
        "no token in its prompt": ~prompt.any(dim=1),
        "a hole in mask: what an environment wrote belongs to it, and is left out of action_mask": (
            mask[:, 1:] & ~mask[:, :-1]
        ).any(dim=1),
        "an action on padding: action_mask must be part of mask": (actions & ~mask).any(dim=1),
        "no action: at least one token must be the policy's": ~actions.any(dim=1),
        f"a response longer than policy.sampling.response_length={response_length}": (
            generation.lengths > response_length
        )
        & (generation.context is None),
        f"more tokens, prompt and response, than the model's context of {context}": (
            totals > (context if context is not None else read)
        ),
    }
    if generation.context is not None:
        by_state = actions.view(len(actions), -1, count)
        wrong["some actions of a state and not all of them in action_mask"] = (
            (by_state != by_state[:, :, :1]).flatten(1).any(dim=1)
        )
    if generation.state_temperatures is not None:
        heat, is_state = generation.state_temperatures, mask[:, ::count]
        wrong["state_temperatures that are not finite and above 0"] = (is_state & ~(heat.isfinite() & (heat > 0))).any(
            dim=1
        )
    for name in ("logprobs", "entropy", "values"):
        numbers = getattr(generation, name)
        if numbers is not None:
            wrong[f"{name} that are NaN or infinite"] = ~numbers.isfinite().all(dim=1)
            wrong[f"{name} that are not 0 outside action_mask"] = ((numbers != 0) & ~actions).any(dim=1)
    wrong["logprobs above 0: they are logarithms of probabilities"] = (generation.logprobs > _MOST_LOGPROB).any(dim=1)
    for problem, is_wrong in wrong.items():
        if bool(is_wrong.any()):
            return f"returned row {int(is_wrong.nonzero()[0])} with {problem}"
    return ""


def _wrong_order(generation: Generation, prompts: Sequence[Prompt]) -> str:
    """A row that answers another prompt of the step. Ids of no prompt are an environment's own start, and pass."""
    starts = [ids[mask].tolist() for ids, mask in zip(generation.prompt_ids, generation.prompt_mask, strict=True)]
    places = {tuple(prompt.ids): place for place, prompt in reversed(list(enumerate(prompts)))}
    for row, (start, prompt) in enumerate(zip(starts, prompts, strict=True)):
        if start != list(prompt.ids) and (place := places.get(tuple(start))) is not None:
            return f"returned row {row}, which answers prompts[{place}]: row i must answer prompts[i]"
    return ""


def _is(wanted: torch.dtype) -> Callable[[torch.dtype], bool]:
    return lambda dtype: dtype == wanted


def _is_float(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point
