"""The one distribution: its parts equal plain loops in float64, and all its callers get the same numbers."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import ppo
from eval.teacher import teacher_force
from ppo import Config, Sampling
from ppo.actor_critic import ActorCritic
from ppo.generation.sampling import draw
from ppo.lm import distribution
from ppo.lm.backbone import Backbone, evaluation_mode
from ppo.lm.distribution import (
    ban_early_eos_,
    bans_eos,
    divisor,
    early_steps,
    early_tokens,
    entropy,
    filter_logits,
    has_filters,
    next_token_logits,
    next_token_logprobs,
    pick,
)
from ppo.reference import FrozenReference
from rewards.counterfactual import CounterfactualReference
from tests.fakes import VOCAB, tiny_gpt2
from tests.ppo.generation.test_generate import naive_filter
from tests.ppo.generation.test_sampling import some_logits

ROOT = Path(__file__).parents[3]
KNOBS = {"temperature", "top_k", "top_p", "min_response_length"}
READERS = {  # the other files that may read a sampler's settings, and why
    "ppo/config.py": "checks them and hands them on",
    "ppo/checks/sampled.py": "refuses filters where a context is given",
    "ppo/evaluation/evaluator.py": "hands the shortest length on to a greedy Sampling",
    "ppo/lm/tiled_logprobs.py": "divides by the temperature that it was given",
    "ppo/compat/trl_generation.py": "writes a warning",
    "eval/settings.py": "checks them and hands them on",
    "eval/teacher.py": "refuses a minimum length",
    "eval/outputs.py": "notes them beside the responses",
    "eval/challenge.py": "notes them beside the responses",
    "eval/summary.py": "writes a signature",
    "eval/attacks/decoding.py": "writes a variant's name",
    "eval/scan/measure.py": "finds the k likeliest itself, and asks the distribution where some tie",
    "eval/scan/findings.py": "reads a column of that name",
    "eval/scan/sweep.py": "reads a column of that name",
    "eval/scan/run.py": "hands it on",
    "unlearning/scan.py": "hands it on",
    "unlearning/scan_corpus.py": "hands it on",
}


@pytest.mark.parametrize("vocab", [5, 128, 1000])
@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [
        (1.0, 0, 1.0),
        (0.5, 0, 1.0),
        (1.0, 3, 1.0),
        (0.8, 1, 1.0),
        (1.0, 0, 0.5),
        (2.0, 0, 0.999),
        (1.5, 4, 0.6),
        (1.0, 5000, 0.9),
    ],
)
def test_filter_equals_the_plain_loop(vocab: int, temperature: float, top_k: int, top_p: float):
    logits = some_logits(6, vocab)
    before = logits.clone()
    actual = filter_logits(logits, temperature, top_k, top_p).softmax(-1)
    expected = torch.stack([naive_filter(row.double(), temperature, top_k, top_p) for row in logits])
    torch.testing.assert_close(actual, expected.float(), rtol=1e-4, atol=1e-6)
    assert torch.equal(logits, before)


def test_the_nucleus_ends_where_its_sum_reaches_top_p():
    """Chances 0.5, 0.25, 0.25: the first token alone is enough for 0.5."""
    logits = torch.tensor([[2.0, 1.0, 1.0]]).log()
    assert (filter_logits(logits, 1.0, 0, 0.5) > -torch.inf).tolist() == [[True, False, False]]


def test_top_k_holds_where_the_nucleus_never_reaches_top_p():
    """The two kept chances sum to less than the largest float32 below 1."""
    logits = 4 * torch.randn(1, 4, generator=torch.Generator().manual_seed(0))
    assert (filter_logits(logits, 1.0, 2, 1 - 2**-24) > -torch.inf).sum() == 2


def test_a_small_nucleus_is_not_sorted_whole(monkeypatch):
    logits = some_logits(6, 5000).clamp(max=5)
    logits[:, 7:12] = 30.0  # five tokens hold all the mass
    monkeypatch.setattr(distribution, "_descending", None)
    assert ((filter_logits(logits, 1.0, 0, 0.9) > -torch.inf).sum(-1) == 5).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_the_nucleus_in_any_precision(dtype):
    logits = torch.tensor([[0.0, 3.0, -9.0, 2.0, 1.0]], dtype=dtype)  # chances 0.03, 0.64, 0, 0.24, 0.09
    kept = filter_logits(logits, 1.0, 0, 0.8) > -torch.inf
    assert kept.tolist() == [[False, True, False, True, False]]


def test_a_nucleus_larger_than_the_first_guess_is_found():
    """It has more tokens than are always sorted whole. The sharp row in the middle needs no second pass."""
    logits = some_logits(3, 6000, scale=0.01)
    logits[1] *= 1000
    assert logits.shape[-1] > distribution._SORTED_WHOLE
    kept = (filter_logits(logits, 1.0, 0, 0.9) > -torch.inf).sum(-1)
    expected = torch.tensor([int((naive_filter(row.double(), 1.0, 0, 0.9) > 0).sum()) for row in logits])
    assert expected[1] < 128 < expected[0]
    assert (kept - expected).abs().max() <= 1  # float32 sums of 6000 nearly equal numbers


def test_keep_stays_in_the_set_and_gradients_flow():
    logits = some_logits(4, 50).requires_grad_()
    keep = logits.argmin(dim=-1)
    filtered = filter_logits(logits, 0.7, 5, 0.9, keep=keep)
    picked = filtered.log_softmax(-1).gather(-1, keep.unsqueeze(-1))
    assert torch.isfinite(picked).all()
    picked.sum().backward()
    assert torch.isfinite(logits.grad).all()
    is_kept = filtered > -torch.inf
    assert (logits.grad[~is_kept] == 0).all()
    assert (logits.grad[is_kept] != 0).all()


def test_temperature_zero_is_the_models_own_distribution():
    logits = some_logits(2, 9)
    assert torch.equal(filter_logits(logits, 0.0, 3, 0.5), logits)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_the_four_steps_in_order(temperature: float):
    """EOS is banned before the filters count, and the temperature acts before the nucleus, as in a plain loop."""
    logits = some_logits(5, 40).requires_grad_()
    before = logits.detach().clone()
    sampling = Sampling(temperature=temperature, top_k=9, top_p=0.8, min_response_length=2, eos_ids=(3, 99, 7))
    with torch.no_grad():
        logits[:, 3] = logits.amax(dim=-1) + 1  # the likeliest by far
    before[:, 3] = logits.detach()[:, 3]
    is_early = torch.tensor([True, False, True, False, True])
    tokens = torch.tensor([5, 3, 6, 8, 9])
    actual = next_token_logprobs(logits, sampling, is_early=is_early, keep=tokens)
    for row, (early, token) in enumerate(zip(is_early.tolist(), tokens.tolist(), strict=True)):
        numbers = before[row].double()
        if early:
            numbers[[3, 7]] = -torch.inf
        chances = naive_filter(numbers, 0.7, 9, 0.8) if temperature else numbers.softmax(-1)
        if chances[token] == 0:  # the sampled token is kept, with its probability
            others = ((chances > 0) | (torch.arange(40) == token)).double()
            chances = (numbers / 0.7).exp() * others
            chances /= chances.sum()
        torch.testing.assert_close(actual[row].double().exp(), chances, rtol=1e-5, atol=1e-7)
    assert torch.equal(logits.detach(), before)
    pick(actual, tokens).sum().backward()
    assert (logits.grad[is_early][:, [3, 7]] == 0).all()
    assert logits.grad[~is_early][:, 3].ne(0).all()
    without = next_token_logits(logits, replace(sampling, min_response_length=0), is_early=is_early, keep=tokens)
    assert torch.equal(without, next_token_logits(logits, sampling, keep=tokens))


def test_pick_and_entropy_by_hand():
    logprobs = torch.tensor([[0.5, 0.5, 0.0], [0.25, 0.25, 0.5]]).log()
    assert pick(logprobs, torch.tensor([1, 2])).exp().tolist() == [0.5, 0.5]
    torch.testing.assert_close(entropy(logprobs), torch.tensor([1.0, 1.5]) * torch.log(torch.tensor(2.0)))


def test_where_eos_is_early():
    sampling = Sampling(min_response_length=2)
    mask = torch.tensor([[True, True, True], [True, False, False]])
    assert early_tokens(mask, mask, sampling).tolist() == [True, True, False, True]
    assert early_steps(torch.arange(4), sampling).tolist() == [True, True, False, False]


def test_eos_ids_outside_the_vocabulary_are_ignored():
    banned = ban_early_eos_(torch.zeros(2, 3), torch.tensor([True, False]), (-1, 0, 2, 3), no_chance=-9.0)
    assert banned.tolist() == [[-9.0, 0.0, -9.0], [0.0, 0.0, 0.0]]


def test_what_greedy_decoding_leaves_out():
    greedy = Sampling(temperature=0.0, top_k=3, top_p=0.5)
    assert (divisor(greedy), has_filters(greedy)) == (1.0, False)
    assert (divisor(Sampling(temperature=0.5)), has_filters(Sampling())) == (0.5, False)
    assert has_filters(Sampling(top_k=1))
    assert has_filters(Sampling(top_p=0.99))
    assert bans_eos(Sampling(min_response_length=1, eos_ids=(0,)))
    assert not bans_eos(Sampling(min_response_length=1, eos_ids=()))
    assert not bans_eos(Sampling(eos_ids=(0,)))


def test_the_sampler_draws_from_this_distribution():
    sampling = Sampling(temperature=0.8, top_k=9, top_p=0.8, min_response_length=1, eos_ids=(2, 4))
    is_early = torch.arange(60) % 2 == 0
    for change in ({}, {"top_k": 0, "top_p": 1.0}, {"temperature": 0.0}):
        changed, logits = replace(sampling, **change), some_logits(60, 300)
        logits[:, [2, 4]] += 9
        expected = next_token_logprobs(logits, changed, is_early=is_early)
        drawn = draw(logits.clone(), torch.linspace(0, 0.99, 60), changed, is_early)
        torch.testing.assert_close(drawn.logprobs, pick(expected, drawn.tokens), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(drawn.entropy, entropy(expected), rtol=1e-6, atol=1e-6)
        assert not torch.isin(drawn.tokens[is_early], torch.tensor([2, 4])).any()
        assert torch.isin(drawn.tokens[~is_early], torch.tensor([2, 4])).any()


def test_all_who_ask_get_the_same_distribution():
    """Sampling, training, reference, trace, teacher, counterfactual reward (nothing forbidden), and a plain forward."""
    model = tiny_gpt2(layers=1, eos=4)
    config = Config(
        prompts_per_step=6, minibatch=6, epochs=1, response_length=8, min_response_length=3, temperature=0.8, top_k=12,
        top_p=0.9, samples_per_prompt=2,
    )  # fmt: skip
    prompts = [[2, 3], [5], [7, 8, 9], [2], [11, 3], [6]]
    trainer = ppo.Trainer(model, prompts=prompts, reward=lambda samples: [0.0] * len(samples), config=config)
    sampling = replace(config.sampling(), eos_ids=(4,))
    rollout = trainer.rollout()
    generation, mask = rollout.generation, rollout.generation.mask
    with evaluation_mode(model):
        features = Backbone(model)(generation.input_ids, generation.attention_mask).before_logits
    logits = model.get_output_embeddings()(features)[:, generation.prompt_ids.shape[1] - 1 : -1][mask]
    is_early, tokens = early_tokens(mask, mask, sampling), generation.tokens[mask]
    expected = pick(next_token_logprobs(logits, sampling, is_early=is_early, keep=tokens), tokens).detach()
    assert is_early.any()
    assert (~is_early).any()
    actor = ActorCritic(model, value_head=None)
    answers = {
        "sampling": generation.logprobs[mask],
        "rollout": rollout.old_logprobs[mask],
        "training": actor.evaluate(generation, sampling, chunk_tokens=64).logprobs[mask],
        "reference": FrozenReference(model, sampling).logprobs(generation, rollout.samples)[mask],
        "counterfactual": CounterfactualReference(model, sampling).logprobs(generation, rollout.samples)[mask],
    }
    for name, answer in answers.items():
        assert (answer.detach() - expected).abs().max() <= 1e-6, name
    sequences = [[*sample.prompt_ids, *sample.ids] for sample in rollout.samples]
    starts = [len(sample.prompt_ids) for sample in rollout.samples]
    found = teacher_force(model, sequences, starts=starts, sampling=replace(sampling, min_response_length=0))
    teacher = torch.cat([torch.from_numpy(one.sampler_logprobs[one.start :]) for one in found])
    assert (teacher - expected)[
        ~is_early
    ].abs().max() <= 1e-6  # the teacher does not know where a response begins, so it bans no EOS
    trace = trainer.trace(rollout, rows=range(len(rollout)), top_k=VOCAB)
    shown = [
        next(a.before for a in token.alternatives if a.id == token.id) for row in trace.rows for token in row.tokens
    ]
    assert (torch.tensor(shown).log() - expected).abs().max() <= 1e-6


def test_no_other_file_computes_with_a_samplers_settings():
    """Every file that reads one, besides the module of the distribution, is listed with a reason."""
    readers = set()
    for folder in ("ppo", "rewards", "eval", "unlearning", "models"):
        for path in (ROOT / folder).rglob("*.py"):
            nodes = ast.walk(ast.parse(path.read_text("utf-8")))
            if any(isinstance(n, ast.Attribute) and n.attr in KNOBS and isinstance(n.ctx, ast.Load) for n in nodes):
                readers.add(path.relative_to(ROOT).as_posix())
    assert readers - {"ppo/lm/distribution.py"} == set(READERS)
