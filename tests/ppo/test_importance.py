"""Importance weights: their definition, and what they make of a gradient when every possible response is enumerated.

The enumerated world has three tokens, of which 0 ends a response, and responses of at most three tokens: 15 of them.
Policy pi and sampler mu are tables of logits, one row for each prefix. Expectations are sums over all responses, in
float64.
"""

import math
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import pytest
import torch

from ppo import CheckError, Config, Trainer
from ppo.buffer import join, rows, trim_rollout
from ppo.importance import importance_metrics, importance_weights, sampler_metrics
from ppo.policy_losses import policy_loss_of
from ppo.sampler import sample_policy
from tests.fakes import random_rollout, tiny_gpt2

VOCAB, LONGEST = 3, 3


@cache
def responses():
    """Every response: it ends with 0, or holds LONGEST tokens."""
    done, open_ = [], [()]
    for _ in range(LONGEST):
        longer = [(*prefix, token) for prefix in open_ for token in range(VOCAB)]
        done += [response for response in longer if response[-1] == 0]
        open_ = [response for response in longer if response[-1] != 0]
    return sorted(done + open_)


@cache
def prefixes():
    return sorted({response[:t] for response in responses() for t in range(len(response))})


def table(seed, scale=1.0):
    """Logits [prefixes, V]."""
    g = torch.Generator().manual_seed(seed)
    return scale * torch.randn(len(prefixes()), VOCAB, generator=g, dtype=torch.float64)


def logprobs_of(logits):
    """Log-prob of every token of every response, [15, 3], 0 on padding; differentiable."""
    chances = torch.log_softmax(logits, dim=-1)
    out = torch.zeros(len(responses()), LONGEST, dtype=torch.float64)
    places = [(b, t, r) for b, r in enumerate(responses()) for t in range(len(r))]
    picked = torch.stack([chances[prefixes().index(r[:t]), r[t]] for _, t, r in places])
    return out.index_put(tuple(torch.tensor([p[:2] for p in places]).T), picked)


def mask_of():
    return torch.tensor([[t < len(r) for t in range(LONGEST)] for r in responses()])


def advantages_of(kind, seed=5):
    """Of every token, [15, 3]: one number a response, one a token that knows what follows, or one a prefix."""
    g = torch.Generator().manual_seed(seed)
    if kind == "response":
        found = torch.randn(len(responses()), 1, generator=g, dtype=torch.float64).expand(-1, LONGEST)
    elif kind == "token":
        found = torch.randn(len(responses()), LONGEST, generator=g, dtype=torch.float64)
    else:
        known = {}
        cells = [[r[: t + 1] for t in range(LONGEST)] for r in responses()]
        for cell in sorted({c for row in cells for c in row}):
            known[cell] = float(torch.randn((), generator=g, dtype=torch.float64))
        found = torch.tensor([[known[c] for c in row] for row in cells], dtype=torch.float64)
    return found * mask_of()


def expected_gradient(pi, mu, advantages, weights, loss="reinforce"):
    """The gradient that the library's loss has on average over responses drawn from mu, before the policy moves."""
    logits = pi.clone().requires_grad_()
    new, mask, chances = logprobs_of(logits), mask_of(), logprobs_of(mu).sum(dim=1).exp()
    assert float(chances.sum()) == pytest.approx(1, abs=1e-12)
    policy_loss = policy_loss_of(Config(loss_mean="sequence_sums", policy_loss=loss))
    total = 0.0
    for b in range(len(responses())):
        part = SimpleNamespace(
            old_logprobs=new.detach()[b : b + 1], advantages=advantages[b : b + 1],
            generation=SimpleNamespace(action_mask=mask[b : b + 1]), importance_weights=weights[b : b + 1],
        )  # fmt: skip
        found, _ = policy_loss(
            SimpleNamespace(logprobs=new[b : b + 1]), part, num_tokens=int(mask[b].sum()), num_sequences=1
        )
        total = total + chances[b] * found
    (gradient,) = torch.autograd.grad(total, logits)
    return gradient


def on_policy_gradient(pi, advantages):
    """- sum over responses y of pi(y) sum over t of A_t(y) grad log pi(y_t | y_<t), without any code of ppo/."""
    logits = pi.clone().requires_grad_()
    new = logprobs_of(logits)
    chances = new.detach().sum(dim=1, keepdim=True).exp()
    (gradient,) = torch.autograd.grad(-(chances * advantages * new).sum(), logits)
    return gradient


def surrogate_gradient(pi, mu, advantages):
    """Of - sum over prefixes s of mu(s) sum over v of pi(v | s) A(s, v), where A(s, v) is the mean advantage when mu
    goes on behind v; without any code of ppo/.
    """
    logits, drawn = pi.clone().requires_grad_(), logprobs_of(mu)
    chances, total = torch.softmax(logits, dim=-1), 0.0
    for row, s in enumerate(prefixes()):
        for v in range(VOCAB):
            going_on = [b for b, r in enumerate(responses()) if r[: len(s) + 1] == (*s, v)]
            reached = math.exp(float(drawn[going_on[0], : len(s)].sum()))
            ends = [math.exp(float(drawn[b, len(s) + 1 :].sum())) for b in going_on]
            worth = sum(p * float(advantages[b, len(s)]) for p, b in zip(ends, going_on, strict=True))
            total = total - reached * chances[row, v] * worth
    (gradient,) = torch.autograd.grad(total, logits)
    return gradient


def weights_of(pi, mu, level, cap=None, beyond="truncate"):
    return importance_weights(logprobs_of(pi), logprobs_of(mu), mask_of(), level=level, cap=cap, beyond=beyond)


@pytest.mark.parametrize("kind", ["response", "token", "prefix"])
@pytest.mark.parametrize("loss", ["reinforce", "clip", "gspo", "cispo"])
def test_per_sequence_without_a_cap_the_gradient_is_the_on_policy_one(loss, kind):
    pi, mu, advantages = table(0), table(1), advantages_of(kind)
    wanted = on_policy_gradient(pi, advantages)
    found = expected_gradient(pi, mu, advantages, weights_of(pi, mu, "sequence"), loss)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)
    unweighted = expected_gradient(pi, mu, advantages, torch.ones(len(responses()), LONGEST), loss)
    assert (unweighted - wanted).abs().max() > 0.05


@pytest.mark.parametrize("kind", ["response", "token", "prefix"])
@pytest.mark.parametrize("loss", ["reinforce", "clip", "gspo", "cispo"])
def test_per_token_the_gradient_is_that_of_a_surrogate_in_which_the_sampler_writes_all_else(loss, kind):
    pi, mu, advantages = table(0), table(1), advantages_of(kind)
    found = expected_gradient(pi, mu, advantages, weights_of(pi, mu, "token"), loss)
    torch.testing.assert_close(found, surrogate_gradient(pi, mu, advantages), rtol=0, atol=1e-9)
    assert (found - on_policy_gradient(pi, advantages)).abs().max() > 0.01  # it is another one


def test_per_token_the_bias_is_of_first_order():
    """Halving the distance of mu from pi halves the bias. It is the same without weights, whose bias is larger here."""
    pi, step, advantages = table(0), table(1), advantages_of("prefix")

    def bias(size, weighted):
        mu = pi + size * step
        weights = weights_of(pi, mu, "token") if weighted else torch.ones(len(responses()), LONGEST)
        return float((expected_gradient(pi, mu, advantages, weights) - on_policy_gradient(pi, advantages)).norm())

    assert bias(0.02, True) == pytest.approx(2 * bias(0.01, True), rel=0.05)
    assert bias(0.01, True) < bias(0.01, False)


def test_both_are_on_policy_where_the_sampler_is_the_policy():
    pi, advantages = table(0), advantages_of("token")
    wanted = on_policy_gradient(pi, advantages)
    for level in ("token", "sequence"):
        found = expected_gradient(pi, pi, advantages, weights_of(pi, pi, level, cap=2.0))
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)


def by_hand(old, drawn, actions, level, cap, beyond):
    """Weights of one response, a list with 0 where there is no action; and how many ratios were cut."""
    ratios = {t: math.exp(old[t]) / math.exp(drawn[t]) for t in range(len(old)) if actions[t]}
    if level == "sequence":
        ratios = dict.fromkeys(ratios, math.prod(ratios.values()))
    weights, cut = [0.0] * len(old), 0
    for t, w in ratios.items():
        weights[t] = w
        if cap is not None and w > cap:
            weights[t], cut = cap if beyond == "truncate" else 0.0, cut + 1
    return weights, cut


HOLES = torch.tensor([[1, 1, 1, 1, 1], [1, 0, 0, 1, 0], [0, 1, 1, 0, 0], [0, 0, 0, 0, 1]], dtype=torch.bool)


@pytest.mark.parametrize("beyond", ["truncate", "mask"])
@pytest.mark.parametrize("cap", [None, 2.0, 1.0, 0.5])
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_weights_and_metrics_are_their_definition(level, cap, beyond):
    g = torch.Generator().manual_seed(3)
    old, drawn = (-torch.randn(4, 5, generator=g, dtype=torch.float64).abs() for _ in range(2))
    found = importance_weights(old, drawn, HOLES, level=level, cap=cap, beyond=beyond)
    pairs = [by_hand(*(x[b].tolist() for x in (old, drawn, HOLES)), level, cap, beyond) for b in range(4)]
    torch.testing.assert_close(found, torch.tensor([w for w, _ in pairs], dtype=torch.float64), rtol=1e-12, atol=0)
    metrics = importance_metrics(found, old, drawn, HOLES, level=level, cap=cap)
    if level == "token":
        flat = [
            w for (row, _), actions in zip(pairs, HOLES, strict=True) for w, a in zip(row, actions, strict=True) if a
        ]
        cut = sum(n for _, n in pairs)
    else:
        flat, cut = [max(row) for row, _ in pairs], sum(n > 0 for _, n in pairs)
    assert metrics["importance/mean"] == pytest.approx(sum(flat) / len(flat), abs=1e-12)
    assert metrics["importance/cut_share"] == pytest.approx(cut / len(flat), abs=1e-12)
    assert cap in (None, 0.5) or 0 < cut < len(flat)


def test_a_long_response_is_no_overflow_where_a_cap_holds():
    old, drawn, mask = torch.zeros(1, 900), torch.full((1, 900), -1.0), torch.ones(1, 900, dtype=torch.bool)
    assert importance_weights(old, drawn, mask, level="sequence", cap=2.0).unique().tolist() == [2.0]
    assert importance_weights(old, drawn, mask, level="sequence", cap=2.0, beyond="mask").unique().tolist() == [0.0]
    mask[0, 450:] = False  # off the mask nothing is infinite times 0
    assert importance_weights(old, drawn, mask, level="sequence").isnan().sum() == 0


def test_metrics_of_the_sampler_are_an_expectation_under_it():
    """k3 is an unbiased estimate of KL(mu || pi): over all responses it is the divergence itself."""
    pi, mu, mask = logprobs_of(table(0)), logprobs_of(table(1)), mask_of()
    k3 = 0.0
    for b in range(len(responses())):
        found = sampler_metrics(pi[b : b + 1], mu[b : b + 1], mask[b : b + 1])
        k3 += math.exp(float(mu[b].sum())) * found["sampler/k3"] * int(mask[b].sum())
        ratios = [math.exp(float(pi[b, t] - mu[b, t])) for t in range(int(mask[b].sum()))]
        assert found["sampler/ratio_max"] == pytest.approx(max(ratios))
        assert found["sampler/ratio_min"] == pytest.approx(min(ratios))
    divergence = sum(math.exp(float(q)) * float(q - p) for p, q in zip(pi.sum(1), mu.sum(1), strict=True))
    assert k3 == pytest.approx(divergence, abs=1e-12)


# ---------------------------------------------------------------------- in a trainer

PROMPTS = [[2, 3, 4], [5, 6], [7], [8, 9, 10, 11]]
OFF_POLICY = Config(
    prompts_per_step=4, minibatch=4, response_length=6, old_logprobs="recompute", importance="sequence",
    importance_cap=1.5,
)  # fmt: skip


def score(samples):
    return [sum(i % 5 for i in s.ids) / len(s.ids) for s in samples]


def other_engine(policy, prompts, *, seed, request_ids):
    drawn = sample_policy(policy, prompts, seed=seed, request_ids=request_ids)
    other = (drawn.logprobs + 0.2 * (drawn.tokens % 5 - 2)).clamp(max=0) * drawn.mask
    return replace(drawn, logprobs=other)


def make(config=OFF_POLICY, sampler=other_engine, **arguments):
    model = tiny_gpt2()
    with torch.no_grad():  # responses of different lengths
        model.lm_head.weight[1] += 0.3 * model.lm_head.weight.abs().max()
    return Trainer(
        model.to(arguments.pop("dtype", torch.float32)), PROMPTS, score, config, sampler=sampler, **arguments
    )


@pytest.mark.parametrize("loss_mean", ["tokens", "sequences"])
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_the_gradient_is_the_same_under_every_split_into_microbatches(level, loss_mean):
    gradients = []
    for split in ({}, {"microbatch": 1}, {"microbatch": 2}, {"microbatch_tokens": 11}):
        config = OFF_POLICY.replace(importance=level, loss_mean=loss_mean, seed=2, **split)
        trainer = make(config, dtype=torch.float64)
        rollout = trainer.rollout()
        assert len(set(rollout.generation.lengths.tolist())) > 1
        trainer.learner.gradient(rollout, None)
        gradients.append(torch.cat([p.grad.flatten() for p in trainer.model.parameters()]))
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], rtol=0, atol=1e-12)


def test_the_gap_is_reported_and_corrected_instead_of_refused():
    with pytest.raises(CheckError, match="sampler's log-probs are not those"):
        make(OFF_POLICY.replace(importance="off")).rollout()
    rollout = make().rollout()
    metrics = rollout.metrics
    assert metrics["rollout/sampler_gap"] > 0.01
    assert metrics["sampler/ratio_min"] < 1 < metrics["sampler/ratio_max"]
    assert metrics["sampler/k3"] > 0
    assert 0 < metrics["importance/cut_share"] < 1
    assert rollout.importance_weights.max() == 1.5
    assert not rollout.importance_weights[~rollout.generation.action_mask].any()
    off = make(OFF_POLICY.replace(importance="off"), sampler=None).rollout().metrics
    assert off["sampler/k3"] == pytest.approx(0, abs=1e-6)
    assert not any(name.startswith("importance/") for name in off)
    exact = make(OFF_POLICY.replace(importance="off", old_logprobs="rollout"), sampler=None).rollout().metrics
    assert not any(name.startswith("sampler/") for name in exact)


def test_metrics_are_those_of_the_step_also_where_prompts_are_drawn_again():
    groups = {"advantage": "grpo", "samples_per_prompt": 2, "prompts_per_step": 2}
    config = OFF_POLICY.replace(redraw_rounds=3, top_k=9, kept_sets="replay", **groups)
    trainer = Trainer(
        tiny_gpt2(), PROMPTS, lambda samples: [float(s.ids[0] % 2) for s in samples], config, sampler=other_engine
    )
    drawn = 0.0
    for _ in range(4):
        rollout = trainer.rollout()
        mask = rollout.generation.action_mask
        gaps = (rollout.old_logprobs - rollout.generation.logprobs)[mask].double()
        assert rollout.metrics["sampler/ratio_min"] == pytest.approx(float(gaps.min().exp()))
        assert rollout.metrics["sampler/ratio_max"] == pytest.approx(float(gaps.max().exp()))
        assert rollout.generation.kept_sets.shape[:2] == mask.shape
        drawn += rollout.metrics["redraw/rounds"]
        assert trainer.update(rollout)["rollout/logprob_gap"] < 1e-5
    assert drawn > 0


@pytest.mark.parametrize(
    ("wrong", "error", "text"),
    [
        (lambda x: x.logprobs * 0, CheckError, "gave no log-probs"),
        (
            lambda x: x.logprobs * float("nan"),
            ValueError,
            r"^sampler=.*broken returned row 0 with logprobs that",
        ),
        (lambda x: x.logprobs - x.mask * float("inf"), ValueError, r"row 0 with logprobs that are NaN or infinite"),
        (lambda x: -x.logprobs, ValueError, r"^sampler=.*broken returned row 0 with logprobs above 0"),
    ],
)
def test_log_probs_that_no_sampler_can_have_are_refused(wrong, error, text):
    def broken(policy, prompts, *, seed, request_ids):
        drawn = sample_policy(policy, prompts, seed=seed, request_ids=request_ids)
        return replace(drawn, logprobs=wrong(drawn))

    with pytest.raises(error, match=text):
        make(sampler=broken).rollout()


@pytest.mark.parametrize("factor", [float("nan"), -1.0])
def test_such_log_probs_are_seen_by_the_check_of_the_rollout_too(factor):
    trainer = make()
    rollout = trainer.rollout()
    generation = replace(rollout.generation, logprobs=rollout.generation.logprobs * factor)
    with pytest.raises(CheckError, match="the sampler's log-probs are above 0 or not finite"):
        trainer.checks.rollout(replace(rollout, generation=generation), step=0)


def test_weights_go_with_their_rows_and_are_missed_where_they_are_missing(tmp_path):
    trainer = make()
    rollout = trainer.rollout()
    two = rows(rollout, torch.tensor([2, 0]))
    assert torch.equal(two.importance_weights, rollout.importance_weights[[2, 0]])
    length = int(two.generation.lengths.max())
    assert torch.equal(trim_rollout(two).importance_weights, two.importance_weights[:, :length])
    joined = join([trim_rollout(two), rollout])
    assert torch.equal(joined.importance_weights[2:], rollout.importance_weights)
    with pytest.raises(ValueError, match="some rollouts have importance_weights and others have not"):
        join([rollout, replace(rollout, importance_weights=None)])
    with pytest.raises(ValueError, match=r"no importance_weights, but Config\.importance='sequence'"):
        trainer.update(replace(rollout, importance_weights=None))
    with pytest.raises(ValueError, match=r"importance_weights, but Config\.importance='off'"):
        make(OFF_POLICY.replace(importance="off")).update(rollout)
    with pytest.raises(ValueError, match="a trace shows no importance weights"):
        trainer.trace(rollout)


def test_an_own_loss_finds_the_weights_and_decides_itself():
    seen = []

    def loss(new, part, *, num_tokens, num_sequences):
        seen.append(part.importance_weights)
        return (new.logprobs * part.importance_weights).sum() / num_tokens, {}

    trainer = make(policy_loss=loss)
    rollout = trainer.rollout()
    trainer.update(rollout)
    assert seen[0].shape == (4, int(rollout.generation.lengths.max()))
    assert seen[0].sum() == pytest.approx(float(rollout.importance_weights.sum()))


def test_a_config_without_the_training_forward_s_log_probs_is_refused():
    with pytest.raises(ValueError, match=r"Config\.importance='token' needs old_logprobs='recompute'"):
        Config(importance="token")
    with pytest.raises(ValueError, match="importance_cap=0"):
        OFF_POLICY.replace(importance_cap=0.0)


def test_a_dump_keeps_the_weights(tmp_path):
    from ppo.checks.dump import read_dump

    trainer = make(out=tmp_path)
    rollout = trainer.rollout()
    trainer.checks._dumps.write("rollout", "by hand", rollout, None, step=0)
    (folder,) = (tmp_path / "dumps").iterdir()
    _, read, _ = read_dump(folder)
    assert torch.equal(read.importance_weights, rollout.importance_weights)
    assert random_rollout([2]).importance_weights is None


def test_a_ratio_at_the_cap_is_not_beyond_it():
    logprobs, mask = torch.tensor([[-0.5, -0.7]]), torch.ones(1, 2, dtype=torch.bool)
    weights = importance_weights(logprobs, logprobs, mask, level="token", cap=1.0, beyond="mask")
    assert weights.tolist() == [[1, 1]]
    found = importance_metrics(weights, logprobs, logprobs, mask, level="token", cap=1.0)
    assert found == {"importance/mean": 1, "importance/cut_share": 0}
