"""The baselines: losses by hand, gradients, that they forget, and what decoding defences change and do not change."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import kl_div

from eval.baselines import distillation, gradient_ascent, preference
from eval.baselines.decoding import MemFree, UniformMixture, dp_decoding, logit_mixing_temperature, mixed_logprobs
from eval.baselines.training import Training, frozen_nll, nll_of, pairs_of, train
from eval.evaluate import evaluate, probe
from eval.teacher import teacher_force
from ppo.config import Sampling
from ppo.generation import generate
from ppo.lm.backbone import Backbone
from rewards.bounded import bounded_logprobs
from tests.eval.test_evaluate import SETTINGS, make_passages, memorised  # noqa: F401 (a fixture)
from tests.fakes import VOCAB, Letters, tiny_gpt2

PASSAGES = make_passages()
FORGET = [p for p in PASSAGES if p.group == "forget"]
RETAIN = [[*p.prefix, *p.suffix] for p in PASSAGES if p.group == "keep"]


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


# Losses by hand


def test_losses_by_hand() -> None:
    nll, sizes = torch.tensor([6.0, 2.0]), torch.tensor([3.0, 2.0])
    assert gradient_ascent.ascent_loss(nll, sizes).item() == pytest.approx(-3.0)
    npo = preference.npo_loss(nll, torch.tensor([6.0, 1.0]), beta=0.1).item()
    assert npo == pytest.approx(20 * (math.log(2) + math.log(1 + math.exp(-0.1))))
    simnpo = preference.simnpo_loss(nll, sizes, beta=2.0, delta=1.0).item()
    assert simnpo == pytest.approx(math.log(1 + math.exp(-2.0)) + math.log(2))
    with pytest.raises(ValueError, match=r"beta=0"):
        preference.check_beta(0)


def test_npo_starts_as_gradient_ascent() -> None:
    """At the reference the weight 2 sigmoid(-beta * 0) is 1, so the gradient is that of -NLL for any beta."""
    for beta in (0.01, 0.1, 5.0):
        nll = torch.tensor([3.0, 7.0], requires_grad=True)
        preference.npo_loss(nll, nll.detach(), beta=beta).backward()
        assert nll.grad.tolist() == pytest.approx([-1.0, -1.0])


def test_counterfactual_kl_against_a_loop() -> None:
    torch.manual_seed(0)
    logits, original = torch.randn(5, 7, dtype=torch.float64), 3 * torch.randn(5, 7, dtype=torch.float64)
    truths = torch.tensor([0, 3, 6, 2, 2])
    found = distillation.counterfactual_kl(logits, original, truths)
    for i, truth in enumerate(truths.tolist()):
        p = torch.softmax(original[i], dim=-1)
        p[truth] = 0
        p = p / p.sum()
        expected = kl_div(torch.log_softmax(logits[i], dim=-1), p, reduction="sum").item()
        assert found[i].item() == pytest.approx(expected, abs=1e-9)
    masked = original.scatter(-1, truths.unsqueeze(-1), -40.0)
    assert distillation.counterfactual_kl(masked, original, truths).tolist() == pytest.approx([0.0] * 5, abs=1e-9)


@pytest.mark.parametrize("is_reverse", [False, True])
def test_the_bounded_distillation_against_loops(is_reverse: bool) -> None:
    """The sum over passages of the mean KL from the bounded reference, or to it, state by state."""
    model, original = tiny_gpt2(0).eval(), tiny_gpt2(1).eval()
    pairs = pairs_of(FORGET, "whole")
    chances = [[0.02 + 0.01 * t for t in range(len(tokens))] for _, tokens in pairs]
    expected = 0.0
    for (context, tokens), levels in zip(pairs, chances, strict=True):
        ids = torch.tensor([[*context, *tokens]])
        with torch.no_grad():
            ours, theirs = (m(ids).logits[0, len(context) - 1 : -1] for m in (model, original))
        q = bounded_logprobs(theirs, torch.tensor(tokens), torch.tensor(levels), end_ids=(1,))
        one, other = (q, torch.log_softmax(ours, dim=-1)) if is_reverse else (torch.log_softmax(ours, dim=-1), q)
        terms = kl_div(one, other, reduction="none", log_target=True).sum(dim=-1)
        expected += terms.mean().item()
    settings = {"chunk_tokens": 3, "is_reverse": is_reverse}
    found = distillation.distillation_loss(Backbone(model), Backbone(original), pairs, chances=chances, **settings)
    assert found.item() == pytest.approx(expected, rel=1e-4)
    if is_reverse:
        with pytest.raises(ValueError, match="endless where a token is forbidden"):
            distillation.distillation_loss(Backbone(model), Backbone(original), pairs, **settings)


@pytest.mark.parametrize("is_reverse", [False, True])
def test_bounded_distillation_ends_at_the_chance_levels(is_reverse: bool) -> None:
    model = memorised_by_heart()
    chances = [[0.2] * len([*p.pre_prefix, *p.prefix, *p.suffix]) for p in FORGET]
    training = Training(scope="whole", steps=150, learning_rate=5e-3)
    more = {"chances": chances, "is_reverse": is_reverse}
    distillation.unlearn(model, FORGET, [], generator=generator(), training=training, **more)
    found = teacher_force(model, [[*p.pre_prefix, *p.prefix, *p.suffix] for p in FORGET])
    true_p = [float(torch.tensor(x.logprobs[1:]).exp().mean()) for x in found]
    assert all(0.1 < p < 0.3 for p in true_p), true_p


def memorised_by_heart() -> torch.nn.Module:
    """A tiny model that gives every token of the forget set nearly everything."""
    model = tiny_gpt2(dropout=0.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(150):
        loss = torch.zeros(())
        for p in FORGET:
            ids = torch.tensor([[*p.pre_prefix, *p.prefix, *p.suffix]])
            loss = loss + model(ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def test_nll_has_the_gradient_of_the_plain_loss() -> None:
    model = tiny_gpt2().eval()
    pairs = pairs_of(FORGET, "suffix")
    nll_of(pairs, Backbone(model), range(len(pairs)), 4).sum().backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    for context, tokens in pairs:
        logits = model(torch.tensor([[*context, *tokens]])).logits[0, len(context) - 1 : -1]
        torch.nn.functional.cross_entropy(logits, torch.tensor(tokens), reduction="sum").backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-5)


# The loop


def test_microbatches_change_nothing() -> None:
    logs = []
    for microbatch in (1, 3):
        model = tiny_gpt2()
        training = Training(steps=3, microbatch=microbatch, learning_rate=1e-3, retain_weight=1.0)
        logs.append(distillation.unlearn(model, FORGET, RETAIN, generator=generator(), training=training))
    for a, b in zip(*logs, strict=True):
        for name in ("forget_loss", "retain_loss", "grad_norm"):
            assert a[name] == pytest.approx(b[name], rel=1e-4)


def test_passes_in_bfloat16_keep_the_weights_in_float32() -> None:
    logs = {}
    for autocast in ("off", "bfloat16"):
        model = tiny_gpt2()
        training = Training(steps=3, learning_rate=1e-3, retain_weight=1.0, retain_loss="kl", autocast=autocast)
        logs[autocast] = distillation.unlearn(model, FORGET, RETAIN, generator=generator(), training=training)
        assert {p.dtype for p in model.parameters()} == {torch.float32}
    for plain, coarse in zip(*logs.values(), strict=True):
        assert coarse["forget_loss"] != plain["forget_loss"]
        assert coarse["forget_loss"] == pytest.approx(plain["forget_loss"], rel=0.02)


def test_a_killed_baseline_goes_on_to_the_same_bits(tmp_path) -> None:
    plain = Training(steps=5, batch=2, learning_rate=1e-3, retain_weight=1.0, retain_loss="kl")
    saved = replace(plain, checkpoint=tmp_path / "c", save_every_steps=2)

    def run(training, stop=None):
        model = tiny_gpt2()
        log = distillation.unlearn(model, FORGET, RETAIN, generator=generator(), training=training, stop=stop)
        return model, log

    def kill(steps):
        if steps == 3:
            raise KeyboardInterrupt
        return False

    whole, expected = run(plain)
    with pytest.raises(KeyboardInterrupt):
        run(saved, kill)
    again, log = run(saved)
    assert [{**row, "seconds": 0} for row in log] == [{**row, "seconds": 0} for row in expected]
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))


def test_batches_are_shuffled_epochs() -> None:
    seen: list[int] = []

    def loss(backbone, indices):
        seen.extend(indices)
        return 0.0 * next(backbone.model.parameters()).sum()

    train(tiny_gpt2(), 4, [], loss, training=Training(steps=4, batch=2), generator=generator())
    assert sorted(seen[:4]) == sorted(seen[4:]) == [0, 1, 2, 3]


def test_stop_ends_the_training() -> None:
    log = gradient_ascent.unlearn(tiny_gpt2(), FORGET, generator=generator(), stop=lambda steps: steps == 2)
    assert [row["step"] for row in log] == [0.0, 1.0]


def test_bad_settings_are_named() -> None:
    with pytest.raises(ValueError, match="steps=0"):
        Training(steps=0)
    with pytest.raises(ValueError, match="nothing to unlearn"):
        gradient_ascent.unlearn(tiny_gpt2(), [], generator=generator())
    with pytest.raises(ValueError, match="needs retain_weight"):
        gradient_ascent.unlearn_with_difference(
            tiny_gpt2(), FORGET, RETAIN, generator=generator(), training=gradient_ascent.PAPER
        )
    with pytest.raises(ValueError, match="0 retain texts"):
        distillation.unlearn(tiny_gpt2(), FORGET, [], generator=generator())


# That they forget


METHODS = {
    "ascent": (gradient_ascent.unlearn, gradient_ascent.PAPER),
    # The ascent loss has no lower bound, so the retain loss needs a larger weight.
    "difference": (gradient_ascent.unlearn_with_difference, replace(gradient_ascent.DIFFERENCE, retain_weight=10.0)),
    "npo": (preference.unlearn_npo, preference.DEFAULT),
    "simnpo": (preference.unlearn_simnpo, preference.DEFAULT),
    "distillation": (distillation.unlearn, distillation.DEFAULT),
}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_forgets_and_those_with_retain_text_keep(memorised, name) -> None:  # noqa: F811
    unlearn, defaults = METHODS[name]
    model = copy.deepcopy(memorised)
    training = replace(defaults, steps=40, learning_rate=1e-3, retain_sequences=6)
    log = unlearn(model, FORGET, RETAIN, generator=generator(), training=training)
    assert len(log) == 40
    assert not model.training  # the mode is restored
    found = probe(model, Letters(), PASSAGES)
    assert found["forget/exact"] == 0.0
    if training.retain_weight:
        assert found["keep/exact"] >= 2 / 3


def test_distillation_reaches_its_target(memorised) -> None:  # noqa: F811
    """The model learns the original's distribution with the true token masked out."""
    model = copy.deepcopy(memorised)
    training = Training(steps=150, learning_rate=3e-3, max_grad_norm=None)
    log = distillation.unlearn(model, FORGET[:1], [], generator=generator(), training=training)
    assert log[0]["forget_loss"] > 2.0
    assert log[-1]["forget_loss"] < 0.1
    with torch.no_grad():
        context = torch.tensor([[*FORGET[0].prefix]])
        original = memorised(context).logits[0, -1]
        original[FORGET[0].suffix[0]] = -torch.inf
        expected = torch.softmax(original, dim=-1)
        assert (torch.softmax(model(context).logits[0, -1], dim=-1) - expected).abs().max() < 0.1


def test_the_reference_of_npo_is_the_model_before_training(memorised) -> None:  # noqa: F811
    pairs = pairs_of(FORGET, "whole")
    found = frozen_nll(memorised, pairs, Training(microbatch=2))
    expected = [s.nll for s in teacher_force(memorised, [[*c, *t] for c, t in pairs])]
    assert found.tolist() == pytest.approx(expected, abs=1e-3)


def test_paper_stop_checks_both_thresholds(memorised) -> None:  # noqa: F811
    long = [replace(p, pre_prefix=p.pre_prefix * 2) for p in FORGET]
    assert not gradient_ascent.paper_stop(memorised, FORGET, stride=2)(1)
    assert gradient_ascent.paper_stop(tiny_gpt2(seed=3), long, stride=2)(1)


# Decoding


def test_mixed_logprobs_by_hand() -> None:
    logits = torch.tensor([0.0, math.log(3.0), -math.inf, -math.inf])
    assert mixed_logprobs(logits, 0.6).exp().tolist() == pytest.approx([0.25, 0.55, 0.1, 0.1])
    assert mixed_logprobs(logits, 0.0).exp().tolist() == pytest.approx([0.25] * 4)
    assert torch.equal(mixed_logprobs(logits, 1.0), torch.log_softmax(logits, dim=-1))


def test_mixing_logits_with_their_mean_is_a_temperature() -> None:
    logits, strength = torch.randn(9, generator=generator()).double(), 0.7
    mixed = strength * logits + (1 - strength) * logits.mean()
    heated = logits / logit_mixing_temperature(strength)
    torch.testing.assert_close(torch.softmax(mixed, dim=-1), torch.softmax(heated, dim=-1))
    with pytest.raises(ValueError, match="strength=0"):
        logit_mixing_temperature(0)


def test_dp_decoding_reaches_sampling_and_teacher_forcing_but_not_greedy(memorised) -> None:  # noqa: F811
    layer = memorised.get_output_embeddings()
    plain = evaluate(memorised, Letters(), FORGET, settings=SETTINGS)
    with dp_decoding(memorised, strength=0.3):
        assert isinstance(memorised.get_output_embeddings(), UniformMixture)
        mixed = evaluate(memorised, Letters(), FORGET, settings=SETTINGS)
    assert memorised.get_output_embeddings() is layer
    assert mixed.summary["forget/exact"] == plain.summary["forget/exact"] == 1.0  # the argmax does not change
    expected = 0.3 * plain.summary["forget/true_token_p"] + 0.7 / VOCAB
    assert mixed.summary["forget/true_token_p"] == pytest.approx(expected, abs=1e-4)
    assert mixed.summary["forget/bleu_sampled"] < plain.summary["forget/bleu_sampled"]
    with pytest.raises(ValueError, match=r"strength=1\.5"), dp_decoding(memorised, strength=1.5):
        pass


def test_memfree_blocks_the_passage_and_nothing_else(memorised) -> None:  # noqa: F811
    blocked = [[*p.prefix, *p.suffix] for p in FORGET]
    memfree = MemFree(blocked, n=4)
    found = evaluate(memorised, Letters(), PASSAGES, settings=SETTINGS, generate=memfree)
    assert found.summary["forget/exact"] == found.summary["forget/exact_sampled"] == 0.0
    assert found.summary["keep/exact"] == 1.0
    assert found.summary["forget/ma_suffix"] == 1.0  # the model itself still knows the passage
    grams = {tuple(row[i : i + 4]) for row in blocked for i in range(len(row) - 3)}
    sampling = Sampling(response_length=8, num_samples=3, temperature=1.5)
    generation = memfree(memorised, [list(p.prefix) for p in FORGET], sampling, seed=1, slots=2)
    for ids, mask in zip(generation.input_ids, generation.attention_mask, strict=True):
        row = ids[mask].tolist()
        assert not any(tuple(row[i : i + 4]) in grams for i in range(1, len(row) - 3))  # 0: the prompt itself


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_memfree_without_anything_blocked_is_plain_generation(memorised, temperature) -> None:  # noqa: F811
    prompts, sampling = [[2, 3, 4], [5], [6, 7]], Sampling(response_length=6, num_samples=2, temperature=temperature)
    plain = generate(memorised, prompts, sampling, seed=3)
    found = MemFree([])(memorised, prompts, sampling, seed=3, slots=4)
    assert [r[m].tolist() for r, m in zip(found.tokens, found.mask, strict=True)] == [
        r[m].tolist() for r, m in zip(plain.tokens, plain.mask, strict=True)
    ]
    assert torch.equal(found.is_ended, plain.is_ended)
    width = plain.tokens.shape[1]
    torch.testing.assert_close(found.logprobs[:, :width], plain.logprobs, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.entropy[:, :width], plain.entropy, atol=1e-4, rtol=0)


def test_memfree_vetoes_by_hand() -> None:
    memfree = MemFree([[1, 2, 3], [1, 2, 4]], n=3)
    assert memfree.vetoes == {(1, 2): {3, 4}}
    assert not memfree.can_write([1], [2, 3])  # the n-gram starts in the prompt and ends in the response
    assert not memfree.can_write([7, 1, 2], [4, 7])
    assert not memfree.can_write([], [1, 2, 3])
    assert memfree.can_write([1, 2, 3], [7])  # the n-gram ends in the prompt: the model did not write it
    assert memfree.can_write([1], [2, 7, 3])
    assert memfree.can_write([2], [3, 1, 2])  # the response ends before the n-gram does
    assert MemFree([[5]], n=1).can_write([5], [6])
    assert not MemFree([[5]], n=1).can_write([6], [5])
    with pytest.raises(ValueError, match="n=0"):
        MemFree([], n=0)
