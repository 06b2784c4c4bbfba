"""An environment of two methods: what was played is trained on, and rewards land on the turns that they are for."""

import dataclasses

import numpy as np
import pytest
import torch

from ppo import Config, EnvironmentSampler, Trainer, Turn, turn_rewards
from ppo.io.named import name_of
from tests.fakes import Letters, tiny_gpt2

ROWS = [{"prompt": [2, 3], "secret": 14}, {"prompt": [4, 5, 6], "secret": 15}, {"prompt": [7], "secret": 16}]
SMALL = Config(prompts_per_step=6, minibatch=3, response_length=10, epochs=2, learning_rate=1e-2)


class Hint:
    """The policy writes two tokens, reads the secret twice, and writes two more. Evens are paid, and the secret."""

    def __init__(self):
        self.turns = 0

    def reset(self, row):
        self.row = row
        return [*row["prompt"], 22]

    def step(self, ids):
        self.turns += 1
        if self.turns == 1:
            return [self.row["secret"]] * 2, float(sum(i % 2 == 0 for i in ids))
        return None, 10.0 * ids.count(self.row["secret"])


def make(environment=Hint, config=SMALL, *, dtype=torch.float32, **arguments):
    torch.manual_seed(0)
    sampler = EnvironmentSampler(environment, turn_length=2)
    return Trainer(tiny_gpt2(eos=None).to(dtype), ROWS, turn_rewards, config, sampler=sampler, **arguments)


def test_an_episode_is_one_row():
    rollout = make().rollout()
    generation = rollout.generation
    assert generation.tokens.shape == (6, 6)
    assert generation.action_mask.tolist() == [[True, True, False, False, True, True]] * 6
    assert generation.is_ended.all()
    for index, sample in enumerate(rollout.samples):
        ids, secret = sample.ids, sample.row["secret"]
        assert sample.prompt_ids == [*sample.row["prompt"], 22]  # what reset gave
        assert ids[2:4] == [secret] * 2
        evens, hits = float(sum(i % 2 == 0 for i in ids[:2])), 10.0 * ids[4:].count(secret)
        assert sample.info == [Turn(0, 2, evens), Turn(4, 6, hits)]
        assert rollout.token_rewards[index].tolist() == [0, evens, 0, 0, 0, hits]
        assert rollout.scores[index] == evens + hits
        assert not rollout.old_logprobs[index, 2:4].any()
    assert rollout.metrics["response/turns_mean"] == 2
    assert rollout.metrics["response/actions_mean"] == 4
    assert rollout.metrics["response/written_share"] == pytest.approx(1 / 3)


def test_the_sampler_gives_the_training_forwards_logprobs_and_values():
    trainer = make()
    rollout = trainer.rollout()
    found = trainer.policy.measure(rollout.generation)
    assert rollout.generation.logprobs.allclose(found.logprobs, atol=1e-5)
    assert rollout.generation.entropy.allclose(found.entropy, atol=1e-5)
    assert rollout.generation.values.allclose(found.values, atol=1e-5)
    assert trainer.update(rollout)["rollout/logprob_gap"] < 1e-5


def test_samples_show_the_text_that_the_policy_started_from():
    assert make(tokenizer=Letters()).rollout().samples[0].prompt.endswith("u")  # id 22


@pytest.mark.parametrize("changes", [{"microbatch": 1}, {"rollout_slots": 1}, {"rollout_slots": 4}])
def test_neither_slots_nor_microbatches_change_the_run(changes):
    plain, other = make(dtype=torch.float64), make(config=SMALL.replace(**changes), dtype=torch.float64)
    for trainer in (plain, other):
        trainer.train(2, progress=False)
    for a, b in zip(plain.model.parameters(), other.model.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_an_environment_may_train_something_of_its_own():
    weight = torch.nn.Parameter(torch.ones(()))

    class Learns(Hint):
        def step(self, ids):
            assert not torch.is_inference_mode_enabled()
            with torch.enable_grad():
                (weight * len(ids)).backward()
            return super().step(ids)

    make(Learns).rollout()
    assert weight.grad == 2 * 2 * 6


def test_the_metrics_of_turns_are_those_of_all_draws():
    class Chatty(Hint):
        """Rows with a higher secret have more turns."""

        def step(self, ids):
            self.turns += 1
            return ([20], 0.0) if self.turns < self.row["secret"] - 13 else (None, float(sum(ids)))

    config = SMALL.replace(advantage="grpo", prompts_per_step=3, samples_per_prompt=2, redraw_rounds=2, minibatch=6)
    rollout = make(Chatty, config=config).rollout()
    assert rollout.metrics["response/turns_mean"] == sum(len(s.info) for s in rollout.samples) / 6
    assert rollout.metrics["response/actions_mean"] == rollout.generation.action_mask.sum() / 6


def test_groups_play_the_same_row():
    config = SMALL.replace(advantage="grpo", samples_per_prompt=3, prompts_per_step=2)
    samples = make(config=config).rollout().samples
    assert [s.row for s in samples[:3]] == [samples[0].row] * 3
    assert len({tuple(s.ids[:2]) for s in samples[:3]}) > 1


def test_a_run_resumes_to_the_same_bits_and_only_with_its_environment(tmp_path):
    whole = make()
    whole.train(1, progress=False)
    whole.save(tmp_path / "ckpt")
    whole.train(1, progress=False)
    name = "ppo.environment.EnvironmentSampler(tests.ppo.test_environment.Hint, turn_length=2)"
    assert whole.state.own["sampler"] == name
    sampler = EnvironmentSampler(Hint, turn_length=2)
    again = Trainer.resume(tmp_path / "ckpt", ROWS, turn_rewards, sampler=sampler)
    again.train(1, progress=False)
    for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.warns(RuntimeWarning, match=r"saved with sampler=.*Hint, .*resume got .*Deaf, "):
        Trainer.resume(tmp_path / "ckpt", ROWS, turn_rewards, sampler=EnvironmentSampler(Deaf, turn_length=2))
    with pytest.warns(RuntimeWarning, match=r"saved with sampler=.*turn_length=2\), resume got .*turn_length=3\)"):
        Trainer.resume(tmp_path / "ckpt", ROWS, turn_rewards, sampler=EnvironmentSampler(Hint, turn_length=3))
    with pytest.raises(ValueError, match="sampler"):
        Trainer.resume(tmp_path / "ckpt", ROWS, turn_rewards)


def test_the_name_holds_what_ends_a_turn():
    name = "ppo.environment.EnvironmentSampler(tests.ppo.test_environment.Hint"
    assert name_of(EnvironmentSampler(Hint)) == f"{name})"
    assert name_of(EnvironmentSampler(Hint, turn_length=3)) == f"{name}, turn_length=3)"
    several = EnvironmentSampler(Hint, end_ids=[7, np.int64(5), 7], turn_length=np.int64(3))
    assert name_of(several) == f"{name}, end_ids=[5, 7], turn_length=3)"  # their order and number change nothing


def test_numbers_of_numpy_are_numbers():
    class Numpy(Hint):
        def reset(self, row):
            return list(np.array(super().reset(row)))

        def step(self, ids):
            observation, reward = super().step(ids)
            return None if observation is None else list(np.array(observation)), np.float32(reward)

    found, wanted = make(Numpy).rollout(), make().rollout()
    assert torch.equal(found.generation.tokens, wanted.generation.tokens)
    assert torch.equal(found.token_rewards, wanted.token_rewards)
    assert all(type(i) is int for sample in found.samples for i in sample.prompt_ids)


def test_episodes_that_are_cut_are_paid_and_counted():
    class Endless(Hint):
        def step(self, ids):
            return [20], 1.0

    rollout = make(Endless).rollout()
    assert [turn.end for turn in rollout.samples[0].info] == [2, 5, 8, 10]
    assert rollout.scores.tolist() == [4.0] * 6
    assert not rollout.generation.is_ended.any()
    assert rollout.metrics["response/ended_share"] == 0


class Deaf(Hint):
    """It fails in one method or the other."""

    answer: object = None

    def step(self, ids):
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (None, "step returned None, wanted"),
        ([2, 3, 4], r"step returned \[2, 3, 4\], wanted \(token ids, or None at the end; reward\)"),
        (([2], "one"), "the reward 'one', wanted a finite number"),
        (([2], float("nan")), "the reward nan, wanted a finite number"),
        (([2], True), "the reward True"),
        (("text", 1.0), "step returned 'text', wanted token ids"),
        (([2.5], 1.0), r"step returned \[2.5\], wanted token ids"),
        (([2], np.bool_(True)), "the reward .*True.*, wanted a finite number"),
        (([2], 10**400), "the reward 1000.*, wanted a finite number"),
        (([99], 1.0), "99, outside the model's vocabulary"),
    ],
)
def test_a_wrong_answer_is_named(answer, message):
    wrong = type("Wrong", (Deaf,), {"answer": answer})
    trainer = make(wrong)
    before = [p.clone() for p in trainer.model.parameters()]
    with pytest.raises(ValueError, match=message):
        trainer.rollout()
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))


def test_an_error_inside_an_environment_names_its_row():
    wrong = type("Wrong", (Deaf,), {"answer": KeyError("tool")})
    with pytest.raises(KeyError) as caught:
        make(wrong).rollout()
    assert "step failed; its row is {'prompt'" in caught.value.__notes__[0]


def test_a_bad_start_is_named():
    class Late(Hint):
        def reset(self, row):
            return "abc"

    with pytest.raises(ValueError, match="reset returned 'abc', wanted token ids"):
        make(Late).rollout()
    with pytest.raises(ValueError, match="must be a class or a function"):
        EnvironmentSampler(Hint())


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], "reset returned no token"),
        ([5, 23], "reset returned the id 23, outside the model's vocabulary of 23"),
        ([-1], "reset returned the id -1, outside the model's vocabulary of 23"),
        ([2] * 39, "reset returned 39 tokens, wanted at most 38"),
    ],
)
def test_a_start_that_no_model_can_read_names_its_environment_and_row(ids, message):
    class Bad(Hint):
        def reset(self, row):
            return ids if row["secret"] == 16 else super().reset(row)

    trainer, rows = make(Bad), ROWS[2:]
    prompts = [trainer.prompts[i] for i in (0, 1, 2)]
    with pytest.raises(ValueError, match=message) as caught:
        trainer.collector._sampler(trainer.policy, prompts, seed=0, request_ids=[6, 7, 8])
    text = str(caught.value)
    assert "Bad, response 8: " in text  # of the step, not of this process's share
    assert text.endswith(f"; its row is {rows[0]!r}")
    assert "\n" not in text


@pytest.mark.parametrize(
    ("make_one", "message"),
    [
        (lambda: 3, "gave a int without the method reset: an environment has"),
        (lambda: type("Half", (), {"reset": lambda self, row: [2]})(), "gave a Half without the method step"),
        (lambda: Hint, "gave the class Hint: it must give an object of it"),
    ],
)
def test_what_is_no_environment_is_refused_by_name(make_one, message):
    with pytest.raises(ValueError, match=f"make=tests.ppo.test_environment.<lambda> {message}"):
        make(make_one).rollout()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"end_ids": 6}, r"EnvironmentSampler: end_ids=6 must be a list of token ids, such as \[6\]"),
        ({"end_ids": "ab"}, "end_ids='ab' must be a list"),
        ({"end_ids": [2.0]}, r"end_ids=\[2.0\] must be a list"),
        ({"turn_length": 0}, "EnvironmentSampler: turn_length=0 must be at least 1"),
        ({"turn_length": True}, "turn_length=True must be at least 1"),
    ],
)
def test_wrong_ends_of_turns_are_refused_at_once(settings, message):
    with pytest.raises(ValueError, match=message):
        EnvironmentSampler(Hint, **settings)


def test_turn_rewards_need_turns():
    sample = make().rollout().samples[0]
    with pytest.raises(ValueError, match="sample 0 holds no turns"):
        turn_rewards([dataclasses.replace(sample, info=None)])
