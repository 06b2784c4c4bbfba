"""scan.html: what a scan found, on one private page. Files with the heat along them, and every recited text as a card.

It is made from the files of a scan's folder, and of an earlier one's where the two are compared. This module shows; it
computes nothing but counts. Every text from outside is escaped, and cut where it is very long.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ppo.io.files import read_json
from ppo.io.rows import jsonl_rows
from ppo.io.visible import as_attribute, as_html

from ..scan.against import sentences
from ..scan.judge import FORM, MEMORISED, REASONS, WITHOUT_OWN
from ..scan.results import LIKELY_SAMPLES, PAGE, SUMMARY, private_text, read_scan
from .bounds import MOST_CARD_SIGNS, MOST_CHARACTERS, MOST_GROUPS, MOST_PASSAGES, cut, cut_front_html, note
from .page import html_document
from .scan_heat import CSS, heat_rows

Row = Mapping[str, Any]
STATUS = {
    "memorised": "memorised", "predictable": "predictable", "other": "recited, not asked for",
    "unjudged": "recited, no controls",
}  # fmt: skip
STATES = {"left": "left", "part": "left in part", "gone": "gone"}
_CLASS = {"memorised": "still", "unjudged": "part", "left": "still", "part": "part", "gone": "gone"}
_SORTS = {"tokens -1": "longest first", "logp -1": "likeliest first", "copies -1": "most copies first"}


def write_scan_page(out: Path, *, before: Path | None = None) -> None:
    """Write ``out/scan.html``, readable by its owner alone. ``before``: the folder of an earlier scan, for comparison.

    ValueError where a file is missing or damaged.
    """
    documents, findings = read_scan(out)
    earlier = read_scan(before) if before is not None else None
    after = {row["id"]: row for _, row in jsonl_rows(out / "against.jsonl")} if before is not None else {}
    with private_text(out / PAGE) as file:
        file.write(render_scan(read_json(out / SUMMARY), documents, findings, earlier=earlier, after=after))


def render_scan(
    summary: Row,
    documents: Sequence[Row],
    findings: Sequence[Row],
    *,
    earlier: tuple[Sequence[Row], Sequence[Row]] | None = None,
    after: Mapping[str, Row] | None = None,
) -> str:
    """The whole page as a string.

    summary    content of summary.json       documents, findings   rows of scan.jsonl
    earlier    those of the earlier scan; then its findings are the cards, with what ``after`` says became of each
    """
    shown = findings if earlier is None else earlier[1]
    title = "Scan: what the model has memorised" if earlier is None else "Scan: before and after unlearning"
    sections = [
        ("change", "What became of it", _change(summary)),
        ("verdict", "Verdict" if earlier is None else "Verdict on the model now", _verdict(summary)),
        ("windows", "Windows", _windows(summary)),
        ("files", "Along the files", _files(documents, earlier[0] if earlier else None, shown)),
        ("texts", "Recited texts", _texts(shown, after or {}, is_pair=earlier is not None)),
    ]
    present = [section for section in sections if section[2]]
    body = [
        f'<header class="top"><h1>{as_html(title)}</h1><button id="theme" type="button" hidden>Dark</button></header>',
        '<p class="soft">Private: this page holds text of the corpus. summary.json holds none.</p>',
        _tiles(summary),
        f'<nav aria-label="Sections">{"".join(f"""<a href="#{name}">{head}</a>""" for name, head, _ in present)}</nav>',
        *(f'<section><h2 id="{name}">{head}</h2>{text}</section>' for name, head, text in present),
    ]
    return html_document(title, "\n".join(body), more_css=CSS)


def _tiles(summary: Row) -> str:
    tiles = [
        (f"{summary['findings'][MEMORISED]:,}", "texts memorised"),
        (f"{summary['different']:,}", "different ones"),
        (f"{summary['tokens']:,}", "tokens recited"),
    ]
    if (compared := summary.get("against_scan")) is not None:
        states = compared["memories"]
        tiles = [(f"{states[state]:,}", label) for state, label in STATES.items()]
        tiles.append((f"{compared['new']:,}", "new"))
        if compared["rest"] is not None:
            tiles.append(
                (f"\N{MULTIPLICATION SIGN}{compared['rest']['perplexity']['ratio']:.3f}", "perplexity of the rest")
            )
    elif (bound := summary["verdict"].get("false_positive_rate_at_most")) is not None:
        tiles.append((_share(bound, 1), "false positives, at most"))
    return (
        '<div class="tiles">'
        + "".join(
            f'<div class="tile"><b>{as_html(value)}</b><span>{as_html(label)}</span></div>' for value, label in tiles
        )
        + "</div>"
    )


def _change(summary: Row) -> str:
    if (compared := summary.get("against_scan")) is None:
        return ""
    return "".join(f"<p>{as_html(line[0].upper() + line[1:])}.</p>" for line in sentences(compared))


def _verdict(summary: Row) -> str:
    found, controls = summary["verdict"], summary["controls"]
    if found["state"] == "no verdict":
        return f"<p><b>None</b>: {as_html(found['why'])}. Ask for controls with --controls.</p>"
    lines = [
        f"<p><b>{as_html(found['state'].capitalize())}.</b> A text counts as recited if greedy decoding writes "
        f"{summary['layout']['suffix']} of its tokens in a row. Of "
        f"{controls['all']['texts']} different texts, {controls['all']['flagged']} have a control that is; so at most "
        f"{_share(found['false_positive_rate_at_most'], 1)} of passes would be found by chance "
        "(95 %, Clopper and Pearson), "
        f"which is at most {found['by_chance_at_most']:.1f} of {summary['passes']:,}.</p>"
    ]
    rows = [
        [
            kind,
            row["controls"],
            row["texts"],
            row["flagged"],
            _share(row["interval"][1], 1) if "interval" in row else "",
            row["longest_run"],
        ]
        for kind, row in controls.items()
    ]
    lines.append(_table(["controls", "made", "texts", "recited", "at most", "longest run, tokens"], rows, "Controls"))
    if summary["against"]:
        told = "".join(
            f"<dt>{count:,}</dt><dd>{as_html(REASONS[name])}</dd>" for name, count in summary["against"].items()
        )
        lines.append(f"<h3>Why recited texts are called predictable</h3><dl>{told}</dl>")
    if summary["forms"]:
        lines.append(f"<p>Of {summary['forms']:,} memorised texts, {as_html(FORM)}.</p>")
    if summary["without_own_controls"]:
        lines.append(f"<p>{summary['without_own_controls']:,} more {as_html(WITHOUT_OWN)}.</p>")
    return "".join(lines)


def _windows(summary: Row) -> str:
    head = ["prefix, tokens", "text", "windows", "recited", "share", "95 %", f"in {LIKELY_SAMPLES} draws"]
    rows = [
        [row["prefix"], row["reading"], f"{row['windows']:,}", f"{row['exact']:,}", _share(row["exact_share"], 2),
         " to ".join(_share(end, 1) for end in row["exact_interval"]),
         _share(row[f"in_{LIKELY_SAMPLES}_samples_share"], 2)]
        for row in summary["windows"]
    ]  # fmt: skip
    return (
        f'<p class="soft small">A window is a prefix that the model is given and the {summary["layout"]["suffix"]} '
        f"tokens behind it. The last column counts those that {LIKELY_SAMPLES} draws, at temperature 1 or under top-k, "
        "hold with a probability of at least one half. A window that was measured elsewhere counts once; "
        f"{summary['windows_copied']:,} that stand earlier in their own context do not count.</p>"
        f"{_table(head, rows, 'Windows')}"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]], label: str) -> str:
    top = "".join(f'<th scope="col">{as_html(name)}</th>' for name in head)
    lines = "".join(
        f'<tr><th scope="row">{as_html(str(row[0]))}</th>'
        + "".join(f"<td>{as_html(str(cell))}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll" role="region" aria-label="{label}" tabindex="0"><table><thead><tr>{top}</tr></thead>'
        f"<tbody>{lines}</tbody></table></div>"
    )


def _files(documents: Sequence[Row], earlier: Sequence[Row] | None, shown: Sequence[Row]) -> str:
    found: dict[str, int] = {}
    for row in shown:
        found[row["path"]] = found.get(row["path"], 0) + (row["status"] == MEMORISED)
    rows, left_out = heat_rows(documents, earlier, found)
    more = f'<p class="soft small">{left_out:,} more files have less of it.</p>' if left_out else ""
    key = " Above: before. Below: after." if earlier is not None else ""
    return (
        '<p class="soft small">The darker, the longer the run of tokens that the model recites there; full colour is '
        f"as many as count as recited.{key}</p>{rows}{more}"
    )


def _texts(findings: Sequence[Row], after: Mapping[str, Row], *, is_pair: bool) -> str:
    if not findings:
        return "<p>No text is recited.</p>"
    order = sorted(findings, key=lambda row: row["status"] != MEMORISED)[:MOST_PASSAGES]
    cards, left = [], MOST_CARD_SIGNS
    for row in order:
        made = _card(row, after.get(row["id"]) if is_pair else None)
        left -= len(made)
        if left < 0:
            break
        cards.append(made)
    told = f" Shown: the first {len(cards)} of {len(findings)}." if len(cards) < len(findings) else ""
    return (
        '<p class="soft small">In grey what the model is given, then what it recites. '
        f"Marked: what looks personal.{told}</p>{_filters(order[: len(cards)], is_pair=is_pair)}"
        f'<p id="count" class="soft small" role="status">{len(cards)} passages</p>'
        f'<div id="passages">{"".join(cards)}</div>'
    )


def _card(row: Row, after: Row | None) -> str:
    state = row["status"] if after is None else after["state"]
    label = STATUS[state] if after is None else STATES[state]
    first, last = row["lines"]
    place = f"{cut(row['path'])}:{first}" + (f"-{last}" if last != first else "")
    facts = [f"<b>{as_html(place)}</b>", f'<span class="state {_CLASS.get(state, "")}">{label}</span>']
    size = row["tokens"][1] - row["tokens"][0]
    facts.append(f"<span>{size:,} tokens, {_share(row['right'], 0)} first choices</span>")
    facts.append(f"<span>{_draws(row)}{'' if after is None else f' before, {_draws(after)} after'}</span>")
    if row.get("copies", 1) > 1:
        facts.append(f"<span>{row['copies']:,} copies</span>")
    if row.get("first_of_group", row["id"]) != row["id"]:
        facts.append(f"<span>like {as_html(cut(str(row['first_of_group'])))}</span>")
    facts += [f"<span>{as_html(REASONS.get(reason, reason))}</span>" for reason in row.get("against", ())]
    if row.get("is_form"):
        facts.append(f"<span>{as_html(FORM)}</span>")
    keys = f' data-tokens="{size}" data-logp="{row["log_pz"]:.3f}" data-copies="{row.get("copies", 1)}"'
    return (
        f'<article class="passage" data-group="{as_attribute(cut(row["path"]))}" data-state="{as_attribute(state)}"'
        f"{keys}><header>{''.join(facts)}<span>{as_html(row['id'])}</span></header>"
        f'<div class="text"><span class="soft">{cut_front_html(row["prompt"], 600)}</span>{_marked(row)}</div>'
        "</article>\n"
    )


def _share(value: float, decimals: int) -> str:
    return f"{100 * value:.{decimals}f} %"


def _draws(row: Row) -> str:
    """The draws that hold the likeliest window with probability 1/2, at temperature 1."""
    samples = row.get("samples")
    if samples is None:
        return "no draw"
    return f"{samples:,.0f} draw{'s' * (samples != 1)}" if samples < 1e6 else f"{samples:.0e} draws"


def _marked(row: Row) -> str:
    """The text with what is personal in it marked."""
    text, at, pieces = row["text"][:MOST_CHARACTERS], 0, []
    for mark in sorted(row["personal"], key=lambda m: m["start"]):
        start, stop = max(at, mark["start"]), min(mark["end"], len(text))
        if start < stop:
            kind = as_attribute(str(mark["kind"]))
            pieces += [as_html(text[at:start]), f'<mark title="{kind}">{as_html(text[start:stop])}</mark>']
            at = stop
    return "".join([*pieces, as_html(text[at:]), note(len(row["text"]) - MOST_CHARACTERS)])


def _filters(rows: Sequence[Row], *, is_pair: bool) -> str:
    """The form that the page's script works: hidden until it runs."""
    files = list(dict.fromkeys(cut(row["path"]) for row in rows))[:MOST_GROUPS]
    present = {row["status"] for row in rows}
    states = STATES if is_pair else {name: label for name, label in STATUS.items() if name in present}
    return (
        '<form id="filters" class="filters" hidden>'
        + _select("group", "File", "all files", {name: name for name in files})
        + _select("state", "What became of it" if is_pair else "Kind", "all", states)
        + _select("sort", "Order", "order of the corpus", _SORTS)
        + '<label>Text<input id="words" type="search" placeholder="in place or text"></label>'
        + '<button type="reset">Show all</button></form>'
    )


def _select(name: str, label: str, everything: str, options: Mapping[str, str]) -> str:
    items = "".join(f'<option value="{as_attribute(v)}">{as_html(text)}</option>' for v, text in options.items())
    return f'<label>{label}<select id="{name}"><option value="">{everything}</option>{items}</select></label>'
