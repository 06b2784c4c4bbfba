"""The comparison as one HTML page that opens offline: who beats whom, one table, one picture; all else is folded.

This module shows what :mod:`eval.pareto` computed. It computes nothing itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ppo.io.visible import as_html
from rewards.bleu import Bleu

from ...paper import DEFINITIONS as AS_PUBLISHED_DEFINITIONS
from ...pareto import ATTACK, ATTACK_SECRET, COLLAPSE_RULES, DERIVED, Mean, means
from ...results import replace_text
from ...settings import Settings, define
from ...summary import signatures
from ..bounds import MOST_FACTS, MOST_VALUE, cut, cut_html
from ..script import DEFINITIONS
from ..style import CSS
from ..terms import Terms
from .charts import chart_css, chart_section, lead_chart
from .document import CLEAN_NOTE, document
from .given import NOTHING, given_lines, settings, source
from .headline import COLUMNS, first_table, headline
from .text import (
    AS_PUBLISHED,
    ATTACKS,
    PAPER,
    PAPER_NOTE,
    TABLES,
    Column,
    attack_columns,
    latex,
    latex_notes,
    paper_table,
    table,
)
from .verdict import clean_table, margins, sentences, standings

MORE_CSS = """
main { max-width:84rem; } thead th { white-space:normal; vertical-align:bottom; }
.verdict { border-left:3px solid var(--after); padding-left:.9rem; margin-top:1.2rem; font-size:1.05rem; }
.verdict p + p:last-child { color:var(--soft); font-size:.85rem; }
main > details { border-top:1px solid var(--line); padding:.5rem 0; margin:0; }
main > details > summary { color:var(--ink); font-weight:600; }
td.mark,th.mark { text-align:left; white-space:normal; min-width:5.5rem; }
"""
MOST_TOLD = 100  # different commands, commits, …
LATEX_HEAD = "% needs \\usepackage{booktabs}\n"
MARK = ' class="mark"'
LONG = ("verdict", "why not", "not measured")  # heads of columns of words
OWN = {
    "records": "Records to be forgotten.",
    "seeds": "Trainings, each with another seed. The evaluation takes the same random numbers everywhere. A method "
    "that draws no random numbers (ul) has one.",
    "mark": "front: no other training-time point at matched forgetting beats it. collapsed: rules that the outputs "
    "break. target: the exact twin, trained as the original was, without the records to forget alone.",
    "cost/updates": "Updates of the optimiser that the training took.",
    "cost/seconds": "Wall-clock seconds of the training, with its looks.",
    "cost/flops": "2 N a token in a forward pass and 6 N a token in training, where N is the number of parameters.",
    "holdout/accuracy": "Share of the tokens of held-out text that are the argmax, given the true tokens before them.",
}
ATTACKED = {
    ATTACK: "Share of the passages that an attack got exactly, token by token, in any try. Group, attack, variant: {}.",
    ATTACK_SECRET: "Share of the passages of which an attack got a secret, letter by letter, in any try. Group, "
    "attack, variant: {}.",
}


def write_pages(out: Path, points: Sequence[Mapping[str, Any]], *, order: Sequence[str]) -> None:
    """compare.html, compare.md and compare.tex from the points of a folder, methods in the given order."""
    rank = {name: i for i, name in enumerate(order)}
    found = means(sorted(points, key=lambda p: (p["size"], rank.get(p["method"], len(rank)))))
    replace_text(out / "compare.md", document(found))
    told = [*given_lines(found), *_of_rows(found)]
    replace_text(out / "compare.tex", f"{LATEX_HEAD}{latex(paper_table(found))}\n{latex_notes(told)}\n")
    replace_text(out / "compare.html", render_comparison(found, points))


def render_comparison(all_means: Sequence[Mean], points: Sequence[Mapping[str, Any]]) -> str:
    """The whole page as a string. ``points``: those of the means; they have settings and provenance."""
    attacks = [column for area in ATTACKS for column in attack_columns(all_means, area)]
    columns = [column for _, some in TABLES for column in some] + [*COLUMNS, *PAPER, *AS_PUBLISHED, *attacks]
    terms = collect_terms(columns, settings_of(points))
    num_methods = len({m.method for m in all_means})
    body = [
        "<h1>DeMem and its rivals</h1>",
        f'<p class="soft">{len(points)} trainings and evaluations, {len(all_means)} points, {num_methods} methods.</p>',
        f'<div class="verdict">{_paragraphs(headline(all_means))}</div>',
        "<h2>The methods at their defaults</h2>",
        _first(all_means, terms),
        _listed(given_lines(all_means)),
        f"<h2>In one picture</h2>{picture}" if (picture := lead_chart(all_means)) else "",
        "<h2>All the rest</h2>",
        _part("Every difference, with its numbers", _paragraphs(sentences(all_means))),
        _standings(all_means),
        _part("Clean, or not", _plain_table(clean_table(all_means), CLEAN_NOTE)),
        _part("Forgetting against utility: all pictures", chart_section(all_means)),
        *(_part(title, _table(all_means, columns, terms)) for title, columns in TABLES),
        *(_part(title, _table(all_means, attack_columns(all_means, area), terms)) for area, title in ATTACKS.items()),
        _part("The paper's layout", _paper(all_means, terms)),
        _part("The paper's numbers as its script computes them", _table(all_means, AS_PUBLISHED, terms)),
        terms.section(),
        _notes(points),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
        "script-src 'unsafe-inline'\">"
        f"<title>DeMem and its rivals</title><style>{CSS}{MORE_CSS}"
        f"{chart_css(all_means)}</style></head>\n<body><main>\n"
        + "\n".join(part for part in body if part)
        + f'\n</main><div id="tip" role="tooltip" hidden><b></b><span></span></div><script>{DEFINITIONS}</script>'
        + "</body></html>\n"
    )


def _of_rows(all_means: Sequence[Mean]) -> list[tuple[str, str]]:
    """What every row says of its formula and its settings, for a table that has no room for it."""
    rows = {m.method: [text for text in (source(m), settings(m)) if text != NOTHING] for m in all_means if m.is_default}
    return [
        ("Formulas and settings", " ".join(f"{name}: {', '.join(texts)}." for name, texts in rows.items() if texts))
    ]


def _paragraphs(lines: Sequence[str]) -> str:
    return "".join(f"<p>{as_html(line)}</p>" for line in lines)


def _part(title: str, content: str) -> str:
    """A folded part of the page; "" for none."""
    return f"<details><summary>{as_html(title)}</summary>{content}</details>" if content else ""


def _first(all_means: Sequence[Mean], terms: Terms) -> str:
    """The table of the defaults. Columns of words are set to the left, and they wrap."""
    rows = first_table(all_means)
    names = {head: name for name, head, _ in COLUMNS}
    marked = [MARK if i and head not in (*names, "seeds") else "" for i, head in enumerate(rows[0])]
    heads = [terms.label(head, names.get(head, head)) for head in rows[0]]
    head = "".join(f"<th{mark}>{text}</th>" for mark, text in zip(marked, heads, strict=True))
    body = "".join(
        f"<tr>{''.join(f'<td{mark}>{_spread_below(text)}</td>' for mark, text in zip(marked, row, strict=True))}</tr>"
        for row in rows[1:]
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _spread_below(text: str) -> str:
    """A cell as HTML; a standard deviation over the seeds stands small below its mean: "61.2 ± 8.5 %" is wide."""
    value, is_spread, rest = text.partition(" ± ")
    unit = " %" if rest.endswith(" %") else ""
    below = f'<span class="range">± {as_html(rest.removesuffix(" %"))}</span>' if is_spread else ""
    return as_html(value + unit) + below


def _listed(lines: Sequence[tuple[str, str]]) -> str:
    """Lines under a table: what each is about, and what it says."""
    told = "".join(f"<dt>{as_html(name)}</dt><dd>{as_html(text)}</dd>" for name, text in lines)
    return f"<dl>{told}</dl>" if told else ""


def _table(all_means: Sequence[Mean], columns: Sequence[Column], terms: Terms) -> str:
    rows = table(all_means, columns)
    if not rows:
        return ""
    names = {head: name for name, head, _ in columns}
    head = "".join(f"<th{MARK if h == 'mark' else ''}>{terms.label(h, names.get(h, h))}</th>" for h in rows[0])
    body = []
    for label, mark, *cells in rows[1:]:
        name = ' class="front"' if mark == "front" else ""
        body.append(f"<tr{name}><td>{as_html(label)}</td><td{MARK}>{as_html(mark)}</td>"
                    f"{''.join(f'<td>{as_html(c)}</td>' for c in cells)}</tr>")  # fmt: skip
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def collect_terms(columns: Sequence[Column], settings: Settings) -> Terms:
    """The definition of every column head on the page, under the settings of its points."""
    attacked = {
        name: text.format(head) for name, head, _ in columns for area, text in ATTACKED.items() if name.startswith(area)
    }
    more = {**DERIVED, **AS_PUBLISHED_DEFINITIONS, **OWN, **attacked}
    found = {name: (head, more[name]) for name, head, _ in columns if name in more}
    known = define([name for name, *_ in columns if name not in more], settings)
    heads = {name: head for name, head, _ in columns}
    own = {name: (name, OWN[name]) for name in ("mark", "records", "seeds")}
    return Terms({**{name: (heads[name], text) for name, text in known.items()}, **found, **own})


def _standings(all_means: Sequence[Mean]) -> str:
    """Who beats whom for every number of records, and the margins; "" where it was not measured."""
    tables = [
        _part(f"Who beats whom at the defaults, {size} records", _plain_table(standings(all_means, size), ""))
        for size in dict.fromkeys(m.size for m in all_means)
    ]
    shown = "".join(tables)
    return shown + _folded("Margins", dict(line.partition(": ")[::2] for line in margins())) if shown else ""


def _plain_table(rows: Sequence[Sequence[str]], note: str) -> str:
    """Rows of text, the first of them the head; "" for none. Columns of many words are set to the left, and wrap."""
    if not rows:
        return ""
    marked = [MARK if head in LONG else "" for head in rows[0]]

    def line(row: Sequence[str], tag: str) -> str:
        cells = zip(marked, row, strict=True)
        return f"<tr>{''.join(f'<{tag}{mark}>{as_html(cell)}</{tag}>' for mark, cell in cells)}</tr>"

    body = "".join(line(row, "td") for row in rows[1:])
    told = f'<p class="soft small">{as_html(note)}</p>' if note else ""
    table = f"<table><thead>{line(rows[0], 'th')}</thead><tbody>{body}</tbody></table>"
    return f'{told}<div class="scroll">{table}</div>'


def _paper(all_means: Sequence[Mean], terms: Terms) -> str:
    rows = paper_table(all_means)
    names = {head: name for name, head, _ in PAPER}
    head = "".join(f"<th>{terms.label(h, names.get(h.partition(' (')[0], ''))}</th>" for h in rows[0])
    body = "".join(f"<tr>{''.join(f'<td>{as_html(c)}</td>' for c in row)}</tr>" for row in rows[1:])
    return (
        f'<p class="soft small">{as_html(PAPER_NOTE)}</p>'
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _notes(points: Sequence[Mapping[str, Any]]) -> str:
    facts = {f"collapsed, {name}": rule for name, rule in COLLAPSE_RULES.items()}
    for name in ("command", "commit", "python", "torch", "processor", "threads"):
        told = sorted({cut(str(p["meta"].get(name, "-")), MOST_VALUE) for p in points})
        facts[name] = "; ".join(told[:MOST_TOLD]) + (f"; {len(told) - MOST_TOLD} more" if len(told) > MOST_TOLD else "")
    return _folded("Rules and provenance", facts) + _folded("Signatures", signatures_of(points))


def settings_of(points: Sequence[Mapping[str, Any]]) -> Settings:
    """The settings of the first point that has any. All points of a folder share them."""
    told = next((p["settings"] for p in points if p.get("settings")), {})
    return Settings(**told)


def signatures_of(points: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Signatures of the measured quantities, from the points; made from their settings if no point has any."""
    told = next((p["signatures"] for p in points if p.get("signatures")), None)
    return dict(told) if told is not None else signatures(Bleu(), settings_of(points))


def _folded(title: str, facts: Mapping[str, str]) -> str:
    lines = "".join(
        f"<dt>{as_html(cut(name))}</dt><dd>{cut_html(text, MOST_TOLD * MOST_VALUE)}</dd>"
        for name, text in list(facts.items())[:MOST_FACTS]
    )
    return f"<details><summary>{as_html(title)}</summary><dl>{lines}</dl></details>"


__all__ = ["render_comparison", "table", "write_pages"]
