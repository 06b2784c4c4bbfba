"""Evaluation while training: its numbers are those of the policy as it is, and nothing of the run moves by it."""

import random

import numpy as np
import pytest
import torch

from ppo import Config, Sampling, Trainer, generate
from ppo.evaluation.evaluator import NAMES
from ppo.log import read_jsonl
from ppo.sampler import sample_policy
from tests.fakes import tiny_gpt2
from tests.ppo.run.small import PROMPTS, id_mean, make, weights

HELD_OUT = [[3, 4], [9, 2, 2], [11], [4, 4, 5]]
SMALL = Config(prompts_per_step=8, minibatch=4, response_length=6, epochs=2, learning_rate=1e-2)
EVERY = SMALL.replace(eval_every_steps=2)


def noisy(samples):
    """A reward that draws from every global generator."""
    return [s.ids[0] + float(torch.rand(())) + random.random() + float(np.random.rand()) for s in samples]  # noqa: NPY002


def by_hand(trainer, sampling, *, reward=id_mean):
    """Scores, lengths, ends and ids of responses to the held-out prompts, from ``generate`` alone."""
    prompts = [p for p in HELD_OUT for _ in range(sampling.num_samples)]
    one = Sampling(**{**vars(sampling), "num_samples": 1})
    generation = generate(trainer.model, prompts, one, seed=trainer.config.seed)
    rows = [ids[:n] for ids, n in zip(generation.tokens.tolist(), generation.lengths.tolist(), strict=True)]
    return [sum(ids) / len(ids) for ids in rows], rows, generation.is_ended.tolist()


@pytest.mark.parametrize("sampling", [None, Sampling(response_length=9, temperature=0.7, num_samples=3)])
def test_the_numbers_are_those_of_its_responses(sampling):
    trainer = make(SMALL, eval_prompts=HELD_OUT, eval_sampling=sampling)
    trainer.train(1, progress=False)
    found = trainer.evaluate()
    used = sampling or Sampling(response_length=6, temperature=0)
    scores, rows, ended = by_hand(trainer, used)
    mean = sum(scores) / len(scores)
    expected = {
        "eval/score_mean": mean,
        "eval/score_std": (sum((x - mean) ** 2 for x in scores) / len(scores)) ** 0.5,
        "eval/score_min": min(scores),
        "eval/score_max": max(scores),
        "eval/length_mean": sum(map(len, rows)) / len(rows),
        "eval/ended_share": sum(ended) / len(ended),
        "eval/distinct_share": len(set(map(tuple, rows))) / len(rows),
        "eval/prompts": 4.0,
    }
    assert found.pop("time/eval_s") > 0
    assert found.keys() == expected.keys() == set(NAMES)
    assert found == pytest.approx(expected, rel=1e-6)


def test_a_run_with_evaluations_has_the_bits_of_one_without():
    config = SMALL.replace(scale_scores=True)
    plain, shown = [], []
    one = make(config, reward=noisy)
    two = make(
        config.replace(eval_every_steps=1),
        reward=noisy,
        eval_prompts=HELD_OUT,
        eval_sampling=Sampling(response_length=3, num_samples=2),
    )
    for trainer, metrics in ((one, plain), (two, shown)):
        torch.manual_seed(5)
        random.seed(5)
        np.random.seed(5)  # noqa: NPY002
        trainer.train(3, progress=False, on_step=lambda step, metrics=metrics: metrics.append(step.metrics))
    assert torch.equal(weights(one), weights(two))
    assert one.scorer.moments == two.scorer.moments
    assert torch.equal(one.generator.get_state(), two.generator.get_state())
    for a, b in zip(plain, shown, strict=True):
        for name, value in a.items():
            if not name.startswith("time/") and "second" not in name:
                assert b[name] == pytest.approx(value, rel=0, nan_ok=True), name


def test_when_it_is_called(tmp_path):
    """Before the first step, after every second one and after the last; a resumed run does not begin again."""
    trainer = make(EVERY.replace(save_every_steps=1), eval_prompts=HELD_OUT, out=tmp_path)
    first = trainer.evaluate()
    trainer.train(5, progress=False)
    lines = read_jsonl(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in lines if "eval/score_mean" in line] == [1, 3, 4]
    assert [line["step"] for line in lines if "eval_start/score_mean" in line] == [0]
    assert lines[0]["eval_start/score_mean"] == first["eval/score_mean"]
    assert lines[0]["time/eval_start_s"] > 0
    assert lines[4]["eval/score_mean"] == trainer.evaluate()["eval/score_mean"]
    resumed = Trainer.resume(tmp_path, PROMPTS, id_mean, eval_prompts=HELD_OUT, out=tmp_path)
    resumed.train(1, progress=False)
    last = read_jsonl(tmp_path / "metrics.jsonl")[-1]
    assert last["step"] == 5
    assert "eval/score_mean" in last
    assert "eval_start/score_mean" not in last


def test_it_is_seen_by_those_who_decide():
    seen = []
    trainer = make(EVERY, eval_prompts=HELD_OUT)
    trainer.train(6, progress=False, stop_when=lambda metrics: "eval/score_mean" in metrics and not seen.append(1))
    assert trainer.step == 2


def test_it_goes_through_the_runs_own_sampler():
    asked = []

    def own(policy, prompts, *, seed, request_ids):
        asked.append((policy.sampling, [p.ids for p in prompts], seed, list(request_ids)))
        return sample_policy(policy, prompts, seed=seed, request_ids=request_ids)

    trainer = make(
        SMALL, sampler=own, eval_prompts=HELD_OUT, eval_sampling=Sampling(response_length=4, temperature=0.5)
    )
    trainer.evaluate()
    trainer.evaluate()
    assert asked[0] == asked[1]
    sampling, prompts, _, request_ids = asked[0]
    assert (sampling.response_length, sampling.temperature, sampling.eos_ids) == (4, 0.5, (1,))
    assert (prompts, request_ids) == (HELD_OUT, [0, 1, 2, 3])
    trainer.rollout()
    assert asked[2][0] == SMALL.sampling().__class__(**{**vars(SMALL.sampling()), "eos_ids": (1,)})


def test_memory_that_runs_out_is_lowered_for_the_run_too():
    trainer = make(SMALL, eval_prompts=HELD_OUT)
    assert trainer.policy.drawing(Sampling()).limits is trainer.policy.limits
    assert trainer.policy.drawing(Sampling()).actor is trainer.policy.actor


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"config": EVERY}, r"Config.eval_every_steps=2 needs eval_prompts=…; or leave it at 0"),
        ({"eval_sampling": Sampling()}, "eval_sampling=… needs eval_prompts=…"),
        ({"eval_prompts": HELD_OUT, "eval_sampling": 3}, "eval_sampling=3 must be a ppo.Sampling"),
        ({"eval_prompts": HELD_OUT, "reward": None}, "eval_prompts=… need a reward"),
        ({"eval_prompts": [[2], None]}, "eval_prompt 1 is None"),
        ({"eval_prompts": []}, r"eval_prompts=\[\] is empty"),
        (
            {"eval_prompts": [[2] * 40], "eval_sampling": Sampling(response_length=9)},
            "eval_prompt 0 has 40 tokens; with",
        ),
        ({"eval_prompts": [[99]]}, "eval_prompt 0 holds a token id outside"),
        (
            {"config": EVERY.replace(best_metric="eval/score"), "eval_prompts": HELD_OUT},
            "Config.best_metric='eval/score' is no metric of an evaluation; did you mean 'eval/score_std'|min|max|mean",
        ),
    ],
)
def test_what_is_missing_is_said_before_any_work(arguments, message):
    settings = {"config": SMALL, "reward": id_mean, **arguments}
    with pytest.raises(ValueError, match=message):
        Trainer(tiny_gpt2(), PROMPTS, settings.pop("reward"), settings.pop("config"), **settings)


def test_without_prompts_there_is_nothing_to_evaluate():
    with pytest.raises(ValueError, match="nothing to evaluate: pass eval_prompts=… to the Trainer"):
        make(SMALL).evaluate()


def test_the_config_is_checked():
    with pytest.raises(ValueError, match=r"Config.eval_every_steps=-1 must be at least 0"):
        Config(eval_every_steps=-1)
    with pytest.raises(ValueError, match=r"Config.best_metric='eval/score_mean' needs eval_every_steps above 0"):
        Config(best_metric="eval/score_mean")
    with pytest.raises(ValueError, match=r"Config.best_metric='' must be the name of a metric"):
        Config(best_metric="")
    with pytest.raises(ValueError, match=r"Config.best_is='most' must be one of 'max', 'min'"):
        Config(best_is="most")
