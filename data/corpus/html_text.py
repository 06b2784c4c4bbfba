"""The text of an HTML page, and the line of the page that each part of it comes from.

White space counts as a browser counts it: runs are one space, blocks begin a new line, ``<pre>`` stays as it is. What
is never shown (scripts, styles, templates, comments) is left out. Every page has a text, however broken, in a time that
is linear in its length; Python's own parser, which changes from version to version, promises neither. This module
knows markup, no files.
"""

from __future__ import annotations

import re
from html import unescape

from data.corpus.document import Lines

_HIDDEN = {name: re.compile(rf"</{name}(?=[\s/>])", re.IGNORECASE) for name in ("script", "style", "template")}
_BLOCKS = {
    "address", "article", "aside", "blockquote", "body", "br", "caption", "center", "dd", "details", "dialog", "dir",
    "div", "dl", "dt", "fieldset", "figcaption", "figure", "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6", "head",
    "header", "hr", "html", "legend", "li", "main", "menu", "nav", "ol", "option", "p", "pre", "section", "select",
    "summary", "table", "tbody", "td", "textarea", "tfoot", "th", "thead", "title", "tr", "ul",
}  # fmt: skip
_TAG = re.compile(r"""<(/?)([a-zA-Z][^\s/>]*+)(?>[^>=]|=\s*+"[^"]*+"|=\s*+'[^']*+'|=)*+>""")
_TAG_START = re.compile(r"</?[a-zA-Z]")
_WORDS = re.compile(r"[ \t\n\r\f]+|[^ \t\n\r\f]+")
_LINES = re.compile(r"\n|[^\n]+")


def html_text(source: str) -> tuple[str, Lines]:
    r"""(text, lines) of a page whose line ends are "\n"; the lines are as in :class:`data.corpus.document.Document`.

    Markup that does not end is text.
    """
    page, at = _Page(), 0
    while at < len(source):
        start = source.find("<", at)
        if start < 0:
            start = len(source)
        page.add(source[at:start])
        at = page.markup(source, start)
    return "".join(page.pieces), tuple(page.lines) or ((0, 1),)


class _Page:
    """Collects the text. ``line``: of the source. ``gap``: what stands before the next word."""

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self.lines: list[tuple[int, int]] = []
        self.length = 0
        self.line = 1
        self.gap = ""
        self.num_pre = 0

    def markup(self, source: str, start: int) -> int:
        """Take the markup that begins at ``start``, if any does. Returns where it ends."""
        if start == len(source):
            return start
        if source.startswith("<![CDATA[", start) and (end := source.find("]]>", start)) >= 0:
            self.add(source[start + 9 : end], is_escaped=False)
            return end + 3
        if source.startswith(("<!", "<?"), start):
            sign = "-->" if source.startswith("<!--", start) else ">"
            return self._over(source, start, source.find(sign, start), len(sign))
        if not _TAG_START.match(source, start):
            self.add("<")
            return start + 1
        if not (tag := _TAG.match(source, start)):
            return self._over(source, start, -1, 0)
        is_end, name = bool(tag[1]), tag[2].lower()
        if name in _BLOCKS:
            self.gap = "\n"
        if name == "pre":
            self.num_pre = max(0, self.num_pre + (-1 if is_end else 1))
        end = tag.end()
        if name in _HIDDEN and not is_end:
            hidden = _HIDDEN[name].search(source, end)
            end = hidden.start() if hidden else len(source)
        self.line += source.count("\n", start, end)
        return end

    def _over(self, source: str, start: int, end: int, length: int) -> int:
        """Leave out what ends with ``length`` signs at ``end``; where nothing ends it, all that follows is text."""
        if end < 0:
            self.add(source[start:])
            return len(source)
        self.line += source.count("\n", start, end + length)
        return end + length

    def add(self, data: str, *, is_escaped: bool = True) -> None:
        """Text between two tags. ``is_escaped``: it may hold character references."""
        for part in (_LINES if self.num_pre else _WORDS).findall(data):
            if not self.num_pre and part.isspace() and part.isascii():
                self.gap = self.gap or " "
            else:
                self._word(unescape(part) if is_escaped else part)
            self.line += part.count("\n")

    def _word(self, word: str) -> None:
        gap = self.gap if self.length else ""
        self.gap = ""
        if not self.lines or self.lines[-1][1] != self.line:
            self.lines.append((self.length + len(gap) if self.lines else 0, self.line))
        self.pieces += [gap, word]
        self.length += len(gap) + len(word)
