"""Responses that were sampled elsewhere become the same rollout as the trainer's own."""

import math
from types import SimpleNamespace

import pytest
import torch

from ppo import Config, Trainer
from ppo.given import given_responses
from tests.fakes import tiny_gpt2, tiny_llama

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
    "zero padding": ({"responses": [[4], [7, 1, 0, 0], [5], [6]]}, r"end token 1 with 2 x 0: leave padding away"),
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


def test_the_padding_of_a_tokenizer_is_known():
    tokenizer = SimpleNamespace(pad_token_id=0, decode=lambda ids, skip_special_tokens: "")
    trainer = Trainer(tiny_gpt2(), config=Config(prompts_per_step=4, minibatch=4), tokenizer=tokenizer)
    given_responses(trainer, *GIVEN)
    with pytest.raises(ValueError, match=r"prompts\[0\] begins with the padding id 0"):
        given_responses(trainer, [[0, 3], *GIVEN[0][1:]], *GIVEN[1:])
    with pytest.raises(ValueError, match=r"responses\[3\] ends with the padding id 0"):
        given_responses(trainer, GIVEN[0], [*GIVEN[1][:3], [6, 0]], GIVEN[2])
