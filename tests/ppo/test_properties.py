"""What must hold for any batch that hypothesis draws: ragged masks, lengths of 1, all-EOS, never-EOS, one row.

Examples are derived from the test's name, so every run sees the same ones. The file has more than 300 lines, because
tests/mutate.py runs it as a whole.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import pad

from ppo import Config, Sampling, Trainer, generate
from ppo.actor_critic import ActorCritic
from ppo.advantages import gae, group_relative, place_scores, shape_rewards, whiten
from ppo.buffer import RolloutBuffer, align, join, microbatches, rows, trim, trim_rollout
from ppo.generation.sampling import draw
from ppo.kl import estimate_kl
from ppo.lm.distribution import filter_logits
from ppo.losses import ratio_statistics, value_loss
from ppo.policy_losses import policy_loss
from ppo.reference import FrozenReference
from tests.fakes import VOCAB, random_rollout, tiny_gpt2

examples = settings(max_examples=25, derandomize=True, deadline=None)
few_examples = settings(max_examples=6, derandomize=True, deadline=None)

seeds = st.integers(0, 2**31 - 1)
lengths = st.lists(st.integers(1, 7), min_size=1, max_size=6)


@st.composite
def rollouts(draw):
    responses = draw(lengths)
    prompts = draw(st.lists(st.integers(1, 6), min_size=len(responses), max_size=len(responses)))
    return random_rollout(responses, prompt_lengths=prompts, seed=draw(seeds))


def mask_of(responses):
    return torch.arange(max(responses)) < torch.tensor(responses)[:, None]


def numbers(mask, seed, *, scale=1.0):
    """Random float64 numbers everywhere, padding included: numbers on padding must not matter."""
    return scale * torch.randn(mask.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---------------------------------------------------------------------- advantages


@examples
@given(lengths, seeds, st.floats(0, 1), st.floats(0, 1))
def test_gae_sees_neither_padding_nor_neighbours(responses, seed, gamma, lam):
    mask = mask_of(responses)
    rewards, values = numbers(mask, seed) * mask, numbers(mask, seed + 1)
    found = gae(rewards, values, mask, gamma=gamma, lam=lam)
    for x in found:
        assert not x[~mask].any()
    for b, length in enumerate(responses):
        alone = gae(rewards[b : b + 1, :length], values[b : b + 1, :length], mask[b : b + 1, :length], gamma=gamma,
                    lam=lam)  # fmt: skip
        for whole, single in zip(found, alone, strict=True):
            torch.testing.assert_close(whole[b, :length], single[0], rtol=0, atol=1e-12)
    wider = [pad(x, (0, 3)) for x in (rewards, values, mask)]
    for whole, wide in zip(found, gae(*wider, gamma=gamma, lam=lam), strict=True):
        assert torch.equal(pad(whole, (0, 3)), wide)


@examples
@given(lengths, seeds, st.floats(0.1, 100), st.floats(-50, 50))
def test_whitening_undoes_scale_and_shift(responses, seed, scale, shift):
    mask = mask_of(responses)
    x = numbers(mask, seed)
    white = whiten(x, mask)
    assert not white[~mask].any()
    assert float(white.sum()) == pytest.approx(0, abs=1e-9)
    if sum(responses) > 1:
        assert float((white**2).sum() / mask.sum()) == pytest.approx(1, abs=1e-3)
        torch.testing.assert_close(whiten(scale * x + shift, mask), white, rtol=1e-3, atol=1e-3)
    kept = whiten(x, mask, shift_mean=False)
    assert float(kept.sum()) == pytest.approx(float(x[mask].sum()), abs=1e-9)


@examples
@given(lengths, seeds, st.floats(0, 2))
def test_rewards_sum_to_the_score_minus_the_kl_penalty(responses, seed, coef):
    mask = mask_of(responses)
    scores, kl = numbers(mask, seed)[:, 0], numbers(mask, seed + 1)
    placed = place_scores(scores, mask)
    assert torch.equal(placed.sum(dim=1), scores)
    assert (placed != 0).sum(dim=1).max() <= 1
    shaped = shape_rewards(placed, kl, mask, kl_coef=coef)
    torch.testing.assert_close(shaped.sum(dim=1), scores - coef * (kl * mask).sum(dim=1), rtol=0, atol=1e-12)


@examples
@given(st.integers(1, 3), st.integers(2, 4), seeds, st.sampled_from(["grpo", "dr_grpo", "rloo"]))
def test_group_advantages_sum_to_zero_and_ignore_a_shift_of_the_group(groups, size, seed, estimator):
    mask = torch.ones(groups * size, 1, dtype=torch.bool)
    totals = numbers(mask, seed)[:, 0]
    found = group_relative(totals, mask, group_size=size, estimator=estimator).view(groups, size)
    assert float(found.sum(dim=1).abs().max()) < 1e-9
    assert torch.equal(found.argsort(dim=1), totals.view(groups, size).argsort(dim=1))
    shifted = totals + 10 * torch.arange(groups).repeat_interleave(size)
    again = group_relative(shifted, mask, group_size=size, estimator=estimator).view(groups, size)
    torch.testing.assert_close(again, found, rtol=0, atol=1e-9)


# ---------------------------------------------------------------------- KL and losses


@examples
@given(lengths, seeds)
def test_kl_to_oneself_is_zero_and_k2_and_k3_are_never_negative(responses, seed):
    mask = mask_of(responses)
    new, ref = -numbers(mask, seed).abs(), -numbers(mask, seed + 1).abs()
    for estimator in ("k1", "k2", "k3"):
        assert not estimate_kl(new, new, estimator=estimator).any()
    assert (estimate_kl(new, ref, estimator="k2") >= 0).all()
    assert (estimate_kl(new, ref, estimator="k3") >= 0).all()
    assert torch.equal(estimate_kl(new, ref, estimator="k1"), -estimate_kl(ref, new, estimator="k1"))


@examples
@given(lengths, seeds, st.floats(0.01, 0.9))
def test_the_clip_changes_no_loss_of_the_old_policy_and_parts_add_up(responses, seed, clip):
    mask, n = mask_of(responses), sum(responses)
    old, advantages, returns = numbers(mask, seed), numbers(mask, seed + 1), numbers(mask, seed + 2)
    loss, statistics = policy_loss(old, old, advantages, mask, clip=clip, num_tokens=n)
    assert float(loss) == pytest.approx(-float(advantages[mask].mean()), abs=1e-12)
    brakes = ratio_statistics(old, old, mask, num_tokens=n)
    assert float(brakes["policy/ratio"]) == pytest.approx(1, abs=1e-12)
    assert statistics["clip_fraction"] == brakes["policy/approx_kl"] == brakes["policy/log_ratio"] == 0
    error, _ = value_loss(old, old, returns, mask, clip=clip, num_tokens=n)
    assert float(error) == pytest.approx(float(((old - returns)[mask] ** 2).mean()) / 2, abs=1e-12)
    new = old + 0.5 * numbers(mask, seed + 3)
    whole = policy_loss(new, old, advantages, mask, clip=clip, num_tokens=n)[0]
    parts = [
        policy_loss(*(x[b : b + 1] for x in (new, old, advantages, mask)), clip=clip, num_tokens=n)[0]
        for b in range(len(responses))
    ]
    assert float(sum(parts)) == pytest.approx(float(whole), abs=1e-12)
    assert (
        whole >= policy_loss(new, old, advantages, mask, clip=1e9, num_tokens=n)[0] - 1e-12
    )  # the clipped loss is the larger one


# ---------------------------------------------------------------------- batches


@examples
@given(rollouts(), st.one_of(st.none(), st.integers(1, 7)), st.one_of(st.none(), st.integers(1, 40)))
def test_microbatches_split_the_rows_within_their_limits(rollout, size, tokens):
    mask = rollout.generation.attention_mask
    parts = microbatches(mask, size=size, tokens=None if size else tokens)
    assert sorted(torch.cat(parts).tolist()) == list(range(len(rollout)))
    found = [mask[part].sum(dim=1).tolist() for part in parts]
    assert [n for part in found for n in part] == sorted((n for part in found for n in part), reverse=True)
    for part in found:
        assert len(part) <= (size or 99)
        assert size or not tokens or len(part) == 1 or len(part) * max(part) <= tokens
    if not size and tokens:  # and no further row would have fitted
        for part in found[:-1]:
            assert (len(part) + 1) * max(part) > tokens


@examples
@given(rollouts(), rollouts(), seeds)
def test_joining_choosing_and_trimming_keep_real_tokens(first, second, seed):
    joined = join([first, second])
    order = torch.randperm(len(joined), generator=torch.Generator().manual_seed(seed))
    chosen = order[: max(1, len(order) // 2)]
    short = trim_rollout(rows(joined, chosen))
    assert int(short.generation.prompt_mask.sum(dim=1).max()) == short.generation.prompt_length
    assert int(short.generation.lengths.max()) == short.advantages.shape[1]
    aligned = align(short.generation)
    for place, row in enumerate(chosen.tolist()):
        source, b = (first, row) if row < len(first) else (second, row - len(first))
        assert short.samples[place] is source.samples[b]
        assert short.scores[place] == source.scores[b]
        ids = source.generation.input_ids[b][source.generation.attention_mask[b]]
        assert torch.equal(short.generation.input_ids[place][short.generation.attention_mask[place]], ids)
        assert torch.equal(aligned.input_ids[place][: len(ids)], ids)
        assert aligned.attention_mask[place].tolist() == [t < len(ids) for t in range(aligned.input_ids.shape[1])]
        assert int(aligned.prompt_lengths[place]) == int(source.generation.prompt_mask[b].sum())
        for name in ("old_logprobs", "old_values", "ref_logprobs", "kl", "rewards", "advantages", "returns"):
            real = getattr(source, name)[b][source.generation.mask[b]]
            assert torch.equal(getattr(short, name)[place][short.generation.mask[place]], real)


@examples
@given(rollouts(), seeds)
def test_an_epoch_is_every_row_once(rollout, seed):
    buffer = RolloutBuffer(torch.Generator().manual_seed(seed))
    buffer.add(rollout)
    for size in (n for n in range(1, len(rollout) + 1) if len(rollout) % n == 0):
        parts = list(buffer.minibatches(size))
        assert [len(part) for part in parts] == [size] * (len(rollout) // size)
        assert sorted(x for part in parts for x in part.scores.tolist()) == sorted(rollout.scores.tolist())


# ---------------------------------------------------------------------- model and sampler

ACTOR = ActorCritic(tiny_gpt2(3), value_head="mlp")
torch.nn.init.normal_(ACTOR.value_head.layers[-1].weight, generator=torch.Generator().manual_seed(0))


@examples
@given(rollouts(), seeds, st.integers(0, 5), st.integers(0, 5))
def test_padding_and_row_order_change_no_number_of_a_row(rollout, seed, left, right):
    generation, sampling = rollout.generation, Sampling(temperature=0.8)
    before = ACTOR.evaluate(generation, sampling, chunk_tokens=5)
    order = torch.randperm(len(rollout), generator=torch.Generator().manual_seed(seed))
    wide = join([rollout, random_rollout([generation.tokens.shape[1] + right], prompt_lengths=[6 + left])])
    after = ACTOR.evaluate(wide.generation.rows(order), sampling, chunk_tokens=100)
    for name in ("logprobs", "entropy", "values"):
        x, y = getattr(before, name)[order], getattr(after, name)[:, : generation.tokens.shape[1]]
        torch.testing.assert_close(y, x, rtol=0, atol=1e-5)
        assert not x[~generation.mask[order]].any()
    assert (before.logprobs <= 0).all()
    assert (before.entropy >= 0).all()
    assert (before.entropy <= math.log(VOCAB) + 1e-5).all()


@few_examples
@given(rollouts(), st.integers(1, 60))
def test_the_reference_has_no_kl_to_itself_in_any_batching(rollout, batch_tokens):
    sampling = Sampling(temperature=0.7, top_k=9)
    logprobs = ACTOR.evaluate(rollout.generation, sampling, chunk_tokens=100).logprobs
    ref = FrozenReference(ACTOR.policy, sampling, batch_tokens=batch_tokens).logprobs(rollout.generation, [])
    for estimator in ("k1", "k2", "k3"):
        assert estimate_kl(logprobs, ref, estimator=estimator).abs().max() < 1e-5


@examples
@given(
    st.integers(1, 5), st.integers(2, 300), seeds, st.integers(0, 9), st.floats(0.05, 1), st.floats(0.2, 3),
    st.floats(0, 1 - 2**-24, width=32),
)  # fmt: skip
def test_only_tokens_that_the_filters_keep_are_drawn(count, vocab, seed, top_k, top_p, temperature, uniform):
    logits = 4 * torch.randn(count, vocab, generator=torch.Generator().manual_seed(seed))
    kept = filter_logits(logits, temperature, top_k, top_p) > -torch.inf
    assert kept.gather(1, logits.argmax(dim=1, keepdim=True)).all()
    for b in range(count):  # the kept tokens are the likeliest, without a gap
        assert logits[b][kept[b]].min() > logits[b][~kept[b]].max() if not kept[b].all() else True
        assert not 0 < top_k < int(kept[b].sum())
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    drawn = draw(logits.clone(), torch.full((count,), uniform), sampling)
    assert kept.gather(1, drawn.tokens.unsqueeze(1)).all()
    assert (drawn.logprobs <= 1e-5).all()
    assert (drawn.entropy >= -1e-5).all()
    assert (drawn.entropy <= kept.sum(dim=1).log() + 1e-4).all()
    greedy = draw(logits.clone(), torch.full((count,), uniform), Sampling(temperature=0.0))
    assert torch.equal(greedy.tokens, logits.argmax(dim=1))


@few_examples
@given(
    st.lists(st.lists(st.integers(2, VOCAB - 1), min_size=1, max_size=5), min_size=1, max_size=5), seeds,
    st.integers(1, 4), st.sampled_from([(), (1,), tuple(range(VOCAB))]), st.integers(0, 2),
)  # fmt: skip
def test_responses_do_not_depend_on_slots_and_is_ended_tells_the_truth(prompts, seed, slots, eos_ids, least):
    """EOS comes never, sometimes or always. Any prompts, one row included."""
    least = 0 if len(eos_ids) == VOCAB else least
    sampling = Sampling(response_length=4, min_response_length=least, eos_ids=eos_ids)
    few, many = (generate(ACTOR.policy, prompts, sampling, seed=seed, slots=n) for n in (slots, 64))
    assert torch.equal(few.tokens, many.tokens)
    assert torch.equal(few.mask, many.mask)
    torch.testing.assert_close(few.logprobs, many.logprobs, rtol=0, atol=1e-5)
    for b, prompt in enumerate(prompts):
        length, response = int(few.lengths[b]), few.tokens[b].tolist()
        assert few.prompt_ids[b][few.prompt_mask[b]].tolist() == prompt
        assert few.mask[b].tolist() == [t < length for t in range(few.mask.shape[1])]
        assert bool(few.is_ended[b]) == (response[length - 1] in eos_ids)
        assert few.is_ended[b] or length == 4
        assert not set(response[: length - 1]) & set(eos_ids)
        assert length >= min(4, least + 1)
    if len(eos_ids) == VOCAB:
        assert few.lengths.tolist() == [1] * len(prompts)
    alone = trim(few.rows([0]))
    assert alone.prompt_length == len(prompts[0])


# ---------------------------------------------------------------------- whole steps at the edges


@pytest.mark.parametrize("advantage", ["gae", "grpo"])
@pytest.mark.parametrize("eos_ids", [(), tuple(range(VOCAB))])
@pytest.mark.parametrize("prompts", [1, 3])
def test_a_step_where_nothing_or_everything_ends_at_once(advantage, eos_ids, prompts):
    """All responses of one token, none that ends, a single row: finite, with ratio 1 and no KL at the start."""
    samples = 1 if advantage == "gae" else 2
    config = Config(
        prompts_per_step=prompts, samples_per_prompt=samples, minibatch=prompts * samples, epochs=2,
        response_length=3, advantage=advantage, whiten_rewards=True, learning_rate=1e-3,
    )  # fmt: skip
    model = tiny_gpt2(eos=None)
    model.generation_config.eos_token_id = list(eos_ids)
    trainer = Trainer(model, [[2, 3], [4], [5, 6, 7]], lambda samples: [float(s.ids[0]) for s in samples], config)
    rollout = trainer.rollout()
    assert rollout.generation.lengths.tolist() == [1 if eos_ids else 3] * (prompts * samples)
    assert rollout.generation.is_ended.tolist() == [bool(eos_ids)] * (prompts * samples)
    assert rollout.kl.abs().max() < 1e-5
    metrics = trainer.update(rollout)
    assert metrics["rollout/logprob_gap"] < 1e-5
    assert all(math.isfinite(value) for value in (rollout.metrics | metrics).values())
    assert all(torch.isfinite(p).all() for p in trainer.policy.actor.parameters())
