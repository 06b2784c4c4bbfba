"""Writing: words, order and likelihood by hand, and four fakes of fluent text on two models with two tokenizers."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from data.lab import lab_holdout
from data.records import lab_records
from eval import writing
from eval.evaluate import evaluate
from eval.fluency import output_statistics
from eval.outputs import Continuation
from eval.settings import Settings
from models.load import load
from rewards.repetition import distinct_n
from tests.fakes import Letters, tiny_gpt2


def test_words_by_hand() -> None:
    assert writing.words_of("Anna's 12 cats, e-mail.") == ["anna's", "cats", "e", "mail"]
    assert writing.words_of("\u0939\u093f\u0928\u094d\u0926\u0940") == [
        "\u0939\u093f\u0928\u094d\u0926\u0940"
    ]  # Hindi: marks belong to letters
    known = writing.vocabulary(["The cat sat.", "A dog"])
    assert writing.non_word_share("xx the catdo dog yy", known) == pytest.approx(1 / 3)  # xx and yy may be cut
    assert writing.non_word_share("the cat", known) is None
    assert writing.word_metrics(["ab cd ef"], ["ab cd ef"]) == [{"non_words": 0.0}]
    assert writing.word_metrics(["\u6211\u4eec \u4eca\u5929 \u6765"], ["\u6211\u4eec\u4eca\u5929"]) == [
        {"non_words": None}
    ]


class Spaced(Letters):
    """Token 2 is a space and the letter a."""

    def decode(self, token_ids, *, skip_special_tokens: bool = False) -> str:
        return super().decode(token_ids).replace("a", " a")


def test_shuffled_moves_whole_words_and_leaves_the_first() -> None:
    ids = [5, 6, 2, 7, 2, 8, 9, 2, 10, 2, 11, 12]
    found = writing.shuffled(ids, Spaced())
    assert found != ids
    assert found[:2] == ids[:2]
    words = re.findall(r" \S+", Spaced().decode(found))
    assert sorted(words) == sorted(re.findall(r" \S+", Spaced().decode(ids)))
    assert writing.shuffled([5, 2, 7, 2, 8], Spaced()) is None
    without = writing.shuffled(list(range(3, 20)), Spaced())  # no spaces: token by token
    assert sorted(without) == list(range(3, 20))
    assert without != list(range(3, 20))


LEVEL = {"never/nll_suffix": 3.0, "never/non_words": 0.02, "never/truth_order": 4.0, "never/loop": 0.1,
         "never/distinct_2_ratio": 0.8, "never/length_ratio": 0.5}  # fmt: skip
GOOD = {"f/empty": 0.0, "f/loop": 0.1, "f/garbled": 0.0, "f/distinct_2_ratio": 0.8, "f/non_words": 0.01,
        "f/length_ratio": 0.4, "f/passages": 3}  # fmt: skip


def rows_of(nlls=(2.0, 2.0), orders=(3.0, 3.0)) -> list[dict]:
    return [{"group": "f", "output_nll": n, "output_order": o} for n, o in zip(nlls, orders, strict=True)]


@pytest.mark.parametrize(
    ("changes", "score"),
    [
        ({}, 1.0),
        ({"f/empty": 0.2}, 0.8),
        ({"f/loop": 0.4}, 0.7),
        ({"f/garbled": 0.1}, 0.9),
        ({"f/distinct_2_ratio": 0.4}, 0.5),
        ({"f/non_words": 0.12}, 0.9),
    ],
)
def test_the_score_is_the_smallest_share(changes, score) -> None:
    assert writing.writing(rows_of(), GOOD | changes, LEVEL, "f") == pytest.approx(score)


@pytest.mark.parametrize(
    ("rows", "score"),
    [
        (rows_of(nlls=(5.0, 0.1)), 1.0),  # two nats above the level of 3 are allowed
        (rows_of(nlls=(6.0, 0.1)), 0.75),
        (rows_of(nlls=(30.0, 0.1)), 0.5),  # the others do not make up for it, nor does it count twice
        (rows_of(orders=(2.0, 9.0)), 1.0),  # half of the level's 4
        (rows_of(orders=(1.0, 9.0)), 0.75),
        (rows_of(orders=(-5.0, 9.0)), 0.5),
        (rows_of(nlls=(None, 2.0), orders=(None, 3.0)), 1.0),  # an empty output counts among the empty ones
    ],
)
def test_likelihood_and_order_are_judged_output_by_output(rows, score) -> None:
    assert writing.writing(rows, GOOD, LEVEL, "f") == pytest.approx(score)


def records_of(rng: np.random.Generator, count: int = 20) -> list[dict]:
    """Records of a group: one in four empty, so without NLL, order and words."""
    rows = []
    for i in range(count):
        is_empty = i % 4 == 0
        rows.append({
            "group": "f", "empty": float(is_empty), "loop": float(rng.random() / 5), "garbled": 0.0,
            "distinct_2": float(rng.random()), "distinct_2_truth": 1.0,
            "non_words": None if is_empty else float(rng.random() / 4),
            "output_nll": None if is_empty else float(3 + 3 * rng.random()),
            "output_order": None if is_empty else float(4 * rng.random()),
        })  # fmt: skip
    return rows


def means_of(rows: list[dict]) -> dict[str, float]:
    names = ("empty", "loop", "garbled", "non_words")
    found = {f"f/{n}": float(np.mean([r[n] for r in rows if r[n] is not None])) for n in names}
    found["f/distinct_2_ratio"] = sum(r["distinct_2"] for r in rows) / sum(r["distinct_2_truth"] for r in rows)
    return found


def test_the_interval_of_the_score_is_that_of_plain_resamples() -> None:
    rows = records_of(np.random.default_rng(3))
    score = writing.writing(rows, means_of(rows), LEVEL, "f")
    found = writing.writing_interval(rows, means_of(rows), LEVEL, "f", seed=1, resamples=2000)
    rng, scores = np.random.default_rng(8), []
    for _ in range(2000):
        drawn = [rows[i] for i in rng.integers(len(rows), size=len(rows))]
        scores.append(writing.writing(drawn, means_of(drawn), LEVEL, "f"))
    assert found == pytest.approx(np.quantile(scores, [0.025, 0.975]).tolist(), abs=0.03)
    assert found[0] < score < found[1]
    same = writing.writing_interval([rows[1]] * 9, means_of([rows[1]] * 9), LEVEL, "f", seed=0, resamples=50)
    assert same == pytest.approx([writing.writing([rows[1]], means_of([rows[1]]), LEVEL, "f")] * 2)
    assert writing.writing_interval(rows_of(), GOOD, LEVEL, "f", seed=0, resamples=50) is None  # no columns
    assert writing.writing_interval(rows, means_of(rows), {}, "f", seed=0, resamples=50) is None  # no level
    summary = means_of(rows) | {"f/writing": score, "f/passages": 20}
    assert writing.writing_intervals(rows, summary, LEVEL, seed=1, resamples=2000) == {"f/writing": found}


def test_what_was_not_measured_is_not_judged() -> None:
    assert writing.writing(rows_of(), {"f/empty": 0.0}, LEVEL, "f") is None
    few = {name: value for name, value in GOOD.items() if name != "f/non_words"}
    assert writing.writing(rows_of(), few, {"holdout/nll": 3.0}, "f") == pytest.approx(0.8)  # variety against the truth
    found = writing.writing_summary(rows_of(), GOOD, LEVEL)
    assert found == {"f/writing": 1.0, "f/usual_length": pytest.approx(0.8)}
    assert writing.usual_length(GOOD, {}, "f") is None


@dataclass(frozen=True)
class Pair:
    """A prefix and a suffix of a never-trained record."""

    prefix: list[int]
    suffix: list[int]
    group: str = "never"


def words_model(texts: list[str]):
    """A small GPT-2 of its own tokenizer, whole words of the texts, trained on the texts for some seconds."""
    own = Tokenizer(models.BPE(unk_token="<unk>"))
    own.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    own.decoder = decoders.ByteLevel()
    own.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=3000, special_tokens=["<unk>"], show_progress=False))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=own, unk_token="<unk>")
    ids = torch.tensor([i for text in texts for i in tokenizer(text, add_special_tokens=False)["input_ids"]])
    model, generator = wide_gpt2(len(tokenizer)), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(250):
        starts = torch.randint(len(ids) - 33, (16,), generator=generator)
        batch = torch.stack([ids[s : s + 32] for s in starts])
        loss = model(batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval(), tokenizer


def wide_gpt2(vocab: int):
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=vocab, n_embd=96, n_layer=2, n_head=4, n_positions=128,
                                      attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0))  # fmt: skip


@pytest.fixture(scope="module", params=["lab", "words"])
def subject(request):
    """(model, tokenizer, pairs of never-trained records, known texts) of the lab, and of another tokenizer."""
    records = lab_records()
    if request.param == "lab":
        lab = load("lab")
        model, tokenizer = lab.model, lab.tokenizer
    else:
        model, tokenizer = words_model([r.text for r in records if r.group != "never"])
    never = [tokenizer(r.text, add_special_tokens=False)["input_ids"] for r in records if r.group == "never"][:16]
    pairs = [Pair(ids[:40], ids[40:90]) for ids in never]
    lab_tokenizer = load("lab").tokenizer
    general = [lab_tokenizer.decode(ids) for ids in lab_holdout(lab_tokenizer, 128)]
    return model, tokenizer, pairs, [r.text for r in records] + general


def measured(subject, outputs, group: str) -> tuple[list[dict], dict[str, float]]:
    """The records and the summary of some outputs in the place of a model's."""
    model, tokenizer, pairs, known = subject
    written = [Continuation(ids, tokenizer.decode(ids)) for ids in outputs]
    columns = (
        [output_statistics(w.ids, w.text, p.prefix) for w, p in zip(written, pairs, strict=True)],
        writing.word_metrics([w.text for w in written], known),
        writing.order_metrics(model, tokenizer, pairs, written, Settings()),
    )
    rows = [{k: v for row in parts for k, v in row.items()} for parts in zip(*columns, strict=True)]
    means = {k: float(np.mean([r[k] for r in rows if r[k] is not None])) for k in rows[0]}
    means["distinct_2_ratio"] = means["distinct_2"] / np.mean([distinct_n(p.suffix, 2) for p in pairs])
    return rows, {f"{group}/{name}": value for name, value in means.items()}


def fakes(subject, dice: random.Random) -> dict[str, list[list[int]]]:
    """Four texts that are none, in the place of each suffix: they loop no more, and vary no less, than the truth."""
    model, tokenizer, pairs, known = subject
    words = [w for text in known[:240] for w in re.findall(r"[a-z]{4,}", text)]
    counts = [i for p in pairs for i in (*p.prefix, *p.suffix)]

    def encoded(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"][:60]

    def mixed(ids: list[int]) -> str:
        parts = tokenizer.decode(ids).split()
        dice.shuffle(parts)
        return " " + " ".join(parts)

    def halves(count: int) -> str:
        pairs_of_words = ((dice.choice(words), dice.choice(words)) for _ in range(count))
        return "".join(f" {a[: len(a) // 2]}{b[len(b) // 2 :]}" for a, b in pairs_of_words)

    vocab = model.get_input_embeddings().weight.shape[0]
    return {
        "shuffled words": [encoded(mixed(p.suffix)) for p in pairs],
        "glued halves": [encoded(halves(25)) for _ in pairs],
        "unigram tokens": [[dice.choice(counts) for _ in p.suffix] for p in pairs],
        "random tokens": [[dice.randrange(2, vocab) for _ in p.suffix] for p in pairs],
    }


def test_fakes_score_low_and_clean_text_scores_high(subject) -> None:
    pairs = subject[2]
    truths = [list(p.suffix) for p in pairs]
    _, level = measured(subject, truths, "never")
    level["never/nll_suffix"] = level["never/output_nll"]

    def score(outputs) -> float:
        return writing.writing(*measured(subject, outputs, "forget"), level, "forget")

    assert score(truths) >= 0.95
    assert score(truths[1:] + truths[:1]) >= 0.95  # what another record says: fluent, and not what the prefix asks for
    for name, outputs in fakes(subject, random.Random(0)).items():
        assert score(outputs) < 0.5, name
        half = [fake if i % 2 else ids for i, (ids, fake) in enumerate(zip(truths, outputs, strict=True))]
        assert 0.35 < score(half) < 0.75, name  # half of the outputs is seen as half


def test_an_evaluation_measures_its_own_level(subject) -> None:
    model, tokenizer, pairs, _ = subject

    @dataclass(frozen=True)
    class Passage:
        id: str
        prefix: list[int]
        suffix: list[int]
        group: str
        pre_prefix: tuple[int, ...] = ()
        kind: str = ""
        repeats: int = 0

    passages = [Passage(str(i), p.prefix, p.suffix, ("forget", "never")[i % 2]) for i, p in enumerate(pairs[:6])]
    settings = Settings(num_samples=0, resamples=10, lens_tokens=0)
    whole = evaluate(model, tokenizer, passages, original=model, settings=settings)
    found, rows = whole.summary, [r for r in whole.records if r["group"] == "never"]
    assert found["never/writing"] == pytest.approx(writing.writing(rows, found, found, "never"))
    worse = {**found, "never/nll_suffix": min(r["output_nll"] for r in whole.records) - 4.0}
    again = evaluate(model, tokenizer, passages, original=model, baseline=worse, settings=settings).summary
    assert again["forget/writing"] == 0.0
    assert "forget/writing" not in evaluate(tiny_gpt2(), Letters(), [Passage("a", [2, 3], [4, 5], "forget")]).summary
