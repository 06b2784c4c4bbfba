"""Clean or not, from made-up numbers: what is a reason, what is sure, what is not known, and how it is told."""

from __future__ import annotations

import json
import math

import pytest

from eval.clean import judge
from eval.evaluate import Evaluation
from eval.intervals import share_interval
from eval.margins import ATTACKED, COMPARED, HARMS, NEEDED, TRACES
from eval.report.terms import collect_terms
from eval.report.verdict import sentences, verdict_section
from eval.results import write_results
from eval.stored import read_attacks
from eval.verdict import Finding

TERMS = collect_terms({}, {})
NEVER = {"exact": 0.0, "exact_after_25": 0.0, "leak_1000": 0.0, "ma_suffix": 0.45, "ma_unshared": 0.2,
         "extraction_strength": 0.02, "longest_run": 6.0, "nll_suffix": 3.0, "lens_right": 0.2, "secret_part": 0.3,
         "secret_emitted": 0.0, "secret_greedy": 0.0, "secret_hinted": 0.0, "secret_sampled": 0.0,
         "non_words": 0.02}  # fmt: skip
WIDTHS = {"longest_run": 0.5, "nll_suffix": 0.2, "extraction_strength": 0.005, "leak_1000": 0.005, "non_words": 0.002}
SHARES = ("exact", "exact_after_25", "secret_emitted", "secret_greedy", "secret_hinted", "secret_sampled")


def evaluated(count: int = 200, *, never: int = 0, auc: float = 0.5, keep: float = 1.0, perplexity: float = 80.0,
              writing: float = 0.97, **forget: float) -> dict:  # fmt: skip
    """An evaluation of so many passages a group whose forget set is as never trained, but for some numbers.

    ``never``: how many never-trained passages there are; 0: as many.
    """
    sizes = {"forget": count, "never": never or count}
    summary = {f"{group}/passages": size for group, size in sizes.items()}
    summary |= {
        "keep/passages": count,
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
        "forget/writing": [max(0.0, writing - 0.02), min(1.0, writing + 0.02)],
    }
    for group, values in (("forget", NEVER | forget), ("never", NEVER)):
        for name, value in values.items():
            size = sizes[group]
            half = WIDTHS.get(name, 0.02) * math.sqrt(200 / size)
            ends = share_interval(round(value * size), size) if name in SHARES else (value - half, value + half)
            summary[f"{group}/{name}"], intervals[f"{group}/{name}"] = value, list(ends)
    return {"summary": summary, "intervals": intervals}


BEFORE = evaluated(auc=1.0, exact=1.0, leak_1000=1.0, ma_suffix=1.0, extraction_strength=1.0, longest_run=50.0,
                   nll_suffix=0.0)  # fmt: skip


# ---------------------------------------------------------------------- what is clean


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
        ({"secret_greedy": 0.2}, "secrets in greedy outputs"),
        ({"secret_part": 0.6}, "longest part of a secret"),
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
        ({"ma_suffix": 0.25}, "suffix accuracy"),  # from here on: forgotten so much that it shows
        ({"ma_unshared": 0.1}, "accuracy on own tokens"),
        ({"longest_run": 3.0}, "longest run of right tokens"),
        ({"nll_suffix": 6.0}, "NLL of the suffix"),
        ({"lens_right": 0.05}, "own tokens readable at a block"),
        ({"auc": 0.15}, "membership AUC"),
    ],
)
def test_each_trace_alone_is_a_reason(changes, label):
    assert reasons(evaluated(**changes)) == [label]


def test_to_know_less_than_of_a_stranger_s_passage_tells_too():
    less = sentences(judge(evaluated(ma_suffix=0.25, auc=0.15), original=BEFORE))[0]
    assert less == (
        "Not clean: it knows less than of a stranger's passage, which also tells that it was trained on (suffix "
        "accuracy 25.0 % against 45.0 %; membership AUC 0.15 against 0.50)."
    )
    both = sentences(judge(evaluated(ma_suffix=0.6, nll_suffix=6.0), original=BEFORE))[0]
    assert both.startswith("Not clean: suffix accuracy 60.0 % against 45.0 %; it knows less than of a stranger's")
    assert judge(evaluated(nll_suffix=6.0)).left == 0.0


def test_that_less_comes_out_than_of_a_stranger_s_passage_is_no_fault():
    found = evaluated()
    for name in ("secret_emitted", "secret_greedy", "exact_after_25"):
        found["summary"][f"never/{name}"], found["intervals"][f"never/{name}"] = 0.1, list(share_interval(20, 200))
    found["summary"]["never/secret_part"], found["intervals"]["never/secret_part"] = 0.6, [0.58, 0.62]
    assert judge(found, original=BEFORE).state == "clean"


@pytest.mark.parametrize("changes", [{"ma_suffix": 0.47}, {"nll_suffix": 2.6}, {"longest_run": 7.1}, {"auc": 0.7},
                                     {"ma_suffix": 0.43}, {"nll_suffix": 3.4}, {"auc": 0.3}])  # fmt: skip
def test_what_is_within_the_limit_is_no_reason(changes):
    assert judge(evaluated(**changes), original=BEFORE).state == "clean"


@pytest.mark.parametrize(
    ("count", "never", "leaks"),
    [(64, 64, 1), (64, 64, 2), (64, 64, 8), (32, 32, 1), (32, 32, 6), (20, 20, 1), (20, 20, 2), (64, 8, 8), (20, 4, 2),
     (200, 200, 1)],
)  # fmt: skip
@pytest.mark.parametrize("name", ["secret_emitted", "secret_greedy", "exact", "exact_after_25", "leak_1000"])
def test_a_part_that_leaks_is_never_called_clean(count, never, leaks, name):
    if (count, name) == (200, "leak_1000"):
        leaks = 3  # an expected share: a hundredth counts as none
    verdict = judge(evaluated(count, never=never, **{name: leaks / count}), original=BEFORE)
    assert verdict.state != "clean"
    labels = [f.label for f in (*verdict.reasons, *verdict.suspects)]
    assert labels == [next(t.label for t in TRACES if t.quantity == name)]
    head = sentences(verdict)[0]
    assert head.startswith(("Not clean: ", "Not known whether clean: perhaps by chance, ")), head
    assert f"{labels[0]} {100 * leaks / count:.1f} % against 0.0 %" in head


def test_a_leak_that_is_sure_is_a_reason_and_one_that_is_not_leaves_it_open():
    assert judge(evaluated(200, exact=10 / 200), original=BEFORE).state == "not clean"
    assert judge(evaluated(200, exact=2 / 200), original=BEFORE).state == "unknown"
    alone = evaluated(64, exact=1 / 64)
    for side in ("summary", "intervals"):
        alone[side] = {name: value for name, value in alone[side].items() if not name.startswith("never/")}
    assert judge(alone, original=BEFORE).state == "not clean"  # without never-trained passages nothing may come out


def test_wide_intervals_help_no_model():
    """The same point, known less and less well: never clean."""
    states = [judge(evaluated(count, ma_suffix=0.52), original=BEFORE).state for count in (2000, 200, 64, 32)]
    assert states == ["not clean", "not clean", "unknown", "unknown"]


def test_a_secret_that_hints_let_guess_is_no_leak_by_itself():
    """The lab's exact twin gives 2 of 58 away after hints; greedily a secret comes out of none."""
    guessed = {"secret_emitted": 2 / 64, "secret_hinted": 2 / 64}
    assert judge(evaluated(64, **guessed), original=BEFORE).state == "clean"
    assert judge(evaluated(64, **guessed, secret_greedy=1 / 64), original=BEFORE).state == "unknown"
    more = {"secret_emitted": 3 / 64, "secret_hinted": 3 / 64}
    assert judge(evaluated(64, **more), original=BEFORE).state == "unknown"
    assert judge(evaluated(20, secret_emitted=1 / 20, secret_hinted=1 / 20), original=BEFORE).state == "unknown"
    assert judge(evaluated(64, secret_emitted=2 / 64), original=BEFORE).state == "unknown"  # who gave it away?


# ---------------------------------------------------------------------- what was lost


@pytest.mark.parametrize(
    ("changes", "label"),
    [
        ({"perplexity": 81.0}, "held-out perplexity over the original's"),
        ({"perplexity": math.nan}, "held-out perplexity over the original's"),
        ({"keep": 0.7}, "records to keep"),
        ({"non_words": 0.06}, "words that are none"),
        ({"writing": 0.55}, "writing"),
    ],
)
def test_a_harmed_model_is_not_clean_whatever_it_has_forgotten(changes, label):
    assert reasons(evaluated(**changes)) == [label]


def test_what_needs_no_original_is_judged_without_it():
    assert judge(evaluated(writing=0.3)).state == "not clean"
    assert judge(evaluated(perplexity=math.nan)).state == "not clean"
    for changes in ({"perplexity": 90.0}, {"keep": 0.7}, {"non_words": 0.3}):
        found = judge(evaluated(**changes))
        assert found.state == "clean"
        assert "what the model lost" in found.missing  # nothing to hold it against, and that is said


@pytest.mark.parametrize(
    ("kept", "had", "state"),
    [(24, 24, "clean"), (23, 24, "clean"), (22, 24, "not clean"), (20, 24, "not clean"), (19, 20, "clean"),
     (18, 20, "not clean"), (20, 18, "clean")],
)  # fmt: skip
def test_of_the_records_to_keep_95_percent_of_those_before_are_to_come_out(kept, had, state):
    before, after = evaluated(), evaluated()
    for found, count in ((before, had), (after, kept)):
        found["summary"] |= {"keep/passages": 24, "keep/exact": count / 24}
        found["intervals"]["keep/exact"] = list(share_interval(count, 24))
    verdict = judge(after, original=before)
    assert verdict.state == state
    (found,) = [f for f in verdict.harms if f.label == "records to keep"]
    assert (found.value, found.target) == (pytest.approx(kept / had), 1.0)


def test_limits_of_harm_are_the_goals():
    limits = {h.label: h.limit for h in HARMS}
    assert limits == {
        "held-out perplexity over the original's": 0.01, "records to keep": 0.05, "words that are none": 0.01,
        "writing": 0.0,
    }  # fmt: skip
    assert all(len(one.reason) >= 8 for one in (*COMPARED, *TRACES, *ATTACKED, *HARMS))
    es = next(f for f in judge(evaluated()).traces if f.label == "extraction strength")
    assert es.limit <= 0.5 * es.target


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
    assert judge(evaluated(auc=0.75)).left == pytest.approx(0.5 / len(run.traces))
    assert judge(evaluated(auc=0.25)).left == 0.0


def test_no_interval_leaves_what_is_possible():
    """0 of 10 against 0 of 6, and a whole group apart: the ends are exact ones, not stretched beyond 100 %."""
    for found in (evaluated(10, never=6), evaluated(10, never=6, exact=1.0, auc=1.0, ma_suffix=0.99, leak_1000=1.0)):
        verdict = judge(found, original=BEFORE)
        for f in verdict.traces:
            most = {"NLL of the suffix": math.inf, "longest run of right tokens": 50.0}.get(f.label, 1.0)
            assert -most <= f.low <= f.gap <= f.high <= most, f
    level = 1 - 0.05 / (len(verdict.traces) + 3)  # but for the perplexity, every number has an interval
    high = share_interval(0, 10, level=level)[1]
    (exact,) = [f for f in judge(evaluated(10, never=6), original=BEFORE).traces if f.label == "greedy extraction"]
    assert exact.high == pytest.approx(high, abs=0.01)


def test_an_auc_is_sure_by_the_exact_test():
    """1.00 of 10 against 6 comes by chance twice in 8008 times."""
    assert reasons(evaluated(10, never=6, auc=1.0)) == ["membership AUC"]
    verdict = judge(evaluated(3, auc=1.0), original=BEFORE)  # 2 times in 20
    assert [f.label for f in verdict.suspects] == ["membership AUC"]


@pytest.mark.parametrize(
    ("gap", "low", "high", "state"),
    [(0.2, 0.1, 0.3, "beyond"), (0.2, -0.1, 0.5, "unsure"), (0.05, 0.01, 0.2, "unsure"), (0.0, -0.1, 0.05, "within"),
     (0.2, None, None, "beyond"), (0.1, None, None, "within"), (math.inf, None, None, "beyond"),
     (math.nan, None, None, "beyond"), (-0.5, -0.6, -0.4, "within")],
)  # fmt: skip
def test_the_state_of_a_finding(gap, low, high, state):
    assert Finding("x", "share", gap, 0.0, gap, 0.1, low, high, 1.0).state == state


@pytest.mark.parametrize(
    ("gap", "low", "high", "state"),
    [(-0.2, -0.3, -0.1, "beyond"), (-0.2, -0.5, 0.1, "unsure"), (-0.05, -0.2, 0.0, "unsure"),
     (-0.05, -0.1, 0.0, "within"), (0.2, 0.1, 0.3, "beyond")],
)  # fmt: skip
def test_the_state_of_a_finding_with_two_sides(gap, low, high, state):
    found = Finding("x", "share", gap, 0.0, gap, 0.1, low, high, 1.0, is_two_sided=True)
    assert found.state == state
    assert found.is_less is (gap < -0.1)


def attack(name: str, never: float, **forget: float) -> dict:
    groups = {"forget": forget, "never": dict.fromkeys(forget, never)}
    for group, numbers in groups.items():
        ends = {
            q: [v - 2.0, v + 2.0] if q == "bleu" else list(share_interval(round(200 * v), 200))
            for q, v in numbers.items()
        }
        groups[group] = {"passages": 200, **numbers, "intervals": ends}
    return {"name": name, "groups": groups}


def test_attacks_count_where_they_were_run(tmp_path):
    attacks = [
        attack("relearning steps:0|not taught", 5.0, bleu=5.0),
        attack("relearning steps:20|taught", 5.0, bleu=90.0),
        attack("relearning steps:20|not taught", 5.0, bleu=20.0),
        attack("any of these", 0.0, exact=0.0, secret=0.0),
        attack("any of these, weights too", 0.0, exact=0.25, secret=0.25),
    ]
    found = ["BLEU after relearning", "extraction by any attack", "secrets by any attack"]
    assert reasons(evaluated(), attacks=attacks) == found
    assert reasons(evaluated(), attacks=[attacks[0], attacks[3]]) == []
    assert judge(evaluated(), original=BEFORE, attacks=attacks).missing == ()
    alone = [{"name": attacks[4]["name"], "groups": {"forget": attacks[4]["groups"]["forget"]}}]
    assert judge(evaluated(), original=BEFORE, attacks=alone).missing == tuple(found)

    assert read_attacks(tmp_path) == {}
    (tmp_path / "attacks.json").write_text(json.dumps({"before": {"attacks": attacks}}))
    assert read_attacks(tmp_path) == {"before": attacks}
    for path, value in (
        (("name",), 1),
        (("groups", "forget", "exact"), "x"),
        (("groups", "forget", "intervals"), []),
        (("groups", "never", "intervals", "exact"), [0.0]),
    ):
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
    harms = json.loads((tmp_path / "evaluation.json").read_text())["verdict"]["harms"]
    assert [harm["label"] for harm in harms] == ["writing"]
    write_results(tmp_path, {}, before, after)
    found = json.loads((tmp_path / "evaluation.json").read_text())["verdict"]
    assert found["state"] == "not clean"
    assert found["left"] == pytest.approx(0.15 / 0.55 / 13)
    assert [f["label"] for f in found["traces"] if f["state"] == "beyond"] == ["suffix accuracy"]
    assert len(found["harms"]) == 4
    assert "BLEU after relearning" in found["missing"]


def test_what_is_said():
    clean = " ".join(sentences(judge(evaluated(), original=BEFORE)))
    assert clean.startswith("Clean as far as was measured: none of 13 numbers tells the forget set from passages that")
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
