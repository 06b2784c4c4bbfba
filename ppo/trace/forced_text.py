# ruff: noqa: RUF001 (Greek letters are what is meant)
"""A row at forced states as text: a table of its states, and one of the actions at the state that a reader should see.

This module lays numbers out. It makes none.
"""

from __future__ import annotations

from .columns import MARKS, WIDTH, left, line, number, right, token_label, wrap
from .formulas import quantities_of
from .records import RowTrace, Trace

_NUMBER = 7  # columns of a number
_ACTION_COLUMNS = (
    ("logπ", "old_logprob", "log-prob when it was drawn"),
    ("ref", "ref_logprob", "log-prob under the reference"),
    ("reward", "reward", "reward that is learned from"),
    ("Â", "advantage", "advantage in the loss"),
)


def opening_state(row: RowTrace) -> int:
    """The state that a reader should see first: where the update moved the true token's probability the furthest."""

    def moved(s: int) -> float:
        numbers = row.states[s].numbers
        return abs(numbers["final_text_p"] - numbers["text_p"])

    return max(range(len(row.states)), key=moved)


def forced_tables(trace: Trace, row: RowTrace) -> list[str]:
    """The two tables of a row."""
    return [_states(trace, row), _actions(trace, row, opening_state(row))]


def _states(trace: Trace, row: RowTrace) -> str:
    known = {q.key: q for q in quantities_of(trace)}
    columns = [q for q in known.values() if q.section == "state"] + [known["entropy"], known["final_text_p"]]
    titles = [right(q.symbol, _NUMBER) for q in columns]
    room = WIDTH - len(line("  s", "true token", titles)) - 1
    lines = [line("  s", "true token", [*titles, "drawn"])]
    for s, state in enumerate(row.states):
        first = row.tokens[state.actions[0]]
        numbers = {"entropy": first.entropy, **state.numbers}
        cells = [number(numbers[q.key], _NUMBER) for q in columns]
        lines.append(line(f"{s:3d}", token_label(state.text, state.id), [*cells, left(_drawn(row, s), room)]))
    meanings = "; ".join(f"{q.symbol}: {q.label}" for q in columns)
    return "\n".join([*lines, wrap(f"{meanings}; drawn: the actions, and how often each was drawn.")])


def _drawn(row: RowTrace, s: int) -> str:
    """The actions of a state with their counts, the most frequent first."""
    state = row.states[s]
    actions = [row.tokens[t] for t in state.actions]
    words = [f"{left(token_label(a.text, a.id), 12).rstrip()}×{len(a.draws)}" for a in actions]
    rest = state.num_drawn - sum(len(a.draws) for a in actions)
    return " ".join([*words, *([f"others×{rest}"] if rest else [])])


def _actions(trace: Trace, row: RowTrace, s: int) -> str:
    state = row.states[s]
    actions = [row.tokens[t] for t in state.actions]
    columns = [(title, key, says) for title, key, says in _ACTION_COLUMNS if getattr(actions[0], key) is not None]
    visits = sorted({0, len(actions[0].updates) - 1} if actions[0].updates else set())
    epochs = [trace.minibatches[actions[0].updates[i].minibatch].epoch + 1 for i in visits]
    titles = ["times", *(right(title, _NUMBER) for title, *_ in columns), *(f"ρ {epoch:4d} " for epoch in epochs)]
    titles += [*(["   loss"] if trace.has_clip else []), " gradient", "π old", "π new"]
    lines = [
        f"State {s}, where {token_label(state.text, state.id)} stands: {state.num_drawn} draws",
        line("   ", "action", titles),
    ]
    for action in actions:
        cells = [f"{len(action.draws):5d}", *(number(getattr(action, key), _NUMBER) for _, key, _ in columns)]
        cells += [number(action.updates[i].ratio, 6) + MARKS[action.updates[i].clip_side] for i in visits]
        last = action.updates[-1] if action.updates else None
        cells += [number(last.policy_loss if last else None, _NUMBER)] if trace.has_clip else []
        cells.append(f"{last.logprob_gradient:9.1e}" if last else " " * 9)
        cells += [number(action.old_probability, 5), number(action.final_probability, 5)]
        lines.append(line("   ", token_label(action.text, action.id), cells))
    note = "; ".join(f"{title}: {says}" for title, _, says in columns)
    note += "; ρ: ratio in the first and the last epoch"
    note += (
        "; ^ or v: the ratio is above or below the clip, and the gradient is cut off; loss: clipped policy loss of one "
        "draw in the last epoch"
        if trace.has_clip
        else ""
    )
    note += (
        ". gradient: of the loss with respect to log π, of one draw in its last epoch; all its draws together have it "
        "so many times."
    )
    return "\n".join([*lines, wrap(note)])
