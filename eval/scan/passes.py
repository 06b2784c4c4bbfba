"""How a text is cut into forward passes, and which windows of prefix and suffix each pass holds.

A pass feeds the tokens ``start`` … ``stop`` of a text, behind the model's BOS where it has one. Its first tokens are
only given; from ``first`` on they are scored, each with all tokens of the pass before it as its prefix. So one pass
holds the windows of every prefix length that begin at its start, exactly, and each costs what one window costs. By
default the next pass begins where every token is scored once. This module knows numbers, no text and no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

SUFFIXES = 8  # of a pass, behind the longest prefix, where the model's context has room for them


@dataclass(frozen=True)
class Pass:
    """Tokens ``start`` … ``stop`` of a text (exclusive), scored from ``first`` on. ``layer``: see :class:`Layout`."""

    start: int
    stop: int
    first: int
    layer: int = 0


@dataclass(frozen=True)
class Layout:
    """``prefixes``: their lengths in tokens, ascending. ``suffix``: its length. ``length``: tokens of a whole pass.

    ``stride``: tokens between the starts of two passes. Every ``layers`` passes, one is ``length`` - ``prefixes[0]``
    further than another: each of the layers scores every token of a text once.
    """

    prefixes: tuple[int, ...]
    suffix: int
    length: int
    stride: int
    layers: int

    @property
    def reach(self) -> int:
        """Tokens that a pass scores."""
        return self.length - self.prefixes[0]

    @property
    def cost(self) -> float:
        """Tokens that are fed for each token of a long text."""
        return self.length / self.stride

    def passes(self, num_tokens: int, *, has_bos: bool) -> list[Pass]:
        """The passes over a text of so many tokens, in the order of their starts.

        At the text's start there is no longer prefix: tokens are scored from the first one on behind a BOS, else from
        the second one. Example: prefix 2, length 6, stride 4, 9 tokens, with BOS: 0 … 6 scored from 0, 4 … 9 from 6.
        """
        found = []
        for number, start in enumerate(range(0, num_tokens, self.stride)):
            first = start + self.prefixes[0] if number else int(not has_bos)
            stop = min(start + self.length, num_tokens)
            if first < stop:
                found.append(Pass(start, stop, first, number % self.layers))
        return found

    def windows(self, one: Pass) -> list[tuple[int, int]]:
        """(prefix length, first token of the suffix) of the windows in a pass, by the latter.

        They are those of the given prefix lengths, and the suffixes that follow the first of them side by side.
        """
        last = one.stop - one.start - self.suffix
        lengths = {*self.prefixes, *range(self.prefixes[0], last + 1, self.suffix)}
        return [(length, one.start + length) for length in sorted(lengths) if length <= last]


def layout(
    prefixes: Sequence[int], suffix: int, *, room: int | None, stride: int | None = None, length: int | None = None
) -> Layout:
    """The layout of passes for prefix lengths, a suffix length and ``room`` tokens of context (None: no limit).

    ``stride``: None: every token is scored once. ``length``: tokens of a pass; None: the longest prefix and
    ``SUFFIXES`` suffixes, or what there is room for. ValueError where that does not fit, or where a stride would leave
    tokens out.
    """
    prefixes = tuple(sorted(set(prefixes)))
    if not prefixes or prefixes[0] < 1 or suffix < 1:
        raise ValueError(f"prefixes of {list(prefixes)} tokens and a suffix of {suffix}: give at least 1 of each")
    least = prefixes[-1] + suffix
    most = least + (SUFFIXES - 1) * suffix if length is None else length
    if room is not None and length is None:
        most = max(least, min(most, room))
    if least > most or (room is not None and most > room):
        limit = f"a pass of {most} tokens" if least > most else f"the model's context of {room} tokens"
        raise ValueError(f"a prefix of {prefixes[-1]} and a suffix of {suffix} tokens exceed {limit}: shorten them")
    reach = most - prefixes[0]
    if stride is None:
        return Layout(prefixes, suffix, most, reach, 1)
    if not 1 <= stride <= reach:
        raise ValueError(
            f"a stride of {stride} leaves tokens out: a pass of {most} scores {reach}; give 1 to {reach}, or longer "
            "passes"
        )
    layers = reach // stride
    if prefixes[0] + layers * stride < least:  # rounding down would cut off the longest prefix's suffix
        layers += 1
        if room is not None and prefixes[0] + layers * stride > room:
            raise ValueError(f"a stride of {stride} does not fit a context of {room} tokens: give a smaller one")
    return Layout(prefixes, suffix, prefixes[0] + layers * stride, stride, layers)
