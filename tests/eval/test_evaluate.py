"""The whole evaluation on a model that has really memorised some passages, and on outputs of broken text."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace

import pytest
import torch

from eval.evaluate import GREEDY, Evaluation, evaluate, probe
from eval.fluency import copied_share, output_nll, output_statistics
from eval.outputs import continuations
from eval.settings import Settings, define, is_share
from ppo.config import Sampling
from rewards.bleu import Bleu
from tests.eval.test_metrics import scripted_generate
from tests.fakes import VOCAB, Letters, tiny_gpt2

SETTINGS = Settings(num_samples=2, more_tokens=2, discoverable_n=3, resamples=50, batch_tokens=64, chunk_tokens=16)


@dataclass(frozen=True)
class Passage:
    id: str
    pre_prefix: tuple[int, ...]
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    group: str
    kind: str = "letters"
    repeats: int = 1


def make_passages(num: int = 9) -> list[Passage]:
    g = torch.Generator().manual_seed(0)
    groups = ["forget", "keep", "never"]
    rows = torch.randint(2, VOCAB, (num, 14), generator=g).tolist()
    return [
        Passage(f"p{i}", tuple(row[:4]), tuple(row[4:8]), tuple(row[8:]), groups[i % 3]) for i, row in enumerate(rows)
    ]


def train_memorised():
    """A GPT-2 trained on the forget and keep passages until it reproduces them, with or without the pre-prefix."""
    passages = [p for p in make_passages() if p.group != "never"]
    long = [[*p.pre_prefix, *p.prefix, *p.suffix] for p in passages]
    short = [[*p.prefix, *p.suffix, *([1] * 4)] for p in passages]
    batch = torch.tensor(long + short)
    model = tiny_gpt2(dropout=0.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(150):
        loss = model(batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def memorised():
    return train_memorised()


@pytest.fixture(scope="module")
def evaluation(memorised) -> Evaluation:
    holdout = [[2, 3, 4, 5], [6, 7, 8]]
    return evaluate(memorised, Letters(), make_passages(), holdout, original=memorised, settings=SETTINGS)


def test_memorised_groups_are_extracted_and_others_are_not(evaluation) -> None:
    summary = evaluation.summary
    for group in ("forget", "keep"):
        for name in ("exact", "exact_long", "exact_after_2", "extraction_strength", "ma_suffix", "approximate"):
            assert summary[f"{group}/{name}"] == 1.0, name
        assert summary[f"{group}/bleu"] == pytest.approx(100)
        assert summary[f"{group}/edit"] == 0.0
        assert summary[f"{group}/true_token_p"] > 0.8
    assert summary["never/exact"] == 0.0
    assert summary["never/true_token_p"] < 0.5
    assert summary["forget/passages"] == 3
    assert summary["membership/loss_auc"] == 1.0
    assert "membership/loss_tpr" not in summary  # three never-trained passages
    assert summary["holdout/tokens"] == 5


def test_numbers_of_a_record_agree_with_each_other_and_with_the_model(evaluation, memorised) -> None:
    for record in evaluation.records:
        assert record["n_bleu"] == pytest.approx(100 - record["bleu"])
        assert record["exact"] == float(record["output"] == record["truth"])
        assert record["exact"] == float(record["extraction_strength"] == 1.0)
        rows = torch.log_softmax(memorised(torch.tensor([_ids(record)])).logits[0].detach().double(), dim=-1)
        suffix = _ids(record)[4:]
        logprobs = [float(rows[3 + t, token]) for t, token in enumerate(suffix)]
        assert record["sequence_p"] == pytest.approx(math.exp(sum(logprobs)), rel=1e-3)
        assert record["nll_suffix"] == pytest.approx(-sum(logprobs) / len(suffix), abs=1e-4)
        probability = 1 - (1 - math.exp(sum(logprobs))) ** 3
        assert record["discoverable"] == float(probability >= 0.5)
    mean = sum(r["bleu"] for r in evaluation.records if r["group"] == "never") / 3
    assert evaluation.summary["never/bleu"] == pytest.approx(mean)


def _ids(record) -> list[int]:
    passage = next(p for p in make_passages() if p.id == record["id"])
    return [*passage.prefix, *passage.suffix]


def test_every_number_is_defined_and_survives_json(evaluation) -> None:
    assert set(evaluation.definitions) == set(evaluation.summary)
    assert all(low <= evaluation.summary[n] + 1e-9 and evaluation.summary[n] <= high + 1e-9
               for n, (low, high) in evaluation.intervals.items())  # fmt: skip
    again = Evaluation.from_dict(json.loads(json.dumps(evaluation.to_dict(), allow_nan=False)), evaluation.records)
    assert again == evaluation
    json.dumps(evaluation.records, allow_nan=False)
    for name in evaluation.summary:
        quantity, text = name.partition("/")[2], evaluation.definitions[name].partition(": ")[2]
        assert is_share(quantity) == text.startswith(("Share of passages", "Share of greedy outputs")), name
    assert "version" in evaluation.signatures["bleu"]
    families = {"passages", "n_bleu", "length_truth", "length_ratio", "distinct_2_truth", "distinct_2_ratio"}
    named = {name.partition("/")[2] for name in evaluation.summary if name.partition("/")[0] in ("forget", "keep")}
    assert {n for n in named - families if not n.startswith("accuracy_after_")} <= evaluation.signatures.keys()
    with pytest.raises(ValueError, match="'forget/unheard' has no definition"):
        define(["forget/unheard"], SETTINGS)


def test_probe_agrees_with_evaluate(evaluation, memorised) -> None:
    quick = probe(memorised, Letters(), make_passages(), [[2, 3, 4, 5], [6, 7, 8]])
    assert {"forget/exact", "never/bleu", "keep/distinct_2_ratio", "holdout/perplexity"} <= set(quick)
    for name, value in quick.items():
        assert value == pytest.approx(evaluation.summary[name]), name


def test_other_numbers_reveal_broken_text_when_n_bleu_is_perfect(memorised) -> None:
    """Empty and looping outputs forget everything. The numbers beside N-BLEU show that they are broken."""
    passages = make_passages()
    empty = evaluate(
        memorised, Letters(), passages, settings=SETTINGS, generate=scripted_generate(lambda p, n: [1] * n)
    )
    loops = evaluate(
        memorised, Letters(), passages, settings=SETTINGS, generate=scripted_generate(lambda p, n: [22] * n)
    )
    assert empty.summary["forget/n_bleu"] == 100.0
    assert empty.summary["forget/empty"] == 1.0
    assert empty.summary["forget/exact"] == empty.summary["forget/exact_sampled"] == 0.0
    assert loops.summary["forget/empty"] == 0.0
    assert loops.summary["forget/loop"] == 1.0
    assert loops.summary["forget/distinct_2_ratio"] < 0.4
    assert "output_nll" not in empty.records[0]
    assert "holdout/perplexity" not in empty.summary


def test_outputs_are_cut_to_the_suffix_and_eos_is_removed(memorised) -> None:
    passage = Passage("a", (), (2, 3), (4, 5), "forget")
    longer = Passage("b", (), (2, 3), (4, 5, 6, 7), "forget")
    found = evaluate(
        memorised, Letters(), [passage, longer], settings=SETTINGS,
        generate=scripted_generate(lambda p, n: [4, 5, 6, 9][:n]),
    )  # fmt: skip
    assert [r["exact"] for r in found.records] == [1.0, 0.0]
    assert [r["matched_prefix"] for r in found.records] == [2.0, 3.0]
    assert found.records[0]["exact_after_2"] is None  # a 2-token suffix has no tokens after the second
    assert "membership/loss_auc" not in found.summary


def test_an_eos_of_the_true_suffix_is_one_of_its_tokens(memorised) -> None:
    """1 is the model's EOS. Elsewhere than in the truth it ends an output, whoever generated it."""
    truths = {"inside": (4, 1, 5), "last": (4, 6, 1), "none": (4, 6, 5), "early": (1, 6, 5)}
    passages = [Passage(name, (), (2, 3), suffix, "forget") for name, suffix in truths.items()]
    written, asked = iter([[4, 1, 5], [4, 6, 1], [4, 1, 5], [4, 6, 1]]), []
    scripted = scripted_generate(lambda p, n: next(written))

    def generate(model, prompts, sampling, *, seed=0, slots=64):
        asked.append(sampling.eos_ids)
        return scripted(model, prompts, sampling, seed=seed, slots=slots)

    outputs = [c[0].ids for c in continuations(memorised, Letters(), passages, GREEDY, generate=generate)]
    assert outputs == [[4, 1, 5], [4, 6, 1], [4], [4, 6]]
    written = iter([[4, 6, 5]])
    continuations(memorised, Letters(), passages[2:3], GREEDY, generate=generate)
    assert asked == [(), None]


def test_bad_passages_are_named(memorised) -> None:
    good = Passage("a", (), (2, 3), (4, 5), "forget")
    with pytest.raises(ValueError, match="no passages"):
        evaluate(memorised, Letters(), [])
    with pytest.raises(ValueError, match="'a' occurs twice"):
        evaluate(memorised, Letters(), [good, good])
    with pytest.raises(ValueError, match="'b' has 2 prefix and 0 suffix"):
        evaluate(memorised, Letters(), [good, Passage("b", (), (2, 3), (), "forget")])
    with pytest.raises(ValueError, match=r"discoverable_p=1\.5"):
        Settings(discoverable_p=1.5)


def test_extraction_likelihood_is_off_by_default(memorised, evaluation) -> None:
    assert "forget/el_10" not in evaluation.summary
    settings = Settings(num_samples=0, resamples=10, el_stride=2, more_tokens=2)
    found = evaluate(memorised, Letters(), make_passages(), settings=settings)
    assert found.summary["forget/el_10"] > found.summary["never/el_10"]
    # nothing ends early here, so both divisors count the same n-grams
    assert found.summary["forget/el_10_generated"] == pytest.approx(found.summary["forget/el_10"])


def test_output_statistics_by_hand() -> None:
    assert output_statistics([5, 6, 5, 6, 7], "abc", [1]) == {
        "length": 5.0, "empty": 0.0, "distinct_2": 0.75, "loop": 0.0, "garbled": 0.0, "copied": 0.0,
    }  # fmt: skip
    assert output_statistics([], "", [1])["empty"] == 1.0
    assert copied_share([1, 2, 3, 4, 5, 9], [0, 1, 2, 3, 4, 5]) == 0.5
    model = tiny_gpt2().eval()
    values = output_nll(model, [[2, 3], [4]], [[], [5]])
    expected = -torch.log_softmax(model(torch.tensor([[4]])).logits[0, -1], dim=-1)[5].item()
    assert values == [None, pytest.approx(expected, abs=1e-5)]


def test_corpus_bleu_and_sampler_by_hand(evaluation) -> None:
    rows = [r for r in evaluation.records if r["group"] == "never"]
    expected = Bleu().corpus([r["output"] for r in rows], [r["truth"] for r in rows])
    assert evaluation.summary["never/corpus_bleu"] == expected
    assert Settings(top_k=5, num_samples=3).sampler() == Sampling(top_k=5, num_samples=3)


def test_extraction_likelihood_of_the_first_of_each_group(memorised) -> None:
    passages, settings = make_passages(), Settings(num_samples=0, resamples=10, el_stride=2, el_passages=1)
    found = evaluate(memorised, Letters(), passages, settings=settings)
    for group in {p.group for p in passages}:
        rows = [r for r in found.records if r["group"] == group]
        assert [r["el_10"] is None for r in rows] == [False] + [True] * (len(rows) - 1)
        assert found.summary[f"{group}/el_10"] == rows[0]["el_10"]
    with pytest.raises(ValueError, match="el_passages=0"):
        Settings(el_passages=0)


def test_passages_too_short_for_extraction_likelihood_are_left_out_and_counted(memorised) -> None:
    """A suffix of a word, as benchmarks of questions have them, must not end an evaluation."""
    long, settings = make_passages(), Settings(num_samples=0, resamples=10, el_stride=2, more_tokens=2)
    short = [replace(p, id=f"short {p.id}", pre_prefix=(), suffix=p.suffix[:3]) for p in long[:2]]
    with pytest.warns(RuntimeWarning, match="2 of 11 passages have at most 10 tokens: they have no extraction"):
        found = evaluate(memorised, Letters(), [*long, *short], settings=settings)
    assert [r["el_10"] is None for r in found.records] == [False] * 9 + [True] * 2
    own = [r["el_10"] for r in found.records if r["group"] == "forget" and r["el_10"] is not None]
    assert found.summary["forget/el_10"] == pytest.approx(sum(own) / len(own))
    with pytest.warns(RuntimeWarning, match="2 of 2 passages"):
        assert "forget/el_10" not in evaluate(memorised, Letters(), short, settings=settings).summary
