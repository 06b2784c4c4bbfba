"""Under top-k and top-p an update may replay the tokens that the old policy kept, or filter anew: which is unbiased?

Every response of two tokens over a vocabulary of four is enumerated, in float64. The old policy draws from q_old, its
own distribution, filtered. The present policy has moved, so that its filter keeps other tokens. What is enumerated is
the mean of ratio x worth over responses of q_old, and its gradient; the objectives are written out by hand.
"""

import itertools
import math
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from ppo import Config, Sampling, Trainer
from ppo.buffer import join, rows, trim
from ppo.checks.dump import read_dump
from ppo.given import given_responses
from ppo.lm.distribution import next_token_logits, next_token_logprobs, pick
from ppo.lm.kept_sets import pack, unpack
from ppo.policy_losses import policy_loss_of
from ppo.sampler import sample_policy
from tests.fakes import tiny_gpt2

V = 4
RESPONSES = list(itertools.product(range(V), repeat=2))
PREFIXES = [(), *((v,) for v in range(V))]
FILTERS = {"top_k": Sampling(top_k=2), "top_p": Sampling(top_p=0.7), "both": Sampling(top_k=3, top_p=0.8)}


def table(seed):
    """Logits [prefixes, V]."""
    return torch.randn(len(PREFIXES), V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def kept_by_hand(numbers, sampling):
    """The tokens that a filter keeps of logits, a list."""
    order = sorted(range(V), key=lambda v: -numbers[v])
    if sampling.top_k:
        order = order[: sampling.top_k]
    total, mass, kept = sum(math.exp(numbers[v]) for v in order), 0.0, []
    for v in order:
        if mass / total < sampling.top_p:
            kept.append(v)
        mass += math.exp(numbers[v])
    return kept


def chances_by_hand(logits, sets):
    """The chance of every response when each token is drawn from its prefix's set; differentiable, [16]."""
    chance = {}
    for row, prefix in enumerate(PREFIXES):
        within = torch.log_softmax(torch.stack([logits[row, v] for v in sets[row]]), dim=0)
        chance |= {(*prefix, v): x.exp() for v, x in zip(sets[row], within, strict=True)}
    zero = logits.sum() * 0
    return torch.stack([chance.get(r[:1], zero) * chance.get(r, zero) for r in RESPONSES])


def sets_by_hand(logits, sampling):
    return [kept_by_hand(row.tolist(), sampling) for row in logits]


def logprobs_by_the_library(logits, old, sampling, how):
    """Log-probs [16, 2] of all responses under the present policy, as an update computes them."""
    places = torch.tensor([[PREFIXES.index(r[:t]) for t in range(2)] for r in RESPONSES]).flatten()
    tokens = torch.tensor(RESPONSES).flatten()
    kept = None
    if how == "replay":
        kept = unpack(pack(next_token_logits(old[places], sampling, keep=tokens) > -torch.inf), V)
    return pick(next_token_logprobs(logits[places], sampling, keep=tokens, kept=kept), tokens).view(-1, 2)


def estimate(new, old, sampling, worth, how):
    """The mean over responses of q_old of the response's ratio times its worth, and its gradient by ``new``."""
    logits = new.clone().requires_grad_()
    drawn = chances_by_hand(old, sets_by_hand(old, sampling))
    before = logprobs_by_the_library(old, old, sampling, how)
    ratio = (logprobs_by_the_library(logits, old, sampling, how) - before).sum(dim=1).exp()
    value = (drawn * ratio * worth).sum()
    return value.detach(), torch.autograd.grad(value, logits)[0]


def objective(new, sets, worth):
    """The mean worth of responses that the policy draws from these sets, and its gradient."""
    logits = new.clone().requires_grad_()
    value = (chances_by_hand(logits, sets) * worth).sum()
    return value.detach(), torch.autograd.grad(value, logits)[0]


def distance(one, other):
    return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True))


WORTH = torch.randn(len(RESPONSES), generator=torch.Generator().manual_seed(9), dtype=torch.float64)


@pytest.mark.parametrize("name", list(FILTERS))
def test_once_the_policy_has_moved_only_replay_is_unbiased_and_for_the_objective_with_the_old_sets(name):
    sampling, old = FILTERS[name], table(0)
    new = old + 0.8 * table(1)
    sets, own = sets_by_hand(old, sampling), sets_by_hand(new, sampling)
    assert [set(s) for s in sets] != [set(s) for s in own]  # the filter of the present policy keeps other tokens
    with_old_sets, with_own_sets = objective(new, sets, WORTH), objective(new, own, WORTH)
    replayed, recomputed = (estimate(new, old, sampling, WORTH, how) for how in ("replay", "recompute"))
    assert distance(replayed, with_old_sets) < 1e-9
    assert distance(recomputed, with_old_sets) > 0.01
    # What the present policy would earn when it samples with its own filter, nobody can tell from these responses.
    assert distance(replayed, with_own_sets) > 0.01
    assert distance(recomputed, with_own_sets) > 0.01


@pytest.mark.parametrize("name", list(FILTERS))
def test_worth_that_no_response_differs_in_moves_nothing_under_replay_alone(name):
    """A baseline must not bias: chances that are recomputed do not sum to 1, so their gradient does not sum to 0."""
    sampling, old = FILTERS[name], table(0)
    constant = torch.ones(len(RESPONSES), dtype=torch.float64)
    value, gradient = estimate(old + 0.8 * table(1), old, sampling, constant, "replay")
    assert float(value) == pytest.approx(1, abs=1e-12)
    assert gradient.abs().max() < 1e-12
    value, gradient = estimate(old + 0.8 * table(1), old, sampling, constant, "recompute")
    assert abs(float(value) - 1) > 0.01
    assert gradient.abs().max() > 0.01


@pytest.mark.parametrize("step", [0.0, 1e-3])
@pytest.mark.parametrize("name", list(FILTERS))
def test_as_long_as_the_sets_are_the_same_both_are_unbiased(name, step):
    sampling, old = FILTERS[name], table(0)
    new = old + step * table(1)
    sets, own = sets_by_hand(old, sampling), sets_by_hand(new, sampling)
    assert [set(s) for s in sets] == [set(s) for s in own]
    for how in ("replay", "recompute"):
        assert distance(estimate(new, old, sampling, WORTH, how), objective(new, own, WORTH)) < 1e-9


@pytest.mark.parametrize("name", list(FILTERS))
def test_ppo_s_surrogate_is_that_of_the_old_sets_under_replay(name):
    """Token by token: the mean over prefixes of q_old of what the present policy would choose from the old set."""
    sampling, old = FILTERS[name], table(0)
    new, sets = old + 0.8 * table(1), sets_by_hand(old, sampling)
    worth = torch.randn(len(PREFIXES), V, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    drawn, losses = chances_by_hand(old, sets), {}
    cells = [[float(worth[PREFIXES.index(r[:t]), r[t]]) for t in range(2)] for r in RESPONSES]
    advantages = torch.tensor(cells, dtype=torch.float64)
    policy_loss = policy_loss_of(Config(policy_clip=1e9, loss_mean="sequence_sums"))
    for how in ("replay", "recompute"):
        logits, total = new.clone().requires_grad_(), 0.0
        now = logprobs_by_the_library(logits, old, sampling, how)
        before = logprobs_by_the_library(old, old, sampling, how)
        for b in range(len(RESPONSES)):
            part = SimpleNamespace(
                old_logprobs=before[b : b + 1], advantages=advantages[b : b + 1], importance_weights=None,
                generation=SimpleNamespace(action_mask=torch.ones(1, 2, dtype=torch.bool)),
            )  # fmt: skip
            found, _ = policy_loss(SimpleNamespace(logprobs=now[b : b + 1]), part, num_tokens=2, num_sequences=1)
            total = total + drawn[b] * found
        losses[how] = total.detach(), torch.autograd.grad(total, logits)[0]
    logits, total = new.clone().requires_grad_(), 0.0
    for row, prefix in enumerate(PREFIXES):
        reached = sum(float(drawn[b]) for b, r in enumerate(RESPONSES) if r[: len(prefix)] == prefix)
        within = torch.softmax(torch.stack([logits[row, v] for v in sets[row]]), dim=0)
        total = total - reached * sum(p * worth[row, v] for p, v in zip(within, sets[row], strict=True))
    wanted = total.detach(), torch.autograd.grad(total, logits)[0]
    assert distance(losses["replay"], wanted) < 1e-9
    assert distance(losses["recompute"], wanted) > 0.01


@pytest.mark.parametrize("vocab", [1, 7, 8, 9, 23])
def test_sets_are_packed_into_bits_and_back(vocab):
    is_kept = torch.rand(5, 3, vocab, generator=torch.Generator().manual_seed(0)) < 0.4
    packed = pack(is_kept)
    assert packed.dtype == torch.uint8
    assert packed.shape == (5, 3, math.ceil(vocab / 8))
    assert torch.equal(unpack(packed, vocab), is_kept)
    with pytest.raises(ValueError, match=f"wanted {packed.shape[-1] + 1} for V={vocab + 8}"):
        unpack(packed, vocab + 8)


# ---------------------------------------------------------------------- in a trainer

PROMPTS = [[2, 3, 4], [5, 6], [7], [8, 9, 10, 11]]
REPLAY = Config(prompts_per_step=4, minibatch=4, response_length=6, top_k=5, kept_sets="replay", learning_rate=0.01)


def make(config=REPLAY, dtype=torch.float32, **arguments):
    model = tiny_gpt2()
    with torch.no_grad():  # responses of different lengths
        model.lm_head.weight[1] += 0.3 * model.lm_head.weight.abs().max()
    return Trainer(
        model.to(dtype), PROMPTS, lambda samples: [float(sum(s.ids) % 5) for s in samples], config, **arguments
    )


@torch.no_grad()
def move(trainer):
    """As many updates would."""
    weight = trainer.model.transformer.wte.weight
    weight += 0.5 * weight.std() * torch.randn(weight.shape, generator=torch.Generator().manual_seed(4)).to(weight)


def test_an_update_keeps_the_tokens_that_the_old_policy_kept():
    trainer = make()
    rollout = trainer.rollout()
    generation, mask = rollout.generation, rollout.generation.action_mask
    sets = unpack(generation.kept_sets, 23)
    assert (sets.sum(dim=-1)[mask] == 5).all()
    assert not generation.kept_sets[~mask].any()
    assert sets.gather(-1, generation.tokens.unsqueeze(-1)).squeeze(-1)[mask].all()  # what was drawn was kept
    assert trainer.update(rollout)["rollout/logprob_gap"] < 1e-5
    with torch.no_grad():
        move(trainer)
        found = trainer.policy.evaluate(generation).logprobs
        filtered = trainer.policy.evaluate(replace(generation, kept_sets=None)).logprobs
        for b, sample in enumerate(rollout.samples):
            logits = trainer.model(torch.tensor([sample.prompt_ids + sample.ids])).logits[0]
            for t, token in enumerate(sample.ids):
                here = logits[len(sample.prompt_ids) + t - 1].masked_fill(~sets[b, t], -torch.inf)
                assert float(found[b, t]) == pytest.approx(float(here.log_softmax(-1)[token]), abs=1e-4)
    assert (found - filtered).abs().max() > 0.01


def test_a_token_of_another_engine_is_kept_even_where_the_filter_would_drop_it():
    trainer = make(REPLAY.replace(top_k=1))
    given = given_responses(trainer, PROMPTS, [[9, 3], [4], [2, 17, 5], [11, 6]], [0.0, 1.0, 2.0, 3.0])
    rollout = trainer.appraise(given)
    mask, sets = rollout.generation.mask, unpack(rollout.generation.kept_sets, 23)
    assert sets.gather(-1, rollout.generation.tokens.unsqueeze(-1)).squeeze(-1)[mask].all()
    assert set(sets.sum(dim=-1)[mask].tolist()) <= {1, 2}
    assert rollout.old_logprobs.isfinite().all()
    assert trainer.update(rollout)["rollout/logprob_gap"] < 1e-5


def test_sets_go_with_their_rows(tmp_path):
    trainer = make(out=tmp_path)
    rollout = trainer.rollout()
    sets = rollout.generation.kept_sets
    two = rows(rollout, torch.tensor([2, 0]))
    assert torch.equal(two.generation.kept_sets, sets[[2, 0]])
    short = trim(two.generation)
    assert torch.equal(short.kept_sets, sets[[2, 0], : short.tokens.shape[1]])
    joined = join([replace(two, generation=two.generation), rollout])
    assert torch.equal(joined.generation.kept_sets, torch.cat([sets[[2, 0]], sets]))
    with pytest.raises(ValueError, match="some rollouts have kept_sets and others have not"):
        join([rollout, replace(rollout, generation=replace(rollout.generation, kept_sets=None))])
    trainer.checks._dumps.write("rollout", "by hand", rollout, None, step=0)
    _, read, _ = read_dump(next((tmp_path / "dumps").iterdir()))
    assert torch.equal(read.generation.kept_sets, sets)


def test_the_gradient_is_the_same_under_every_split_into_microbatches():
    gradients = []
    for split in ({}, {"microbatch": 1}, {"microbatch": 2}, {"microbatch_tokens": 11}):
        trainer = make(REPLAY.replace(entropy_coef=0.1, **split), dtype=torch.float64)
        rollout = trainer.rollout()
        assert len(set(rollout.generation.lengths.tolist())) > 1
        with torch.no_grad():
            move(trainer)
        trainer.learner.gradient(rollout, None)
        gradients.append(torch.cat([p.grad.flatten() for p in trainer.model.parameters()]))
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], rtol=0, atol=1e-12)


def test_the_reference_keeps_the_same_tokens_so_that_no_kl_is_left_of_equal_logits():
    """Without replay, a policy whose nucleus changed pays KL to itself as it was, or earns it."""
    trainer = make()
    generation = trainer.rollout().generation
    reference = trainer.collector.reference.logprobs(generation, [])
    assert torch.allclose(reference, trainer.policy.measure(generation).logprobs, atol=1e-5)
    move(trainer)
    moved = trainer.policy.with_kept_sets(replace(generation, kept_sets=None))
    assert not torch.equal(moved.kept_sets, generation.kept_sets)
    other = trainer.collector.reference.logprobs(moved, [])
    assert (other - reference).abs().max() > 0.01  # its support is the policy's, not its own


def test_sets_without_a_filter_are_refused():
    with pytest.raises(ValueError, match="kept_sets='replay' needs top_k or top_p"):
        Config(kept_sets="replay")


def gives_sets(policy, prompts, *, seed, request_ids, packed):
    drawn = sample_policy(policy, prompts, seed=seed, request_ids=request_ids)
    return replace(drawn, kept_sets=torch.full((*drawn.tokens.shape, 3), packed, dtype=torch.uint8))


def test_sets_that_the_sampler_gives_are_replayed_or_refused():
    def run(kept_sets):
        torch.manual_seed(0)
        config = Config(prompts_per_step=2, minibatch=2, response_length=4, top_k=3, kept_sets=kept_sets, checks="off")
        sampler = partial(gives_sets, packed=255)
        return Trainer(tiny_gpt2(), [[2, 3], [4, 5]], lambda s: [1.0, 2.0], config, sampler=sampler).rollout()

    assert (run("replay").generation.kept_sets[:, 0] == 255).all()
    with pytest.raises(ValueError, match=r"the sampler gave kept_sets, which .*'recompute'\) never reads"):
        run("recompute")
