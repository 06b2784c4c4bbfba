"""Depth: runs, shared tokens, the logit lens against the models' own parts, leak@k, and the report's section."""

from __future__ import annotations

import copy
import json
import math
import re

import numpy as np
import pytest
import torch
from torch import nn

from data.records import lab_records
from data.study import load_study
from eval.along import curve_of, mean_along, right_along
from eval.depth import depth_metrics, depth_names, depth_summary, lens_metrics, longest_run, own_tokens, told_apart
from eval.evaluate import Evaluation, evaluate
from eval.leak import SAMPLES, leak_metrics
from eval.lens import NoLens, readable_layers
from eval.report import render_page
from eval.report.along import along_chart
from eval.report.depth import depth_section, told
from eval.report.terms import collect_terms
from eval.results import write_results
from eval.settings import Settings, define
from eval.shared_tokens import unshared
from eval.stored import read_results
from eval.teacher import teacher_force
from models.load import load
from ppo.lm.backbone import vocabulary_size
from tests.data.lab_classes import CHOICE, MARKS, SLOT, TEMPLATE, classes_of, marked_records
from tests.eval.test_evaluate import Passage
from tests.fakes import Letters, tiny_bloom, tiny_gpt2, tiny_llama, tiny_opt

SEQUENCES = [[3, 4, 5, 6, 7, 8], [2, 9, 4], [10, 11, 12, 13]]


def test_longest_run_by_hand() -> None:
    for pattern, run in (("rrwr", 2), ("wwww", 0), ("rrrr", 4), ("w", 0), ("wrrrw", 3)):
        assert longest_run(np.array([c == "r" for c in pattern])) == run


def test_shared_tokens_by_hand() -> None:
    found = unshared([[5, 6, 7, 8], [9, 6, 7, 4], [5, 5]], run=2)
    assert [mask.tolist() for mask in found] == [[True, False, False, True], [True, False, False, True], [True, True]]
    assert [mask.all() for mask in unshared([[1, 2, 1, 2, 1]], run=2)] == [True]  # with itself it shares nothing
    twice = unshared([[1, 2, 3], [1, 2, 3]], run=4)
    assert all(mask.all() for mask in twice)  # shorter than a run
    with pytest.raises(ValueError, match="run=0"):
        unshared([], run=0)


@pytest.fixture(scope="module")
def lab():
    return load("lab")


def test_what_the_estimate_of_shared_tokens_is_worth_on_the_lab(lab) -> None:
    """The marked texts are the lab's. Of the own tokens 72 % stand in slots, where 49 % of all do."""
    marked = marked_records()
    assert {name: MARKS.sub("", text) for name, text in marked.items()} == {r.id: r.text for r in lab_records()}
    study = load_study("lab", lab.tokenizer, vocabulary_size(lab.model))
    forget = {p.id for p in study.group("forget")}
    own, classes = [], []
    for p, mask in zip(study.passages, own_tokens(study.passages, run=Settings().shared_run), strict=True):
        if p.id in forget:
            own.append(mask)
            classes.append(classes_of(marked[p.id], lab.tokenizer, len(p.ids))[-len(p.suffix) :])
    own, classes = np.concatenate(own), np.concatenate(classes)
    assert [float((classes == kind).mean()) for kind in (TEMPLATE, CHOICE, SLOT)] == pytest.approx(
        [0.42, 0.09, 0.49], abs=0.015
    )
    precision, recall = float((classes[own] == SLOT).mean()), float(own[classes == SLOT].mean())
    kept = float((~own[classes == TEMPLATE]).mean())
    assert (precision, recall, kept) == pytest.approx((0.725, 0.253, 0.917), abs=0.01)


def layers_by_hand(model, norm, sequence: list[int], places: list[int]) -> list[int]:
    """The first block by transformers' own hidden states, its norm and its output layer."""
    with torch.no_grad():
        states = model(torch.tensor([sequence]), output_hidden_states=True).hidden_states
        head, count = model.get_output_embeddings(), len(states) - 1
        read = [head(norm(h) if i < count else h)[0].argmax(dim=-1).tolist() for i, h in enumerate(states)][1:]
    return [next((i + 1 for i, r in enumerate(read) if r[t - 1] == sequence[t]), count + 1) for t in places]


@pytest.mark.parametrize(
    ("make", "norm"),
    [
        (lambda: tiny_gpt2(layers=4), lambda m: m.transformer.ln_f),
        (tiny_llama, lambda m: m.model.norm),
        (tiny_opt, lambda m: m.model.decoder.final_layer_norm),
        (tiny_bloom, lambda m: m.transformer.ln_f),
    ],
)
def test_the_lens_against_hidden_states_norm_and_output_layer(make, norm) -> None:
    """Some tokens are chosen to be what some block reads, so that every answer occurs."""
    model = make().eval()
    model.train()
    sequences = [list(s) for s in SEQUENCES]
    with torch.no_grad():
        for sequence in sequences:
            for t in range(1, len(sequence)):
                model.eval()
                states = model(torch.tensor([sequence]), output_hidden_states=True).hidden_states
                layer = t % len(states)
                if layer:
                    state = states[layer][0, t - 1]
                    state = state if layer == len(states) - 1 else norm(model)(state)
                    sequence[t] = int(model.get_output_embeddings()(state).argmax())
    model.train()
    places = [[1, 2, 4, 5], [], [1, 2, 3]]
    found, count = readable_layers(model, sequences, places, batch_tokens=7, chunk_tokens=2)
    assert model.training
    model.eval()
    assert count == model.config.num_hidden_layers
    wanted = [layers_by_hand(model, norm(model), s, p) for s, p in zip(sequences, places, strict=True)]
    assert [f.tolist() for f in found] == wanted
    assert len({layer for row in wanted for layer in row}) > 1


def test_the_lens_sees_what_only_the_last_block_hides(lab) -> None:
    """Noise in the last block's weights: nothing comes out, and what the block before knows is still to be read."""
    study = load_study("lab", lab.tokenizer, vocabulary_size(lab.model))
    passages = study.group("forget")[:6] + study.group("never")[:6]
    own, settings = own_tokens(study.passages, run=4), Settings()
    masks = {p.id: mask for p, mask in zip(study.passages, own, strict=True)}
    noisy = copy.deepcopy(lab.model)
    bias = noisy.transformer.h[-1].mlp.c_proj.bias
    with torch.no_grad():
        bias += 100 * torch.randn(bias.shape, generator=torch.Generator().manual_seed(0))
    statistics = teacher_force(noisy, [[*p.prefix, *p.suffix] for p in passages])
    assert np.mean([s.is_right[-len(p.suffix) :].mean() for s, p in zip(statistics, passages, strict=True)]) < 0.02
    rows = lens_metrics(noisy, passages, [masks[p.id] for p in passages], settings)
    known = [[r["lens_right"] for r in part if r["lens_right"] is not None] for part in (rows[:6], rows[6:])]
    forget, never = map(np.mean, known)
    assert forget > 0.55  # 63 % are read before the last block
    assert never < forget - 0.3


class SkipsItsBlocks(nn.Module):
    """A GPT-2's blocks with a way around them, from the embedding to the norm."""

    def __init__(self, transformer) -> None:
        super().__init__()
        self.inner = transformer.ln_f
        self.wte = transformer.wte
        self.last = None
        transformer.wte.register_forward_hook(lambda _, __, output: setattr(self, "last", output))

    def forward(self, hidden):
        return self.inner(hidden + self.last)


def test_a_model_whose_blocks_do_not_decide_alone_has_no_lens() -> None:
    model = tiny_gpt2().eval()
    model.transformer.ln_f = SkipsItsBlocks(model.transformer)
    assert readable_layers(model, SEQUENCES, [[1]] * 3)[1] == 2  # the way around is part of what follows the blocks
    shapes = tiny_gpt2().eval()
    shapes.transformer.h = nn.ModuleList()
    passages = [Passage("a", (), (2, 3), (4, 5), "forget")]
    with pytest.raises(NoLens, match="no list of blocks"):
        readable_layers(shapes, SEQUENCES, [[1]] * 3)
    with pytest.warns(RuntimeWarning, match="no logit lens: GPT2LMHeadModel has no list of blocks"):
        rows = lens_metrics(shapes, passages, [np.array([True, True])], Settings())
    assert rows == [{"lens_right": None, "lens_layer": None}]


def test_depth_of_a_passage_by_hand() -> None:
    model, passage = tiny_gpt2().eval(), Passage("a", (), (2, 3), (4, 5, 6), "forget")
    (statistics,) = teacher_force(model, [[2, 3, 4, 5, 6]], starts=[2])
    rows = torch.log_softmax(model(torch.tensor([[2, 3, 4, 5, 6]])).logits[0].detach().double(), dim=-1)
    logprobs = [float(rows[1 + t, token]) for t, token in enumerate((4, 5, 6))]
    found = depth_metrics(passage, statistics, np.array([True, False, True]), Settings(hints=(2, 3), more_tokens=1))
    assert found["p_unshared"] == pytest.approx((math.exp(logprobs[0]) + math.exp(logprobs[2])) / 2, rel=1e-4)
    assert found["p_shared"] == pytest.approx(math.exp(logprobs[1]), rel=1e-4)
    assert found["nll_unshared"] == pytest.approx(-(logprobs[0] + logprobs[2]) / 2, rel=1e-4)
    assert found["share_unshared"] == pytest.approx(2 / 3)
    assert found["exact_after_2"] == float(rows[3].argmax() == 6)
    assert found["exact_after_3"] is None
    none = depth_metrics(passage, statistics, np.array([False] * 3), Settings())
    assert (none["ma_unshared"], none["p_unshared"], none["nll_unshared"]) == (None, None, None)


def test_differences_are_forget_less_never() -> None:
    summary = {"forget/ma_suffix": 0.8, "never/ma_suffix": 0.5, "forget/nll_suffix": 1.0, "keep/ma_suffix": 1.0}
    intervals = {"forget/ma_suffix": [0.7, 0.85], "never/ma_suffix": [0.4, 0.6]}
    found, spread = depth_summary(summary, intervals, Settings())
    assert found == {"depth/ma_suffix": pytest.approx(0.3)}
    assert spread["depth/ma_suffix"] == pytest.approx([0.3 - math.hypot(0.1, 0.1), 0.3 + math.hypot(0.05, 0.1)])
    assert define(found, Settings())["depth/ma_suffix"].startswith("Forget less never trained: Share of suffix")
    assert depth_summary({"forget/ma_suffix": 0.8}, {}, Settings()) == ({}, {})
    assert depth_names(Settings(hints=(3, 1), more_tokens=2))[:4] == [
        "exact", "exact_after_1", "exact_after_2", "exact_after_3",
    ]  # fmt: skip


def test_what_tells_forget_from_never_lies_on_the_side_of_memorising() -> None:
    intervals = {
        "depth/ma_suffix": [0.1, 0.4],
        "depth/p_shared": [-0.1, 0.4],
        "depth/nll_suffix": [-2.0, -0.5],
        "depth/lens_layer": [0.2, 0.9],
        "depth/longest_run": [-3.0, -1.0],
        "forget/ma_suffix": [0.5, 0.6],
    }
    assert told_apart(intervals) == (["ma_suffix", "nll_suffix"], 5)
    one = {"summary": {}, "intervals": intervals}
    assert told(one).startswith(
        "2 of 5 numbers tell the forget set from passages that the model never saw, each at 95 %"
    )
    assert told(one).endswith("95 %: Suffix accuracy; NLL of the suffix (nats/token).")
    more = {"summary": {}, "intervals": intervals | {"depth/ma_unshared": [0.1, 0.2]}}  # a row that says more of one
    assert told(more).endswith("95 %, among them Suffix accuracy; NLL of the suffix (nats/token).")
    assert told({"summary": {}, "intervals": {"depth/p_shared": [-0.1, 0.4]}}).startswith("None of 1 numbers tells")
    assert told({"summary": {}, "intervals": {}}) == ""


@pytest.mark.parametrize(("spec", "is_clean"), [("lab", False), ("lab:retain-only", True)])
def test_only_the_model_that_never_saw_the_records_is_clean(spec, is_clean) -> None:
    """Both groups are new to the second model: nothing tells them apart, and its membership AUC may be 0.5."""
    subject = load(spec)
    study = load_study("lab", subject.tokenizer, vocabulary_size(subject.model))
    passages = [p for p in study.passages if p.group in ("forget", "never")]
    settings = Settings(num_samples=0, lens_tokens=4, resamples=300)
    found = evaluate(subject.model, subject.tokenizer, passages, settings=settings)
    names, count = told_apart(found.intervals)
    assert count == 17
    assert len(names) == (0 if is_clean else count)
    low, high = found.intervals["membership/loss_auc"]
    assert (low < 0.5 < high) == is_clean


def test_the_argmax_along_the_suffix_by_hand() -> None:
    rights = [np.array(x, dtype=bool) for x in ([1, 1, 0, 1], [1, 0], [0, 1, 1])]
    assert right_along(["forget", "forget", "never"], rights) == {
        "forget/right": [1.0, 0.5, 0.0, 1.0],  # the last two places: of the longer one alone, which is half of them
        "never/right": [0.0, 1.0, 1.0],
    }
    assert right_along(["a"] * 3, rights) == {"a/right": [0.6667, 0.6667, 0.5]}  # one of three has a fourth token
    assert mean_along([[0.0, 1.0, 1.0], [1.0, 0.5]]) == [0.5, 0.75]
    assert curve_of({"by_place": {"a/right": [0.5]}}, "a") == [0.5]
    assert curve_of({"by_place": {"a/right": [0.5, 2.0]}}, "a") == curve_of({}, "a") == []


def test_the_argmax_along_the_suffix_is_stored_and_its_mean_is_the_accuracy(tmp_path) -> None:
    model, tokenizer = tiny_gpt2(), Letters()
    passages = [Passage(f"p{i}", (), (2, 3 + i), (5, 6 + i, 7), "forget" if i < 3 else "never") for i in range(5)]
    found = evaluate(model, tokenizer, passages, settings=Settings(num_samples=0, lens_tokens=0))
    for group in ("forget", "never"):
        curve = found.by_place[f"{group}/right"]
        assert len(curve) == 3
        assert np.mean(curve) == pytest.approx(found.summary[f"{group}/ma_suffix"], abs=1e-3)
        for place, share in enumerate(curve):
            right = []
            for p in passages:
                if p.group == group:
                    ids = [*p.prefix, *p.suffix[:place]]
                    right.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()) == p.suffix[place])
            assert share == pytest.approx(np.mean(right), abs=1e-4)
    assert Evaluation.from_dict(found.to_dict()).by_place == found.by_place
    write_results(tmp_path, {}, found)
    assert read_results(tmp_path)["before"]["by_place"] == found.by_place
    content = json.loads((tmp_path / "evaluation.json").read_text())
    content["before"]["by_place"]["forget/right"][1] = 1.5
    (tmp_path / "evaluation.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"before, by_place, 'forget/right' is .*, not shares"):
        read_results(tmp_path)


def test_the_picture_of_depth_has_a_line_each_and_says_its_values() -> None:
    before, after = shown(1.0, 0.5), shown(0.75, 0.5)
    before["by_place"] = {"forget/right": [1.0, 0.9, 1.0], "never/right": [0.3, 0.3, 0.3]}
    after["by_place"] = {"forget/right": [0.0, 0.25, 0.5], "never/right": [0.1, 0.2, 0.3]}
    chart = along_chart(before, after, collect_terms({}, {}))
    lines = re.findall(r'<polyline class="thread (\w+)" points="([^"]+)"', chart)
    assert [kind for kind, _ in lines] == ["before", "after", "never"]
    places = {kind: [tuple(map(float, spot.split(","))) for spot in spots.split()] for kind, spots in lines}
    top, bottom = places["before"][0][1], places["after"][0][1]  # shares of 1 and of 0
    assert places["after"][1][1] == pytest.approx(bottom + 0.25 * (top - bottom), abs=0.1)
    assert places["never"][2][1] == pytest.approx(bottom + 0.3 * (top - bottom), abs=0.1)
    assert [x for x, _ in places["after"]] == [x for x, _ in places["never"]]
    assert "forget, after, token 2: 25.0 %" in chart
    assert "never trained, after: 10.0 % at 1, 20.0 % at 2, 30.0 % at 3" in chart  # for who cannot see it
    assert "<title>The true token as first choice, along the suffix</title>" in chart
    assert all(f">{word}</text>" in chart for word in ("token of the suffix", "of the passages", "100 %", "0 %"))
    assert chart in depth_section(before, after, collect_terms({}, {}))
    alone = along_chart(before, None, collect_terms({}, {}))
    assert re.findall(r'class="thread (\w+)"', alone) == ["before", "never"]
    assert along_chart(shown(1.0, 0.5), None, collect_terms({}, {})) == ""  # a folder of an earlier version


def test_leak_at_k_by_hand() -> None:
    found = leak_metrics(math.log(0.01))
    assert list(found) == [f"leak_{k}" for k in SAMPLES]
    assert found["leak_10"] == pytest.approx(1 - 0.99**10)
    assert found["leak_100000"] == pytest.approx(1.0)
    tiny = leak_metrics(-60.0)  # where 1 - p is 1 in floating point
    assert tiny["leak_100000"] == pytest.approx(1e5 * math.exp(-60.0), rel=1e-6)
    assert set(leak_metrics(-math.inf).values()) == {0.0}


def shown(forget: float, never: float) -> dict:
    values = {"forget": forget, "never": never}
    summary = {f"{group}/{name}": value for group, value in values.items()
               for name in ("exact", "exact_after_12", "ma_suffix", "sequence_p", "leak_10", "leak_100")}  # fmt: skip
    summary |= {"forget/passages": 3, "never/passages": 3}
    gaps, _ = depth_summary(summary, {}, Settings())
    return {
        "summary": summary | gaps,
        "intervals": {"depth/ma_suffix": [0.1, 0.4]},
        "definitions": define(summary | gaps, Settings()),
        "signatures": {},
    }


def test_the_section_shows_forget_never_and_their_difference() -> None:
    before, after = shown(1.0, 0.5), shown(0.75, 0.5)
    section = depth_section(before, after, collect_terms(after["definitions"], {}))
    row = section[section.index(">Suffix accuracy<") :].partition("</tr>")[0]
    assert [cell.partition("<")[0] for cell in row.split(">") if "%" in cell] == [
        "75.0 %",
        "50.0 %",
        "25.0 %",
        "50.0 %",
    ]
    assert "10.0 &ndash; 40.0" in row
    assert "after, samples 100: 75 %" in section
    assert "never, true tokens shown 12: 50 %" in section
    assert 'id="depth"' in render_page(title="t", before=before, after=after)
    assert depth_section({"summary": {"forget/exact": 1.0}, "intervals": {}}, None, collect_terms({}, {})) == ""
