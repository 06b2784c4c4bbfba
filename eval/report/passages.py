"""The suffixes side by side, as HTML: truth, output before, output after. Words that match the truth are marked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ppo.io.plain import finite
from ppo.io.visible import as_attribute, as_html

from .bounds import MOST_CARD_SIGNS, MOST_CHARACTERS, MOST_GROUPS, cut, cut_front_html, note
from .diff import Effort, matching_pieces
from .outcome import ONE_MODEL, SEVERAL, STATES, Strangers, marked_secrets, state_of, ways_out
from .rows import group_label
from .terms import Terms

SORTS = {  # data attribute and direction -> what the reader sees
    "after -1": "BLEU after, highest first",
    "after 1": "BLEU after, lowest first",
    "before -1": "BLEU before, highest first",
    "fall -1": "largest fall of BLEU first",
    "fall 1": "smallest fall of BLEU first",
}


def passage_section(passages: Sequence[Mapping[str, Any]], terms: Terms, *, most: int) -> str:
    """Cards of the first ``most`` passages, with filters by group, outcome and words, and a choice of order.

    There are fewer cards if those would make the page too long. The page says so, and where texts are not compared.
    """
    if not passages:
        return ""
    effort, strangers = Effort(), Strangers.of(passages)
    cards = _cards(passages[:most], strangers, effort)
    shown = passages[: len(cards)]
    told = f" Shown: the first {len(shown)} of {len(passages)}." if len(passages) > len(shown) else ""
    if effort.num_unfinished:
        told += f" Long outputs whose words are not marked to the end: {effort.num_unfinished}."
    legend = f"Greedy outputs; {terms.label('marked words', 'match')} match the truth, in order."
    if any(p.get("secrets") for p in shown):
        legend += f" In the truth, {terms.label('secrets', 'secret_emitted')} are marked."
    legend += f" {strangers.told()}"
    if "bleu" in terms.known:
        legend += (
            f" {terms.label('BLEU', 'bleu')} compares an output with the truth;"
            f" {terms.label('tokens', 'output_tokens')} are the output's of the truth's."
        )
    return (
        f'<p class="soft small">{legend}{told}</p>{_filters(shown, strangers)}'
        f'<p id="count" class="soft small" role="status">{len(shown)} passages</p>'
        f'<div id="passages">{"".join(cards)}</div>'
    )


def _cards(passages: Sequence[Mapping[str, Any]], strangers: Strangers, effort: Effort) -> list[str]:
    """The cards from the first on, as many as a page has room for."""
    cards, left = [], MOST_CARD_SIGNS
    for passage in passages:
        card = passage_card(passage, strangers, effort)
        left -= len(card)
        if left < 0:
            break
        cards.append(card)
    return cards


def passage_card(passage: Mapping[str, Any], strangers: Strangers, effort: Effort | None = None) -> str:
    """The card of one passage. Every text is escaped, and cut where it is very long."""
    is_pair = bool(passage.get("after"))
    truth, state = passage["truth"], state_of(passage, strangers)
    told = marked_secrets(truth, passage.get("secrets", []))
    columns = [f'<div><p class="side">Truth</p><div class="text">{told}</div></div>']
    for name, label in (("before", "Before"), ("after", "After")) if is_pair else (("before", "Output"),):
        side = passage[name]
        columns.append(f'<div><p class="side">{label}{_numbers(side)}</p>{marked(side["output"], truth, effort)}</div>')
    label = (STATES if is_pair else ONE_MODEL)[state]
    facts = [f"<b>{as_html(cut(str(passage['id'])))}</b>", f'<span class="state {state}">{label}</span>']
    facts.append(f"<span>{as_html(cut(group_label(passage['group'])))}</span>")
    if passage.get("kind"):
        facts.append(f"<span>{as_html(cut(str(passage['kind'])))}</span>")
    if passage.get("repeats"):
        facts.append(f"<span>seen {as_html(cut(str(passage['repeats'])))} times</span>")
    return (
        f'<article class="passage" data-group="{as_attribute(cut(str(passage["group"])))}" data-state="{state}"'
        f"{_sort_keys(passage)}><header>{''.join(facts)}</header>"
        f'<div class="text prompt">{cut_front_html(passage["prompt"])}</div>'
        f'<div class="texts">{"".join(columns)}</div></article>\n'
    )


def marked(output: str, truth: str, effort: Effort | None = None) -> str:
    """The output with the words that match the truth in <mark>, both up to where they are cut."""
    if not output.strip():
        return '<div class="text none">empty</div>'
    pieces = matching_pieces(output[:MOST_CHARACTERS], truth[:MOST_CHARACTERS], effort)
    text = "".join(f"<mark>{as_html(piece)}</mark>" if match else as_html(piece) for piece, match in pieces)
    return f'<div class="text">{text}{note(len(output) - MOST_CHARACTERS)}</div>'


def _numbers(side: Mapping[str, Any]) -> str:
    """BLEU, length and secrets of an output, as far as they are known: a stored number may be None."""
    bleu, length, wanted = (finite(side.get(name)) for name in ("bleu", "length", "length_truth"))
    text = f' <span data-def="bleu">BLEU {bleu:.0f}</span>' if bleu is not None else ""
    if length is not None and wanted is not None:
        text += f' <span data-def="output_tokens">{length:.0f} of {wanted:.0f} tokens</span>'
    if ways := ways_out(side):
        text += f' <span data-def="secret_emitted">secret out {ways}</span>'
    return text


def _sort_keys(passage: Mapping[str, Any]) -> str:
    """BLEU before, BLEU after and the fall between them, as data attributes, as far as they are known."""
    scores = {name: finite((passage.get(name) or {}).get("bleu")) for name in ("before", "after")}
    scores = {name: value for name, value in scores.items() if value is not None}
    if len(scores) == 2:
        scores["fall"] = scores["before"] - scores["after"]
    return "".join(f' data-{name}="{value:.1f}"' for name, value in scores.items())


def _filters(shown: Sequence[Mapping[str, Any]], strangers: Strangers) -> str:
    """The form of filters and orders. It is hidden until the script runs, because it needs the script."""
    groups = list(dict.fromkeys(p["group"] for p in shown))[:MOST_GROUPS]
    present = {state_of(p, strangers) for p in shown}
    is_pair = any(p.get("after") for p in shown)
    states = {s: label for s, label in (STATES if is_pair else ONE_MODEL).items() if s in present}
    if is_pair:
        states |= SEVERAL
    keys = {key for p in shown for key in ("before", "after", "fall") if f"data-{key}=" in _sort_keys(p)}
    sorts = {value: label for value, label in SORTS.items() if value.split()[0] in keys}
    if not is_pair:
        sorts = {value: label.replace(" before", "") for value, label in sorts.items()}
    return (
        '<form id="filters" class="filters" hidden>'
        + _select("group", "Group", "all groups", {cut(g): cut(group_label(g)) for g in groups})
        + _select("state", "Outcome", "all outcomes", states)
        + _select("sort", "Order", "order of the data", sorts)
        + '<label>Text<input id="words" type="search" placeholder="in prompt, truth or output"></label>'
        + '<button type="reset">Show all</button></form>'
    )


def _select(name: str, label: str, everything: str, options: Mapping[str, str]) -> str:
    items = "".join(f'<option value="{as_attribute(v)}">{as_html(text)}</option>' for v, text in options.items())
    return f'<label>{label}<select id="{name}"><option value="">{everything}</option>{items}</select></label>'
