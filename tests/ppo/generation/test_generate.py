"""``generate``: its results, reproducibility, how responses end, and the errors for bad input."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from ppo import Sampling, generate
from ppo.lm.backbone import Backbone
from tests.fakes import VOCAB, Letters, tiny_bloom, tiny_gpt2, tiny_llama

PROMPTS = [[2, 3, 4], [5], [6, 7, 8, 9, 10, 2], [5], [11, 12]]
ENGINES = ["auto", "hf"]


def sharp(model):
    """Make the weights larger, so that distributions are far from uniform and the context matters."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.mul_(12)
    return model.eval()


def forced_logits(model, prompt: list[int], response: list[int]) -> torch.Tensor:
    """Logits that predict the response, float64 [T, V], from one unpadded sequence without a cache."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + response]), use_cache=False).logits
    return logits[0, len(prompt) - 1 : -1].double()


def naive_filter(logits: torch.Tensor, temperature: float, top_k: int, top_p: float) -> torch.Tensor:
    """The probabilities of one row after temperature, top-k and top-p, computed token by token."""
    weights = (logits / temperature).softmax(-1).tolist()
    order = sorted(range(len(weights)), key=lambda i: -weights[i])
    order = order[: top_k or len(order)]
    total, kept, mass = sum(weights[i] for i in order), [], 0.0
    for i in order:
        if mass >= top_p:
            break
        kept.append(i)
        mass += weights[i] / total
    norm = sum(weights[i] for i in kept)
    return torch.tensor([weights[i] / norm if i in kept else 0.0 for i in range(len(weights))], dtype=torch.float64)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("build", [tiny_gpt2, tiny_llama, tiny_bloom])
@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(1.0, 0, 1.0), (0.7, 0, 1.0), (1.3, 5, 1.0), (1.0, 0, 0.8), (2.0, 9, 0.7)]
)
def test_statistics_equal_a_teacher_forced_forward(build, engine, temperature: float, top_k: int, top_p: float):
    model = sharp(build())
    sampling = Sampling(response_length=9, temperature=temperature, top_k=top_k, top_p=top_p, eos_ids=(1,))
    generation = generate(
        model, PROMPTS, sampling, seed=4, slots=2, value_fn=lambda hidden: hidden.mean(-1), engine=engine
    )
    for row, prompt in enumerate(PROMPTS):
        length = int(generation.lengths[row])
        response = generation.tokens[row, :length].tolist()
        assert generation.prompt_ids[row][generation.prompt_mask[row]].tolist() == prompt
        rows = [naive_filter(step, temperature, top_k, top_p) for step in forced_logits(model, prompt, response)]
        picked = [math.log(chances[token]) for chances, token in zip(rows, response, strict=True)]
        entropy = [-sum(p * math.log(p) for p in chances.tolist() if p > 0) for chances in rows]
        ids = torch.tensor([prompt + response])
        with torch.no_grad():
            hidden = Backbone(model)(ids, torch.ones_like(ids, dtype=torch.bool)).hidden[0, len(prompt) - 1 : -1]
        torch.testing.assert_close(generation.logprobs[row, :length], torch.tensor(picked), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(generation.entropy[row, :length], torch.tensor(entropy), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(generation.values[row, :length], hidden.mean(-1), rtol=1e-4, atol=1e-4)
        for padded in (generation.logprobs, generation.entropy, generation.values):
            assert not padded[row, length:].any()
    assert generation.logprobs.dtype == generation.entropy.dtype == generation.values.dtype == torch.float32


@pytest.mark.parametrize("engine", ENGINES)
def test_greedy_statistics_are_of_the_models_own_distribution(engine):
    model = sharp(tiny_gpt2())
    sampling = Sampling(response_length=5, temperature=0.0, top_k=2, top_p=0.5, eos_ids=())
    generation = generate(model, PROMPTS, sampling, engine=engine)
    for row, prompt in enumerate(PROMPTS):
        logprobs = forced_logits(model, prompt, generation.tokens[row].tolist()).log_softmax(-1)
        torch.testing.assert_close(generation.logprobs[row], logprobs.amax(-1).float(), rtol=1e-4, atol=1e-4)
        entropy = -(logprobs.exp() * logprobs).sum(-1)
        torch.testing.assert_close(generation.entropy[row], entropy.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("build", [tiny_gpt2, tiny_bloom])
def test_samples_depend_only_on_seed_and_request(build, engine):
    model = sharp(build())
    sampling = Sampling(response_length=10, num_samples=3, eos_ids=(1, 4))

    def run(prompts, **options):
        return generate(model, prompts, sampling, seed=7, engine=engine, **options)

    expected = run(PROMPTS)
    for slots in (1, 3, 64):
        actual = run(PROMPTS, slots=slots)
        assert torch.equal(actual.tokens, expected.tokens)
        assert torch.equal(actual.mask, expected.mask)
        torch.testing.assert_close(actual.logprobs, expected.logprobs, rtol=1e-4, atol=1e-5)
    order = [3, 0, 4, 2, 1]
    rows = [3 * p + s for p in order for s in range(3)]
    shuffled = run([PROMPTS[p] for p in order], request_ids=rows, slots=4)
    for place, row in enumerate(rows):
        length = int(expected.lengths[row])
        assert int(shuffled.lengths[place]) == length
        assert torch.equal(shuffled.tokens[place, :length], expected.tokens[row, :length])
        assert bool(shuffled.is_ended[place]) == bool(expected.is_ended[row])
    other = generate(model, PROMPTS, sampling, seed=8, engine=engine)
    assert other.tokens.shape != expected.tokens.shape or not torch.equal(other.tokens, expected.tokens)


def test_equal_prompts_get_different_samples():
    generation = generate(tiny_gpt2(), [[5, 6]] * 4, Sampling(response_length=12, eos_ids=()))
    assert len({tuple(row) for row in generation.tokens.tolist()}) == 4


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (6, 1.0), (0, 0.6)])
def test_marginals_are_the_distribution(engine, top_k: int, top_p: float):
    model, prompt, count = sharp(tiny_gpt2()), [3, 9, 4], 4000
    sampling = Sampling(response_length=1, num_samples=count, temperature=1.5, top_k=top_k, top_p=top_p, eos_ids=())
    tokens = generate(model, [prompt], sampling, seed=11, slots=512, engine=engine).tokens[:, 0]
    expected = naive_filter(forced_logits(model, prompt, [0])[0], 1.5, top_k, top_p) * count
    seen = torch.bincount(tokens, minlength=VOCAB).double()
    assert not seen[expected == 0].any()
    usual = expected >= 5
    chi_square = float(((seen - expected)[usual] ** 2 / expected[usual]).sum())
    freedom = int(usual.sum()) - 1
    assert chi_square < freedom + 4 * math.sqrt(2 * freedom), (chi_square, freedom)


@pytest.mark.parametrize("engine", ENGINES)
def test_any_eos_id_ends_a_response_but_not_before_min_response_length(engine):
    """Several EOS ids end a response, EOS counts, and min_response_length holds them back."""
    model, eos_ids = tiny_gpt2().eval(), (1, 4, 9)
    plain = generate(
        model, PROMPTS, Sampling(response_length=20, num_samples=8, eos_ids=eos_ids), slots=7, engine=engine
    )
    late = generate(
        model,
        PROMPTS,
        Sampling(response_length=20, num_samples=8, eos_ids=eos_ids, min_response_length=6),
        slots=7,
        engine=engine,
    )
    for generation, earliest in ((plain, 1), (late, 7)):
        assert generation.is_ended.any()
        assert {row[length - 1] for row, length, is_ended in rows_of(generation) if is_ended} == set(eos_ids)
        for row, length, is_ended in rows_of(generation):
            positions = [t for t in range(length) if row[t] in eos_ids]
            assert positions == ([length - 1] if is_ended else [])
            assert not is_ended or length >= earliest
            assert is_ended or length == 20
    assert (plain.lengths < 7).any()
    row = int((late.lengths > 6).nonzero()[0])
    prompt, response = PROMPTS[row // 8], late.tokens[row, :2].tolist()
    logits = forced_logits(model, prompt, response)
    logits[:, list(eos_ids)] = -torch.inf
    expected = logits.log_softmax(-1)[range(2), response].float()
    torch.testing.assert_close(late.logprobs[row, :2], expected, rtol=1e-4, atol=1e-4)


def rows_of(generation):
    return zip(generation.tokens.tolist(), generation.lengths.tolist(), generation.is_ended.tolist(), strict=True)


def test_eos_comes_from_the_model_and_may_be_the_padding_id():
    """The config's EOS is 0, the id of the padding. Only the mask can tell them apart."""
    model = tiny_gpt2(eos=0)
    generation = generate(model, PROMPTS, Sampling(response_length=30, num_samples=4), slots=3)
    assert generation.is_ended.any()
    for row, length, is_ended in rows_of(generation):
        assert (row[length - 1] == 0) == is_ended
        assert 0 not in row[: length - 1]
    without = generate(model, [[0, 0, 5], [0]], Sampling(response_length=30, eos_ids=()))
    assert without.mask.all()
    assert not without.is_ended.any()
    assert without.prompt_mask.tolist() == [[True] * 3, [False, False, True]]


def test_eos_on_the_last_slot_and_trimming():
    model = tiny_gpt2()
    free = generate(model, [[2, 3]], Sampling(response_length=4, eos_ids=())).tokens[0].tolist()
    assert free[3] not in free[:3]
    ended = generate(model, [[2, 3]], Sampling(response_length=4, eos_ids=(free[3],)))
    assert ended.is_ended.all()
    assert ended.mask.all()
    trimmed = generate(model, [[2, 3]], Sampling(response_length=20, eos_ids=(free[3],)))
    assert trimmed.tokens.tolist() == ended.tokens.tolist() == [free]


@pytest.mark.parametrize("engine", ENGINES)
def test_dropout_is_off_and_training_flags_are_restored(engine):
    model = sharp(tiny_gpt2(dropout=0.5))
    expected = generate(model, PROMPTS, Sampling(response_length=6), engine=engine)
    model.train()
    model.transformer.h[0].eval()
    flags = [module.training for module in model.modules()]
    actual = generate(model, PROMPTS, Sampling(response_length=6), engine=engine)
    assert [module.training for module in model.modules()] == flags
    assert torch.equal(actual.tokens, expected.tokens)
    with pytest.raises(ZeroDivisionError):
        generate(model, PROMPTS, Sampling(response_length=6), engine=engine, value_fn=lambda hidden: 1 // 0)
    assert [module.training for module in model.modules()] == flags


def test_tensors_can_be_trained_on():
    model = tiny_gpt2()
    generation = generate(model, PROMPTS, Sampling(response_length=3))
    logits = model(input_ids=generation.input_ids).logits
    (logits[..., 0].sum() * generation.logprobs.sum()).backward()
    assert not generation.logprobs.is_inference()


@pytest.mark.parametrize("engine", ENGINES)
def test_changed_weights_are_used_by_the_next_call(engine):
    model = sharp(tiny_gpt2())
    sampling = Sampling(response_length=4, temperature=0.0, eos_ids=())
    before = generate(model, PROMPTS, sampling, engine=engine)
    with torch.no_grad():
        model.transformer.wpe.weight.add_(torch.randn_like(model.transformer.wpe.weight))
        model.transformer.h[0].attn.c_attn.weight.mul_(-1)
    after = generate(model, PROMPTS, sampling, engine=engine)
    assert not torch.equal(before.logprobs, after.logprobs)
    logprobs = forced_logits(model, PROMPTS[0], after.tokens[0].tolist()).log_softmax(-1)
    torch.testing.assert_close(after.logprobs[0], logprobs.amax(-1).float(), rtol=1e-4, atol=1e-4)


def test_bfloat16():
    model = sharp(tiny_llama()).to(torch.bfloat16)
    generation = generate(model, PROMPTS, Sampling(response_length=5, eos_ids=()), value_fn=lambda h: h.sum(-1))
    assert generation.logprobs.dtype == generation.values.dtype == torch.float32
    logprobs = forced_logits(model, PROMPTS[2], generation.tokens[2].tolist()).log_softmax(-1)
    picked = logprobs.gather(-1, generation.tokens[2].unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(generation.logprobs[2], picked.float(), rtol=0.1, atol=0.1)


def test_strings_and_dicts_become_ids():
    model = tiny_gpt2()
    sampling = Sampling(response_length=4)
    by_text = generate(model, ["abc", {"prompt": "d"}], sampling, tokenizer=Letters())
    by_ids = generate(model, [[2, 3, 4], torch.tensor([5])], sampling)
    assert torch.equal(by_text.tokens, by_ids.tokens)


def test_metrics():
    metrics = generate(tiny_gpt2(), PROMPTS, Sampling(response_length=4, eos_ids=())).metrics
    assert metrics["generate/tokens_per_second"] > 0
    assert 0 <= metrics["generate/padding_waste"] < 1
    assert metrics["generate/cache_bytes"] > 0
    assert all(isinstance(value, float) for value in metrics.values())


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([], {}, "prompts"),
        ("abc", {}, "prompts"),
        ([[2], []], {}, "prompt 1 is empty"),
        (["abc"], {}, "tokenizer"),
        ([[2], [VOCAB]], {}, "prompt 1 .*vocabulary of 23"),
        ([[-1]], {}, "vocabulary"),
        ([[2] * 45], {}, "45 tokens.*context of 48"),
        ([[2]], {"sampling": Sampling(response_length=48)}, "context of 48"),
        ([[2]], {"sampling": Sampling(eos_ids=(99,), response_length=4)}, "99"),
        ([[2]], {"request_ids": [1, 2]}, "2 request_ids"),
        ([[2]], {"slots": 0}, "slots=0"),
        ([[2]], {"engine": "warp"}, "warp"),
    ],
)
def test_bad_input(prompts, options, message: str):
    options = {"sampling": Sampling(response_length=4)} | options
    with pytest.raises(ValueError, match=message):
        generate(tiny_gpt2(), prompts, options.pop("sampling"), **options)


def test_a_model_without_a_vocabulary_is_no_causal_lm():
    with pytest.raises(ValueError, match="Linear is no causal LM"):
        generate(torch.nn.Linear(2, 2), [[1]])
    with pytest.raises(ValueError, match="GPT2Model is no causal LM"):
        generate(tiny_gpt2().transformer, [[1]])


def test_alibi_has_no_context_limit():
    assert generate(tiny_bloom(), [[2] * 60], Sampling(response_length=4, eos_ids=())).mask.all()


@pytest.mark.parametrize("engine", ENGINES)
def test_broken_weights_are_an_error(engine):
    model = tiny_gpt2()
    with torch.no_grad():
        model.transformer.ln_f.weight.fill_(math.nan)
    with pytest.raises(ValueError, match="NaN"):
        generate(model, PROMPTS, Sampling(response_length=4), engine=engine)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"sampling": {"top_k": 1}}, r"sampling=\{'top_k': 1\} must be a ppo.Sampling"),
        ({"slots": 2.5}, "slots=2.5 must be a whole number"),
        ({"seed": "a"}, "seed='a' must be a whole number"),
        ({"model": nn.Module()}, "Module is no causal LM: it has no output embeddings"),
    ],
)
def test_arguments_of_another_kind_are_refused_in_one_line(given, said):
    with pytest.raises(ValueError, match=said):
        generate(**{"model": tiny_gpt2(), "prompts": PROMPTS} | given)
