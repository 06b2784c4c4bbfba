# ruff: noqa: RUF001 (Greek letters are what is meant)
"""A trace as text for the terminal: two tables per response, at most 100 columns wide, and one token by hand.

This module lays numbers out. It makes none.
"""

from __future__ import annotations

import textwrap

from .columns import MARKS, WIDTH, left, line, number, passes_shown, right, token_label, wrap
from .forced_text import forced_tables, opening_state
from .formulas import in_symbols, numbers_at, quantities_of, shown, substituted, symbols_of, typeset
from .records import RowTrace, TokenTrace, Trace

SKIP_REASONS = {
    "ratio": "the mean ratio is beyond max_mean_ratio",
    "not finite": "something in it was not finite",
}
_MOST_PROMPT = 2000  # tokens
_NOT_BY_HAND = ("sample", "after")  # sections whose formulas are left out
_WRITTEN = "written by the environment"  # instead of numbers
_ROLLOUT_COLUMNS = (
    ("H", 5, "entropy", "entropy"),
    ("logπ", 7, "old_logprob", "log-prob when it was drawn"),
    ("ref", 7, "ref_logprob", "log-prob under the reference"),
    ("KL", 7, "kl", "KL estimate for this token, nats"),
    ("given", 7, "token_reward", "reward from the reward function"),
    ("reward", 7, "reward", "reward that is learned from"),
    ("value", 7, "value", "rewards that the critic expected from here on"),
    ("TD", 7, "td_error", "how much better this step was than expected"),
    ("A", 7, "raw_advantage", "advantage by GAE"),
    ("Â", 7, "advantage", "advantage in the loss"),
    ("return", 7, "return_value", "target of the critic"),
)  # title, width, key, meaning
_OWN_MEANINGS = {
    "value": "what the critic expected",
    "advantage": "advantage as the own function returned it",
    "return_value": "return as the own function returned it",
}  # under an estimator that is not the library's


def render_trace_text(trace: Trace) -> str:
    """The whole trace as text, in lines of at most 100 columns (a wide letter takes two)."""
    parts = [_head(trace)]
    for row in trace.rows:
        tables = forced_tables(trace, row) if row.states else [_rollout_table(trace, row), _update_table(trace, row)]
        parts += [_row_head(row), *tables, _by_hand(trace, row)]
    return "\n\n".join([*parts, _signs(trace)]) + "\n"


def prompt_pieces(row: RowTrace) -> tuple[str, list[tuple[str, int]]]:
    """(how many tokens are left out, or "", and the last tokens of the prompt: text and id of each)."""
    pairs = list(zip(row.pieces, row.prompt_ids, strict=True))
    left_out = len(pairs) - _MOST_PROMPT
    return f"{left_out:,} tokens before … " if left_out > 0 else "", pairs[-_MOST_PROMPT:]


def opening_token(row: RowTrace) -> int:
    """The index of the token that a reader should see first: the action with the largest advantage in size.

    Among equals it is a token that the clip cut in its last minibatch, and then the one whose ratio is furthest from 1.
    At forced states it is what was drawn most often at the state that a reader should see first.
    """
    if row.states:
        return row.states[opening_state(row)].actions[0]

    def weight(t: int) -> tuple[float, bool, float]:
        token = row.tokens[t]
        last = token.updates[-1] if token.updates else None
        size = abs(token.advantage or 0.0)
        return size, last is not None and last.is_clipped, abs(last.ratio - 1) if last else 0.0

    return max(row.actions, key=weight)


def no_reference(trace: Trace) -> str:
    """A sentence that says why the trace has no KL; "" if it has."""
    if trace.rows[0].first_action.ref_logprob is not None:
        return ""
    return "kl_coef is 0, so no reference was asked: there is no KL here, and none is subtracted from the reward."


def own_estimator(trace: Trace) -> str:
    """A sentence that says whose the advantages are; "" if they are the library's."""
    if not trace.own_advantage or any(q.key == "advantage" for q in trace.told):
        return ""
    return f"Advantages and returns are what {trace.own_advantage} returned; how it computes them is not known here."


def written_tokens(trace: Trace) -> str:
    """Sentences about the tokens that an environment wrote; "" if there are none in the step."""
    if "num_written" not in trace.numbers:
        return ""
    return (
        f"An environment wrote {trace.numbers['num_written']:.0f} more tokens: nobody chose them, so they have no "
        "numbers. Every count and mean is of tokens that the policy chose, and so are the next and the last token of a "
        "formula."
    )


def told_states(trace: Trace) -> str:
    """Sentences that say what forced states are; "" if the step has none."""
    if not trace.is_forced:
        return ""
    return (
        "The text itself stands in the context: at each of its states the policy reads the true tokens before it, "
        f"draws {trace.rows[0].states[0].num_drawn} actions, and goes on with the text whatever it drew. So each "
        "action is an episode of one token, and no later token is its doing. Draws of the same token have the same "
        "numbers: they are shown once, with how often the token was drawn."
    )


def remarks(trace: Trace) -> list[str]:
    """What a reader has to know of this step before its numbers, a paragraph each."""
    says = (told_states(trace), no_reference(trace), own_estimator(trace), written_tokens(trace))
    return [text for text in says if text]


def kind_of(row: RowTrace) -> str:
    """What a row is."""
    return "Text" if row.states else "Response"


def count_of(row: RowTrace) -> str:
    """How many tokens a response has and, if an environment wrote some of them, how many are the policy's."""
    if row.states:
        return f"{len(row.states)} states, {row.num_actions} actions"
    chosen = f" ({len(row.actions)} by the policy)" if len(row.actions) < len(row.tokens) else ""
    return f"{len(row.tokens)} tokens{chosen}"


def size_of(trace: Trace) -> str:
    """How much a step holds."""
    numbers = trace.numbers
    if trace.is_forced:
        return f"{numbers['num_tokens']:.0f} actions at {numbers['num_states']:.0f} states of {trace.num_rows} texts"
    return f"{numbers['num_tokens']:.0f} tokens of {trace.num_rows} responses"


def _head(trace: Trace) -> str:
    config, first = trace.config, trace.minibatches[0]
    tokens = size_of(trace)
    passes = f"{config['epochs']} epochs in minibatches of {config['minibatch']}"
    how = "state by state" if trace.is_forced else "token by token"
    lines = [
        f"PPO step {trace.step}, {how}: {tokens}; {passes}.",
        f"KL coefficient β {trace.numbers['kl_coef']:.4g}, "
        + (f"policy clip ε {config['policy_clip']:g}, " if trace.has_clip else "")
        + _discounts(trace)
        + (
            f"learning rate {first.learning_rate:.3g}."
            if first.learning_rate is not None
            else "first minibatch skipped."
        ),
    ]
    lines += remarks(trace)
    for reason, says in SKIP_REASONS.items():
        if skipped := [f"{m.epoch + 1}.{m.index + 1}" for m in trace.minibatches if m.skip_reason == reason]:
            lines.append(f"Skipped (epoch.minibatch), since {says}: {', '.join(skipped)}.")
    return "\n".join(wrap(line) for line in lines)


def _discounts(trace: Trace) -> str:
    """What the library's estimators read; an estimator of your own reads none of it."""
    config = trace.config
    if trace.own_advantage:
        return ""
    named = {"value_gae_lambda": "critic's λ_V", "gae_length_alpha": "length α"}
    others = "".join(f", {sign} {config[name]:g}" for name, sign in named.items() if config.get(name) is not None)
    return f"gamma γ {config['gamma']:g}, lambda λ {config['gae_lambda']:g}{others}; "


def note_of(row: RowTrace) -> str:
    """What a row came to: its score, its size and its end; at forced states the mean reward of a draw."""
    if row.states:
        remark = f"{row.remark}, " if row.remark else ""
        return f"{remark}mean reward of an action {row.reward_total / row.num_actions:.4g}, {count_of(row)}"
    end = "ended by itself" if row.is_ended else "cut off at the maximum length"
    return f"score {row.score:.5g}, {count_of(row)}, {end}"


def _row_head(row: RowTrace) -> str:
    title = f"{kind_of(row)} {row.index}: {note_of(row)}"
    before, pieces = prompt_pieces(row)
    prompt = before + "".join(token_label(piece, i) for piece, i in pieces)
    return "\n".join([title, "─" * len(title), wrap(f"prompt: {prompt}")])


def _rollout_table(trace: Trace, row: RowTrace) -> str:
    """The numbers of every token before the update."""
    known = {key for _, _, key, _ in _ROLLOUT_COLUMNS if getattr(row.first_action, key) is not None}
    known -= set() if "ref_logprob" in known else {"kl"}
    own = _OWN_MEANINGS if trace.own_advantage else {}
    columns = [(*column[:3], own.get(column[2], column[3])) for column in _ROLLOUT_COLUMNS if column[2] in known]
    lines = [line("  t", "token", [right(title, width) for title, width, *_ in columns])]
    for t, token in enumerate(row.tokens):
        cells = [number(getattr(token, key), width) for _, width, key, _ in columns]
        cells = cells if token.is_action else [_WRITTEN]
        lines.append(line(f"{t:3d}", token_label(token.text, token.id), cells))
    note = "; ".join(f"{title}: {says}" for title, _, _, says in columns) + "."
    return "\n".join([*lines, wrap(note)])


def _update_table(trace: Trace, row: RowTrace) -> str:
    """What the update did: the ratio in every epoch, where the clip cut the gradient, and the likeliest other token."""
    updates = row.first_action.updates
    passes = passes_shown(len(updates))
    epochs = [trace.minibatches[updates[i].minibatch].epoch + 1 for i in passes]
    titles = [f"ρ {epoch:4d} " for epoch in epochs]
    head = [*titles, " gradient", "π old", "π new", left("instead", 9), "    π"]
    lines = [line("  t", "token", head)]
    for t, token in enumerate(row.tokens):
        if not token.is_action:
            lines.append(line(f"{t:3d}", token_label(token.text, token.id), [_WRITTEN]))
            continue
        cells = [number(token.updates[i].ratio, 6) + MARKS[token.updates[i].clip_side] for i in passes]
        gradient = f"{token.updates[-1].logprob_gradient:9.1e}" if token.updates else " " * 9
        ends = [number(token.old_probability, 5), number(token.final_probability, 5)]
        lines.append(line(f"{t:3d}", token_label(token.text, token.id), [*cells, gradient, *ends, *_instead(token)]))
    note = (
        "ρ: ratio in each epoch"
        + ("; ^ or v: the ratio is above or below the clip, and the gradient is cut off" if trace.has_clip else "")
        + ". gradient: of the loss with respect to log π, in the token's last epoch (thrown away if the minibatch was "
        "skipped). instead: the likeliest other token, and its probability before the update."
    )
    return "\n".join([*lines, wrap(note)])


def _instead(token: TokenTrace) -> list[str]:
    """The likeliest token that was not drawn, and its probability. Empty if no other token had any."""
    for other in token.alternatives:
        if other.id != token.id and other.before > 0:
            return [left(token_label(other.text, other.id), 9), number(other.before, 5)]
    return []


def _by_hand(trace: Trace, row: RowTrace) -> str:
    """The formulas of one token with its own numbers, in its last minibatch."""
    t = opening_token(row)
    token = row.tokens[t]
    numbers = numbers_at(trace, row, t, len(token.updates) - 1 if token.updates else None)
    known = quantities_of(trace)
    symbols = {q.key: q for q in known}
    place = f"token {t} {token_label(token.text, token.id)}"
    if token.state is not None:
        place = f"action {token_label(token.text, token.id)} at state {token.state}, one draw of {len(token.draws)}"
    lines = [f"By hand, {place}:"]
    for q in known:
        if q.formula and q.key in numbers and q.section not in _NOT_BY_HAND:
            result = typeset(shown(numbers[q.key], q.formula, numbers))
            text = f"{q.symbol} = {in_symbols(q.formula, symbols)} = {substituted(q.formula, numbers)} = {result}"
            lines += textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent="      ")
    return "\n".join(lines)


def _signs(trace: Trace) -> str:
    """The meaning of the signs in the formulas that are no quantities of a token."""
    known = [q for q in quantities_of(trace) if q.section not in _NOT_BY_HAND]
    signs = "; ".join(f"{symbol.sign}: {symbol.says}" for symbol in symbols_of(known).values())
    return wrap(f"In the formulas: {signs}.")
