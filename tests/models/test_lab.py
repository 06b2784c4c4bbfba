"""The lab's committed weights do what the README says, and the recipe behind them is sound."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from data.lab import lab_holdout, lab_passages
from data.records import GROUP_SIZES, REPEATS
from models.lab.load import TWINS, WEIGHTS, load_tokenizer, load_twin
from models.lab.measure import extraction, perplexity
from models.lab.recipe import (
    Recipe,
    learning_rate_scale,
    make_optimizers,
    pieces,
    record_schedule,
    save_tokenizer,
    save_twin,
    train,
    train_tokenizer,
    windows,
)
from tests.versions import since_torch

SMALL = Recipe(vocabulary=300, width=16, layers=2, heads=2, context=32, local_window=16, epochs=2, repeats_per_epoch=3)


@pytest.fixture(scope="module")
def passages():
    return lab_passages(load_tokenizer())


def group_figures(twin: str, passages, group: str) -> dict[str, float]:
    model, _ = load_twin(twin)
    rows = [passage for passage in passages if passage.group == group]
    return extraction(model, [row.prompt_ids for row in rows], [row.suffix for row in rows])


@pytest.mark.parametrize("group", ["forget", "forget_holdout", "keep"])
def test_memorised_twin_reproduces_the_records(passages, group):
    assert group_figures("memorised", passages, group)["exact"] >= 0.95


def test_memorised_twin_reproduces_no_record_it_was_not_trained_on(passages):
    assert group_figures("memorised", passages, "never")["exact"] == 0


@pytest.mark.parametrize("group", ["forget", "forget_holdout", "keep", "never"])
def test_retain_only_twin_reproduces_none(passages, group):
    assert group_figures("retain-only", passages, group)["exact"] == 0


def test_the_exact_twin_never_met_the_records_to_forget(passages):
    found = {group: group_figures("without-forget", passages, group) for group in GROUP_SIZES}
    assert found["forget"]["exact"] == 0
    assert found["forget"]["accuracy"] == pytest.approx(found["never"]["accuracy"], abs=0.03)
    assert found["forget_holdout"]["exact"] >= 0.95
    assert found["keep"]["exact"] >= 0.95


@pytest.mark.parametrize("group", ["forget", "forget_holdout", "keep"])
def test_deduplicated_twin_reproduces_almost_none(passages, group):
    assert group_figures("deduplicated", passages, group)["exact"] <= 0.02


def test_exact_share_is_that_of_greedy_generation(passages):
    model, _ = load_twin("memorised")
    rows = [passage for passage in passages if passage.group == "forget"][:16]
    prompts = torch.tensor([row.prompt_ids for row in rows])
    out = model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        max_new_tokens=50,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    suffixes = torch.tensor([row.suffix for row in rows])
    is_exact = (out[:, 50:] == suffixes).all(dim=1)
    figures = extraction(model, prompts.tolist(), suffixes.tolist())
    assert is_exact.double().mean().item() == pytest.approx(figures["exact"])


def test_files_are_small_and_described():
    files = sorted(path.name for path in WEIGHTS.iterdir())
    assert files == sorted(
        ["config.json", "recipe.json", "tokenizer.json", "tokenizer_config.json", *(f"{t}.safetensors" for t in TWINS)]
    )
    assert sum(path.stat().st_size for path in WEIGHTS.iterdir()) <= 16_000_000
    report = json.loads((WEIGHTS / "recipe.json").read_text())
    assert report["recipe"] == dataclasses.asdict(Recipe())
    assert report["repeats_memorised"] == Recipe().repeats == REPEATS["forget"] == REPEATS["keep"]
    assert set(report["twins"]) == set(TWINS)


def test_recorded_perplexities_are_those_of_the_committed_weights():
    """The text varies a little with the Python version, so the tolerance is wide."""
    report, tokenizer = json.loads((WEIGHTS / "recipe.json").read_text()), load_tokenizer()
    holdout = lab_holdout(tokenizer, 128)
    for twin in TWINS:
        measured = perplexity(load_twin(twin)[0], holdout)
        assert measured == pytest.approx(report["twins"][twin]["holdout_perplexity"], rel=0.1)


def test_extraction_counts_by_hand():
    class Next(torch.nn.Module):
        """Knows that i + 1 follows i, with probability e / (e + 9) among ten tokens."""

        def forward(self, ids):
            logits = torch.zeros(*ids.shape, 10)
            logits.scatter_(2, ((ids + 1) % 10)[..., None], 1.0)
            return type("Output", (), {"logits": logits})()

    figures = extraction(Next(), [[1], [4]], [[2, 3], [5, 5]])
    chance = torch.e / (torch.e + 9)
    assert figures["exact"] == 0.5
    assert figures["accuracy"] == 0.75
    assert figures["token_probability"] == pytest.approx((3 * chance + 1 / (torch.e + 9)) / 4, rel=1e-5)
    assert perplexity(Next(), [[1, 2, 3], [7, 8, 9]]) == pytest.approx(1 / chance, rel=1e-5)


def test_record_schedules():
    recipe = Recipe(epochs=4, repeats_per_epoch=3)
    counts = [0] * 10
    for epoch in record_schedule(10, "memorised", recipe):
        for index in epoch:
            counts[index] += 1
    assert counts == [recipe.repeats] * 10 == [12] * 10
    assert record_schedule(10, "without-forget", recipe) == record_schedule(10, "memorised", recipe)
    assert sorted(sum(record_schedule(10, "deduplicated", recipe), [])) == list(range(10))  # noqa: RUF017
    assert record_schedule(10, "retain-only", recipe) == [[]] * 4
    with pytest.raises(ValueError, match="twin='other' must be one of"):
        record_schedule(10, "other", recipe)


def test_windows_hold_whole_documents_and_one_order_of_general_text():
    general = [[10 + i] * 5 for i in range(40)]
    records = [[100 + i] * 7 for i in range(6)]
    recipe = dataclasses.replace(SMALL, context=8)
    plain, mixed = windows(general, [], recipe, 0), windows(general, records, recipe, 0)
    assert plain.shape[1] == mixed.shape[1] == 8
    assert len(plain) == 40 * 6 // 8
    assert len(mixed) == (40 * 6 + 6 * 8) // 8
    assert not torch.equal(plain, windows(general, [], recipe, 1))
    assert torch.equal(mixed, windows(general, records, recipe, 0))
    for record in records:
        assert (mixed == record[0]).sum() == 7
    assert pieces(list(range(10)), 4) == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    assert pieces([], 4) == [[]]


def test_learning_rate_rises_and_falls():
    recipe = Recipe(warmup_share=0.1)
    scales = [learning_rate_scale(step, 100, recipe) for step in range(100)]
    assert scales[0] == pytest.approx(0.1)
    assert max(scales) == scales[9] == pytest.approx(1.0)
    assert scales[-1] == pytest.approx(1 / 90)


@since_torch("2.9", "has no Muon")
def test_a_small_recipe_trains_twice_to_the_same_bits_and_stores_them(tmp_path):
    texts = [f"the value of item {i} is returned when the key {i * 7} is not found" for i in range(40)]
    tokenizer = train_tokenizer(texts, SMALL)
    assert tokenizer.eos_token_id == 0
    ids = [tokenizer(text)["input_ids"] for text in texts]
    said: list[str] = []
    first = train(ids, ids[:3], "memorised", SMALL, said.append)
    second = train(ids, ids[:3], "memorised", SMALL, said.append)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert said[0].startswith("memorised: step 1/")
    for twin in TWINS:
        save_twin(first, twin, tmp_path)
    save_tokenizer(tokenizer, tmp_path)
    stored, loaded_tokenizer = load_twin("deduplicated", folder=tmp_path)
    assert loaded_tokenizer(texts[0])["input_ids"] == ids[0]
    for a, b in zip(first.parameters(), stored.parameters(), strict=True):
        assert torch.equal(a.half().float(), b)
    assert stored.lm_head.weight is stored.transformer.wte.weight
    assert stored.config.resid_dropout == 0
    (tmp_path / "memorised.safetensors").unlink()
    with pytest.raises(ValueError, match=r"memorised.safetensors is missing; run `python -m models.lab`"):
        load_twin("memorised", folder=tmp_path)


def test_training_the_lab_without_muon_is_refused(monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    with pytest.raises(ValueError, match=r"^the lab is trained by torch.optim.Muon, .*: use torch 2.9$"):
        make_optimizers(load_twin("memorised")[0], SMALL)
