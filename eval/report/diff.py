"""Which parts of a text still match the truth: word matches in order, as pieces to mark.

This module knows texts, no HTML.
"""

from __future__ import annotations

import re
from difflib import SequenceMatcher
from itertools import accumulate, groupby

_PIECES = re.compile(r"\s+|[\w\u200c\u200d]+|[^\w\s][\ufe00-\ufe0f]*")  # joiners stay inside words
MOST_COMPARED = 2_000_000  # pairs of pieces, for one text
MOST_COMPARED_OF_PAGE = 100_000_000


class Effort:
    """How many pairs of pieces may still be compared: the time of matching can grow faster than the square of a text.

    ``num_unfinished``: the texts whose matching ended before it was done.
    """

    def __init__(self, most: int = MOST_COMPARED_OF_PAGE) -> None:
        self.left = most
        self.num_unfinished = 0


def matching_pieces(output: str, truth: str, effort: Effort | None = None) -> list[tuple[str, bool]]:
    """``output`` in pieces, each with whether it matches the truth. The pieces add up to the output.

    Matches are in the order of the truth. A match is a longest common run of words and signs, found recursively
    (Ratcliff and Obershelp). Runs without a letter or digit do not count, and neither does white space at their ends.
    ``effort`` bounds the search, and counts this text if the bound left a part of it unmarked. None: that of one text.

    Example: output "call Anna now", truth "please call Anna" -> [("call Anna", True), (" now", False)].
    """
    a, b = _PIECES.findall(output), _PIECES.findall(truth)
    flags = [False] * len(a)
    for start, size in _common_runs(a, b, effort or Effort()):
        run = range(start, start + size)
        while run and a[run[0]].isspace():
            run = run[1:]
        while run and a[run[-1]].isspace():
            run = run[:-1]
        if any(a[i][0].isalnum() for i in run):
            for i in run:
                flags[i] = True
    pairs = groupby(zip(a, flags, strict=True), key=lambda pair: pair[1])
    return [("".join(text for text, _ in run), flag) for flag, run in pairs]


def _common_runs(a: list[str], b: list[str], effort: Effort) -> list[tuple[int, int]]:
    """(start in ``a``, length) of the longest common run, then of those to its left and right, and so on.

    It is what ``SequenceMatcher.get_matching_blocks`` finds, as long as the effort lasts: one search costs a step for
    each piece of ``a`` and each place that it has in ``b``.
    """
    matcher = SequenceMatcher(None, a, b, autojunk=False)
    costs = list(accumulate((1 + len(matcher.b2j.get(piece, ())) for piece in a), initial=0))
    left, runs, todo = min(MOST_COMPARED, effort.left), [], [(0, len(a), 0, len(b))]
    while todo:
        a_low, a_high, b_low, b_high = todo.pop()
        cost = costs[a_high] - costs[a_low]
        if cost > left:
            effort.num_unfinished += 1
            break
        left, effort.left = left - cost, effort.left - cost
        i, j, size = matcher.find_longest_match(a_low, a_high, b_low, b_high)
        if size:
            runs.append((i, size))
            sides = ((a_low, i, b_low, j), (i + size, a_high, j + size, b_high))
            todo += [side for side in sides if side[0] < side[1] and side[2] < side[3]]
    return runs
