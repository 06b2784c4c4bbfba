"""The config refuses every wrong value by name, and it is read back from its JSON."""

import dataclasses
import json

import pytest

from ppo.config import Config, Sampling


def test_json_round_trip(tmp_path):
    config = Config(prompts_per_step=8, minibatch=4, microbatch=2, clip_scores=3, schedule="cosine", total_steps=9)
    config.save(tmp_path / "config.json")
    assert Config.load(tmp_path / "config.json") == config
    assert isinstance(config.clip_scores, float)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"minibatch": 7}, r"minibatch=7 must divide prompts_per_step x samples_per_prompt = 32"),
        ({"microbatch": 5}, r"microbatch=5 must divide minibatch=32"),
        ({"microbatch": 4, "microbatch_tokens": 100}, r"give either microbatch or microbatch_tokens"),
        ({"epochs": 0}, r"epochs=0 must be at least 1"),
        ({"epochs": True}, r"epochs=True must be int"),
        ({"learning_rate": 0.0}, r"learning_rate=0.0 must be above 0"),
        ({"learning_rate": float("nan")}, r"learning_rate=nan must be finite"),
        ({"gamma": 1.5}, r"gamma=1.5 must lie in \[0, 1\]"),
        ({"kl_coef": -0.1}, r"kl_coef=-0.1 must be at least 0"),
        ({"kl_estimator": "k4"}, r"kl_estimator='k4' must be one of 'k1', 'k2', 'k3'"),
        ({"kl_as": "loss"}, r"must be 'k2' or 'k3' for kl_as='loss'"),
        ({"advantage": "grpo"}, r"samples_per_prompt=1 must be at least 2"),
        ({"advantage": "dr_grpo"}, r"samples_per_prompt=1 must be at least 2 for advantage='dr_grpo'"),
        ({"advantage": "reinforce++_baseline"}, r"samples_per_prompt=1 must be at least 2"),
        ({"value_gae_lambda": 1.1}, r"value_gae_lambda=1.1 must lie in \[0, 1\]"),
        ({"gae_length_alpha": 0.0}, r"gae_length_alpha=0.0 must be above 0"),
        (
            {"advantage": "reinforce++", "gae_length_alpha": 0.05},
            r"gae_length_alpha=0.05 must be None for advantage='reinforce\+\+': GAE needs a critic",
        ),
        ({"value_head": "none", "value_gae_lambda": 1.0}, r"value_gae_lambda=1.0 must be None for value_head='none'"),
        ({"critic_warmup_steps": 2, "value_head": "none"}, r"critic_warmup_steps=2 needs a critic that learns"),
        ({"schedule": "linear"}, r"total_steps=None must be given"),
        ({"temperature": 0.0}, r"a greedy policy has no gradient"),
        ({"top_p": 0.0}, r"top_p=0.0 must lie in \(0, 1\]"),
        ({"min_response_length": 51}, r"min_response_length=51 must lie between 0 and response_length=50"),
    ],
)
def test_wrong_values_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        Config(**values)


def test_unknown_keys_are_errors_with_a_hint():
    with pytest.raises(ValueError, match="unknown config key 'learning_rat'; did you mean 'learning_rate'"):
        Config.from_dict({"learning_rat": 1.0})
    with pytest.raises(ValueError, match="unknown config key 'xyzzy'; known keys: prompts_per_step"):
        Config().replace(xyzzy=1)


def test_broken_files_are_named(tmp_path):
    path = tmp_path / "config.json"
    path.write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"config.json is (damaged|not a JSON config)"):
        Config.load(path)
    path.write_text(json.dumps([1]), encoding="utf-8")
    with pytest.raises(ValueError, match="it holds a list, not an object"):
        Config.load(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"config.json is (damaged|not a JSON config)"):
        Config.load(path)


def test_configs_are_frozen_and_sampling_follows():
    config = Config(temperature=0.7, top_k=5)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 1
    assert config.sampling() == Sampling(response_length=50, temperature=0.7, top_k=5)
    assert Sampling(eos_ids=[3, 4]).eos_ids == (3, 4)


def test_a_path_in_an_error_cannot_act_on_a_terminal(tmp_path):
    path = tmp_path / "a\x1b[2Jb.json"
    path.write_text("5")
    with pytest.raises(ValueError, match="is not a JSON config: it holds a int") as caught:
        Config.load(path)
    assert "\x1b" not in str(caught.value)
