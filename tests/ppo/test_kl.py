"""KL estimators equal the exact divergence on average, and controllers follow their formula."""

import math

import pytest
import torch

from ppo.config import Config
from ppo.kl import AdaptiveKL, FixedKL, KLPenalty, estimate_kl


def exact_expectation(estimator):
    """E_{a~pi} of the estimator over a four-way distribution, and the exact KL, both in float64."""
    pi = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
    ref = torch.tensor([0.25, 0.25, 0.3, 0.2], dtype=torch.float64)
    expected = float((pi * estimate_kl(pi.log(), ref.log(), estimator=estimator)).sum())
    exact = sum(p * math.log(p / q) for p, q in zip(pi.tolist(), ref.tolist(), strict=True))
    return expected, exact


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_k1_and_k3_are_unbiased(estimator):
    expected, exact = exact_expectation(estimator)
    assert expected == pytest.approx(exact, abs=1e-12)


def test_k2_is_half_the_squared_log_ratio():
    expected, _ = exact_expectation("k2")
    by_hand = sum(
        p * math.log(p / q) ** 2 / 2 for p, q in zip([0.5, 0.3, 0.15, 0.05], [0.25, 0.25, 0.3, 0.2], strict=True)
    )
    assert expected == pytest.approx(by_hand, abs=1e-12)


def test_k1_may_be_negative_k3_is_not_and_equal_log_probs_give_zero():
    low, high = torch.tensor([-3.0]), torch.tensor([-1.0])
    assert estimate_kl(low, high, estimator="k1").item() == -2.0
    assert estimate_kl(low, high, estimator="k3").item() == pytest.approx(math.exp(2) - 1 - 2)
    assert all(estimate_kl(low, low, estimator=k).item() == 0 for k in ("k1", "k2", "k3"))


@pytest.mark.parametrize("gap", [21.0, 88.8, 200.0, 1e30])
def test_k3_of_far_off_responses_is_finite(gap):
    logprobs = torch.tensor([-gap], requires_grad=True)
    found = estimate_kl(logprobs, torch.zeros(1), estimator="k3")
    found.sum().backward()
    assert found.item() == pytest.approx(math.exp(20) - 1 - 20)
    assert logprobs.grad.item() == 0
    assert estimate_kl(torch.zeros(1), -torch.tensor([gap]), estimator="k3").item() == pytest.approx(gap - 1)


def test_k3_is_its_formula_up_to_the_limit():
    for gap in (0.0, 1e-3, 5.0, 19.9):
        found = estimate_kl(-torch.tensor([gap]).double(), torch.zeros(1).double(), estimator="k3").item()
        assert found == pytest.approx(math.exp(gap) - 1 - gap, rel=1e-5)


def test_the_gradient_of_k2_is_that_of_the_divergence():
    """sum_a pi_a * d k2/d theta equals d KL/d theta. This is why k2 may be a loss and k1 may not."""
    theta = torch.tensor([0.3, -0.2, 0.7], dtype=torch.float64, requires_grad=True)
    ref = torch.log_softmax(torch.tensor([0.1, 0.5, -0.4], dtype=torch.float64), 0)
    logprobs = torch.log_softmax(theta, 0)
    exact = torch.autograd.grad((logprobs.exp() * (logprobs - ref)).sum(), theta, retain_graph=True)[0]
    weights = logprobs.exp().detach()
    k2 = torch.autograd.grad((weights * estimate_kl(logprobs, ref, estimator="k2")).sum(), theta, retain_graph=True)[0]
    k1 = torch.autograd.grad((weights * estimate_kl(logprobs, ref, estimator="k1")).sum(), theta)[0]
    assert torch.allclose(k2, exact, atol=1e-12)
    assert torch.allclose(k1, torch.zeros(3, dtype=torch.float64), atol=1e-12)


@pytest.mark.parametrize(
    ("kl", "factor"),
    [(6.0, 1.0), (12.0, 1 + 0.2 * 100 / 10_000), (0.0, 1 - 0.2 * 100 / 10_000), (6.6, 1 + 0.1 * 100 / 10_000)],
)
def test_adaptive_controller(kl, factor):
    controller = AdaptiveKL(0.2, target_kl_per_sequence=6.0, horizon_sequences=10_000)
    controller.update(kl, 100)
    assert controller.coef == pytest.approx(0.2 * factor)


def test_the_config_chooses_the_controller():
    assert isinstance(KLPenalty.of(Config()).controller, AdaptiveKL)
    assert KLPenalty.of(Config(kl_controller="fixed", kl_coef=0.3)).controller == FixedKL(0.3)
    fixed = FixedKL(0.3)
    fixed.update(100.0, 10)
    assert fixed.coef == 0.3
