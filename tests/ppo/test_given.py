"""Responses that were sampled elsewhere become the same rollout as the trainer's own."""

import math

import numpy as np
import pytest
import torch

from ppo import Config, EnvironmentSampler, Trainer, turn_rewards
from ppo.given import given_responses
from tests.fakes import Letters, tiny_gpt2, tiny_llama

PROMPTS = [[2, 3, 4], [5, 6], [7], [8, 9, 10, 11]]


def make(model, **changes):
    config = Config(prompts_per_step=4, minibatch=4, response_length=6, **changes)
    return Trainer(model, PROMPTS, lambda samples: [float(len(s.ids)) for s in samples], config)


@pytest.mark.parametrize("model", [tiny_gpt2, tiny_llama])
@pytest.mark.parametrize(
    "changes", [{}, {"temperature": 0.7, "missing_eos_penalty": 1.0}, {"value_head": "critic", "microbatch": 2}]
)
def test_a_rollout_given_back_is_the_same_rollout(model, changes):
    trainer = make(model(), **changes)
    trainer.update(trainer.rollout())  # after it KL and values are not 0
    rollout = trainer.rollout()
    prompts, responses = [s.prompt_ids for s in rollout.samples], [s.ids for s in rollout.samples]
    again = trainer.appraise(given_responses(trainer, prompts, responses, rollout.scores))
    assert torch.equal(again.generation.mask, rollout.generation.mask)
    assert torch.equal(again.generation.is_ended, rollout.generation.is_ended)
    assert [s.ids for s in again.samples] == responses
    for name in ("old_logprobs", "old_values", "ref_logprobs", "kl", "rewards", "advantages", "returns"):
        assert torch.allclose(getattr(again, name), getattr(rollout, name), atol=1e-4), name
    assert rollout.kl.abs().max() > 0
    assert torch.allclose(again.generation.entropy, rollout.generation.entropy, atol=1e-4)


# ---------------------------------------------------------------------- what another engine may say

GIVEN = ([[2, 3, 4], [5, 6], [7], [8, 9]], [[4, 5, 6], [7, 1], [3, 2, 9, 9], [6]], [1.0, 0.0, 2.0, -1.0])
LOGPROBS = [[-1.0, -2.0, -3.0], [-2.5, -0.5], [-3.0, -4.0, -2.0, -3.5], [-2.0]]
ACTIONS = [[True, False, True], [True, True], [False, True, True, True], [True]]
OFF_POLICY = {"importance": "token", "old_logprobs": "recompute", "importance_cap": 1.5}


def padded(rows, fill=0):
    width = max(len(row) for row in rows)
    return torch.tensor([row + [fill] * (width - len(row)) for row in rows])


def test_log_probs_of_the_engine_are_kept_and_give_the_weights():
    trainer = make(tiny_gpt2(), **OFF_POLICY)
    rollout = trainer.appraise(given_responses(trainer, *GIVEN, logprobs=LOGPROBS))
    for b, row in enumerate(LOGPROBS):
        assert rollout.generation.logprobs[b, : len(row)].tolist() == pytest.approx(row)
        ratios = [math.exp(float(p) - q) for p, q in zip(rollout.old_logprobs[b], row, strict=False)]
        assert rollout.importance_weights[b, : len(row)].tolist() == pytest.approx([min(r, 1.5) for r in ratios])
    policy = trainer.policy.measure(rollout.generation)
    assert torch.equal(rollout.old_logprobs, policy.logprobs)
    assert torch.equal(rollout.generation.entropy, policy.entropy)
    assert rollout.metrics["importance/cut_share"] > 0
    trainer.update(rollout)
    with pytest.raises(ValueError, match=r"Config.importance='token' needs logprobs=…"):
        given_responses(trainer, *GIVEN)


def test_without_importance_log_probs_are_compared_and_not_used():
    trainer, other = make(tiny_gpt2()), make(tiny_gpt2())
    rollout = trainer.appraise(given_responses(trainer, *GIVEN, logprobs=padded(LOGPROBS, fill=float("nan"))))
    plain = other.appraise(given_responses(other, *GIVEN))
    assert rollout.importance_weights is None
    assert rollout.metrics["rollout/sampler_gap"] > 0.1
    assert rollout.metrics["sampler/k3"] > 0
    assert not any(name.startswith("sampler/") for name in plain.metrics)
    for name in ("old_logprobs", "advantages", "returns"):
        assert torch.equal(getattr(rollout, name), getattr(plain, name))
    found, wanted = trainer.update(rollout), other.update(plain)
    assert found["policy/loss"] == wanted["policy/loss"]


def test_what_an_environment_wrote_is_read_and_not_trained_on():
    trainer = make(tiny_gpt2(), **OFF_POLICY)
    said = [[-1.0, None, -3.0], [-2.5, -0.5], [None, -4.0, -2.0, -3.5], [-2.0]]
    rewards = [[0.5, 0.0, 1.0], [0.0, 2.0], [0.0, 0.0, -1.0, 0.0], [3.0]]
    found = given_responses(
        trainer, *GIVEN[:2], logprobs=said, action_mask=ACTIONS, token_rewards=rewards,
        rows=[{"answer": i} for i in range(4)],
    )  # fmt: skip
    rollout = trainer.appraise(found)
    assert torch.equal(rollout.generation.action_mask, padded(ACTIONS, fill=False))
    assert torch.equal(rollout.generation.mask.sum(dim=1), torch.tensor([3, 2, 4, 1]))
    assert torch.equal(rollout.token_rewards, padded(rewards))
    assert rollout.scores.tolist() == [1.5, 2.0, -1.0, 3.0]
    assert [s.row for s in rollout.samples] == [{"answer": i} for i in range(4)]
    assert [s.ids for s in rollout.samples] == GIVEN[1]
    for tensor in (rollout.old_logprobs, rollout.importance_weights, rollout.generation.logprobs):
        assert not tensor[~rollout.generation.action_mask].any()
    trainer.update(rollout)


def test_lists_and_padded_tensors_are_the_same():
    lists, tensors = make(tiny_gpt2(), **OFF_POLICY), make(tiny_gpt2(), **OFF_POLICY)
    rewards = [[0.5, 0.0, 1.0], [0.0, 2.0], [0.0, 0.0, -1.0, 0.0], [3.0]]
    one = given_responses(lists, *GIVEN[:2], logprobs=LOGPROBS, action_mask=ACTIONS, token_rewards=rewards)
    two = given_responses(
        tensors,
        *GIVEN[:2],
        logprobs=padded(LOGPROBS),
        action_mask=padded(ACTIONS, fill=False),
        token_rewards=padded(rewards),
    )
    three = given_responses(
        make(tiny_gpt2(), **OFF_POLICY), *GIVEN[:2], logprobs=padded(LOGPROBS).numpy(), action_mask=ACTIONS,
        token_rewards=padded(rewards).numpy(),
    )  # fmt: skip
    assert torch.equal(three.generation.logprobs, one.generation.logprobs)
    assert torch.equal(three.raw_token_rewards, one.raw_token_rewards)
    for name in ("old_logprobs", "raw_token_rewards", "scores"):
        assert torch.equal(getattr(one, name), getattr(two, name))
    assert torch.equal(one.generation.logprobs, two.generation.logprobs)


def test_staleness_counts_the_updates_since():
    trainer = make(tiny_gpt2())
    for _ in range(2):
        trainer.update(trainer.appraise(given_responses(trainer, *GIVEN)))
    assert trainer.policy_version == 8  # two steps of four epochs, one minibatch each
    rollout = trainer.appraise(given_responses(trainer, *GIVEN, policy_version=3))
    assert rollout.metrics["sampler/staleness"] == 5
    assert rollout.policy_version == 8  # the old log-probs are those of now
    assert "sampler/staleness" not in given_responses(trainer, *GIVEN).metrics
    for wrong in (9, -1, True, 2.0):
        with pytest.raises(ValueError, match=rf"policy_version={wrong} is none of 0 to 8"):
            given_responses(trainer, *GIVEN, policy_version=wrong)


def changed(rows, row, column, value):
    return [[value if (i, t) == (row, column) else x for t, x in enumerate(r)] for i, r in enumerate(rows)]


NAN = float("nan")
WRONG = {
    "no reward": ({"scores": None}, "got neither scores nor token_rewards"),
    "two rewards": ({"token_rewards": LOGPROBS}, "got both scores and token_rewards"),
    "responses missing": ({"responses": GIVEN[1][:3]}, "4 prompts and 3 responses"),
    "empty": ({"responses": [[4], [], [5], [6]]}, r"responses\[1\] holds no token"),
    "padded tensor": ({"responses": padded(GIVEN[1])}, r"responses is a tensor \[4, 4\]: give one list"),
    "row tensor": ({"prompts": [torch.tensor([2]), [5], [7], [8]]}, r"prompts\[0\] is a tensor \[1\].*ids.tolist"),
    "text": ({"prompts": ["ab", [5], [7], [8]]}, r"prompts\[0\] is a str"),
    "bool id": ({"responses": changed(GIVEN[1], 1, 0, True)}, r"responses\[1\]\[0\] is True: wanted a token id"),
    "foreign id": ({"responses": changed(GIVEN[1], 2, 3, 23)}, r"responses\[2\]\[3\] is 23: wanted .* below 23"),
    "eos padding": ({"responses": [[4], [7, 1, 1], [5], [6]]}, r"responses\[1\] goes on behind its end token 1"),
    "long padding": ({"responses": [[4], [7, 1, 1, 1], [5], [6]]}, r"end token 1 with 2 x 1: leave padding away"),
    "masked padding": (
        {"responses": [[4], [7, 1, 1], [5], [6]], "action_mask": [[True], [True, False, False], [True], [True]]},
        r"responses\[1\] goes on behind its end token 1",
    ),
    "above response_length": (
        {"responses": [[4], [2] * 7, [5], [6]]},
        r"responses\[1\] has 7 tokens: wanted at most 6, Config.response_length",
    ),
    "no ids": ({"prompts": [], "responses": []}, "there are 0 responses: give at least one"),
    "few ends": ({"is_ended": [True]}, "is_ended holds 1 values: wanted one for each of 4"),
    "one end": ({"is_ended": True}, "is_ended is a bool: wanted one for each of 4"),
    "end number": ({"is_ended": [True, False, 1, True]}, r"is_ended\[2\] is 1: wanted True or False"),
    "huge": ({"scores": [1.0, 10**400, 0.0, 0.0]}, r"scores\[1\] is 1000.*: wanted a finite number"),
    "numpy bool": ({"scores": [1.0, np.bool_(True), 0.0, 0.0]}, r"scores\[1\] is .*True.*: wanted a finite number"),
    "too long": ({"responses": [[4], [2] * 60, [5], [6]]}, r"row 1 has 2 \+ 60 tokens: wanted at most 48"),
    "generator": ({"responses": (ids for ids in GIVEN[1])}, "responses is a generator: give one list"),
    "bytes": ({"responses": [b"ab", [5], [7], [8]]}, r"responses\[0\] is a bytes: give a list of token ids"),
    "few scores": ({"scores": [1.0, 2.0]}, "scores holds 2 numbers: wanted one for each of 4"),
    "nan score": ({"scores": [1.0, NAN, 0.0, 0.0]}, r"scores\[1\] is nan: wanted a finite number"),
    "positive": ({"logprobs": changed(LOGPROBS, 2, 1, 0.5)}, r"logprobs\[2\]\[1\] is 0.5: wanted a log-prob"),
    "nan": ({"logprobs": changed(LOGPROBS, 0, 2, NAN)}, r"logprobs\[0\]\[2\] is nan: wanted a finite number"),
    "none": ({"logprobs": changed(LOGPROBS, 0, 2, None)}, r"logprobs\[0\]\[2\] is None"),
    "short row": ({"logprobs": [LOGPROBS[0], [-1.0], *LOGPROBS[2:]]}, r"logprobs\[1\] holds 1 numbers: .* its 2"),
    "few rows": ({"logprobs": LOGPROBS[:2]}, "logprobs holds 2 rows: wanted one list for each of 4"),
    "narrow tensor": (
        {"logprobs": padded(LOGPROBS)[:, :2]},
        r"logprobs is a tensor \[4, 2\]: wanted \[B, T\] = \[4, 4\]",
    ),
    "scalar": ({"logprobs": 3}, "logprobs is a int: wanted one list"),
    "no action": ({"action_mask": changed(ACTIONS, 3, 0, False)}, r"action_mask\[3\] holds no True"),
    "numbers": ({"action_mask": changed(ACTIONS, 0, 0, 1)}, r"action_mask\[0\]\[0\] is 1: wanted True or False"),
    "written": (
        {"scores": None, "action_mask": ACTIONS, "token_rewards": LOGPROBS},
        r"token_rewards\[0\]\[1\] is -2 on a token that an environment wrote",
    ),
    "few mappings": ({"rows": [{}]}, "rows holds 1: wanted a list of one mapping"),
    "no mapping": ({"rows": [{}, {}, 3, {}]}, r"rows\[2\] is a int: wanted a mapping"),
}


@pytest.mark.parametrize("name", list(WRONG))
def test_what_is_wrong_is_named_with_its_place_and_value(name):
    trainer = make(tiny_gpt2())
    given = dict(zip(("prompts", "responses", "scores"), GIVEN, strict=True))
    changes, message = WRONG[name]
    with pytest.raises(ValueError, match=message) as caught:
        given_responses(trainer, **given | changes)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------- padding


class Padded(Letters):
    """Letters with the special ids of a tokenizer."""

    def __init__(self, **ids):
        self.bos_token_id = self.eos_token_id = self.unk_token_id = self.pad_token_id = None
        for name, value in ids.items():
            setattr(self, f"{name}_token_id", value)


def with_tokenizer(**ids):
    config = Config(prompts_per_step=4, minibatch=4, response_length=6)
    return Trainer(tiny_gpt2(), config=config, tokenizer=Padded(**ids))


def test_the_padding_of_a_tokenizer_is_known():
    trainer = with_tokenizer(pad=0, eos=1)
    given_responses(trainer, *GIVEN)
    with pytest.raises(ValueError, match=r"prompt 0 begins or ends with padding, the token id 0"):
        given_responses(trainer, [[0, 3], *GIVEN[0][1:]], *GIVEN[1:])
    for padded_row in ([6, 0, 0], [7, 1, 0, 0, 0]):
        count = padded_row.count(0)
        with pytest.raises(ValueError, match=rf"responses\[3\] ends with {count} x 0, the padding id: leave"):
            given_responses(trainer, GIVEN[0], [*GIVEN[1][:3], padded_row], GIVEN[2])


@pytest.mark.parametrize("ids", [{"pad": 0, "bos": 0}, {"pad": 0, "unk": 0}, {"pad": 1, "eos": 1, "bos": 0}, {}])
def test_an_id_that_is_not_padding_alone_says_nothing(ids):
    trainer = with_tokenizer(**ids)
    prompts, responses = [[0, 3], [0], [7, 0], [8]], [[5, 0, 0], [0, 0], [6], [2]]
    found = given_responses(trainer, prompts, responses, GIVEN[2])
    assert [s.prompt_ids for s in found.samples] == prompts
    assert [s.ids for s in found.samples] == responses


@pytest.mark.parametrize("response", [[7, 1, 5], [1, 2, 3, 3], [7, 1, 0], [7, 1, 2, 1], [1, 1, 4], [5, 5, 5], [6, 0]])
def test_a_response_of_fixed_length_goes_on_behind_an_end_token(response):
    """What could have been drawn is no padding: one token, other tokens, and repeats of what ends nothing."""
    found = given_responses(with_tokenizer(pad=0, eos=1), GIVEN[0], [response, *GIVEN[1][1:]], GIVEN[2])
    assert found.samples[0].ids == response
    assert found.samples[0].is_ended == (response[-1] == 1)


def test_an_end_token_behind_an_environment_s_own_is_no_padding():
    actions = [[True, False, True], *ACTIONS[1:]]
    found = given_responses(make(tiny_gpt2()), GIVEN[0], [[4, 1, 1], *GIVEN[1][1:]], GIVEN[2], action_mask=actions)
    assert found.samples[0].ids == [4, 1, 1]


# ---------------------------------------------------------------------- what ended by itself


def test_an_end_token_ends_a_response_if_the_policy_chose_it():
    trainer, responses = make(tiny_gpt2()), [[4, 1], [4, 1], [1, 4], [4]]
    actions = [[True, True], [True, False], [True, True], [True]]
    found = given_responses(trainer, GIVEN[0], responses, GIVEN[2], action_mask=actions)
    assert found.generation.is_ended.tolist() == [True, False, False, False]
    ended = [False, np.bool_(True), True, False]
    for value in (ended, np.array(ended), torch.tensor([bool(x) for x in ended])):
        found = given_responses(trainer, GIVEN[0], responses, GIVEN[2], action_mask=actions, is_ended=value)
        assert found.generation.is_ended.tolist() == [False, True, True, False]
        assert [sample.is_ended for sample in found.samples] == [False, True, True, False]


class Short:
    """Two tokens of the policy, two of the environment, two of the policy, and an end without an end token."""

    def reset(self, row):
        self.turns = 0
        return row["prompt"]

    def step(self, ids):
        self.turns += 1
        return ([9, 9] if self.turns == 1 else None), float(sum(ids))


def test_episodes_of_a_foreign_environment_are_trained_on_under_mask_overlong():
    config = Config(prompts_per_step=4, minibatch=4, response_length=9, mask_overlong=True, learning_rate=1e-2)

    def fresh():
        sampler = EnvironmentSampler(Short, turn_length=2)
        return Trainer(tiny_gpt2(eos=None), PROMPTS, turn_rewards, config, sampler=sampler)

    own, other = fresh(), fresh()
    rollout = own.rollout()
    assert rollout.generation.is_ended.all()
    samples, actions = rollout.samples, rollout.generation.action_mask
    prompts, responses = [s.prompt_ids for s in samples], [s.ids for s in samples]
    rewards = rollout.token_rewards
    with pytest.raises(
        ValueError, match=r"mask_overlong would leave out all 4 .*responses\[0\].* is_ended=…"
    ) as caught:
        given_responses(other, prompts, responses, token_rewards=rewards, action_mask=actions)
    assert "\n" not in str(caught.value)
    given = given_responses(
        other, prompts, responses, token_rewards=rewards, action_mask=actions, is_ended=rollout.generation.is_ended
    )
    other.generator.set_state(own.generator.get_state())  # the order of the minibatches
    before = torch.cat([p.detach().flatten() for p in other.model.parameters()])
    own.update(rollout)
    other.update(other.appraise(given))
    moved = torch.cat([p.detach().flatten() for p in other.model.parameters()]) - before
    gap = torch.cat([p.detach().flatten() for p in own.model.parameters()]) - before - moved
    assert moved.norm() > 0.1
    assert gap.norm() < 1e-2 * moved.norm()


def test_responses_that_are_all_cut_need_no_word():
    trainer = make(tiny_gpt2(), mask_overlong=True)
    given_responses(trainer, GIVEN[0], [[3] * 6] * 4, GIVEN[2])
    given_responses(trainer, GIVEN[0], [[3] * 5] * 4, GIVEN[2], is_ended=[False] * 4)
    given_responses(make(tiny_gpt2()), GIVEN[0], [[3] * 5] * 4, GIVEN[2])


# ---------------------------------------------------------------------- groups


def grouped(**changes):
    config = Config(prompts_per_step=2, samples_per_prompt=2, minibatch=4, response_length=6, **changes)
    return Trainer(tiny_gpt2(), config=config)


@pytest.mark.parametrize("advantage", ["grpo", "dr_grpo", "rloo", "reinforce++_baseline"])
def test_the_samples_of_a_prompt_stand_side_by_side_where_they_are_compared(advantage):
    trainer, (a, b) = grouped(advantage=advantage), ([2, 3], [4])
    found = given_responses(trainer, [a, a, b, b], *GIVEN[1:])
    assert [s.prompt_ids for s in found.samples] == [a, a, b, b]
    with pytest.raises(
        ValueError, match=r"prompts\[1\] differs from prompts\[0\], but Config.advantage=.* the 2"
    ) as error:
        given_responses(trainer, [a, b, a, b], *GIVEN[1:])
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"prompts\[3\] differs from prompts\[2\]"):
        given_responses(trainer, [a, a, b, a], *GIVEN[1:])
    with pytest.raises(ValueError, match=r"3 responses: wanted a multiple of 2, because Config.advantage="):
        given_responses(trainer, [a, a, b], GIVEN[1][:3], GIVEN[2][:3])


def test_any_order_will_do_where_nothing_is_compared():
    for advantage in ("gae", "reinforce++"):
        given_responses(grouped(advantage=advantage), *GIVEN)
    own = Trainer(
        tiny_gpt2(), config=grouped().config, advantage=lambda rewards, values, mask, samples: (rewards, rewards)
    )
    given_responses(own, *GIVEN)


def test_numbers_of_numpy_are_numbers():
    rewards = [[0.5, 0.0, 1.0], [0.0, 2.0], [0.0, 0.0, -1.0, 0.0], [3.0]]
    plain = given_responses(
        make(tiny_gpt2(), **OFF_POLICY), *GIVEN[:2], logprobs=LOGPROBS, action_mask=ACTIONS, token_rewards=rewards,
        policy_version=0,
    )  # fmt: skip

    def numpy(rows, kind):
        return [[kind(x) for x in row] for row in rows]

    found = given_responses(
        make(tiny_gpt2(), **OFF_POLICY),
        numpy(GIVEN[0], np.int64),
        numpy(GIVEN[1], np.int32),
        logprobs=numpy(LOGPROBS, np.float32),
        action_mask=numpy(ACTIONS, np.bool_),
        token_rewards=numpy(rewards, np.float64),
        policy_version=np.int64(0),
    )
    for name in ("tokens", "mask", "action_mask", "logprobs"):
        assert torch.equal(getattr(found.generation, name), getattr(plain.generation, name))
    assert torch.equal(found.raw_token_rewards, plain.raw_token_rewards)
    assert found.metrics["sampler/staleness"] == 0
    assert {type(i) for sample in found.samples for i in [*sample.prompt_ids, *sample.ids]} == {int}
    scores = [np.float32(x) for x in GIVEN[2]]
    assert given_responses(make(tiny_gpt2()), *GIVEN[:2], scores).scores.tolist() == GIVEN[2]
