"""A trace as one HTML page. It works offline, with a mouse, a keyboard or a phone. All text from outside is escaped.

The numbers go into the page as JSON, each in two forms: as a number for formulas and as the text of a result. The
script (:mod:`ppo.trace.script`) only puts them in their places. This module lays numbers out. It makes none.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from ..io.visible import as_attribute, as_html, visible
from .columns import cut_token, token_label
from .formulas import (
    in_symbols,
    numbers_at,
    operand,
    quantities_of,
    row_numbers,
    shown,
    step_numbers,
    symbols_of,
    token_numbers,
    typeset,
    update_numbers,
)
from .records import Alternative, MinibatchTrace, RowTrace, StateTrace, TokenTrace, Trace
from .script import SCRIPT
from .style import CSS
from .symbols import SECTIONS, SYMBOLS, Quantity
from .text import (
    SKIP_REASONS,
    kind_of,
    note_of,
    opening_token,
    prompt_pieces,
    remarks,
    render_trace_text,
    size_of,
)

_DIGITS = 8  # significant digits of a number inside a formula
_STATE_COLOURS = ("text_p", "final_text_p", "entropy")  # and what the caller told of the states
_COLOURS = ("advantage", "raw_advantage", "td_error", "reward", "value", "kl", "old_probability", "ratio",
            "logprob_gradient")  # fmt: skip
_CLIP_NOTE = '<span class="soft small">bar above or below a token: that side of the clip cuts off its gradient</span>'
_WRITTEN_NOTE = (
    '<span class="soft small"><span class="written">dotted and hatched</span> written by the environment: '
    "nobody chose it, so it has no numbers</span>"
)
_BODY = """<main>
<h1>{title}</h1>
<p class="soft">{lead}</p>
<noscript><p>Without JavaScript this page is plain text.</p><pre>{text}</pre></noscript>
<div id="app" hidden>
<div id="rows" class="rows" role="group" aria-label="Responses"></div>
<section class="text">
<p id="prompt" class="prompt"></p>
<div id="strip" class="strip" role="listbox" aria-label="{tokens}" aria-orientation="horizontal"></div>
<div id="bars" class="bars" aria-hidden="true"></div>
<div class="legend"><label>Colour by <select id="colour"></select></label>
<span class="scale" aria-hidden="true"><span id="low"></span><i></i><span id="high"></span></span>
{notes}</div>
</section>
<section class="time">
<label for="moment">Moment</label>
<div class="slide"><input id="moment" type="range" min="0" step="1" value="0">
<div id="stops" class="stops" aria-hidden="true"></div></div>
<p id="when" class="small" aria-live="polite"></p>
</section>
<section class="panel">
<div id="list" class="list"></div>
<div class="side">
<div id="card" class="card" aria-live="polite"></div>
<div class="alternatives"><h2 id="token"></h2><div id="alternatives"></div></div>
</div>
</section>
<p class="soft small keys">Keys: ← → Home End move between tokens, ↑ ↓ between quantities, Tab between parts of the
page. A click keeps what it points at. A result has as many digits as you can get back from its formula and the numbers
printed in it.</p>
</div>
{facts}
</main>
<script type="application/json" id="data">{data}</script>
<script>{script}</script>"""


def render_trace_page(
    trace: Trace, *, title: str = "One PPO step, token by token", meta: Mapping[str, Any] | None = None
) -> str:
    """The whole page as a string. ``meta``: what was run (model, commit, command), shown at the end."""
    known = quantities_of(trace)
    has_written = any(not token.is_action for row in trace.rows for token in row.tokens)
    body = _BODY.format(
        title=as_html(title),
        lead=as_html(_lead(trace)),
        text=escape(render_trace_text(trace)),
        tokens="States of the text, by their true tokens" if trace.is_forced else "Tokens of the response",
        notes=(_CLIP_NOTE if trace.has_clip and not trace.is_forced else "") + (_WRITTEN_NOTE if has_written else ""),
        facts=_facts("Symbols", _symbols(trace, known))
        + _facts("What was run", meta or {})
        + _facts("Configuration", trace.config),
        data=_embedded(_page_data(trace, known)),
        script=SCRIPT,
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'\">"
        f"<title>{as_attribute(title)}</title><style>{CSS}</style></head>\n<body>{body}</body></html>\n"
    )


def _lead(trace: Trace) -> str:
    config = trace.config
    chosen = "state and one of its actions" if trace.is_forced else "token"
    text = (
        f"Step {trace.step}: {size_of(trace)}, then {config['epochs']} epochs over them in minibatches of "
        f"{config['minibatch']}. Choose a {chosen} to see all {'' if trace.is_forced else 'its '}numbers. Point at a "
        "number to see what it means and how it is computed. Move the slider to go through the epochs of the update."
    )
    return " ".join([text, *remarks(trace)])


def _symbols(trace: Trace, known: Sequence[Quantity]) -> dict[str, str]:
    """The meaning of each sign in the formulas that is no quantity of a token, and its value if the step has one."""
    numbers = step_numbers(trace)
    values = {name: f" = {typeset(operand(numbers[name]))}" if name in numbers else "" for name in SYMBOLS}
    return {symbol.sign: symbol.says + values[name] for name, symbol in symbols_of(known).items()}


def _facts(title: str, facts: Mapping[str, Any]) -> str:
    """A folded list of names and values."""
    lines = "".join(
        f"<dt>{as_html(str(name))}</dt><dd>{as_html(x if isinstance(x, str) else json.dumps(x, default=str))}</dd>"
        for name, x in facts.items()
    )
    return f"<details><summary>{escape(title)}</summary><dl>{lines}</dl></details>" if facts else ""


def _embedded(value: Any) -> str:
    """JSON for a script element. Its text can end neither the element nor a line of it."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


# ---------------------------------------------------------------------- the data of the page


def _page_data(trace: Trace, known: Sequence[Quantity]) -> dict[str, Any]:
    """What the script needs. ``n``: numbers for formulas. ``s``: texts of results. Both in the order of ``keys``."""
    updates = [token.updates for row in trace.rows for token in row.tokens if token.updates]
    keys = {
        "token": list(token_numbers(trace.rows[0], trace.rows[0].actions[0])),
        "update": list(update_numbers(updates[0][0], trace)) if updates else [],
    }
    return {
        "sections": SECTIONS,
        "quantities": [_quantity(q, known) for q in known],
        "colours": _colours(trace, known),
        "shares": [q.key for q in known if q.is_share],
        "keys": keys,
        "numbers": {name: _rounded(x) for name, x in step_numbers(trace).items()},
        "minibatches": [_moment(m, trace) for m in trace.minibatches],
        "epochs": trace.config["epochs"],
        "rows": [_row(trace, row, known, keys) for row in trace.rows],
    }


def _colours(trace: Trace, known: Sequence[Quantity]) -> list[str]:
    """The quantities by which tokens may be coloured; at forced states those that all actions of a state share."""
    if trace.is_forced:
        return [q.key for q in known if q.section == "state" or q.key in _STATE_COLOURS]
    return [key for key in _COLOURS if any(q.key == key for q in known)]


def _quantity(quantity: Quantity, known: Sequence[Quantity]) -> dict[str, Any]:
    symbols = {q.key: q for q in known}
    line = in_symbols(quantity.formula, symbols) if quantity.formula else ""
    return vars(quantity) | {"typeset": line, "names": re.findall(r"\{(\w+)\}", quantity.formula)}


def _moment(minibatch: MinibatchTrace, trace: Trace) -> dict[str, Any]:
    """The line about a minibatch below the slider."""
    per_epoch, statistics = trace.num_rows // trace.config["minibatch"], minibatch.statistics
    parts = [
        f"epoch {minibatch.epoch + 1} of {trace.config['epochs']}",
        f"minibatch {minibatch.index + 1} of {per_epoch}, {minibatch.num_tokens} tokens",
        f"mean ratio {statistics['policy/ratio']:.4f}",
    ]
    if "policy/clip_fraction" in statistics:
        parts.append(f"clipped {100 * statistics['policy/clip_fraction']:.1f} %")
    if minibatch.grad_norm is None:
        parts.append(f"skipped: {SKIP_REASONS[minibatch.skip_reason]}, and the gradient was thrown away")
    else:
        limit = trace.config["max_grad_norm"]
        scale = f", scaled by {limit / minibatch.grad_norm:.3g}" if limit and minibatch.grad_norm > limit else ""
        parts += [f"gradient norm {minibatch.grad_norm:.4g}{scale}", f"learning rate {minibatch.learning_rate:.3g}"]
    return {"epoch": minibatch.epoch + 1, "text": " · ".join(parts)}


def _row(trace: Trace, row: RowTrace, known: Sequence[Quantity], keys: Mapping[str, list[str]]) -> dict[str, Any]:
    before, pieces = prompt_pieces(row)
    return {
        "title": f"{kind_of(row)} {row.index}",
        "note": typeset(note_of(row)),
        "prompt": [before, *(visible(cut_token(piece), lines=True) or token_label(piece, i) for piece, i in pieces)],
        "first": opening_token(row),
        "action": row.actions[0],
        "numbers": {name: _rounded(x) for name, x in row_numbers(row).items()},
        "tokens": [_token(trace, row, t, known, keys) for t in range(len(row.tokens))],
        "states": [_state(row, s) for s in range(len(row.states))],
    }


def _state(row: RowTrace, s: int) -> dict[str, Any]:
    """A state: its token, its actions, and a table of what was drawn and what is likely there.

    A line of the table: label, probabilities before and after, whether it is the true token, how often it was drawn,
    which of the row's tokens it is (-1: none), and its reward and advantage as text.
    """
    state = row.states[s]
    drawn = [(t, row.tokens[t]) for t in state.actions]
    lines: list[list[Any]] = [
        [
            token_label(a.text, a.id), _rounded(a.old_probability or 0.0), _rounded(a.final_probability or 0.0),
            a.id == state.id, len(a.draws), t, f"{a.reward or 0.0:.2f}", f"{a.advantage or 0.0:.2f}",
        ]
        for t, a in drawn
    ]  # fmt: skip
    known = {a.id for _, a in drawn}
    for other in state.alternatives:
        if other.id not in known:
            label = token_label(other.text, other.id)
            lines.append([label, _rounded(other.before), _rounded(other.after), other.id == state.id, 0, -1, "", ""])
    rest = state.num_drawn - sum(len(a.draws) for _, a in drawn)
    return {"id": state.id, "text": _written(state), "first": state.actions[0], "rest": rest, "a": lines}


def _token(
    trace: Trace, row: RowTrace, t: int, known: Sequence[Quantity], keys: Mapping[str, list[str]]
) -> dict[str, Any]:
    token = row.tokens[t]
    if not token.is_action:
        return {"id": token.id, "text": _written(token), "written": True, "n": [], "s": [], "a": [], "u": []}
    numbers = numbers_at(trace, row, t)
    by_key = {q.key: q for q in known}

    def results(names: Sequence[str], numbers: Mapping[str, float]) -> list[str | None]:
        return [shown(numbers[k], by_key[k].formula, numbers) if k in by_key else None for k in names]

    visits = []
    for i, update in enumerate(token.updates):
        here = numbers_at(trace, row, t, i)
        visits.append(
            {
                "m": update.minibatch,
                "side": update.clip_side,
                "n": [_rounded(here[key]) for key in keys["update"]],
                "s": results(keys["update"], here),
            }
        )
    return {
        "id": token.id,
        "text": _written(token),
        "n": [_rounded(numbers[key]) for key in keys["token"]],
        "s": results(keys["token"], numbers),
        **({} if token.state is None else {"state": token.state}),
        "a": [_alternative(a, token) for a in token.alternatives],
        "u": visits,
    }


def _written(token: TokenTrace | StateTrace) -> str:
    """The token's text, or a label if something in the text is invisible."""
    text = cut_token(token.text)
    is_plain = text.strip() and text.isprintable() and visible(text) == text
    return text if is_plain else token_label(text, token.id)


def _alternative(alternative: Alternative, drawn: TokenTrace) -> list[Any]:
    label = token_label(alternative.text, alternative.id)
    return [label, _rounded(alternative.before), _rounded(alternative.after), alternative.id == drawn.id]


def _rounded(x: float) -> float | None:
    return float(f"{x:.{_DIGITS}g}") if math.isfinite(x) else None
