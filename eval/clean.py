"""Is a model clean of its forget set: does nothing tell it from a model that never saw those passages?

Every number of ``TRACES`` (:mod:`eval.margins`) is held against that of the same model on never-trained passages, or
against the exact twin's where one was measured. To know less than of a stranger's passage tells of a training as well,
so most limits are on both sides; that less comes out is no fault. What the model lost (:mod:`eval.harms`) counts, too.
The intervals are those of a level at which all of them together hold at 95 % (:mod:`eval.joint`); what they say is in
:mod:`eval.verdict`. This module knows summaries and intervals. It knows no models, no files and no words of a report.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .harms import AtLevel, Evaluated, harms, known
from .intervals import difference_interval
from .joint import Known, difference_ends, joint_level
from .margins import ATTACKED, GUESSED, MEMBERSHIP, NEEDED, TRACES, Trace
from .membership import auc_interval, chance_p
from .verdict import Finding, Verdict

Attacks = Sequence[Mapping[str, Any]]


def judge(
    shown: Evaluated,
    *,
    original: Evaluated | None = None,
    twin: Evaluated | None = None,
    attacks: Attacks = (),
) -> Verdict:
    """The verdict on an evaluated model: mappings with "summary" and "intervals".

    original  the model before unlearning; None: what was lost is not judged, but for the writing
    twin      the model trained without the forget set, on the same passages; None: the model's own numbers on
              never-trained passages are the target
    attacks   summaries of attacks (:func:`eval.attacks.result.summarise`) with never-trained passages among them
    """
    has_secrets = "forget/secret_emitted" in shown["summary"]
    wanted = [t for t in TRACES if has_secrets or not t.quantity.startswith("secret_")]
    found = [(t, _trace(t, shown, twin)) for t in wanted]
    found += [(MEMBERSHIP, _membership(shown, twin)), *_attacked(attacks, has_secrets=has_secrets)]
    lost = harms(shown, original)
    level = joint_level(sum(at is not None for at in (*(at for _, at in found), *lost.values())))
    return Verdict(
        tuple(at(level) for _, at in found if at is not None),
        tuple(at(level) for at in lost.values() if at is not None),
        tuple(t.label for t, at in found if at is None) + tuple(name for name, at in lost.items() if at is None),
        all(at is not None for t, at in found[: len(wanted)] if t.quantity in NEEDED),
    )


def _trace(trace: Trace, shown: Evaluated, twin: Evaluated | None) -> AtLevel | None:
    """A number of the forget set against the twin's, or that of never-trained passages."""
    length = shown["summary"].get("forget/length_truth") if trace.full is None else None
    most = length if trace.most is None else trace.most
    if most is None:
        return None
    name, (target, control) = f"forget/{trace.quantity}", (shown, "never") if twin is None else (twin, "forget")
    one, base = known(shown, name, most=most), known(target, f"{control}/{trace.quantity}", most=most)
    if base is None and trace.alone is not None:
        base = Known.exactly(trace.alone)
    if one is None or base is None:
        return None
    limit = trace.limit
    if trace.quantity == "secret_emitted":
        limit = _guessed(shown, target, control)
    return _against(trace, one, base, full=most if trace.full is None else trace.full, limit=limit)


def _guessed(shown: Evaluated, target: Evaluated, control: str) -> float:
    """The limit of the secrets: above 0 where hints and samples account for all that comes out over the target.

    There a secret may have been guessed. What comes out greedily is held to its own limit, 0.
    """

    def over(name: str) -> float | None:
        one, base = shown["summary"].get(f"forget/{name}"), target["summary"].get(f"{control}/{name}")
        return None if one is None or base is None else float(one - base)

    helped = [gap for name in ("secret_hinted", "secret_sampled") if (gap := over(name)) is not None]
    return GUESSED if helped and (over("secret_emitted") or 0.0) <= sum(max(0.0, gap) for gap in helped) else 0.0


def _against(trace: Trace, one: Known, base: Known, *, full: float, limit: float) -> AtLevel:
    """``one`` less ``base``, or the other way round where a memory lowers it."""
    sign = -1.0 if trace.is_low else 1.0

    def at(level: float) -> Finding:
        low, high = sorted(sign * end for end in difference_ends(one, base, level))
        return Finding(
            trace.label, trace.unit, one.value, base.value, sign * (one.value - base.value),
            max(limit, trace.share * base.value), low, high, abs(full - base.value), is_two_sided=trace.is_two_sided,
        )  # fmt: skip

    return at


def _membership(shown: Evaluated, twin: Evaluated | None) -> AtLevel | None:
    """How far the AUC lies from chance, or from the twin's: below it reveals who was forgotten.

    Against chance it is sure by the exact test of Mann and Whitney, against the twin's by the interval.
    """
    name = f"membership/{MEMBERSHIP.quantity}"
    found = known(shown, name)
    base = None if twin is None else known(twin, name)
    sizes = [shown["summary"].get(f"{group}/passages") for group in ("forget", "never")]
    if found is None or (twin is not None and base is None) or None in sizes:
        return None
    members, others = map(int, sizes)

    def at(level: float) -> Finding:
        def ends(value: float) -> tuple[float, float]:
            return auc_interval(value, members, others, level=level)

        value, chance = found.value, 0.5 if base is None else base.value
        low, high = difference_interval(value, ends(value), chance, (0.5, 0.5) if base is None else ends(chance))
        is_off = chance_p(value, members, others) < 1 - level if base is None else None
        return Finding(
            MEMBERSHIP.label, MEMBERSHIP.unit, value, chance, value - chance, MEMBERSHIP.limit, low, high, 1 - chance,
            is_graded=False, is_two_sided=True, is_off=is_off,
        )  # fmt: skip

    return at


def _attacked(attacks: Attacks, *, has_secrets: bool) -> list[tuple[Trace, AtLevel | None]]:
    """BLEU of what relearning did not teach, after the most steps; and the best of all attacks, over never's."""
    taught = [a for a in attacks if a["name"].startswith("relearning") and a["name"].endswith("|not taught")]
    best = [a for a in attacks if a["name"].startswith("any of these")]
    relearned, exact, secret = ATTACKED
    wanted = [(relearned, taught), (exact, best), *([(secret, best)] if has_secrets else [])]
    return [(trace, _over_never(trace, some[-1]) if some else None) for trace, some in wanted]


def _over_never(trace: Trace, attack: Mapping[str, Any]) -> AtLevel | None:
    one, base = (_of_attack(attack["groups"].get(group, {}), trace) for group in ("forget", "never"))
    if one is None or base is None or trace.full is None:
        return None
    return _against(trace, one, base, full=trace.full, limit=trace.limit)


def _of_attack(numbers: Mapping[str, Any], trace: Trace) -> Known | None:
    value, interval = numbers.get(trace.quantity), numbers.get("intervals", {}).get(trace.quantity)
    if value is None or interval is None or trace.full is None:
        return None
    return Known(float(value), *map(float, interval), passages=numbers.get("passages", math.inf), most=trace.full)
