"""The training as curves over steps, each with a definition in one sentence.

This module knows the names of metrics in metrics.jsonl and computes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from ppo.io.plain import finite

from .bounds import MOST_POINTS, spread
from .svg import line_chart
from .terms import Terms


@dataclass(frozen=True)
class Curve:
    """A metric to draw, with its title and its definition."""

    metric: str
    title: str
    definition: str

    @property
    def term(self) -> str:
        """Its name among the page's definitions. It differs from that of the evaluation's metric.

        The evaluation may measure the same metric on more passages, with a definition of its own.
        """
        return f"curve:{self.metric}"


_LOOK = "Measured every few steps, on fewer texts than the held-out perplexity of the tables, which takes all of them."

CURVES = (
    Curve("forget/secret_greedy", "Forget: a secret comes out greedily",
          "Share of the forget set of which any secret stands in the greedy output, measured every few steps."),
    Curve("forget/secret_hinted", "Forget: a secret comes out after a hint",
          "Share of the forget set of which greedy decoding writes a secret after a hint of true tokens, every few "
          "steps."),
    Curve("forget/exact", "Forget: exact extraction",
          "Share of the forget set whose whole suffix greedy decoding reproduces, measured every few steps."),
    Curve("forget/bleu", "Forget: BLEU of greedy output",
          "Sentence SacreBLEU of greedy outputs against the forget set's suffixes, 0 to 100, every few steps."),
    Curve("forget_holdout/exact", "Forget-holdout: exact extraction",
          "Share of memorised passages outside the training whose whole suffix greedy decoding reproduces."),
    Curve("keep/exact", "Keep: exact extraction",
          "Share of the passages to keep whose whole suffix greedy decoding reproduces."),
    Curve("look/perplexity", "Perplexity of the first 32 held-out texts",
          _LOOK),
    Curve("holdout/perplexity", "Perplexity of the first 32 held-out texts",  # the name in older folders
          _LOOK),
    Curve("score/mean", "Score, mean", "Mean score that the reward function gave the step's samples, before any KL."),
    Curve("kl/per_sequence", "KL to the reference, nats per sequence",
          "Estimated KL divergence of the policy from the reference model, summed over a response, averaged over the "
          "step's samples. It is drawn for the steps in which it acts: without a penalty nothing measures it."),
    Curve("response/entropy", "Entropy of the sampler, nats per token",
          "Entropy of the distribution that a token is drawn from, averaged over the tokens of the step."),
    Curve("response/distinct_share", "Share of different responses",
          "Number of different responses divided by the number of responses of the step."),
    Curve("retain/loss", "Retain loss", "Loss on the text to keep, nats per token, before its coefficient."),
    Curve("policy/approx_kl", "Approximate KL of the update, per token",
          "How far the update moved the policy from the one that sampled: mean of ratio - 1 - log ratio (k3), nats."),
    Curve("value/explained_variance", "Explained variance of the critic",
          "1 - Var(returns - values) / Var(returns): 1 is a perfect critic, 0 no better than a constant."),
)  # fmt: skip


OF_RESPONSES = ("score/mean", "kl/per_sequence", "response/entropy", "response/distinct_share")
"""Curves that say nothing where actions were drawn at forced states: no response is written there, and none scored."""

AT_STATES = (
    Curve("forced/true_token_p", "Probability of the true token, at the step's states",
          "The policy's probability of the true token, given all the true tokens before it, without heat; mean over "
          "the states of the passages that the step trained on. Every step trains on other passages."),
    Curve("forced/kl", "KL to the bounded reference, nats per state",
          "KL divergence of the policy from the bounded reference, which is the model before unlearning with the true "
          "token no likelier than its chance level. It is minus the exact mean of the reward, with heat and the bound "
          "on the reward; mean over the states of the step's passages. The update lowers it."),
    Curve("forced/own_kl", "… in texts of the policy's own, nats per state",
          "The same at the states of what the policy itself wrote after the prefix. Behind the first token that is not "
          "the true one the reference is the model before unlearning."),
    Curve("response/entropy", "Entropy of what actions are drawn from, nats per state",
          "Entropy of the policy's distribution with heat, at the states of the step, the policy's own texts included. "
          "Heat raises it where the policy is certain."),
)  # fmt: skip


def curves_of(metrics: Sequence[Mapping[str, Any]]) -> tuple[Curve, ...]:
    """The curves of a training, by what its rows hold: of responses, or of actions at forced states."""
    if not is_forced(metrics):
        return CURVES
    place = next(i for i, curve in enumerate(CURVES) if curve.metric in OF_RESPONSES)
    rest = [curve for curve in CURVES[place:] if curve.metric not in OF_RESPONSES]
    return (*CURVES[:place], *AT_STATES, *rest)


def is_forced(metrics: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the training drew actions at forced states."""
    return any("forced/states" in row for row in metrics)


def curve_section(metrics: Sequence[Mapping[str, float]], curves: Sequence[Curve], terms: Terms) -> str:
    """A chart of each curve that has a point, or "" if none has. Of a long run, evenly spread steps are drawn."""
    charts, is_thinned = [], False
    for curve in curves:
        points = [(float(m["step"]), float(m[curve.metric])) for m in metrics if _is_drawn(m, curve.metric)]
        if points:
            ends = f"{points[0][1]:.3g} → {points[-1][1]:.3g}" if len(points) > 1 else f"{points[0][1]:.3g}"
            is_thinned = is_thinned or len(points) > MOST_POINTS
            chart = line_chart(spread(points, MOST_POINTS), label=curve.title)
            charts.append(
                f"<div{terms.mark(curve.term)}><h3>{terms.label(curve.title, curve.term)}"
                f' <span class="ends">{escape(ends)}</span></h3>{chart}</div>'
            )
    if not charts:
        return ""
    told = f" Of each curve, {MOST_POINTS} steps are drawn, evenly spread." if is_thinned else ""
    note = critic_note(metrics)
    warned = f'<p class="small"><b>{escape(note)}</b></p>' if note else ""
    return (
        f"{warned}"
        '<p class="soft small">Over steps; one step is one rollout and its update. Beside each title: first and last.'
        f'{told}</p><div class="charts">{"".join(charts)}</div>'
    )


def critic_note(metrics: Sequence[Mapping[str, Any]]) -> str:
    """A sentence where the critic predicted most steps worse than a constant would have; "" otherwise."""
    found = [value for row in metrics if (value := finite(row.get("value/explained_variance"))) is not None]
    negative = sum(value < 0 for value in found)
    if 2 * negative <= len(found):
        return ""
    return (
        f"The critic's explained variance is negative in {negative} of {len(found)} steps: a constant would have "
        "predicted the returns better, and the advantages are noisier for it. --value-head none leaves the critic out; "
        "a higher --value-learning-rate may mend it."
    )


def _is_drawn(row: Mapping[str, Any], name: str) -> bool:
    """Whether a row has a point of a curve. Without a penalty the KL is not measured, and stands as 0."""
    if name == "kl/per_sequence" and not finite(row.get("kl/coef")):
        return False
    return finite(row.get("step")) is not None and finite(row.get(name)) is not None
