"""Minibatches, microbatches, trimming and joining."""

from dataclasses import replace

import pytest
import torch

from ppo.buffer import RolloutBuffer, align, join, microbatches, rows, trim, trim_rollout
from tests.fakes import random_rollout


def test_an_epoch_hands_out_every_sequence_once():
    rollout = random_rollout([3, 5, 1, 2, 4, 5])
    buffer = RolloutBuffer(torch.Generator().manual_seed(0))
    buffer.add(rollout)
    scores = torch.cat([m.scores for m in buffer.minibatches(2)])
    assert sorted(scores.tolist()) == sorted(rollout.scores.tolist())
    assert scores.tolist() != rollout.scores.tolist()


def test_the_order_comes_from_the_generator():
    def order(seed):
        buffer = RolloutBuffer(torch.Generator().manual_seed(seed))
        buffer.add(random_rollout([3] * 8))
        return torch.cat([m.scores for m in buffer.minibatches(4)]).tolist()

    assert order(5) == order(5)
    assert order(5) != order(6)


def test_sizes_must_divide():
    buffer = RolloutBuffer(torch.Generator())
    with pytest.raises(ValueError, match="empty"):
        buffer.contents()
    buffer.add(random_rollout([2, 2, 2]))
    with pytest.raises(ValueError, match="minibatch=2 does not divide the 3 sequences"):
        list(buffer.minibatches(2))


def test_rows_of_a_rollout_stay_together():
    rollout = random_rollout([3, 1, 4])
    picked = rows(rollout, torch.tensor([2, 0]))
    assert picked.samples == [rollout.samples[2], rollout.samples[0]]
    assert torch.equal(picked.advantages, rollout.advantages[[2, 0]])
    assert torch.equal(picked.generation.tokens, rollout.generation.tokens[[2, 0]])


def test_trim_cuts_only_columns_of_padding():
    rollout = random_rollout([2, 7, 3], prompt_lengths=[2, 6, 4])
    short = trim_rollout(rows(rollout, torch.tensor([0, 2])))
    assert short.generation.prompt_ids.shape == (2, 4)
    assert short.generation.tokens.shape == short.advantages.shape == (2, 3)
    for new, old in ((0, 0), (1, 2)):
        real = rollout.generation.input_ids[old][rollout.generation.attention_mask[old]]
        assert torch.equal(short.generation.input_ids[new][short.generation.attention_mask[new]], real)
    assert trim(rollout.generation).tokens.shape == (3, 7)


def test_join_pads_to_a_common_shape():
    first, second = random_rollout([2, 4], prompt_lengths=[2, 3]), random_rollout([6], prompt_lengths=[5], seed=1)
    joined = join([first, second])
    assert joined.generation.input_ids.shape == (3, 5 + 6)
    assert len(joined.samples) == 3
    for new, (source, old) in enumerate([(first, 0), (first, 1), (second, 0)]):
        real = source.generation.input_ids[old][source.generation.attention_mask[old]]
        assert torch.equal(joined.generation.input_ids[new][joined.generation.attention_mask[new]], real)
        width = source.mask_width if hasattr(source, "mask_width") else source.advantages.shape[1]
        assert torch.equal(joined.advantages[new, :width], source.advantages[old])
        assert not joined.advantages[new, width:].any()


def test_joined_rows_keep_their_frozen_hidden_states():
    """These states are aligned to the left, so padding comes after them."""
    parts = [random_rollout([2, 4]), random_rollout([6], seed=1)]
    hidden = [torch.randn(2, 5, 3), torch.randn(1, 8, 3)]
    given = [
        replace(
            r,
            generation=replace(r.generation, frozen_hidden=x, metrics={"generate/seconds": float(len(x))}),
            metrics={"score/mean": float(len(x))},
        )
        for r, x in zip(parts, hidden, strict=True)
    ]
    rollout = join(given)
    assert rollout.metrics == {"score/mean": 2.0}  # those of the first
    generation = rollout.generation
    joined = generation.frozen_hidden
    assert generation.metrics == {"generate/seconds": 2.0}
    assert joined.shape == (3, 8, 3)
    assert torch.equal(joined[:2, :5], hidden[0])
    assert torch.equal(joined[2:], hidden[1])
    assert not joined[:2, 5:].any()


def test_joined_rollouts_know_the_policy_only_if_it_was_one():
    first, second = (replace(random_rollout([2], seed=seed), policy_version=3) for seed in (0, 1))
    assert join([first, second]).policy_version == 3
    assert join([first, replace(second, policy_version=4)]).policy_version is None
    assert join([first, replace(second, policy_version=None)]).policy_version is None


def test_what_only_some_rollouts_know_is_none_in_all():
    """The first one's own tensors would be too short, and KL would vanish without a word."""
    first, second = (
        replace(r, generation=replace(r.generation, values=None))
        for r in (random_rollout([2]), random_rollout([3], seed=1))
    )
    known = replace(
        first,
        token_rewards=torch.ones(1, 2),
        generation=replace(first.generation, frozen_hidden=torch.ones(1, 5, 3), values=torch.ones(1, 2), info=["a"]),
    )
    joined = join([known, second])
    assert joined.token_rewards is None
    assert joined.generation.frozen_hidden is joined.generation.values is joined.generation.info is None
    assert join([known, known]).generation.info == ["a", "a"]
    assert join([known, known]).token_rewards.shape == (2, 2)
    with pytest.raises(ValueError, match="some rollouts have ref_logprobs and others have not"):
        join([replace(first, ref_logprobs=None), replace(second, ref_logprobs=torch.zeros(1, 3))])


def test_microbatches_by_size_are_sorted_and_complete():
    mask = torch.arange(10) < torch.tensor([3, 10, 1, 7, 7, 2])[:, None]
    parts = microbatches(mask, size=2)
    assert [p.tolist() for p in parts] == [[1, 3], [4, 0], [5, 2]]
    assert [p.tolist() for p in microbatches(mask)] == [[1, 3, 4, 0, 5, 2]]


def test_microbatches_by_tokens_stay_within_the_budget():
    lengths = torch.tensor([3, 10, 1, 7, 7, 2, 30])
    mask = torch.arange(30) < lengths[:, None]
    parts = microbatches(mask, tokens=14)
    assert sorted(torch.cat(parts).tolist()) == list(range(7))
    for part in parts:
        padded = len(part) * int(lengths[part].max())
        assert padded <= 14 or len(part) == 1


def test_rows_of_one_token_or_none_fill_a_budget():
    for length in (0, 1):
        mask = torch.arange(2) < torch.full((3, 1), length)
        assert [len(part) for part in microbatches(mask, tokens=3)] == [3]


def test_aligned_rows_have_no_gap_and_the_longest_has_no_padding():
    """A long prompt with a short response beside its opposite: 9 columns, where 6 + 7 would be padded."""
    generation = random_rollout([2, 7, 3], prompt_lengths=[6, 2, 4]).generation
    rows = align(generation)
    assert rows.input_ids.shape == rows.attention_mask.shape == (3, 9)
    assert rows.prompt_lengths.tolist() == [6, 2, 4]
    for b in range(3):
        real = generation.input_ids[b][generation.attention_mask[b]]
        assert torch.equal(rows.input_ids[b, : len(real)], real)
        assert rows.attention_mask[b].tolist() == [True] * len(real) + [False] * (9 - len(real))


def test_response_positions_predict_the_response():
    from ppo.lm.logprobs import response_positions

    generation = random_rollout([2, 7, 3], prompt_lengths=[6, 2, 4]).generation
    rows = align(generation)
    before = torch.roll(rows.input_ids, shifts=-1, dims=1)  # what stands after each position
    found = response_positions(before.unsqueeze(-1), rows.prompt_lengths, 7).squeeze(-1)
    assert torch.equal(found[generation.mask], generation.tokens[generation.mask])
