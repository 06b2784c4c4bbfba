"""Attacks on a model that has memorised, with the numbers that they must give; their machinery against plain loops."""

import copy
from dataclasses import replace
from functools import partial

import pytest
import torch

from eval.attacks import decoding, prompts, relearning, result, suite, weights
from eval.attacks.result import AttackResult, Shown
from eval.baselines.training import nll_of
from eval.intervals import difference_interval
from eval.outputs import Continuation, continuations
from eval.secrets import Secret
from eval.teacher import teacher_force
from models.load import load
from ppo.config import Sampling
from ppo.generation import generate
from rewards.bleu import Bleu
from tests.eval.test_evaluate import Passage, make_passages, train_memorised
from tests.fakes import Letters, tiny_gpt2, tiny_llama


@pytest.fixture(scope="module")
def memorised():
    return train_memorised()


def shares(found: AttackResult, quantity: str = "exact") -> dict[str, float]:
    return {group: values[quantity] for group, values in result.summarise(found, resamples=5)["groups"].items()}


# What a result says


def test_the_best_try_decides_a_row():
    shown = [Shown("a", "forget", [2], [3, 4, 5])]
    tries = [[Continuation([3, 9], "bh"), Continuation([3, 4, 9], "bch"), Continuation([], "")]]
    (row,) = result.score_tries(shown, tries, Letters(), Bleu())
    assert row == {"id": "a", "group": "forget", "exact": 0.0, "exact_folded": 0.0, "approximate": 0.0, "bleu": 0.0,
                   "matched": 2 / 3, "empty": 0.0, "secret": None, "run": 2.0}  # fmt: skip
    upper = [[Continuation([7], "BCD")]]
    (row,) = result.score_tries(shown, upper, Letters(), Bleu())
    assert (row["exact"], row["exact_folded"]) == (0.0, 1.0)


def make_row(name: str, group: str, exact: float, bleu: float) -> dict:
    return {"id": name, "group": group, "exact": exact, "exact_folded": exact, "approximate": exact, "bleu": bleu,
            "matched": exact, "empty": 1 - exact, "secret": None, "run": 10 * exact}  # fmt: skip


def test_any_try_that_writes_a_secret_counts_and_passages_without_one_do_not():
    letters, secret = Letters(), [Secret("cd", 2, 3)]
    shown = [Shown("a", "forget", [2], [2, 3, 4, 5], secrets=secret), Shown("b", "forget", [2], [3, 4])]
    tries = [[Continuation([9], "h"), Continuation([9, 4, 5], "hcd")], [Continuation([3, 4], "bc")]]
    rows = result.score_tries(shown, tries, letters, Bleu())
    assert [(row["secret"], row["run"]) for row in rows] == [(1.0, 2.0), (None, 2.0)]
    first, second = AttackResult("x", "", "prefix", 2, rows), AttackResult("y", "", "prefix", 2, rows[1:])
    assert [row["secret"] for row in result.union([first, second]).rows] == [1.0, None]
    found = result.summarise(first, resamples=5)["groups"]["forget"]
    assert (found["secret"], found["passages"]) == (1.0, 2)
    assert found["intervals"]["secret"] == pytest.approx([0.025, 1.0])  # of the one passage that has a secret
    assert "secret" not in result.summarise(second, resamples=5)["groups"]["forget"]
    table = result.render_attacks([result.summarise(one, resamples=5) for one in (first, second)], quantity="secret")
    assert table.splitlines()[2:] == ["x  100.0 %", "y        -"]


def test_half_of_a_secret_may_be_shown_and_is_read_with_the_output():
    letters = Letters()
    passage = replace(make_passages()[0], suffix=(2, 3, 4, 5, 6, 7))
    object.__setattr__(passage, "secrets", ("abcd", "ef"))
    one, two, three = (prompts.as_shown(passage, letters, hint=hint) for hint in (1, 2, 3))
    assert [[secret.text for secret in s.secrets] for s in (one, two, three)] == [["abcd", "ef"]] * 2 + [["ef"]]
    assert (two.prefix, two.suffix) == ([*passage.prefix, 2, 3], [4, 5, 6, 7])
    tries = [[Continuation([4, 5, 9], "cdh")]]
    assert result.score_tries([two], tries, letters, Bleu())[0]["secret"] == 1.0
    assert result.score_tries([three], tries, letters, Bleu())[0]["secret"] == 0.0


def test_union_summary_and_table():
    greedy = AttackResult("greedy", "", "prefix", 1, [make_row("a", "forget", 0, 10), make_row("b", "forget", 1, 100)])
    longer = AttackResult("longer context", "", "context", 1, [make_row("a", "forget", 1, 100)])
    hinted = AttackResult("true tokens shown", "tokens:5", "suffix", 1, [make_row("a", "never", 1, 100)])
    everything = result.union([greedy, longer, hinted])
    assert shares(everything) == {"forget": 1.0}
    assert everything.tries == 2
    assert {row["empty"] for row in everything.rows} == {0.0}
    assert greedy.rows[0]["exact"] == 0  # the union leaves its inputs unchanged
    with pytest.raises(ValueError, match="no union"):
        result.union([hinted])
    summary = result.summarise(greedy, resamples=50)
    assert summary["groups"]["forget"]["bleu"] == 55
    assert summary["groups"]["forget"]["intervals"]["exact"] == pytest.approx([1 - 0.975**0.5, 0.975**0.5])  # 1 of 2
    assert summary["signature"] == "attack:greedy|plain|sees:prefix|tries:1|best-of-tries"
    table = result.render_attacks([summary, result.summarise(hinted)], [summary]).splitlines()
    assert table[0].split() == ["forget", "never"]
    assert "50.0 % →  50.0 %" in table[2]
    assert table[3].startswith("true tokens shown tokens:5")
    assert "100.0 % →       -" in table[3]


# Other prompts


def test_prompt_attacks_on_a_model_that_has_memorised(memorised):
    passages = make_passages()
    (greedy,) = prompts.greedy_attack(memorised, Letters(), passages)
    assert shares(greedy) == {"forget": 1.0, "keep": 1.0, "never": 0.0}
    (context,) = prompts.context_attack(memorised, Letters(), [*passages, Passage("x", (), (2,), (3,), "forget")])
    assert shares(context) == {"forget": 1.0, "keep": 1.0, "never": 0.0}
    assert len(context.rows) == 9  # the passage without a pre-prefix is skipped
    one, four = prompts.shortened_attack(memorised, Letters(), passages, kept=(1, 4))
    assert len(one.rows) == 9
    assert shares(one)["forget"] < 1.0  # one token is not enough of a prefix
    assert four.rows == []  # no prefix has more than four tokens


def test_hints_are_the_first_tokens_of_the_suffix(memorised):
    passages = make_passages()
    three, five = prompts.hinted_attack(memorised, Letters(), passages, hints=(3, 5))
    found = teacher_force(memorised, [[*p.prefix, *p.suffix] for p in passages])
    assert [row["exact"] for row in three.rows] == [float(s.is_right[-3:].all()) for s in found]
    assert [row["exact"] for row in five.rows] == [float(s.is_right[-1]) for s in found]
    assert {row["matched"] for row in five.rows} <= {0.0, 1.0}
    with pytest.raises(ValueError, match="hints=0"):
        prompts.hinted_attack(memorised, Letters(), passages, hints=(0,))


def test_perturbations_by_hand():
    assert prompts.swap_words("a b c d e f") == "b a d c e f"
    assert prompts.swap_words("a b c d e") == "a c b d e"
    assert prompts.swap_words("a b") == "a b"
    assert prompts.double_spaces("a b c") == "a  b  c"


def test_a_perturbed_prefix_reveals_less():
    loaded = load("lab")
    tokenizer = loaded.tokenizer
    texts = ["A name is bound to the object", "The list holds three items and a value"]
    passages = []
    for i, text in enumerate(texts):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        written = generate(loaded.model, [ids], Sampling(response_length=12, temperature=0.0, eos_ids=()))
        passages.append(Passage(f"p{i}", (), tuple(ids), tuple(written.tokens[0].tolist()), "forget"))
    found = {r.variant: shares(r)["forget"] for r in prompts.perturbed_attack(loaded.model, tokenizer, passages)}
    assert list(found) == ["upper case", "lower case", "double spaces", "swapped words"]
    assert found["upper case"] < shares(prompts.greedy_attack(loaded.model, tokenizer, passages)[0])["forget"] == 1.0


# Other decoding


def test_grid_is_every_combination():
    assert decoding.grid([1.0, 2.0], [0, 5], [1.0]) == [
        Sampling(temperature=t, top_k=k) for t in (1.0, 2.0) for k in (0, 5)
    ]
    with pytest.raises(ValueError, match="temperature 0"):
        decoding.grid([0.0], [0], [1.0])


def test_drafts_of_the_truth_change_no_sample(memorised):
    passages = make_passages()
    sampler = Sampling(temperature=1.5, top_k=9)
    (found,) = decoding.sampling_attack(memorised, Letters(), passages, samplers=[sampler], num_samples=3, seed=7)
    asked = Sampling(temperature=1.5, top_k=9, num_samples=3)
    plain = continuations(memorised, Letters(), passages, asked, generate=generate, seed=7)
    shown = [prompts.as_shown(p, Letters()) for p in passages]
    assert found.rows == result.score_tries(shown, plain, Letters(), Bleu())
    assert found.tries == 3
    assert found.name == "3 samples temperature:1.5|top_k:9|top_p:1"


def naive_beams(model, prompt: list[int], length: int, width: int, banned: int | None) -> list[list[int]]:
    """Beam search as a loop over lists."""
    beams = [(0.0, list(prompt))]
    for _ in range(length):
        grown = []
        for score, ids in beams:
            row = torch.log_softmax(model(torch.tensor([ids])).logits[0, -1].double(), dim=-1)
            grown += [(score + float(value), [*ids, token]) for token, value in enumerate(row) if token != banned]
        beams = sorted(grown, key=lambda beam: -beam[0])[:width]
    return [ids[len(prompt) :] for _, ids in beams]


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_llama])
def test_beam_search_against_a_loop(make):
    model = make().eval()
    asked = [[2, 3], [4, 5, 6], [7]]
    found = decoding.search(model, asked, length=4, num_beams=3)
    with torch.no_grad():
        assert found.tolist() == [naive_beams(model, prompt, 4, 3, banned=1) for prompt in asked]


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_llama])
def test_a_beam_search_takes_eos_as_a_token_where_a_suffix_holds_it(make):
    model = make().eval()
    with torch.no_grad():  # EOS, token 1, is among the likeliest
        model.get_output_embeddings().weight[1] *= 3
    own, asked = model.generation_config, [[3, 4], [5, 6], [7, 8], [9, 10]]
    found = decoding.search(model, asked, length=4, num_beams=3, has_ends=True).tolist()
    with torch.no_grad():
        assert found == [naive_beams(model, prompt, 4, 3, banned=None) for prompt in asked]
    assert any(1 in beam[:-1] for beams in found for beam in beams)
    assert model.generation_config is own


def test_beam_attack_finds_what_was_memorised(memorised):
    (found,) = decoding.beam_attack(memorised, Letters(), make_passages(), num_beams=3, batch=4)
    assert shares(found) == {"forget": 1.0, "keep": 1.0, "never": 0.0}
    with pytest.raises(ValueError, match="num_beams=1"):
        decoding.beam_attack(memorised, Letters(), make_passages(), num_beams=1)


# Attacks on the weights


def test_relearning_is_a_curve_on_a_copy():
    model, passages = tiny_gpt2(dropout=0.0).eval(), make_passages(12)
    before = copy.deepcopy(model.state_dict())
    attack = partial(relearning.relearning_attack, learning_rate=1e-2, share=0.5)
    found = attack(model, Letters(), passages, steps=(1, 80))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [r.variant for r in found] == [f"steps:{n}|{part}" for n in (0, 1, 80) for part in ("taught", "not taught")]
    taught = [shares(r)["forget"] for r in found[::2]]
    assert taught[0] == 0.0
    assert taught[-1] == 1.0
    assert [len(r.rows) for r in found] == [2, 10] * 3
    assert not {row["id"] for row in found[0].rows} & {row["id"] for row in found[1].rows}
    assert shares(found[-1])["never"] < 1.0
    with pytest.raises(ValueError, match="nothing to teach or to test"):
        attack(model, Letters(), passages[:3], steps=(1,))
    with pytest.raises(ValueError, match=r"steps=\[0\]"):
        attack(model, Letters(), passages, steps=(0,))


def test_relearning_on_benign_text_and_on_its_tokens_mixed(monkeypatch):
    model, passages, lessons = tiny_gpt2(dropout=0.0).eval(), make_passages(12), []
    monkeypatch.setattr(relearning, "nll_of", lambda pairs, *rest: lessons.append(pairs) or nll_of(pairs, *rest))
    benign = [[2 + (7 * i + 3 * t) % 20 for t in range(14)] for i in range(5)]
    found = relearning.relearning_attack(model, Letters(), passages, share=0.5, steps=(1,), benign=[[2], *benign])
    own = [f"steps:{n}|{part}" for n in (0, 1) for part in ("taught", "not taught")]
    assert [r.variant for r in found] == [*own, "steps:1|benign", "steps:1|filler"]
    alone = relearning.relearning_attack(model, Letters(), passages, on=("forget",), share=0.5, steps=(1,))
    assert [r.rows for r in alone] == [r.rows for r in found[:4]]  # what else is taught changes nothing
    lessons.pop()
    assert [len(r.rows) for r in found[4:]] == [12, 12]
    _, plain, mixed = lessons
    assert plain == [(ids[:4], ids[4:10]) for ids in benign[:2]]  # as many as are taught, long enough, as long
    assert mixed != plain
    assert sorted(t for pair in mixed for part in pair for t in part) == sorted(
        t for pair in plain for part in pair for t in part
    )
    assert [[len(part) for part in pair] for pair in mixed] == [[4, 6]] * 2
    only = relearning.relearning_attack(
        model, Letters(), passages, on=("benign",), share=0.5, steps=(1,), benign=benign
    )
    assert [r.variant for r in only] == ["steps:1|benign"]
    with pytest.raises(ValueError, match=r"relearning on .'sleep'."):
        relearning.relearning_attack(model, Letters(), passages, on=("sleep",))


def test_the_never_trained_passages_are_the_control_of_every_attack():
    rows = [make_row("a", "forget", 1, 90), make_row("b", "forget", 0, 30), make_row("c", "never", 0, 10),
            make_row("d", "never", 0, 14)]  # fmt: skip
    summary = result.summarise(AttackResult("x", "", "prefix", 1, rows), resamples=50)
    found = summary["over_never"]["forget"]
    assert found["bleu"]["value"] == pytest.approx(60 - 12)
    assert found["exact"]["value"] == 0.5
    groups = summary["groups"]
    ends = [groups[g]["intervals"]["exact"] for g in ("forget", "never")]
    assert found["exact"]["interval"] == pytest.approx(list(difference_interval(0.5, ends[0], 0.0, ends[1])))
    assert set(summary["over_never"]) == {"forget"}
    assert "over_never" not in result.summarise(AttackResult("x", "", "prefix", 1, rows[:2]), resamples=5)


def test_the_best_of_all_attacks_leaves_out_what_was_put_in():
    shown = AttackResult("true tokens shown", "tokens:5", "suffix", 1, [make_row("a", "forget", 1, 100)])
    taught = AttackResult("relearning", "steps:5|taught", "weights", 1, [make_row("a", "forget", 1, 100)])
    untaught = AttackResult("relearning", "steps:5|not taught", "weights", 1, [make_row("b", "forget", 1, 100)])
    greedy = AttackResult("greedy", "", "prefix", 1, [make_row("a", "forget", 0, 10), make_row("b", "forget", 0, 5)])
    found = result.union_with_weights([greedy, shown, taught, untaught])
    assert {row["id"]: row["exact"] for row in found.rows} == {"a": 0, "b": 1}
    assert (found.name, found.sees, found.tries) == ("any of these, weights too", "weights", 2)
    with pytest.raises(ValueError, match="no attack to take the best of"):
        result.union_with_weights([shown])


def test_round_to_nearest_by_hand():
    rows = torch.tensor([[0.9, -0.4, 0.1, 0.6], [0.0, 0.0, 0.0, 0.0]])
    assert weights.round_to_nearest(rows, 2).tolist() == [pytest.approx([0.9, 0, 0, 0.9]), [0, 0, 0, 0]]
    # two inputs share a scale: 0.9 and 0.6, so the small numbers of the second half survive
    halves = weights.round_to_nearest(rows[:1], 2, group=2)
    assert halves.tolist() == [pytest.approx([0.9, 0, 0, 0.6])]
    # 3 bits: steps of a third of the largest
    assert weights.round_to_nearest(rows[:1], 3).tolist() == [pytest.approx([0.9, -0.3, 0, 0.6])]
    with pytest.raises(ValueError, match="group=3"):
        weights.round_to_nearest(rows, 4, group=3)
    with pytest.raises(ValueError, match="bits=1"):
        weights.round_to_nearest(rows, 1)


def test_quantised_copies_round_the_layers_inside_the_blocks(memorised):
    before = copy.deepcopy(memorised.state_dict())
    copied = weights.quantised(memorised, 4)
    assert all(torch.equal(value, before[name]) for name, value in memorised.state_dict().items())
    layer = copied.transformer.h[0].mlp.c_fc.weight  # [in, out]: every output has its own scale
    assert max(len(column.unique()) for column in layer.T) <= 15
    assert max(len(row.unique()) for row in layer) > 15
    assert torch.equal(copied.transformer.wte.weight, memorised.transformer.wte.weight)
    linear = weights.quantised(tiny_llama(), 4).model.layers[0].mlp.up_proj.weight
    assert max(len(row.unique()) for row in linear) <= 15
    full, half, eight, two, worst = weights.quantisation_attack(memorised, Letters(), make_passages(), bits=(8, 2))
    assert [r.variant for r in (full, half, worst)] == ["float32", "bfloat16", "worst precision"]
    assert [row["bleu"] for row in worst.rows] == [
        max(values) for values in zip(*([row["bleu"] for row in r.rows] for r in (full, half, eight, two)), strict=True)
    ]
    assert next(memorised.parameters()).dtype == torch.float32
    assert shares(eight) == {"forget": 1.0, "keep": 1.0, "never": 0.0}
    assert shares(two)["forget"] < 1.0
    assert two.name == "quantisation bits:2|scale:row"


# All of them


def test_the_suite_runs_the_requested_attacks(memorised):
    settings = suite.AttackSettings(
        num_samples=2, top_ks=(0,), num_beams=2, kept=(3,), hints=(1,), relearning_share=0.4, relearning_steps=(1,),
        bits=(8,),
    )  # fmt: skip
    names = [name for name in suite.NAMES if name != "perturbed"]  # the tokenizer Letters has no capital letters
    told: list[str] = []
    found = suite.run_attacks(
        memorised, Letters(), make_passages(), names=names, settings=settings, say=told.append
    )  # fmt: skip
    assert told == names
    assert [r.attack for r in found] == [
        "greedy", "longer context", "2 samples", "2 samples", "beam search", "shortened prefix", "true tokens shown",
        *["relearning"] * 4, *["quantisation"] * 4, "any of these", "any of these, weights too",
    ]  # fmt: skip
    assert shares(found[-2])["forget"] == shares(found[-1])["forget"] == 1.0
    kept = [p for p in make_passages() if p.group == "keep"]
    assert suite.run_attacks(memorised, Letters(), kept, names=["relearning"], settings=settings) == []
    assert suite.chosen_names(["beam", "greedy"]) == ["greedy", "beam"]
    assert suite.chosen_names(["all"]) == list(suite.NAMES)
    with pytest.raises(ValueError, match="unknown attacks"):
        suite.chosen_names(["rowhammer"])
