"""Puts a trace's numbers into the formulas of :mod:`ppo.trace.quantities`, so that a reader can check them by hand.

The computation was in float32, so a result is exact only to some digits. It is printed to those digits and no more. A
reader who computes it from the printed numbers gets the same digits. This module makes no number of a trace.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..config import Config
from .quantities import quantities
from .records import RowTrace, TokenUpdate, Trace
from .symbols import SYMBOLS, Quantity, Symbol

_OPERAND_DIGITS = 8  # significant digits of an operand; with fewer, the last digit of a result could be wrong
_SHOWN_DIGITS = 6  # significant digits of a result, at most
_ROUNDING = 2.5e-7  # relative error that float32 may make in an operand: four half units in the last place
_COUNTS = ("num_tokens", "num_written", "num_states")  # of the step; the N of a formula is the minibatch's
_WAITS = "0: the policy waits in this step, in which the critic learns alone (critic_warmup_steps)."
FUNCTIONS: dict[str, Any] = {
    "exp": math.exp,
    "sqrt": math.sqrt,
    "max": max,
    "min": min,
    "abs": abs,
    "clip": lambda x, low, high: min(max(x, low), high),
}


def quantities_of(trace: Trace) -> list[Quantity]:
    """All quantities of this trace, in the order in which a step makes them.

    The reward given has a formula if it comes from a score. That is the case when only the last action of each response
    has a reward, and when the trace knows what scores were divided by, if they were divided.
    """
    early = (row.tokens[t].token_reward for row in trace.rows for t in row.actions[:-1])
    has_scores = not any(early) and ("score_std" in trace.numbers or not trace.config["scale_scores"])
    has_reference = trace.rows[0].first_action.ref_logprob is not None
    config = Config.from_dict(trace.config)
    is_waiting = trace.step < config.critic_warmup_steps
    found = quantities(
        config, has_reference=has_reference, has_scores=has_scores, has_clip=trace.has_clip,
        own_advantage=trace.own_advantage, told=trace.told, is_forced=trace.is_forced,
        has_heat="heat" in (trace.rows[0].states[0].numbers if trace.is_forced else {}),
    )  # fmt: skip
    return [replace(q, says=_WAITS, formula="") if is_waiting and q.key == "logprob_gradient" else q for q in found]


def step_numbers(trace: Trace) -> dict[str, float]:
    """The numbers of the config and of the whole step that formulas mention."""
    names = ("gamma", "gae_lambda", "value_gae_lambda", "policy_clip", "policy_clip_high", "policy_dual_clip",
             "minibatch", "response_length", "value_clip", "value_coef", "samples_per_prompt", "clip_scores",
             "missing_eos_penalty")  # fmt: skip
    settings = {name: float(trace.config[name]) for name in names if trace.config[name] is not None}
    return settings | {name: x for name, x in trace.numbers.items() if name not in _COUNTS}


def row_numbers(row: RowTrace) -> dict[str, float]:
    """The numbers of the whole response that formulas mention."""
    found = {"reward_total": row.reward_total, "group_mean": row.group_mean, "group_std": row.group_std}
    found |= {"policy_lambda": row.policy_lambda, "num_actions": float(row.num_actions)}
    found |= {"score": row.score, "is_cut": float(not row.is_ended)}
    return {name: value for name, value in found.items() if value is not None}


def token_numbers(row: RowTrace, t: int) -> dict[str, float]:
    """The numbers of token ``t`` before and after the update, and those of its state if it has one, by key."""
    token = row.tokens[t]
    found = {k: v for k, v in vars(token).items() if isinstance(v, float)}
    return found | (row.states[token.state].numbers if token.state is not None else {})


def update_numbers(update: TokenUpdate, trace: Trace) -> dict[str, float]:
    """A token's numbers in one minibatch, and the minibatch's number of tokens."""
    gates = {"value_gate": float(not update.is_value_clipped)}
    if update.surrogate is not None:
        gates["gate"] = float(not update.is_clipped)
    numbers = {k: v for k, v in vars(update).items() if isinstance(v, float)}
    return numbers | gates | {"num_tokens": float(trace.minibatches[update.minibatch].num_tokens)}


def numbers_at(trace: Trace, row: RowTrace, t: int, visit: int | None = None) -> dict[str, float]:
    """All numbers that the formulas of token ``t``, which the policy chose, may mention.

    ``visit``: index into the minibatches that the row was in; None: the numbers of no minibatch.
    """
    numbers = step_numbers(trace) | row_numbers(row) | token_numbers(row, t)
    after, draws = row.next_action(t), row.tokens[t].draws
    numbers["is_last"] = float(after is None if not draws else draws[-1] == row.num_actions - 1)
    following = {} if after is None or draws else token_numbers(row, after)
    numbers |= {f"next_{key}": following.get(key, 0.0) for key in ("value", "raw_advantage", "return_value")}
    if visit is not None:
        numbers |= update_numbers(row.tokens[t].updates[visit], trace)
    return numbers


# ---------------------------------------------------------------------- formulas


def in_symbols(formula: str, known: Mapping[str, Quantity]) -> str:
    """The formula with the symbol of each quantity, typeset."""
    return typeset(
        re.sub(r"\{(\w+)\}", lambda m: SYMBOLS[m[1]].sign if m[1] in SYMBOLS else known[m[1]].symbol, formula)
    )


def substituted(formula: str, numbers: Mapping[str, float]) -> str:
    """The formula with a token's numbers, typeset. Negative numbers get parentheses, except at the start of an
    expression.
    """

    def number(match: re.Match[str]) -> str:
        text, before = operand(numbers[match[1]]), formula[: match.start()]
        is_first = before == "" or before.endswith(("(", ", "))
        return f"({text})" if text.startswith("-") and not is_first else text

    return typeset(re.sub(r"\{(\w+)\}", number, formula))


def typeset(formula: str) -> str:
    """The formula with Python's operators replaced by mathematical signs."""
    signs = {"**2": "²", "*": "\N{MULTIPLICATION SIGN}", "-": "\N{MINUS SIGN}", ">=": "\N{GREATER-THAN OR EQUAL TO}"}
    for written, sign in signs.items():
        formula = formula.replace(written, sign)
    return formula


def symbols_of(known: Sequence[Quantity]) -> dict[str, Symbol]:
    """The symbols that the formulas mention and that are no quantities, by name, in the order of the table."""
    mentioned = {name for q in known for name in re.findall(r"\{(\w+)\}", q.formula)}
    return {name: symbol for name, symbol in SYMBOLS.items() if name in mentioned}


def evaluate(formula: str, numbers: Mapping[str, float]) -> float:
    """The formula's value in float64. It is evaluated as Python, so only the library's own formulas may be passed."""
    expression = re.sub(r"\{(\w+)\}", lambda m: f"({numbers[m[1]]!r})", formula)
    return float(eval(expression, {"__builtins__": {}}, FUNCTIONS))


def operand(x: float) -> str:
    """A number as it is printed inside a formula: with eight significant digits."""
    return _plain_exponent(f"{x:.{_OPERAND_DIGITS}g}")


def shown(value: float, formula: str, numbers: Mapping[str, float]) -> str:
    """A result as text, with the digits that its formula is sure of, and at most six significant digits.

    An integer has no decimals if it was not computed, or if it is a truth value.
    """
    if not math.isfinite(value):
        return "not finite"
    if value.is_integer() and (not formula or " if " in formula):
        return f"{value:.0f}"
    error = _error(formula, numbers) + abs(value) * _ROUNDING if formula else 0.0
    size = math.floor(math.log10(abs(value))) if value else -_SHOWN_DIGITS - 1
    decimals = max(0, min(_SHOWN_DIGITS - 1 - size, 12))
    if error > 0:
        decimals = max(0, min(decimals, math.floor(-math.log10(2 * error))))
    if value and size < -3 and decimals > -size:
        return _plain_exponent(f"{value:.{decimals + size}e}")
    most = decimals if value and size >= -3 else _SHOWN_DIGITS
    return f"{value:.{min(decimals, most)}f}"


def _error(formula: str, numbers: Mapping[str, float]) -> float:
    """The largest error of the result, to first order, when every operand is off by its rounding."""
    names = set(re.findall(r"\{(\w+)\}", formula))
    if not all(math.isfinite(numbers[name]) for name in names):
        return 0.0
    exact = evaluate(formula, numbers)
    moved = ({**numbers, name: numbers[name] * (1 + _ROUNDING)} for name in names)
    return sum(abs(evaluate(formula, each) - exact) for each in moved)


def _plain_exponent(text: str) -> str:
    return re.sub(r"e([+-])0*(\d)", lambda m: "e" + m[1].replace("+", "") + m[2], text)
