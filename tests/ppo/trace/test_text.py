# ruff: noqa: RUF001 (Greek letters are what is meant)
"""The trace as text: every printed formula, computed again from the printed numbers, gives the printed result."""

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

from ppo.trace import render_trace_page, render_trace_text
from ppo.trace.columns import WIDTH, token_label
from ppo.trace.formulas import quantities_of, shown, substituted
from ppo.trace.text import opening_token
from tests.ppo.trace.small import GROUPS, all_rows, assert_agrees, assert_formulas_agree, make, trace_of

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"whiten_rewards": True, "kl_estimator": "k3", "value_clip": None, "gamma": 0.9},
        {"kl_estimator": "k2", "whiten_advantages": False, "temperature": 0.8},
        {"advantage": "grpo", "kl_as": "loss", "kl_estimator": "k3", **GROUPS},
        {"advantage": "rloo", "kl_as": "loss", "kl_estimator": "k2", "entropy_coef": 0.1, **GROUPS},
        {"advantage": "dr_grpo", **GROUPS},
        {"critic_warmup_steps": 1, "detach_value_head": True},
        {"advantage": "reinforce++"},
        {"advantage": "reinforce++_baseline", **GROUPS},
        {"value_gae_lambda": 1.0, "gamma": 0.9},
        {"gae_length_alpha": 0.3},
        {"gae_length_alpha": 0.9, "value_gae_lambda": 0.4, "whiten_advantages": False},
        {"kl_coef": 0.0},
        {"scale_scores": True},
        {"missing_eos_penalty": 0.7},
        {"scale_scores": True, "clip_scores": 4.0, "missing_eos_penalty": 0.3},
        {"policy_clip": 0.1, "policy_clip_high": 0.4, "policy_dual_clip": 1.3, "loss_mean": "sequences"},
        {"policy_dual_clip": 1.05, "loss_mean": "constant", "kl_as": "loss", "kl_estimator": "k3"},
        {"loss_mean": "sequence_sums", "microbatch": 1},
        {"policy_loss": "gspo"},
        {"positive_coef": 0.5, "positive_score": 9.0},
    ],
)
def test_every_formula_gives_its_number(changes):
    trace = trace_of(**changes)
    assert any(q.key == "token_reward" and q.formula for q in quantities_of(trace))
    assert_formulas_agree(trace)


def test_the_reward_given_can_be_worked_out_from_the_score():
    _, trace = all_rows(make(scale_scores=True, clip_scores=4.0, missing_eos_penalty=0.3))
    assert {row.is_ended for row in trace.rows} == {True, False}
    sides = set()
    for row in trace.rows:
        scaled = row.score / trace.numbers["score_std"]
        sides.add(scaled > 4)
        expected = min(scaled, 4) - (0 if row.is_ended else 0.3)
        assert [token.token_reward for token in row.tokens[:-1]] == [0] * (len(row.tokens) - 1)
        assert row.tokens[-1].token_reward == pytest.approx(expected, abs=1e-5)
    assert sides == {True, False}
    assert "= lastₜ \N{MULTIPLICATION SIGN} (clip(S / " in " ".join(render_trace_text(trace).split())


def test_a_reward_without_a_formula_says_what_is_missing():
    def each_id(samples):
        return [[float(i) for i in s.ids] for s in samples]

    for changes, missing in (({}, ()), ({"scale_scores": True, "missing_eos_penalty": 0.5}, ("divided by", "0.5"))):
        (given,) = (q for q in quantities_of(trace_of(reward=each_id, **changes)) if q.key == "token_reward")
        assert given.formula == ""
        assert all(word in given.says for word in missing)
        assert ("not kept" in given.says) == bool(missing)
    trainer = make(scale_scores=True)
    trace = trainer.trace(
        replace(trainer.rollout(), metrics={}), [0, 3]
    )  # without the number that scores were divided by
    assert not any(q.key == "token_reward" and q.formula for q in quantities_of(trace))
    assert "</html>" in render_trace_page(trace)


def test_a_result_has_the_digits_that_its_formula_is_sure_of():
    known = {"a": 87.123456, "b": 87.123999}
    assert shown(known["b"] - known["a"], "{b} - {a}", known) == "0.0005"  # float32 gives no more digits
    assert shown(1.0, "", {}) == "1"
    assert shown(1.0, "{a} / 2", {"a": 2.0}) == "1.00000"
    assert shown(0.0, "{a} - {a}", {"a": 0.0}) == "0.000000"
    assert [shown(x, "1 if {a} >= {b} else 0", {"a": 2.0, "b": 3.0 - x}) for x in (0.0, 1.0)] == ["0", "1"]
    assert shown(-3.125e-7, "{a} / 2", {"a": -6.25e-7}) == "-3.12500e-7"
    assert shown(12345.678, "", {}) == "12345.7"
    assert shown(math.inf, "", {}) == "not finite"
    assert substituted("{a} - {b}**2 * 2", {"a": -1.5, "b": 2e-9}) == "−1.5 − 2e−9² × 2"


def test_the_text_fits_a_terminal_and_shows_the_tokens(trace):
    text = render_trace_text(trace)
    for line in text.splitlines():
        assert sum(2 if c == "語" else 1 for c in line) <= WIDTH, line
    assert "By hand" in text
    assert "\x1b" not in text
    row = trace.rows[0]
    assert f"Response {row.index}: score {row.score:.5g}" in text
    table = text[text.index("  t token") :].splitlines()[1 : len(row.tokens) + 1]
    assert [int(line.split()[0]) for line in table] == list(range(len(row.tokens)))
    assert float(table[-1].split()[-1]) == pytest.approx(row.tokens[-1].return_value, abs=1e-3)
    by_hand = []
    for line in re.findall(r"^  (?! ).*(?:\n      .*)*", text[text.index("By hand") :], flags=re.MULTILINE):
        if line.count("=") == 3:
            symbol, _, formula, result = " ".join(line.split()).split(" = ")
            assert_agrees(formula, result, line)
            by_hand.append(symbol)
    assert by_hand.count("δₜ") == len(trace.rows)


@pytest.mark.parametrize("changes", [{"epochs": 9}, {"stop_kl_per_token": 1e-6}, {"kl_coef": 0.0},
                                     {"advantage": "grpo", **GROUPS}, {"policy_loss": "reinforce"}])  # fmt: skip
def test_every_kind_of_trace_can_be_shown(changes):
    trace = trace_of(**changes)
    assert all(len(line) <= WIDTH for line in render_trace_text(trace).replace("語", "ww").splitlines())
    assert "</html>" in render_trace_page(trace)


def test_a_step_without_a_reference_says_why_and_shows_no_kl(trace):
    bare, why = trace_of(kl_coef=0.0), "kl_coef is 0, so no reference was asked"
    assert why in " ".join(render_trace_text(bare).split())
    assert why in render_trace_page(bare)
    assert why not in render_trace_text(trace)
    assert why not in render_trace_page(trace)

    def labels(some):
        return [q.label for q in quantities_of(some) if q.section == "reward"]

    assert labels(bare) == ["reward given", "reward"]
    assert labels(trace_of(kl_as="loss", kl_estimator="k3")) == ["reward given", "reward"]
    assert labels(trace) == ["reward given", "reward after KL"]


def test_reading_begins_at_the_largest_advantage_and_among_equals_at_what_was_clipped(trace):
    row = trace.rows[0]
    tokens = [replace(token, advantage=-2.0, updates=[token.updates[0]]) for token in row.tokens[:5]]
    tokens[1] = replace(tokens[1], advantage=1.0)
    tokens = [replace(x, updates=[replace(x.updates[0], ratio=r, is_clipped=False)]) for x, r in
              zip(tokens, (1.1, 9.0, 1.3, 0.6, 1.2), strict=True)]  # fmt: skip
    equal = replace(row, tokens=tokens)
    assert opening_token(equal) == 3
    tokens[4] = replace(tokens[4], updates=[replace(tokens[4].updates[0], is_clipped=True)])
    assert opening_token(equal) == 4
    tokens[1] = replace(tokens[1], advantage=-3.0)
    assert opening_token(equal) == 1
    assert opening_token(replace(equal, tokens=[replace(token, updates=[]) for token in tokens])) == 1


def test_a_quantity_names_a_function_that_exists(trace):
    for some in (trace, trace_of(advantage="grpo", kl_as="loss", kl_estimator="k3", **GROUPS)):
        for q in quantities_of(some):
            path, _, name = q.code.partition(": ")
            if q.code == "torch.autograd":  # autograd finds no gradient without the clip
                assert q.key in ("logprob_gradient", "value_gradient")
            else:
                assert f" {name.split('.')[-1]}" in (ROOT / path).read_text(encoding="utf-8"), q.code


def test_every_column_and_symbol_of_the_text_is_explained_in_it(trace):
    text = " ".join(render_trace_text(trace).split())
    titles = next(line for line in render_trace_text(trace).splitlines() if line.startswith("  t token")).split()
    assert titles[2:] == ["H", "logπ", "ref", "KL", "given", "reward", "value", "TD", "A", "Â", "return"]
    assert all(f" {title}: " in text for title in titles[2:])
    assert "(thrown away if the minibatch was skipped)" in text
    assert "KL coefficient β 0.3" in text
    for sign in ("γ", "λ", "β", "ε", "ε_V", "c_V", "N", "Aₜ₊₁"):
        assert f" {sign}: " in text.partition("In the formulas")[2]
    groups = render_trace_text(trace_of(advantage="grpo", **GROUPS))
    assert "return: " not in groups
    assert " λ: " not in groups
    assert "mean(Σr): " in " ".join(groups.split())


def own_loss(new, part, *, num_tokens, num_sequences):
    """Twice the advantage-weighted log-prob."""
    return -2 * (part.advantages * new.logprobs * part.generation.action_mask).sum() / num_tokens, {}


@pytest.mark.parametrize("changes", [{"own_loss": own_loss}, {"policy_loss": "cispo"}, {"policy_loss": "reinforce"}])
def test_a_loss_without_ppo_s_clip_shows_none_of_it(changes, trace):
    other = trace_of(**changes)
    shown_keys = {q.key for q in quantities_of(other)}
    clip = {"surrogate", "clipped_surrogate", "policy_loss", "gate", "unclipped_gradient"}
    assert {q.key for q in quantities_of(trace)} - shown_keys == clip
    assert {"logprob", "ratio", "logprob_gradient"} <= shown_keys
    text, page = render_trace_text(other), render_trace_page(other)
    for word in ("policy clip", "^ or v", "Jₜ", " ε: "):
        assert word in render_trace_text(trace)
        assert word not in text
    assert "that side of the clip" in render_trace_page(trace)
    assert "that side of the clip" not in page
    assert "NaN" not in page


def update_tables(trace):
    """The lines of each response's second table, one line per token."""
    tables = render_trace_text(trace).split("\n\n")[3::4]
    return [table.splitlines()[1 : len(row.tokens) + 1] for table, row in zip(tables, trace.rows, strict=True)]


def test_the_text_shows_the_likeliest_other_token(trace):
    for row, lines in zip(trace.rows, update_tables(trace), strict=True):
        for token, line in zip(row.tokens, lines, strict=True):
            other = max((a for a in token.alternatives if a.id != token.id), key=lambda a: a.before)
            *_, label, chance = line.split()
            assert token_label(other.text, other.id).startswith(label.removesuffix("…"))
            assert float(chance) == pytest.approx(other.before, abs=6e-4)
    for line in update_tables(trace_of(top_k=1))[0]:  # a sampler that can draw only one token
        assert len(line.split()) == 8


def test_a_token_label_is_always_visible():
    assert token_label(" the", 1) == "·the"
    assert token_label("\n", 1) == "⏎"
    assert token_label("", 17) == "#17"
    assert token_label("\x1b[2J", 1) == "\\x1b[2J"
    assert token_label("ab" * 10**6, 1) == "ab" * 100 + "…·1,999,800·more·characters·"


def test_huge_tokens_and_prompts_are_cut_in_text_and_page(trace):
    row = trace.rows[0]
    tokens = [replace(token, text="t" * 10**6) for token in row.tokens]
    count = 50_000
    row = replace(row, tokens=tokens, pieces=["p"] * (count - 1) + ["e" * 10**6], prompt_ids=[5] * count)
    huge = replace(trace, rows=[row])
    for text in (render_trace_text(huge), render_trace_page(huge, title="t")):
        assert len(text) < 500_000
        assert "48,000 tokens before" in " ".join(text.split())
        assert re.search(r"999,800.more.characters", text)
