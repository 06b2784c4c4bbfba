"""Which parts of a text still match the truth: word matches in order, as pieces to mark.

This module knows texts, no HTML.
"""

from __future__ import annotations

import re
from difflib import SequenceMatcher

_PIECES = re.compile(r"\s+|[\w\u200c\u200d]+|[^\w\s][\ufe00-\ufe0f]*")  # joiners stay inside words


def matching_pieces(output: str, truth: str) -> list[tuple[str, bool]]:
    """``output`` in pieces, each with whether it matches the truth. The pieces add up to the output.

    Matches are in the order of the truth. A match is a longest common run of words and signs, found recursively
    (Ratcliff and Obershelp). Runs without a letter or digit do not count, and neither does white space at their ends.

    Example: output "call Anna now", truth "please call Anna" -> [("call Anna", True), (" now", False)].
    """
    a, b = _PIECES.findall(output), _PIECES.findall(truth)
    flags = [False] * len(a)
    for start, _, size in SequenceMatcher(None, a, b, autojunk=False).get_matching_blocks():
        run = range(start, start + size)
        while run and a[run[0]].isspace():
            run = run[1:]
        while run and a[run[-1]].isspace():
            run = run[:-1]
        if any(a[i][0].isalnum() for i in run):
            for i in run:
                flags[i] = True
    pieces: list[tuple[str, bool]] = []
    for text, flag in zip(a, flags, strict=True):
        if pieces and pieces[-1][1] == flag:
            pieces[-1] = (pieces[-1][0] + text, flag)
        else:
            pieces.append((text, flag))
    return pieces
