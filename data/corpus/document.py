"""One text of a corpus, which knows the line of the file that each of its characters comes from.

This module knows strings, no files and no tokens.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

Lines = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Document:
    r"""A text of a file, decoded, with "\n" at the end of its lines.

    ``path``: the file as the user named it; a file of a folder as it stands below that folder, with "/". ``name``: the
    path, or the path and "#17" for the 17th record of a table (and ".field" where more than one field is read), or for
    the 17th piece of a text that is too long to be held at once. ``lines``: (offset in the text, line of the file from
    1), ascending, the first at offset 0; a text without lines of its own, such as a row of Parquet, has the row's
    number. ``is_start``: whether nothing stands before the text; False for the second piece of a long one.
    """

    path: str
    name: str
    text: str
    lines: Lines
    is_start: bool = True

    def line_of(self, offset: int) -> int:
        """The line of the file, from 1, that holds the character at ``offset``."""
        return self.lines[max(bisect_right(self.lines, offset, key=lambda line: line[0]) - 1, 0)][1]


def lines_of(text: str, first: int = 1) -> Lines:
    r"""The lines of a text whose own line feeds are those of the file; it begins in line ``first``."""
    starts, at = [0], text.find("\n")
    while at >= 0:
        starts.append(at + 1)
        at = text.find("\n", at + 1)
    if len(starts) > 1 and starts[-1] == len(text):
        starts.pop()  # the last line feed ends a line and begins none
    return tuple((start, first + number) for number, start in enumerate(starts))
