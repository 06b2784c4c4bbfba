# ruff: noqa: RUF001 (Greek letters are what is meant)
"""A trace as text for the terminal: two tables a response, at most 100 columns wide, and one token worked out by hand.

This module lays numbers out; it makes none.
"""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Sequence

from .formulas import in_symbols, numbers_at, quantities_of, shown, substituted, symbols_of, typeset
from .records import RowTrace, TokenTrace, Trace

WIDTH = 100
_MOST_PASSES = 6  # columns of the second table; of more epochs the first and the last are shown
SKIP_REASONS = {
    "ratio": "the mean ratio is beyond max_mean_ratio",
    "not finite": "something in it was not finite",
}
_NOT_BY_HAND = ("sample", "after")  # sections whose formulas are left out
_MARKS = {"": " ", "above": "^", "below": "v"}
_VISIBLE = {" ": "·", "\n": "⏎", "\t": "⇥"}
_ROLLOUT_COLUMNS = (
    ("H", 5, "entropy", "entropy"),
    ("logπ", 7, "old_logprob", "log-prob when it was drawn"),
    ("ref", 7, "ref_logprob", "the reference's"),
    ("KL", 7, "kl", "estimate of this token, nats"),
    ("given", 7, "token_reward", "by the reward function"),
    ("reward", 7, "reward", "what is learned from"),
    ("value", 7, "value", "what the critic expected from here on"),
    ("TD", 7, "td_error", "what this token brought beyond that"),
    ("A", 7, "raw_advantage", "advantage by GAE"),
    ("Â", 7, "advantage", "advantage as it is used"),
    ("return", 7, "return_value", "what the critic is to learn"),
)  # title, width, key, meaning


def render_trace_text(trace: Trace) -> str:
    """The whole trace; lines of at most 100 columns (a wide letter counts as two)."""
    parts = [_head(trace)]
    for row in trace.rows:
        parts += [_row_head(row), _rollout_table(row), _update_table(trace, row), _by_hand(trace, row)]
    return "\n\n".join([*parts, _signs(trace)]) + "\n"


def token_label(text: str, token: int) -> str:
    """A token as one visible word: spaces and line ends as signs, what cannot be printed as its code, "" as its id."""
    shown_as = "".join(_VISIBLE.get(c) or (c if c.isprintable() else f"\\x{ord(c):02x}") for c in text)
    return shown_as or f"#{token}"


def opening_token(row: RowTrace) -> int:
    """Where to begin to read: the token with the largest advantage; among equals one that the clip cut in its last
    minibatch, then the one whose ratio has gone furthest.
    """

    def weight(t: int) -> tuple[float, bool, float]:
        token = row.tokens[t]
        last = token.updates[-1] if token.updates else None
        return abs(token.advantage), last is not None and last.is_clipped, abs(last.ratio - 1) if last else 0.0

    return max(range(len(row.tokens)), key=weight)


def no_reference(trace: Trace) -> str:
    """Why there is nothing about KL, in a sentence; "" where there is."""
    if trace.rows[0].tokens[0].ref_logprob is not None:
        return ""
    return "kl_coef is 0, so no reference was asked: there is no KL here, and nothing is taken off the reward for it."


def _head(trace: Trace) -> str:
    config, first = trace.config, trace.minibatches[0]
    tokens = f"{trace.numbers['num_tokens']:.0f} tokens of {trace.num_rows} responses"
    passes = f"{config['epochs']} epochs in minibatches of {config['minibatch']}"
    lines = [
        f"PPO step {trace.step}, token by token: {tokens}; {passes}.",
        f"KL coefficient β {trace.numbers['kl_coef']:.4g}, policy clip ε {config['policy_clip']:g}, gamma γ "
        f"{config['gamma']:g}, lambda λ {config['gae_lambda']:g}; "
        + (f"learning rate {first.learning_rate:.3g}." if first.learning_rate is not None else "first one skipped."),
    ]
    lines += [no_reference(trace)] if no_reference(trace) else []
    for reason, says in SKIP_REASONS.items():
        if skipped := [f"{m.epoch + 1}.{m.index + 1}" for m in trace.minibatches if m.skip_reason == reason]:
            lines.append(f"Skipped (epoch.minibatch), since {says}: {', '.join(skipped)}.")
    return "\n".join(_wrap(line) for line in lines)


def _row_head(row: RowTrace) -> str:
    end = "ended by itself" if row.is_ended else "cut at the greatest length"
    title = f"Response {row.index}: score {row.score:.5g}, {len(row.tokens)} tokens, {end}"
    prompt = "".join(token_label(piece, i) for piece, i in zip(row.pieces, row.prompt_ids, strict=True))
    return "\n".join([title, "─" * len(title), _wrap(f"prompt: {prompt}")])


def _rollout_table(row: RowTrace) -> str:
    """What was known of every token before the update."""
    known = {key for _, _, key, _ in _ROLLOUT_COLUMNS if getattr(row.tokens[0], key) is not None}
    known -= set() if "ref_logprob" in known else {"kl"}
    columns = [column for column in _ROLLOUT_COLUMNS if column[2] in known]
    lines = [_line("  t", "token", [_right(title, width) for title, width, *_ in columns])]
    for t, token in enumerate(row.tokens):
        cells = [_number(getattr(token, key), width) for _, width, key, _ in columns]
        lines.append(_line(f"{t:3d}", token_label(token.text, token.id), cells))
    note = "; ".join(f"{title}: {says}" for title, _, _, says in columns) + "."
    return "\n".join([*lines, _wrap(note)])


def _update_table(trace: Trace, row: RowTrace) -> str:
    """What the update did: the ratio in every epoch, where the clip cut the gradient, and what else could have come."""
    passes = _passes(len(row.tokens[0].updates))
    epochs = [trace.minibatches[row.tokens[0].updates[i].minibatch].epoch + 1 for i in passes]
    titles = [f"ρ {epoch:4d} " for epoch in epochs]
    head = [*titles, " gradient", "π old", "π new", _left("instead", 9), "    π"]
    lines = [_line("  t", "token", head)]
    for t, token in enumerate(row.tokens):
        cells = [_number(token.updates[i].ratio, 6) + _MARKS[token.updates[i].clip_side] for i in passes]
        gradient = f"{token.updates[-1].logprob_gradient:9.1e}" if token.updates else " " * 9
        ends = [_number(token.old_probability, 5), _number(token.final_probability, 5)]
        lines.append(_line(f"{t:3d}", token_label(token.text, token.id), [*cells, gradient, *ends, *_instead(token)]))
    note = (
        "ρ: ratio in each epoch; ^ v: above or below the clip, its gradient cut off. gradient: of the loss by log π in "
        "the last epoch that it was in (thrown away where skipped). instead: the likeliest other token, and its "
        "probability before."
    )
    return "\n".join([*lines, _wrap(note)])


def _instead(token: TokenTrace) -> list[str]:
    """The likeliest token that was not drawn, and how likely it was; nothing where no other had a chance."""
    for other in token.alternatives:
        if other.id != token.id and other.before > 0:
            return [_left(token_label(other.text, other.id), 9), _number(other.before, 5)]
    return []


def _passes(count: int) -> list[int]:
    """Which visits have a column."""
    half = _MOST_PASSES // 2
    return list(range(count)) if count <= _MOST_PASSES else [*range(half), *range(count - half, count)]


def _by_hand(trace: Trace, row: RowTrace) -> str:
    """The formulas of one token with its own numbers, in its last minibatch."""
    t = opening_token(row)
    token = row.tokens[t]
    numbers = numbers_at(trace, row, t, len(token.updates) - 1 if token.updates else None)
    known = quantities_of(trace)
    symbols = {q.key: q for q in known}
    lines = [f"By hand, token {t} {token_label(token.text, token.id)}:"]
    for q in known:
        if q.formula and q.key in numbers and q.section not in _NOT_BY_HAND:
            result = typeset(shown(numbers[q.key], q.formula, numbers))
            text = f"{q.symbol} = {in_symbols(q.formula, symbols)} = {substituted(q.formula, numbers)} = {result}"
            lines += textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent="      ")
    return "\n".join(lines)


def _signs(trace: Trace) -> str:
    """What stands in the formulas and is no quantity of a token."""
    known = [q for q in quantities_of(trace) if q.section not in _NOT_BY_HAND]
    signs = "; ".join(f"{symbol.sign}: {symbol.says}" for symbol in symbols_of(known).values())
    return _wrap(f"In the formulas: {signs}.")


def _line(t: str, token: str, cells: Sequence[str]) -> str:
    return " ".join([t, _left(token, 10), *cells]).rstrip()


def _number(x: float | None, width: int) -> str:
    """As many decimals as there is room for, four at most."""
    if x is None:
        return " " * width
    for decimals in (4, 3, 2, 1, 0):
        text = f"{x:.{decimals}f}"
        if len(text) <= width:
            return text.rjust(width)
    return f"{x:.0e}".rjust(width)


def _left(text: str, columns: int) -> str:
    """Cut or filled to the given columns."""
    kept, used = "", 0
    for letter in text:
        used += _columns(letter)
        if used > columns:
            return _left(kept[:-1], columns - 1) + "…"
        kept += letter
    return kept + " " * (columns - used)


def _right(text: str, columns: int) -> str:
    return " " * (columns - sum(map(_columns, text))) + text


def _columns(letter: str) -> int:
    if unicodedata.combining(letter):
        return 0
    return 2 if unicodedata.east_asian_width(letter) in ("W", "F") else 1


def _wrap(text: str) -> str:
    return textwrap.fill(text, WIDTH, subsequent_indent="  ")
