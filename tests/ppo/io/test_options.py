"""Dataclass fields as command-line options."""

import argparse

import pytest

from ppo.config import Config
from ppo.io.options import add_options, field_comments, given_values


def parse(*arguments):
    parser = argparse.ArgumentParser()
    add_options(parser, Config, title="PPO")
    return given_values(parser.parse_args(arguments), Config)


def test_only_what_was_given_comes_back_with_its_type():
    assert parse() == {}
    given = parse("--epochs", "3", "--learning-rate", "1e-4", "--kl-estimator", "k3", "--no-whiten-advantages",
                  "--value-clip", "none", "--clip-scores", "2", "--microbatch", "8")  # fmt: skip
    assert given == {
        "epochs": 3, "learning_rate": 1e-4, "kl_estimator": "k3", "whiten_advantages": False, "value_clip": None,
        "clip_scores": 2.0, "microbatch": 8,
    }  # fmt: skip
    assert Config(**given).microbatch == 8


def test_every_field_has_an_option():
    for name, value in Config().to_dict().items():
        flag = "--" + name.replace("_", "-")
        typed = [flag] if isinstance(value, bool) else [flag, str(value)]
        assert parse(*typed) == {name: True if isinstance(value, bool) else value}


def test_a_wrong_number_names_the_option():
    with pytest.raises(ValueError, match="--learning-rate takes FLOAT, not 'fast'"):
        parse("--learning-rate", "fast")
    with pytest.raises(ValueError, match=r"--epochs takes INT, not '2.5'"):
        parse("--epochs", "2.5")


def test_comments_are_the_help():
    assert field_comments(Config)["rollout_slots"] == "sequences decoded side by side"
