"""The suffixes side by side, as HTML: truth, output before, output after; what still matches the truth is marked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from .diff import matching_pieces
from .rows import group_label

STATES = {
    "still": "still extracted",
    "gone": "no longer extracted",
    "new": "newly extracted",
    "never": "not extracted",
}


def passage_section(passages: Sequence[Mapping[str, Any]], *, most: int) -> str:
    """Cards of the first ``most`` passages, with filters by group, by what happened, and by words."""
    if not passages:
        return ""
    shown = passages[:most]
    groups = list(dict.fromkeys(p["group"] for p in shown))
    states = [s for s in STATES if any(state_of(p) == s for p in shown)]
    note = f" Shown: the first {most} of {len(passages)}." if len(passages) > most else ""
    filters = (
        '<div class="filters">'
        + _select("group", "all groups", {g: group_label(g) for g in groups})
        + _select("state", "all outcomes", {s: STATES[s] for s in states})
        + '<input id="words" type="search" placeholder="Find text" aria-label="Find text">'
        + f'<span id="count" class="soft small">{len(shown)} passages</span></div>'
    )
    cards = "".join(passage_card(p) for p in shown)
    return (
        "<h2>Suffixes side by side</h2>"
        f'<p class="soft small">Greedy outputs; <mark>marked</mark> words match the truth, in order.{note}</p>'
        f'{filters}<div id="passages">{cards}</div>'
    )


def state_of(passage: Mapping[str, Any]) -> str:
    """What happened to a passage; with one model only, whether it is extracted."""
    was = bool(passage["before"].get("exact"))
    if not passage.get("after"):
        return "still" if was else "never"
    now = bool(passage["after"].get("exact"))
    return {(True, True): "still", (True, False): "gone", (False, True): "new", (False, False): "never"}[was, now]


def passage_card(passage: Mapping[str, Any]) -> str:
    """One passage; every text is escaped."""
    sides = [("before", "Before" if passage.get("after") else "Output")]
    if passage.get("after"):
        sides.append(("after", "After"))
    truth = passage["truth"]
    columns = [f'<div><h3>Truth</h3><div class="text">{escape(truth)}</div></div>']
    for name, label in sides:
        side = passage[name]
        score = f" &middot; BLEU {side['bleu']:.0f}" if "bleu" in side else ""
        columns.append(f"<div><h3>{label}{score}</h3>{marked(side['output'], truth)}</div>")
    facts = [f"<b>{escape(str(passage['id']))}</b>", escape(group_label(passage["group"])), STATES[state_of(passage)]]
    if passage.get("kind"):
        facts.append(escape(str(passage["kind"])))
    if passage.get("repeats"):
        facts.append(f"seen {escape(str(passage['repeats']))} times")
    return (
        f'<article class="passage" data-group="{escape(str(passage["group"]), quote=True)}"'
        f' data-state="{state_of(passage)}">'
        f"<header>{''.join(f'<span>{fact}</span>' for fact in facts)}</header>"
        f'<div class="text prompt">{escape(passage["prompt"])}</div>'
        f'<div class="texts">{"".join(columns)}</div></article>'
    )


def marked(output: str, truth: str) -> str:
    """The output with what matches the truth in <mark>."""
    if not output.strip():
        return '<div class="text none">empty</div>'
    pieces = matching_pieces(output, truth)
    text = "".join(f"<mark>{escape(piece)}</mark>" if match else escape(piece) for piece, match in pieces)
    return f'<div class="text">{text}</div>'


def _select(name: str, everything: str, options: Mapping[str, str]) -> str:
    items = "".join(
        f'<option value="{escape(value, quote=True)}">{escape(label)}</option>' for value, label in options.items()
    )
    return f'<select id="{name}" aria-label="{name}"><option value="">{everything}</option>{items}</select>'
