"""The benchmarks of the update run, count correctly and fit correctly."""

import argparse
import importlib.util
import json
import subprocess
import sys

import pytest
import torch

from benchmarks import scaling, update
from benchmarks.machine import CPU
from benchmarks.models import make_model
from tests.processes import ENVIRONMENT, ROOT

SIZES = {"prompts": 4, "prompt_length": 6, "response_length": 4, "epochs": 1, "repeats": 1}


def options(variant, **changes):
    known = {
        "model": "random:tiny",
        "microbatch": None,
        "lora_rank": 2,
        "variant": variant,
        "device": CPU,
        **SIZES,
        **changes,
    }
    return argparse.Namespace(**known)


def run(module, *arguments):
    command = [sys.executable, "-m", f"benchmarks.{module}", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=600)


def flags(sizes):
    return [text for name, value in sizes.items() for text in (f"--{name.replace('_', '-')}", str(value))]


def test_a_line_is_found_and_what_is_off_it():
    assert scaling.line((1, 2, 4), [5.0, 7.0, 11.0]) == pytest.approx(
        {"fixed": 3.0, "each": 2.0, "largest_deviation": 0.0}, abs=1e-9
    )
    assert scaling.line((1, 2, 4, 8), [1.0, 4.0, 16.0, 64.0])["largest_deviation"] > 0.3  # a square is no line


def test_the_slope_is_the_power():
    points = [{"seconds": 3.0 * size**2, "beyond_weights_bytes": 7.0} for size in (1, 2, 4)]
    assert scaling.slopes((1, 2, 4), points) == pytest.approx({"seconds": 2.0, "beyond_weights_bytes": 0.0})


@pytest.mark.parametrize("is_tied", [True, False])
def test_products_that_the_update_leaves_out_are_not_counted(is_tied, monkeypatch):
    """random:tiny: 2 blocks of 4 x 32 x 32 + 3 x 32 x 64 weights, an output layer of 512 x 32, a value head of 32."""
    monkeypatch.setitem(update.VARIANTS, "top", {"train_top_layers": 1})
    monkeypatch.setattr(update, "make_model", lambda *given: make_model(*given, tie_word_embeddings=is_tied))
    block, output, head, tokens, responses = 4 * 32**2 + 3 * 32 * 64, 512 * 32, 32, 4 * 10, 4 * 4
    expected = {
        "shared": 6 * ((2 * block + head) * tokens + output * responses),
        "critic": 6 * ((4 * block + head) * tokens + output * responses),
        "top": 6 * (block + head) * tokens + 4 * output * responses,
    }
    for variant, number in expected.items():
        trainer = update.make_trainer(options(variant))
        assert update.model_operations(trainer, trainer.rollout()) == number, variant


def bare_gradients(variant, microbatch, monkeypatch):
    trainer, found = update.make_trainer(options(variant, microbatch=microbatch)), {}
    parameters = dict(trainer.policy.actor.named_parameters())
    monkeypatch.setattr(
        trainer.learner.optimizer, "zero_grad", lambda: found.update({n: p.grad for n, p in parameters.items()})
    )
    assert update.bare_pass(trainer, trainer.rollout()) > 0
    return {name: gradient for name, gradient in found.items() if gradient is not None}


@pytest.mark.parametrize("variant", ["shared", "critic"])
def test_the_bare_loop_takes_the_microbatches_of_the_update(variant, monkeypatch):
    """Each of two microbatches takes the mean over its half of the rows, which have the same length."""
    whole, split = (bare_gradients(variant, microbatch, monkeypatch) for microbatch in (None, 2))
    assert {name.split(".")[0] for name in whole} == {"policy", "value_head"} | ({"critic"} & {variant})
    for name, gradient in whole.items():
        torch.testing.assert_close(split[name] / 2, gradient, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("variant", list(update.VARIANTS))
def test_every_variant_is_measured(variant, capsys):
    result = update.measure(options(variant, microbatch=2))
    assert result["median_seconds"]["step"] > result["median_seconds"]["update"] > 0
    assert result["peak_memory_bytes"] > 0
    assert result["first_step_seconds"] > 0
    json.dumps(result)
    update.show(variant, result)
    assert "of the bare loop's rate" in capsys.readouterr().out


@pytest.mark.slow
def test_update_runs_as_a_program(tmp_path):
    variants = "shared,lora" + (",trl" if importlib.util.find_spec("trl") else "")
    done = run("update", "--model", "random:tiny", "--variants", variants, *flags(SIZES), "--json", tmp_path / "u.json")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "lora / shared: " in done.stdout
    assert list(json.loads((tmp_path / "u.json").read_text())["results"]) == variants.split(",")


@pytest.mark.slow
def test_scaling_runs_as_a_program(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(scaling, "POINTS", {"batch": (2, 4), "width": (32, 64)})
    program = ["scaling", "--layers", "1", "--repeats", "1", "--untied", "--json", str(tmp_path / "s.json")]
    monkeypatch.setattr(sys, "argv", program)
    scaling.main()
    shown = capsys.readouterr().out
    assert shown.count("slope") == 2
    assert shown.count("x batch, at most") == 2
    assert json.loads((tmp_path / "s.json").read_text())["results"].keys() == {"batch", "width"}


@pytest.mark.slow
def test_scaling_with_processes_takes_an_untrained_model(tmp_path):
    sizes = {"prompts": 4, "prompt_length": 6, "response_length": 4, "epochs": 1, "repeats": 1, "steps": 1}
    program = ("--model", "random:tiny", "--processes", "1", "2", *flags(sizes), "--json", tmp_path / "p.json")
    done = run("scaling_processes", *program)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / "p.json").read_text())["speedups"]["2"]["step"] > 0
