"""What another engine says about its responses, read and checked, before the policy is asked about them.

Everything comes as lists, one a response, or as one padded tensor or array [B, T] whose cells behind a response are not
read. A wrong value is a ``ValueError`` in one line that names the argument, the row, the value and what was wanted.
This module knows lists and tensors, no trainer and no model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..io.plain import finite, is_boolean, is_whole

_MOST_LOGPROB = 1e-3  # rounding alone lifts a log-prob above 0, by less than this


def read_ids(name: str, rows: Any, *, vocab_size: int) -> list[list[int]]:
    """Token ids, one list a row, without padding; ``name``: of the argument, for messages."""
    if hasattr(rows, "shape") or not _is_list(rows):
        raise ValueError(
            f"{name} is {_kind(rows)}: give one list of token ids a row, without padding, such as "
            "[ids[mask].tolist() for ids, mask in zip(tokens, masks)]"
        )
    return [_read_row(f"{name}[{i}]", row, vocab_size) for i, row in enumerate(rows)]


def _read_row(where: str, row: Any, vocab_size: int) -> list[int]:
    if hasattr(row, "shape") or not _is_list(row):
        raise ValueError(f"{where} is {_kind(row)}: give a list of token ids (ids.tolist())")
    if len(row) == 0:
        raise ValueError(f"{where} holds no token: leave it and its counterpart out")
    for t, token in enumerate(row):
        if not is_whole(token):
            raise ValueError(f"{where}[{t}] is {token!r:.40}: wanted a token id, an int")
        if not 0 <= token < vocab_size:
            raise ValueError(f"{where}[{t}] is {token}: wanted a token id below {vocab_size}, the model's vocabulary")
    return [int(token) for token in row]


def refuse_padding(
    responses: Sequence[Sequence[int]], action_mask: Tensor, *, pad_id: int | None, eos_ids: Sequence[int]
) -> None:
    """Raise ValueError for a response that ends with two or more equal tokens which are padding.

    Those are ``pad_id``, the tokenizer's (None where it has none that means nothing else), and end tokens that are
    repeated. An end token that the policy chose behind one that an environment wrote is no repetition, nor is the
    reverse. One such token alone may have been drawn. action_mask [B, T].
    """
    for i, response in enumerate(responses):
        last, length = response[-1], len(response)
        count = next((n for n, token in enumerate(reversed(response)) if token != last), length)
        if count < 2:
            continue
        if last == pad_id:
            raise ValueError(f"responses[{i}] ends with {count} x {last}, the padding id: leave padding away")
        if last in eos_ids and bool(action_mask[i, length - 1] == action_mask[i, length - 2]):
            raise ValueError(
                f"responses[{i}] goes on behind its end token {last} with {count - 1} x {last}: leave padding away"
            )


def refuse_mixed_groups(prompts: Sequence[Sequence[int]], *, size: int, why: str) -> None:
    """Raise ValueError unless the prompts come in groups of ``size`` equal ones; ``why``: for messages."""
    if len(prompts) % size:
        raise ValueError(f"{len(prompts)} responses: wanted a multiple of {size}, because {why}")
    for i, prompt in enumerate(prompts):
        if prompt != prompts[first := i - i % size]:
            raise ValueError(
                f"prompts[{i}] differs from prompts[{first}], but {why}: put the {size} responses to a prompt side by "
                "side"
            )


def read_cells(
    name: str, rows: Any, lengths: Sequence[int], read: Callable[[Any, int, int], float | bool], *, dtype: torch.dtype
) -> Tensor:
    """One value a response token, [B, T] on the CPU, 0 on padding. ``read``: a cell, its row and place, to a number."""
    if hasattr(rows, "shape") and hasattr(rows, "tolist"):
        wanted = [len(lengths), max(lengths)]
        if list(rows.shape) != wanted:
            raise ValueError(f"{name} is {_kind(rows)}: wanted [B, T] = {wanted}, or one list a response")
        rows = [row[:length] for row, length in zip(rows.tolist(), lengths, strict=True)]
    if not _is_list(rows) or len(rows) != len(lengths):
        found = f"holds {len(rows)} rows" if _is_list(rows) else f"is {_kind(rows)}"
        raise ValueError(f"{name} {found}: wanted one list for each of {len(lengths)} responses")
    cells = torch.zeros(len(lengths), max(lengths), dtype=dtype, device="cpu")
    for i, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        row = row.tolist() if hasattr(row, "tolist") else row
        if not _is_list(row) or len(row) != length:
            found = f"holds {len(row)} numbers" if _is_list(row) else f"is {_kind(row)}"
            raise ValueError(f"{name}[{i}] {found}: wanted one for each of its {length} response tokens")
        cells[i, :length] = torch.tensor([read(x, i, t) for t, x in enumerate(row)], dtype=dtype, device="cpu")
    return cells


def read_action_mask(rows: Any, lengths: Sequence[int]) -> Tensor:
    """``action_mask`` as bool [B, T]. Raises ValueError for a response without an action too."""

    def read(value: Any, i: int, t: int) -> bool:
        if not is_boolean(value):
            raise ValueError(f"action_mask[{i}][{t}] is {value!r:.40}: wanted True or False")
        return bool(value)

    mask = read_cells("action_mask", rows, lengths, read, dtype=torch.bool)
    for i, has_action in enumerate(mask.any(dim=1).tolist()):
        if not has_action:
            raise ValueError(f"action_mask[{i}] holds no True: the policy must have chosen at least one token of a row")
    return mask


def read_logprobs(rows: Any, lengths: Sequence[int], action_mask: Tensor, *, dtype: torch.dtype) -> Tensor:
    """``logprobs`` [B, T]. Those of tokens that an environment wrote may be None, and become 0."""
    is_action = action_mask.tolist()

    def read(value: Any, i: int, t: int) -> float:
        if not is_action[i][t]:
            return 0.0
        number = _number(value, f"logprobs[{i}][{t}]")
        if number > _MOST_LOGPROB:
            raise ValueError(f"logprobs[{i}][{t}] is {number:g}: wanted a log-probability, at most 0")
        return number

    return read_cells("logprobs", rows, lengths, read, dtype=dtype)


def read_token_rewards(rows: Any, lengths: Sequence[int], action_mask: Tensor, *, dtype: torch.dtype) -> Tensor:
    """``token_rewards`` [B, T]. Raises ValueError for one on a token that an environment wrote."""
    is_action = action_mask.tolist()

    def read(value: Any, i: int, t: int) -> float:
        number = _number(value, f"token_rewards[{i}][{t}]")
        if number != 0 and not is_action[i][t]:
            raise ValueError(
                f"token_rewards[{i}][{t}] is {number:g} on a token that an environment wrote: wanted 0 there"
            )
        return number

    return read_cells("token_rewards", rows, lengths, read, dtype=dtype)


def read_scores(rows: Any, count: int, *, dtype: torch.dtype) -> Tensor:
    """``scores`` [B], on the CPU."""
    values = rows.tolist() if hasattr(rows, "tolist") else rows
    if not _is_list(values) or len(values) != count:
        found = f"holds {len(values)} numbers" if _is_list(values) else f"is {_kind(rows)}"
        raise ValueError(f"scores {found}: wanted one for each of {count} responses")
    return torch.tensor([_number(x, f"scores[{i}]") for i, x in enumerate(values)], dtype=dtype, device="cpu")


def read_is_ended(rows: Any, count: int) -> Tensor:
    """``is_ended`` as bool [B], on the CPU."""
    values = rows.tolist() if hasattr(rows, "tolist") else rows
    if not _is_list(values) or len(values) != count:
        found = f"holds {len(values)} values" if _is_list(values) else f"is {_kind(rows)}"
        raise ValueError(f"is_ended {found}: wanted one for each of {count} responses")
    for i, value in enumerate(values):
        if not is_boolean(value):
            raise ValueError(f"is_ended[{i}] is {value!r:.40}: wanted True or False")
    return torch.tensor([bool(value) for value in values], device="cpu")


def read_rows(rows: Any, count: int) -> list[Mapping[str, Any]]:
    """``rows``: one mapping a response, as :class:`ppo.Sample` shows it."""
    if not _is_list(rows) or len(rows) != count:
        found = f"holds {len(rows)}" if _is_list(rows) else f"is {_kind(rows)}"
        raise ValueError(f"rows {found}: wanted a list of one mapping for each of {count} responses")
    for i, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise ValueError(f"rows[{i}] is {_kind(row)}: wanted a mapping, such as {{'answer': 42}}")
    return list(rows)


def read_version(version: Any, *, newest: int) -> int:
    """``policy_version``: how many optimiser steps the policy had behind it, at most ``newest``."""
    if not is_whole(version) or not 0 <= version <= newest:
        raise ValueError(
            f"policy_version={version!r} is none of 0 to {newest}: the trainer's policy has had {newest} updates"
        )
    return int(version)


def _number(value: Any, where: str) -> float:
    number = finite(value)
    if number is None:
        raise ValueError(f"{where} is {value!r:.40}: wanted a finite number")
    return number


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _kind(value: Any) -> str:
    if hasattr(value, "shape"):
        return f"a tensor {list(value.shape)}" if isinstance(value, Tensor) else f"an array {list(value.shape)}"
    return f"a {type(value).__name__}"
