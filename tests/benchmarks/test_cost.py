"""Tokens and operations, counted by hand."""

from __future__ import annotations

import pytest

from eval.baselines.training import Training
from eval.cost import Cost, Tokens, baseline_tokens, count_parameters, ppo_tokens
from ppo.config import Config
from tests.fakes import tiny_gpt2


def test_operations_of_tokens():
    cost = Cost(1.5, Tokens(forward=10, trained=3) + Tokens(5, 1) * 2, parameters=100)
    assert cost.tokens == Tokens(20, 5)
    assert cost.flops == 2 * 100 * 20 + 6 * 100 * 5
    assert cost.to_dict() == {
        "seconds": 1.5, "tokens": {"forward": 20, "trained": 5}, "parameters": 100, "flops": 7000,
    }  # fmt: skip


def test_tied_parameters_count_once():
    model = tiny_gpt2()
    assert model.lm_head.weight is model.transformer.wte.weight
    assert count_parameters(model) == sum(p.numel() for p in model.transformer.parameters())


def test_a_baseline_by_hand():
    pairs = [([1], [2, 3, 4]), ([1, 2], [3, 4, 5, 6])]  # 4 and 6 tokens
    log = [{}, {}, {}]
    assert baseline_tokens(pairs, Training(), log) == Tokens(0, 30)
    assert baseline_tokens(pairs, Training(batch=1), log) == Tokens(0, 15)
    assert baseline_tokens(pairs, Training(), log, asks_once=True) == Tokens(10, 30)
    assert baseline_tokens(pairs, Training(), log, asks_always=True) == Tokens(30, 30)
    kept = Training(retain_weight=1.0, retain_loss="kl", retain_sequences=2, retain_tokens=7)
    assert baseline_tokens(pairs, kept, log) == Tokens(42, 72)


@pytest.mark.parametrize(("kl_coef", "forward"), [(0.0, 2 * 80), (0.2, 4 * 80)])
def test_ppo_by_hand(kl_coef, forward):
    config = Config(prompts_per_step=8, minibatch=4, epochs=2, kl_coef=kl_coef)
    rows = [{"response/length_mean": 6.0, "update/minibatches": 4.0}] * 2
    assert ppo_tokens(config, rows, prompt_length=4) == Tokens(forward, 2 * 4 * 40)
    kept = config.replace(retain_coef=1.0, retain_loss="kl", retain_sequences=3, retain_tokens=5)
    assert ppo_tokens(kept, rows, prompt_length=4) == Tokens(forward + 8 * 15, 2 * 4 * 40 + 8 * 15)
