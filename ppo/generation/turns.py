"""Responses of several turns: the policy writes one, something answers, and the policy goes on in the same row.

The tokens of an answer are not drawn. They are fed one after another, as the row's next tokens, beside the draws of
other rows. So the row keeps its keys and values, nothing is computed twice, and every engine can do it. An answer of n
tokens takes n decoding steps. This module knows token ids and rows, nothing about models or rewards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..io.plain import is_whole
from .requests import Requests

Reply = Callable[[int, list[int]], "Sequence[int] | None"]
"""``(request, ids)`` to what is written behind a turn: token ids, or None where the response is over.

``request``: the row of the response. ``ids``: the tokens of the turn, with the token that ended it.
"""


@dataclass(frozen=True)
class Turns:
    """How responses of several turns go: an argument of :func:`ppo.generate`.

    reply        what is written behind a turn; see :data:`Reply`
    end_ids      tokens that end a turn, besides those of ``Sampling.eos_ids``
    turn_length  most tokens of a turn; None: as many as the response has room for

    ``Sampling.response_length`` counts the tokens of all turns and all answers. A turn that uses it up is answered too,
    but nothing is written any more. An answer that would leave no room for another token is not written either: the
    response ends with the policy's turn, and does not count as ended by itself.
    """

    reply: Reply
    end_ids: tuple[int, ...] = ()
    turn_length: int | None = None

    def __post_init__(self) -> None:
        check_turn_ends("Turns.", self.end_ids, self.turn_length)


def check_turn_ends(owner: str, end_ids: Any, turn_length: Any) -> None:
    """Raise ValueError unless ``end_ids`` is a list of whole numbers, and ``turn_length`` is None or one above 0.

    ``owner`` stands before their names in messages.
    """
    is_list = isinstance(end_ids, Sequence) and not isinstance(end_ids, str | bytes)
    if not is_list or not all(is_whole(i) for i in end_ids):
        raise ValueError(f"{owner}end_ids={end_ids!r:.60} must be a list of token ids, such as [6]")
    if turn_length is not None and (not is_whole(turn_length) or turn_length < 1):
        raise ValueError(f"{owner}turn_length={turn_length!r:.60} must be at least 1, a whole number, or None")


class Dialogue:
    """Where each response of a batch stands: whose turn it is, and which tokens are already decided.

    ``action_mask`` bool [R, T]: False on the tokens of answers. ``is_ended`` bool [R]: the reply said that it is over.
    """

    def __init__(self, turns: Turns, requests: Requests, device: torch.device, vocab_size: int) -> None:
        count, length = len(requests), requests.sampling.response_length
        self._turns = turns
        self._length = length
        self._vocab_size = vocab_size
        ends = sorted({*turns.end_ids, *(requests.sampling.eos_ids or ())})
        if outside := [i for i in ends if not 0 <= i < vocab_size]:
            raise ValueError(f"Turns.end_ids holds {outside[0]}, outside the model's vocabulary of {vocab_size}")
        self._ends = frozenset(ends)
        self._starts = [0] * count  # of the present turn, or of the next one
        self._turn: list[list[int]] = [[] for _ in range(count)]  # the tokens of the present turn
        self._written = torch.zeros(count, length, dtype=torch.long, device=device)
        self.action_mask = torch.ones(count, length, dtype=torch.bool, device=device)
        self.is_ended = torch.zeros(count, dtype=torch.bool, device=device)

    def overwrite(self, rows: Tensor, steps: Tensor, drawn: Tensor) -> Tensor:
        """Tokens [N] of the requests ``rows`` [N] at ``steps`` [N]: those of an answer, or else the drawn ones."""
        return torch.where(self.action_mask[rows, steps], drawn, self._written[rows, steps])

    def is_finished(self, requests: list[int], steps: list[int], tokens: list[int]) -> list[bool]:
        """Whether responses end with ``tokens``, which stand at ``steps``. Turns that end here are answered.

        It must see every token of every response once, in the order in which they are written.
        """
        return [self._ends_with(*one) for one in zip(requests, steps, tokens, strict=True)]

    def _ends_with(self, request: int, step: int, token: int) -> bool:
        is_full = step + 1 >= self._length
        if step < self._starts[request]:  # inside an answer
            return is_full
        turn = self._turn[request]
        turn.append(token)
        is_over = is_full or token in self._ends or len(turn) == self._turns.turn_length
        return not self._answer(request, step + 1) if is_over else False

    def _answer(self, request: int, end: int) -> bool:
        """Answer the turn of a request that ends before index ``end``. Returns whether the response goes on."""
        ids, self._turn[request] = self._turn[request], []
        with torch.inference_mode(False):  # whoever answers may keep tensors, and train on them
            answer = self._turns.reply(request, ids)
        if answer is None:
            self.is_ended[request] = True
            return False
        ids = self._checked(answer, request)
        after = end + len(ids)
        if after >= self._length:
            return False
        self._written[request, end:after] = torch.tensor(ids, dtype=torch.long, device=self._written.device)
        self.action_mask[request, end:after] = False
        self._starts[request] = after
        return True

    def _checked(self, answer: Sequence[int], request: int) -> list[int]:
        values: Any = answer.tolist() if hasattr(answer, "tolist") else answer
        is_list = isinstance(values, Sequence) and not isinstance(values, str | bytes)
        if not is_list or not all(is_whole(i) for i in values):
            raise ValueError(f"the reply to response {request} is {answer!r:.60}: wanted token ids, or None at the end")
        if outside := [i for i in values if not 0 <= i < self._vocab_size]:
            raise ValueError(
                f"the reply to response {request} holds {outside[0]}, outside the model's vocabulary of "
                f"{self._vocab_size}"
            )
        return [int(i) for i in values]
