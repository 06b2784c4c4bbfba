"""Dataclass fields as command-line options."""

import argparse
import dataclasses

import pytest

from ppo.config import Config
from ppo.io.options import add_options, field_comments, field_sections, given_values


@dataclasses.dataclass
class Oven:
    door: str = "shut"
    # Heat
    degrees: int = 180
    fan: bool = True  # or not

    # Time
    minutes: int = 40


def parse(*arguments):
    parser = argparse.ArgumentParser()
    add_options(parser, Config)
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


def help_of(*names, **more):
    parser = argparse.ArgumentParser(formatter_class=lambda prog: argparse.HelpFormatter(prog, width=200))
    add_options(parser, Config, names, **more)
    return parser.format_help()


def test_the_help_tells_defaults_once_and_as_they_are_here():
    text = help_of("value_learning_rate", "epochs", "clip_scores", defaults={"epochs": 7})
    assert "none: learning_rate\n" in text  # the comment says what none is
    assert "(default 7)" in text
    assert "to [-c, c], after scaling (default none)" in text
    assert "--gamma" not in text


def test_a_hidden_option_works_all_the_same():
    parser = argparse.ArgumentParser()
    add_options(parser, Config, ["epochs"], is_shown=False)
    assert "--epochs" not in parser.format_help()
    assert given_values(parser.parse_args(["--epochs", "3"]), Config) == {"epochs": 3}


def test_a_name_that_is_no_field_is_refused():
    with pytest.raises(ValueError, match="Config has no field 'epoch'"):
        add_options(argparse.ArgumentParser(), Config, ["epoch"])


def test_headings_in_the_source_are_sections():
    assert field_sections(Oven) == {"": ("door",), "Heat": ("degrees", "fan"), "Time": ("minutes",)}
    sections = field_sections(Config)
    assert [name for names in sections.values() for name in names] == list(Config().to_dict())
    assert sections["Score and reward"] == (
        "scale_scores", "clip_scores", "missing_eos_penalty", "overlong_penalty", "overlong_tokens", "whiten_rewards",
    )  # fmt: skip
