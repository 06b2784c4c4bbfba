"""The shown parts of the tokens add up to the losses, computed here once more in float64 and plain loops.

Rows have tokens that an environment wrote, in every place. The tests know the definitions, nothing of ``ppo``'s losses.
"""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from tests.fakes import tiny_gpt2
from tests.ppo.trace.small import GROUPS, half_and_full, make, with_a_tool

CASES = [
    {},
    {"loss_mean": "sequences", "policy_clip_high": 0.35},
    {"loss_mean": "sequence_sums", "policy_dual_clip": 1.2},
    {"loss_mean": "constant", "kl_as": "loss", "kl_estimator": "k3"},
    {"kl_as": "loss", "kl_estimator": "k2", "loss_mean": "sequences", "microbatch": 2},
    {"policy_loss": "gspo", "loss_mean": "sequences"},
    {"policy_loss": "cispo", "loss_mean": "constant"},
    {"policy_loss": "reinforce", "kl_as": "loss", "kl_estimator": "k3"},
    {"advantage": "reinforce++_baseline", **GROUPS},
    {"advantage": "grpo", "loss_mean": "sequences", **GROUPS},
    {"value_clip": None, "gamma": 0.9, "value_gae_lambda": 0.3},
]
LIBRARY_ONLY = ("advantage", "gamma", "value_gae_lambda")


def case(**changes):
    """A rollout whose policy has moved by a known step since then, its trace of one minibatch, and the trainer."""
    trainer = make(
        sampler=with_a_tool, model=tiny_gpt2().double(), epochs=1, minibatch=8, kl_controller="fixed",
        value_head=changes.pop("value_head", "mlp"), **changes,
    )  # fmt: skip
    trainer.update(trainer.rollout())  # after it the critic's values are not 0
    rollout, draw = trainer.rollout(), torch.Generator().manual_seed(3)
    moved = torch.randn(rollout.old_logprobs.shape, generator=draw, dtype=torch.float64) * 0.3
    mask = rollout.generation.action_mask
    rollout = replace(rollout, old_logprobs=(rollout.old_logprobs - moved) * mask, policy_version=None)
    if trainer.config.has_critic:
        rollout = replace(rollout, old_values=(rollout.old_values + moved) * mask)
    return trainer, rollout, trainer.trace(rollout, range(len(rollout)), is_undone=True)


def measured(trainer, rollout, row):
    """Each action of a row by plain forwards: log-prob with a gradient of its own, value, and what was noted."""
    sample, found = rollout.samples[row], []
    output = trainer.model(input_ids=torch.tensor([sample.prompt_ids + sample.ids]), output_hidden_states=True)
    head = trainer.policy.actor.value_head
    for t, token in enumerate(sample.ids):
        if token >= 14:
            continue
        place = len(sample.prompt_ids) + t - 1
        logprob = torch.log_softmax(output.logits[0, place], dim=-1)[token].detach().requires_grad_()
        value = None if head is None else head(output.hidden_states[-1][0, place]).detach().requires_grad_()
        noted = {
            name: None if x is None else float(x[row, t])
            for name, x in vars(rollout).items()
            if name in ("old_logprobs", "old_values", "ref_logprobs", "advantages", "returns")
        }
        found.append(SimpleNamespace(t=t, logprob=logprob, value=value, **noted))
    return found


def policy_term(config, token, of_response):
    """The policy's loss of one token."""
    a, log_ratio = token.advantages, token.logprob - token.old_logprobs
    low, high = 1 - config.policy_clip, 1 + (config.policy_clip_high or config.policy_clip)
    if config.policy_loss == "reinforce":
        return -a * token.logprob
    if config.policy_loss == "cispo":
        return -a * min(max(math.exp(log_ratio.item()), low), high) * token.logprob
    if config.policy_loss == "gspo":
        log_ratio = of_response + token.logprob - token.logprob.detach()
    ratio = log_ratio.exp()
    loss = torch.maximum(-a * ratio, -a * ratio.clamp(low, high))
    if config.policy_dual_clip is not None and a < 0:
        loss = loss.clamp(max=-a * config.policy_dual_clip)
    return loss


def value_term(config, token):
    """The critic's loss of one token."""
    error = (token.value - token.returns) ** 2
    if config.value_clip is not None:
        moved = (token.value - token.old_values).clamp(-config.value_clip, config.value_clip)
        error = torch.maximum(error, (token.old_values + moved - token.returns) ** 2)
    return error / 2


def kl_term(config, token):
    gap = token.logprob - token.ref_logprobs
    return gap**2 / 2 if config.kl_estimator == "k2" else (-gap).exp() - 1 + gap


def losses(trainer, rows):
    """The minibatch's losses by name, and the weight of each row's tokens in the mean."""
    config, num_tokens = trainer.config, sum(map(len, rows))
    weights = {
        "tokens": [1 / num_tokens for _ in rows],
        "sequences": [1 / len(rows) / len(row) for row in rows],
        "sequence_sums": [1 / len(rows) for _ in rows],
        "constant": [1 / len(rows) / config.response_length for _ in rows],
    }[config.loss_mean]
    total = dict.fromkeys(("policy", "value", "kl"), torch.zeros((), dtype=torch.float64))
    for row, weight in zip(rows, weights, strict=True):
        of_response = sum(x.logprob.item() - x.old_logprobs for x in row) / len(row)
        for token in row:
            total["policy"] = total["policy"] + weight * policy_term(config, token, of_response)
            if config.has_critic:
                total["value"] = total["value"] + value_term(config, token) / num_tokens
            if config.kl_as == "loss":
                total["kl"] = total["kl"] + weight * kl_term(config, token)
    return total, weights


@pytest.mark.parametrize("own", [None, half_and_full])
@pytest.mark.parametrize("changes", CASES)
def test_the_parts_of_the_tokens_add_up_to_the_losses(changes, own):
    if own is not None:  # what only the library's estimators read
        without = {"value_head": "none"} if "advantage" in changes else {}
        changes = {k: v for k, v in changes.items() if k not in LIBRARY_ONLY} | without
    trainer, rollout, trace = case(own_advantage=own, **changes)
    rows = [measured(trainer, rollout, row) for row in range(len(rollout))]
    total, weights = losses(trainer, rows)
    (minibatch,) = trace.minibatches
    assert minibatch.num_tokens == sum(map(len, rows)) < sum(len(row.tokens) for row in trace.rows)
    config, kl_coef = trainer.config, trainer.kl.coef
    whole = total["policy"] + config.value_coef * total["value"] + kl_coef * total["kl"]
    whole.backward()
    shown = {"policy": 0.0, "value": 0.0}
    for row, plain, weight in zip(trace.rows, rows, weights, strict=True):
        assert row.actions == [x.t for x in plain]
        for x in plain:
            (update,) = row.tokens[x.t].updates
            assert update.logprob == pytest.approx(x.logprob.item(), abs=1e-12)
            assert update.logprob_gradient == pytest.approx(x.logprob.grad.item(), abs=1e-12)
            shown["policy"] += weight * (update.policy_loss or 0.0)
            if config.has_critic:
                assert update.new_value == pytest.approx(x.value.item(), abs=1e-12)
                assert update.value_gradient == pytest.approx(x.value.grad.item(), abs=1e-12)
                shown["value"] += update.value_loss / minibatch.num_tokens
    assert minibatch.statistics["policy/loss"] == pytest.approx(total["policy"].item(), abs=1e-12)
    if trace.has_clip:
        assert shown["policy"] == pytest.approx(total["policy"].item(), abs=1e-12)
        assert any(token.updates[0].is_clipped for row in trace.rows for token in row.tokens if token.is_action)
    if config.has_critic:
        assert shown["value"] == pytest.approx(total["value"].item(), abs=1e-12)
        assert minibatch.statistics["value/loss"] == pytest.approx(total["value"].item(), abs=1e-12)
    if config.kl_as == "loss":
        assert minibatch.statistics["kl/loss"] == pytest.approx(total["kl"].item(), abs=1e-12)
        assert total["kl"].item() > 0
