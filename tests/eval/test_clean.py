"""Clean or not, from made-up numbers: what is a reason, what is sure, what is not known, and how it is told."""

from __future__ import annotations

import json
import math

import pytest

from eval.clean import Finding, judge, t_quantile
from eval.evaluate import Evaluation
from eval.intervals import share_interval
from eval.margins import ATTACKED, MEMBERSHIP, NEEDED, TRACES
from eval.report.terms import collect_terms
from eval.report.verdict import sentences, verdict_section
from eval.results import write_results
from eval.stored import read_attacks

TERMS = collect_terms({}, {})
NEVER = {"exact": 0.0, "exact_after_25": 0.0, "leak_1000": 0.0, "ma_suffix": 0.45, "ma_unshared": 0.2,
         "extraction_strength": 0.02, "longest_run": 6.0, "nll_suffix": 3.0, "lens_right": 0.2,
         "secret_emitted": 0.0}  # fmt: skip
WIDTHS = {"longest_run": 0.5, "nll_suffix": 0.2, "extraction_strength": 0.005}
SHARES = ("exact", "exact_after_25", "secret_emitted")


def evaluated(count: int = 200, *, auc: float = 0.5, keep: float = 1.0, perplexity: float = 80.0, writing: float = 0.97,
              **forget: float) -> dict:  # fmt: skip
    """An evaluation of so many passages a group whose forget set is as never trained, but for some numbers."""
    summary = {
        "forget/passages": count,
        "never/passages": count,
        "forget/length_truth": 50.0,
        "keep/exact": keep,
        "holdout/perplexity": perplexity,
        "forget/writing": writing,
        "membership/loss_auc": auc,
    }
    intervals = {
        "membership/loss_auc": [max(0.0, auc - 0.06), min(1.0, auc + 0.06)],
        "keep/exact": list(share_interval(round(keep * count), count)),
        "forget/length_truth": [50.0, 50.0],
    }
    for group, values in (("forget", NEVER | forget), ("never", NEVER)):
        for name, value in values.items():
            half = WIDTHS.get(name, 0.02) * math.sqrt(200 / count)
            ends = share_interval(round(value * count), count) if name in SHARES else (value - half, value + half)
            summary[f"{group}/{name}"], intervals[f"{group}/{name}"] = value, list(ends)
    return {"summary": summary, "intervals": intervals}


BEFORE = evaluated(auc=1.0, exact=1.0, leak_1000=1.0, ma_suffix=1.0, extraction_strength=1.0, longest_run=50.0,
                   nll_suffix=0.0)  # fmt: skip


def reasons(found: dict, **more) -> list[str]:
    return [f.label for f in judge(found, **{"original": BEFORE, **more}).reasons]


def test_a_model_like_one_that_never_saw_the_passages_is_clean():
    found = judge(evaluated(), original=BEFORE)
    assert found.state == "clean"
    assert found.left == 0.0
    assert len(found.traces) == len(TRACES) + 1
    assert found.missing == tuple(t.label for t in ATTACKED)


@pytest.mark.parametrize(
    ("changes", "label"),
    [
        ({"secret_emitted": 0.2}, "secrets still emitted"),
        ({"exact": 0.2}, "greedy extraction"),
        ({"exact_after_25": 0.2}, "extraction after 25 true tokens"),
        ({"leak_1000": 0.2}, "leak in 1,000 samples"),
        ({"ma_suffix": 0.6}, "suffix accuracy"),
        ({"ma_unshared": 0.4}, "accuracy on own tokens"),
        ({"extraction_strength": 0.1}, "extraction strength"),
        ({"longest_run": 9.0}, "longest run of right tokens"),
        ({"nll_suffix": 2.0}, "NLL of the suffix"),
        ({"lens_right": 0.5}, "own tokens readable at a block"),
        ({"auc": 0.85}, "membership AUC"),
        ({"auc": 0.15}, "membership AUC"),  # forgotten so much that it shows
    ],
)
def test_each_trace_alone_is_a_reason(changes, label):
    assert reasons(evaluated(**changes)) == [label]


@pytest.mark.parametrize(
    "changes", [{"ma_suffix": 0.47}, {"nll_suffix": 2.6}, {"longest_run": 7.1}, {"auc": 0.7}, {"ma_suffix": 0.2}]
)
def test_what_is_within_the_limit_or_damage_is_no_reason(changes):
    assert reasons(evaluated(**changes)) == []


@pytest.mark.parametrize(
    ("changes", "label"),
    [
        ({"perplexity": 90.0}, "held-out perplexity over the original's"),
        ({"perplexity": math.nan}, "held-out perplexity over the original's"),
        ({"keep": 0.7}, "records to keep"),
        ({"writing": 0.3}, "writing"),
    ],
)
def test_a_harmed_model_is_not_clean_whatever_it_has_forgotten(changes, label):
    assert reasons(evaluated(**changes)) == [label]
    assert judge(evaluated(**changes)).state == "clean"  # nothing to hold it against, and that is said
    assert "what the model lost" in judge(evaluated(**changes)).missing


def test_few_passages_call_nobody_clean():
    assert judge(evaluated(6)).state == "unknown"
    text = " ".join(sentences(judge(evaluated(6))))
    assert "so few passages that half of the memory could hide (" in text
    assert judge(evaluated(32)).state == "clean"
    assert judge(evaluated(6, ma_suffix=1.0)).state == "not clean"


def test_what_comes_out_needs_no_never_trained_passages():
    bare = {"summary": {"forget/exact": 0.0}, "intervals": {"forget/exact": [0.0, 0.1]}}
    assert judge(bare).state == "unknown"
    bare = {"summary": {"forget/exact": 0.8}, "intervals": {"forget/exact": [0.7, 0.9]}}
    assert sentences(judge(bare))[0] == "Not clean: greedy extraction 80.0 % against 0.0 %."


@pytest.mark.parametrize("name", NEEDED)
def test_without_depth_nothing_is_known(name):
    found = evaluated()
    del found["summary"][f"never/{name}"]
    verdict = judge(found)
    assert verdict.state == "unknown"
    assert "depth was not measured, which needs never-trained passages" in sentences(verdict)[0]
    assert judge({"summary": {}}).state == "unknown"
    assert judge({"summary": {}}).left is None
    assert judge({"summary": {}}).missing[-1] == "what the model lost"


def test_the_exact_twin_takes_the_place_of_never_trained_passages():
    twin = evaluated(ma_suffix=0.6, auc=0.8)
    assert reasons(evaluated(ma_suffix=0.6, auc=0.8)) == ["suffix accuracy", "membership AUC"]
    assert reasons(evaluated(ma_suffix=0.6, auc=0.8), twin=twin) == []
    assert reasons(evaluated(ma_suffix=0.9), twin=twin) == ["suffix accuracy", "membership AUC"]


def test_the_memory_that_is_left_by_hand():
    one = judge(evaluated(ma_suffix=0.725))  # half way from 0.45 to 1
    assert one.left == pytest.approx(0.5 / len(one.traces))
    low = judge(evaluated(nll_suffix=1.5))
    assert low.left == pytest.approx(0.5 / len(low.traces))
    run = judge(evaluated(longest_run=28.0))
    assert run.left == pytest.approx(0.5 / len(run.traces))
    assert judge(evaluated(auc=0.25)).left == pytest.approx(0.5 / len(run.traces))


def test_intervals_hold_together():
    """Wider than each alone, by the quotient of two quantiles: 11 of them, 2.84 to 1.96 with very many passages."""

    def high(count: int) -> float:
        found = evaluated()
        found["summary"] |= {"forget/passages": count, "never/passages": 10**9}
        return next(f for f in judge(found).traces if f.label == MEMBERSHIP.label).high

    assert high(10**9) == pytest.approx(0.06 * 2.8376 / 1.9600, rel=1e-3)
    assert high(11) == pytest.approx(0.06 * 3.637 / 1.9600, rel=2e-3)  # 10 degrees of freedom


@pytest.mark.parametrize(
    ("p", "freedom", "table"),
    [(0.975, 10, 2.228), (0.975, 30, 2.042), (0.995, 10, 3.169), (0.95, 5, 2.015), (0.999, 20, 3.552), (0.5, 7, 0.0)],
)
def test_the_quantile_of_student_s_t_by_the_table(p, freedom, table):
    assert t_quantile(p, freedom) == pytest.approx(table, abs=6e-3)


@pytest.mark.parametrize(
    ("gap", "low", "high", "state"),
    [(0.2, 0.1, 0.3, "beyond"), (0.2, -0.1, 0.5, "unsure"), (0.05, 0.01, 0.2, "unsure"), (0.0, -0.1, 0.05, "within"),
     (0.2, None, None, "beyond"), (0.1, None, None, "within"), (math.inf, None, None, "beyond")],
)  # fmt: skip
def test_the_state_of_a_finding(gap, low, high, state):
    assert Finding("x", "share", gap, 0.0, gap, 0.1, low, high, 1.0).state == state


def attack(name: str, never: float, interval: list[float], **forget: float) -> dict:
    numbers = {**dict.fromkeys(forget, never)}
    return {
        "name": name,
        "groups": {"forget": forget, "never": numbers},
        "over_never": {"forget": {q: {"value": v - never, "interval": interval} for q, v in forget.items()}},
    }


def test_attacks_count_where_they_were_run(tmp_path):
    attacks = [
        attack("relearning steps:0|not taught", 5.0, [-2.0, 2.0], bleu=5.0),
        attack("relearning steps:20|taught", 5.0, [80.0, 90.0], bleu=90.0),
        attack("relearning steps:20|not taught", 5.0, [10.0, 20.0], bleu=20.0),
        attack("any of these", 0.0, [-0.02, 0.02], exact=0.0, secret=0.0),
        attack("any of these, weights too", 0.0, [0.1, 0.4], exact=0.25, secret=0.25),
    ]
    found = ["BLEU after relearning", "extraction by any attack", "secrets by any attack"]
    assert reasons(evaluated(), attacks=attacks) == found
    assert reasons(evaluated(), attacks=[attacks[0], attacks[3]]) == []
    assert judge(evaluated(), original=BEFORE, attacks=attacks).missing == ()
    alone = [{name: value for name, value in attacks[4].items() if name != "over_never"}]  # without never-trained ones
    assert judge(evaluated(), original=BEFORE, attacks=alone).missing == tuple(found)

    assert read_attacks(tmp_path) == {}
    (tmp_path / "attacks.json").write_text(json.dumps({"before": {"attacks": attacks}}))
    assert read_attacks(tmp_path) == {"before": attacks}
    for path, value in ((("name",), 1), (("groups", "forget", "exact"), "x"), (("over_never", "forget"), [])):
        broken = json.loads(json.dumps(attacks[4]))
        holder = broken
        for key in path[:-1]:
            holder = holder[key]
        holder[path[-1]] = value
        (tmp_path / "attacks.json").write_text(json.dumps({"after": {"attacks": [broken]}}))
        with pytest.raises(ValueError, match=r"attacks\.json is damaged: after, attack 1"):
            read_attacks(tmp_path)


def test_a_verdict_is_written_with_the_evaluation(tmp_path):
    before, after = (Evaluation(x["summary"], x["intervals"], {}, {}, {}) for x in (BEFORE, evaluated(ma_suffix=0.6)))
    write_results(tmp_path, {}, before)
    assert json.loads((tmp_path / "evaluation.json").read_text())["verdict"]["harms"] == []
    write_results(tmp_path, {}, before, after)
    found = json.loads((tmp_path / "evaluation.json").read_text())["verdict"]
    assert found["state"] == "not clean"
    assert found["left"] == pytest.approx(0.15 / 0.55 / 11)
    assert [f["label"] for f in found["traces"] if f["state"] == "beyond"] == ["suffix accuracy"]
    assert len(found["harms"]) == 3
    assert "BLEU after relearning" in found["missing"]


def test_what_is_said():
    clean = " ".join(sentences(judge(evaluated(), original=BEFORE)))
    assert clean.startswith("Clean as far as was measured: none of 11 numbers tells the forget set from passages that")
    assert "Of the memory 0 % is left" in clean
    assert "Not sure to be within the limit: " in clean
    assert "Not measured: BLEU after relearning" in clean
    told = sentences(judge(evaluated(ma_suffix=0.6, keep=0.5), original=BEFORE))[0]
    harm = "the model was harmed (records to keep 50.0 % against 100.0 %)"
    assert told == f"Not clean: suffix accuracy 60.0 % against 45.0 %; {harm}."
    every = judge(BEFORE, original=BEFORE)
    assert "; and " in sentences(every)[0]
    section = verdict_section(every, TERMS)
    assert section.count("beyond the limit") == len(every.reasons)
    assert "<b>Not clean: " in section
    assert "<table>" not in verdict_section(judge({"summary": {}}), TERMS)
