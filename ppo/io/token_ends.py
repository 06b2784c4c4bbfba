"""Where each token of a text ends in it, in characters. This module knows ids and a function that decodes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence


def token_ends(ids: Sequence[int], text: str, decode: Callable[[Sequence[int]], str]) -> list[int]:
    """Where each of ``ids`` ends in ``text``, in characters. Ends never fall; the last is the text's length.

    Tokens are decoded one by one. When the pieces do not add up to the text, because a character is split over tokens,
    every prefix is decoded instead.
    """
    ends, end = [], 0
    pieces = [decode([token]) for token in ids]
    if "".join(pieces) == text:
        for piece in pieces:
            end += len(piece)
            ends.append(end)
        return ends
    for i in range(1, len(ids) + 1):
        end = max(end, min(len(decode(ids[:i])), len(text)))
        ends.append(end)
    return [*ends[:-1], len(text)]
