"""Lossless drafts: whatever they guess, the samples and their statistics stay the same."""

from __future__ import annotations

import math

import pytest
import torch

from ppo import Sampling, generate
from ppo.generation.speculative import Drafts
from tests.fakes import VOCAB, tiny_gpt2, tiny_llama
from tests.ppo.generation.test_decoders import FAMILIES
from tests.ppo.generation.test_generate import PROMPTS, forced_logits, naive_filter, sharp
from tests.ppo.generation.test_models import build, greedy_with_transformers, responses

LENGTH = 12
EOS = (1, 4)
GUESSES = ("perfect", "half", "wrong", "short", "long", "empty", "past the end", "mixed")


@pytest.fixture
def _always_checked(monkeypatch):
    monkeypatch.setattr(Drafts, "pays", True)


def guesses(kind: str, responses: list[list[int]]) -> list[list[int]]:
    """One draft for each of the true responses, made from it."""

    def other(tokens: list[int]) -> list[int]:
        return [(token + 7) % VOCAB for token in tokens]

    def guess(index: int, tokens: list[int]) -> list[int]:
        middle = len(tokens) // 2
        match kind:
            case "perfect":
                return tokens
            case "half":
                return tokens[:middle] + other(tokens[middle:])
            case "wrong":
                return other(tokens)
            case "short":
                return tokens[:3]
            case "long":
                return tokens + [5] * 40
            case "empty":
                return []
            case "past the end":
                return [*tokens[:middle], EOS[0], *tokens[middle:]]
            case _:
                return guesses(GUESSES[index % 6], responses)[index]

    return [guess(index, tokens) for index, tokens in enumerate(responses)]


def assert_same(actual, expected, tolerance: float) -> None:
    for name in ("tokens", "mask", "is_ended", "prompt_ids"):
        assert torch.equal(getattr(actual, name), getattr(expected, name)), name
    for name in ("logprobs", "entropy", "values"):
        torch.testing.assert_close(getattr(actual, name), getattr(expected, name), rtol=tolerance, atol=tolerance)


@pytest.mark.usefixtures("_always_checked")
@pytest.mark.parametrize("kind", GUESSES)
@pytest.mark.parametrize(("tiny", "dtype"), [(tiny_gpt2, torch.float32), (tiny_llama, torch.float64)])
@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 0.6, "top_k": 5}, {"top_p": 0.8, "min_response_length": 4}, {"temperature": 0.0}],
    ids=str,
)
def test_drafts_change_no_sample_and_no_statistic(kind: str, tiny, dtype, options):
    """The oracle is decoding without drafts. Other tests compare its statistics with a forward pass."""
    model = sharp(tiny()).to(dtype)
    sampling = Sampling(response_length=LENGTH, num_samples=3, eos_ids=EOS, **options)

    def run(**more):
        return generate(model, PROMPTS, sampling, seed=5, value_fn=lambda hidden: hidden.mean(-1), **more)

    expected = run()
    drafts = guesses(kind, responses(expected))
    for slots in (1, 3, 64):
        actual = run(drafts=drafts, slots=slots)
        assert_same(actual, expected, 1e-4 if dtype == torch.float32 else 1e-6)
    if kind == "perfect":
        assert actual.metrics["generate/draft_acceptance"] == 1
        assert actual.metrics["generate/decode_steps"] == 0
    if kind == "wrong":
        assert actual.metrics["generate/draft_acceptance"] == 0


@pytest.mark.usefixtures("_always_checked")
def test_one_draft_a_prompt_serves_all_its_samples():
    """The samples share one pass, and each of them accepts its own number of draft tokens."""
    model = sharp(tiny_gpt2())
    sampling = Sampling(response_length=LENGTH, num_samples=40, temperature=0.5, eos_ids=EOS)
    expected = generate(model, PROMPTS, sampling, slots=7)
    drafts = responses(expected)[::40]
    actual = generate(model, PROMPTS, sampling, slots=7, drafts=drafts)
    assert torch.equal(actual.tokens, expected.tokens)
    assert 0 < actual.metrics["generate/draft_acceptance"] < 1
    assert actual.metrics["generate/decode_steps"] < expected.metrics["generate/decode_steps"]


@pytest.mark.usefixtures("_always_checked")
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family(name: str):
    """Some families have sliding windows, and a draft crosses a window's edge as one block."""
    model = build(FAMILIES[name]())
    sampling = Sampling(response_length=30, eos_ids=())
    expected = generate(model, PROMPTS, sampling)
    actual = generate(model, PROMPTS, sampling, drafts=guesses("mixed", responses(expected)))
    assert torch.equal(actual.tokens, expected.tokens)
    torch.testing.assert_close(actual.logprobs, expected.logprobs, rtol=1e-4, atol=1e-4)
    assert 0 < actual.metrics["generate/draft_acceptance"] < 1


@pytest.mark.usefixtures("_always_checked")
@pytest.mark.parametrize(("top_k", "top_p"), [(4, 1.0), (0, 0.7)])
def test_the_joint_distribution_is_the_models(top_k: int, top_p: float):
    """A chi-square test of pairs of tokens against the model's own forward. The draft is the likeliest pair."""
    model, prompt, count = sharp(tiny_gpt2()), [3, 9, 4], 6000
    sampling = Sampling(response_length=2, num_samples=count, temperature=1.5, top_k=top_k, top_p=top_p, eos_ids=())
    first = naive_filter(forced_logits(model, prompt, [0])[0], 1.5, top_k, top_p)
    expected = torch.zeros(VOCAB, VOCAB, dtype=torch.float64)
    for token in first.nonzero().flatten().tolist():
        second = naive_filter(forced_logits(model, [*prompt, token], [0])[0], 1.5, top_k, top_p)
        expected[token] = first[token] * second * count
    draft = divmod(int(expected.argmax()), VOCAB)
    generation = generate(model, [prompt], sampling, seed=11, slots=512, drafts=[list(draft)])
    seen = torch.zeros(VOCAB, VOCAB, dtype=torch.float64)
    for one, two in generation.tokens.tolist():
        seen[one, two] += 1
    assert not seen[expected == 0].any()
    usual = expected >= 5
    chi_square = float(((seen - expected)[usual] ** 2 / expected[usual]).sum())
    freedom = int(usual.sum()) - 1
    assert freedom >= 8
    assert chi_square < freedom + 4 * math.sqrt(2 * freedom), (chi_square, freedom)
    chance = float(
        first[draft[0]]
    )  # the chance of acceptance under rejection sampling; the last token is never guessed
    accepted = generation.metrics["generate/draft_acceptance"]
    assert abs(accepted - chance) < 4 * math.sqrt(chance * (1 - chance) / count)


@pytest.mark.usefixtures("_always_checked")
@pytest.mark.parametrize("tiny", [tiny_gpt2, tiny_llama])
def test_greedy_equals_transformers(tiny):
    model = sharp(tiny())
    true = [greedy_with_transformers(model, prompt, LENGTH, EOS) for prompt in PROMPTS]
    sampling = Sampling(response_length=LENGTH, temperature=0.0, eos_ids=EOS)
    for kind in GUESSES:
        assert responses(generate(model, PROMPTS, sampling, drafts=guesses(kind, true))) == true


def test_wrong_drafts_are_given_up_and_right_ones_are_not():
    model = sharp(tiny_gpt2())
    prompts = [[2 + index % 20, 3 + index // 20] for index in range(60)]
    sampling = Sampling(response_length=LENGTH, eos_ids=())
    expected = generate(model, prompts, sampling)
    wrong = generate(model, prompts, sampling, drafts=guesses("wrong", responses(expected)))
    right = generate(model, prompts, sampling, drafts=guesses("perfect", responses(expected)))
    assert wrong.metrics["generate/draft_tokens"] < 10 * LENGTH
    assert right.metrics["generate/draft_tokens"] == 60 * (LENGTH - 1)
    assert right.metrics["generate/decode_steps"] == 0
    for generation in (wrong, right):
        assert torch.equal(generation.tokens, expected.tokens)


@pytest.mark.parametrize("slots", [1, 4])
def test_one_wrong_draft_says_nothing_about_the_others(slots: int):
    """With few rows side by side, drafts are read one after another. The first is wrong from its first token on."""
    model = sharp(tiny_gpt2())
    prompts = [[2 + index % 20, 3 + index // 20] for index in range(30)]
    sampling = Sampling(response_length=LENGTH, eos_ids=())
    expected = generate(model, prompts, sampling, slots=slots)
    drafts = guesses("perfect", responses(expected))
    drafts[0] = guesses("wrong", drafts[:1])[0]
    actual = generate(model, prompts, sampling, slots=slots, drafts=drafts)
    assert torch.equal(actual.tokens, expected.tokens)
    assert actual.metrics["generate/draft_tokens"] == 30 * (LENGTH - 1)
    assert actual.metrics["generate/draft_acceptance"] == pytest.approx(29 / 30)


def test_the_models_own_forward_does_not_look_at_drafts():
    model = sharp(tiny_gpt2())
    sampling = Sampling(response_length=4)
    expected = generate(model, PROMPTS, sampling, engine="hf")
    actual = generate(model, PROMPTS, sampling, engine="hf", drafts=responses(expected))
    assert torch.equal(actual.tokens, expected.tokens)
    assert actual.metrics["generate/draft_tokens"] == 0


def test_no_drafts_no_metrics():
    assert not [name for name in generate(tiny_gpt2(), [[2]], Sampling(response_length=4)).metrics if "draft" in name]


@pytest.mark.parametrize(
    ("drafts", "message"),
    [
        ([[2]], "1 drafts for 5 prompts x num_samples=2"),
        ([[2]] * 4 + [[VOCAB]], f"draft 4 holds {VOCAB}"),
        ([[2]] * 4 + [[-1]], "draft 4 holds -1"),
        ([[2]] * 4 + [["a"]], "draft 4 holds 'a'"),
        (["abc"] * 5, "draft 0 is 'abc'; expected a list of token ids"),
        ([[2], None, [2], [2], [2]], "draft 1 is None"),
    ],
)
def test_bad_drafts(drafts, message: str):
    with pytest.raises(ValueError, match=message):
        generate(tiny_gpt2(), PROMPTS, Sampling(response_length=4, num_samples=2), drafts=drafts)
