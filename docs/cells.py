"""Runs the Python cells of a Markdown page in order, in one namespace, and compares what they print with the page.

    python -m docs.cells docs/tutorial.md docs/solutions.md            # shows where page and output differ
    python -m docs.cells docs/tutorial.md docs/solutions.md --write    # put the output into the pages

A cell is a block fenced as ``python``; the block fenced as ``text`` that follows it, if any, is its output. Pages that
are named together share one namespace. This module knows Markdown fences, nothing of what the cells do.
"""

from __future__ import annotations

import argparse
import io
import re
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

_FENCE = re.compile(r"^```(python|text)\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Cell:
    """A Python block of a page: the line that it starts in, its code, what the page says it prints, where that stands.

    ``span``: start and end of both blocks in the page's text.
    """

    line: int
    code: str
    output: str
    span: tuple[int, int]


def read_cells(page: str) -> list[Cell]:
    """The cells of a page's text, in order. ValueError for an output block that follows no cell."""
    cells: list[Cell] = []
    for block in _FENCE.finditer(page):
        kind, body = block.groups()
        if kind == "python":
            cells.append(Cell(page.count("\n", 0, block.start()) + 1, body, "", block.span()))
        elif cells and page[cells[-1].span[1] : block.start()].strip() == "" and not cells[-1].output:
            cells[-1] = replace(cells[-1], output=body, span=(cells[-1].span[0], block.end()))
        else:
            raise ValueError(f"line {page.count(chr(10), 0, block.start()) + 1}: an output block that follows no cell")
    return cells


def run_cell(cell: Cell, namespace: dict[str, Any], *, name: str) -> str:
    """Execute a cell and return what it printed; an error's traceback names the page's own lines."""
    printed = io.StringIO()
    with redirect_stdout(printed):
        exec(compile("\n" * cell.line + cell.code, name, "exec"), namespace)
    return printed.getvalue()


def with_output(page: str, cells: list[Cell], outputs: list[str]) -> str:
    """The page with these outputs in place of those that it shows."""
    for cell, output in reversed(list(zip(cells, outputs, strict=True))):
        block = f"```python\n{cell.code}```" + (f"\n\n```text\n{output}```" if output else "")
        page = page[: cell.span[0]] + block + page[cell.span[1] :]
    return page


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("pages", nargs="+", type=Path)
    parser.add_argument("--write", action="store_true", help="put the output into the pages")
    options = parser.parse_args(arguments)
    namespace: dict[str, Any] = {"__name__": "page"}
    num_wrong = 0
    for path in options.pages:
        page = path.read_text(encoding="utf-8")
        cells = read_cells(page)
        outputs = [run_cell(cell, namespace, name=str(path)) for cell in cells]
        for cell, output in zip(cells, outputs, strict=True):
            if output != cell.output:
                num_wrong += 1
                print(f"{path}:{cell.line} prints\n{output}and the page says\n{cell.output}")
        if options.write:
            path.write_text(with_output(page, cells, outputs), encoding="utf-8")
    return int(num_wrong > 0 and not options.write)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
