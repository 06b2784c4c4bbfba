"""A row of a trace at forced states: the states of its text, and what was drawn at each of them.

An action that was drawn several times at a state has the same numbers each time, so that it has one entry, which knows
how often it was drawn. This module is given the numbers of a rollout. It makes none but the shares of a distribution.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..types import Generation, Sample
from .distributions import CONTEXT, TokenDistributions, Writer, alternatives
from .records import StateTrace, TokenTrace, TokenUpdate
from .symbols import Quantity

_MOST_ACTIONS = 8  # different actions of a state that have an entry


class Notes(NamedTuple):
    """What a caller knows of a row's S states: the token that each is about, more numbers of them [S] by the key of
    their quantity, and what the row is, in words.
    """

    tokens: Sequence[int]
    numbers: Mapping[str, Sequence[float]]
    remark: str = ""


def nothing(sample: Sample, text: Sequence[int]) -> Notes:
    """The notes of a caller who knows nothing more: each state is about the text's own token."""
    return Notes(text, {})


@dataclass(frozen=True)
class StatesTold:
    """What the caller of a trace knows of forced states and the library does not.

    quantities  their numbers, in the section "state"; and of the library's own quantities those of which the caller
                knows more, such as the formula of an estimator that is not the library's
    notes       ``(sample, text) -> Notes`` on a row: its sample, and the tokens of its text
    """

    quantities: Sequence[Quantity] = ()
    notes: Callable[[Sample, Sequence[int]], Notes] = nothing


@dataclass(frozen=True)
class Drawn:
    """A row: its actions, state by state, its states, the text in its context, and what it is in the caller's words."""

    tokens: list[TokenTrace]
    states: list[StateTrace]
    text: list[int]
    remark: str


def drawn_at_states(
    generation: Generation,
    row: int,
    sample: Sample,
    numbers: Mapping[str, Sequence[float]],
    missing: Sequence[str],
    updates: Sequence[list[TokenUpdate]],
    before: TokenDistributions,
    after: TokenDistributions,
    *,
    told: StatesTold,
    writer: Writer,
    top_k: int,
) -> Drawn:
    """The actions and states of a row.

    ``numbers``: by name, of each of its S K draws. ``missing``: names that hold None. ValueError for notes of another
    number of states than the row has.
    """
    assert generation.context is not None
    assert before.plain is not None
    assert after.plain is not None
    count = generation.actions_per_state
    length = len(sample.ids) // count
    text = generation.context[row, :length].tolist()
    heat = None if generation.state_temperatures is None else generation.state_temperatures[row].tolist()
    about, more, remark = told.notes(sample, text)
    if any(len(column) != length for column in (about, *more.values())):
        sizes = ", ".join(str(len(column)) for column in (about, *more.values()))
        raise ValueError(f"the notes on row {row} have {sizes} entries: give one for each of its {length} states")
    tokens: list[TokenTrace] = []
    states: list[StateTrace] = []
    for s, token in enumerate(about):
        context = [*sample.prompt_ids, *text[:s]][-CONTEXT:]
        own = {"text_p": float(before.plain[s, token].exp()), "final_text_p": float(after.plain[s, token].exp())}
        own |= {name: float(column[s]) for name, column in more.items()}
        own |= {} if heat is None else {"heat": heat[s]}
        actions = []
        for draws in _most_drawn(sample.ids, numbers, range(s * count, (s + 1) * count), token):
            actions.append(len(tokens))
            here: dict[str, Any] = dict.fromkeys(missing) | {name: x[draws[0]] for name, x in numbers.items()}
            drawn = sample.ids[draws[0]]
            here |= {"alternatives": [], "updates": updates[draws[0]], "state": s, "draws": draws}
            tokens.append(TokenTrace(id=drawn, text=writer.piece(context, drawn), **here))
        likely = alternatives(before.distribution[s], after.distribution[s], token, top_k, context, writer)
        states.append(StateTrace(token, writer.piece(context, token), own, actions, count, likely))
    return Drawn(tokens, states, text, remark)


def _most_drawn(
    ids: Sequence[int], numbers: Mapping[str, Sequence[float]], places: range, token: int
) -> list[list[int]]:
    """The places of equal draws among ``places``, the most frequent draw first; ``token`` is never left out.

    Draws are equal if their token and all of their numbers are: the last draw of a row may have a score that the others
    lack.
    """
    found: dict[tuple[float, ...], list[int]] = {}
    for place in places:
        found.setdefault((ids[place], *(x[place] for x in numbers.values())), []).append(place)
    order = sorted(found.values(), key=lambda draws: (-len(draws), draws[0]))
    return order[:_MOST_ACTIONS] + [draws for draws in order[_MOST_ACTIONS:] if ids[draws[0]] == token]
