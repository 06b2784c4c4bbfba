"""Every field of state.json is held to its range, and every tensor to its kind, also where the checksums are right.

The wrong values, and what is harmless, are in tests/resealed.py, which ``make trust`` runs as well.
"""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from ppo import Config
from ppo.checkpoint import load_tensors, save_tensors
from tests import resealed
from tests.fuzz_damage import make_right
from tests.resealed import resume, seal


@pytest.fixture
def good(saved):
    """A checkpoint whose state.json a test may change; it is whole again afterwards."""
    file = saved / "state.json"
    whole = file.read_text()
    yield saved
    file.write_text(whole)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return resealed.saved_run(tmp_path_factory.mktemp("run"))


def losses(good, whole, variants):
    found = {variant: resealed.trial(good, whole, *variant) for variant in variants}
    return {variant: what for variant, what in found.items() if what not in ("taken", "refused")}


def test_every_field_of_state_json(good):
    whole = json.loads((good / "state.json").read_text())
    variants = [one for one in resealed.variants(whole) if one[0][0] != "config"]
    assert len(variants) > 500
    assert losses(good, whole, variants) == {}
    seal(good, whole)
    resume(good).train(1, progress=False)


@pytest.mark.slow
def test_every_field_of_the_config_within(good):
    """Its range is the one that Config has. A field that is left out is none that an older version knew."""
    whole = json.loads((good / "state.json").read_text())
    variants = [one for one in resealed.variants(whole) if one[0][0] == "config"]
    found = [resealed.trial(good, whole, *variant) for variant in variants]
    assert set(found) == {"taken", "refused"}
    assert len(found) > 1500
    assert found.count("refused") > 1000


def test_the_program_counts_and_tells_what_was_lost(monkeypatch, capsys):
    assert resealed.main(["--inputs", "12"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["tried"] == 12 == told["refused"] + told.get("taken", 0)
    assert told["of"] > 2000
    monkeypatch.setitem(resealed.HARMLESS, "step", set(resealed.WRONG))  # so every refusal of a wrong step is a loss
    monkeypatch.setattr(resealed, "variants", lambda state: [(("step",), "negative"), (("kind",), "empty")])
    assert resealed.main([]) == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["refused"], told["lost"], told["trials"]) == (1, 1, ["step, negative: refused, but it is harmless"])


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("epochs", 10**6, "Config.epochs=1000000 must be at most 10000"),
        ("samples_per_prompt", 10**12, "Config.samples_per_prompt=1000000000000 must be at most 42949672:"),
        ("prompts_per_step", 2**40, "Config.prompts_per_step=1099511627776 must be at most"),
        ("seed", 10**30, "Config.seed=1000000000000000000000000000000 must be below 2..63"),
        ("learning_rate", 10**400, "Config.learning_rate=10*[.]* must be below 2..63"),
        ("value_clip", 1e308, r"Config.value_clip=1e\+308 must be at most 1e\+15"),
        ("temperature", 5e-324, "Sampling.temperature=5e-324 must be 0 .greedy., or at least 1e-08"),
        ("reward_timeout_seconds", 1e12, "Config.reward_timeout_seconds=.* must be at most 1000000000"),
        ("kl_horizon_sequences", 1, "Config.kl_horizon_sequences=1 must be above"),
        ("retain_sequences", 2**40, "Config.retain_sequences=1099511627776 times retain_tokens=128 must be below"),
        ("best_metric", "x" * 1000, "Config.best_metric='x* must be the name of a metric"),
    ],
)
def test_a_config_has_upper_bounds_too(field, value, told):
    with pytest.raises(ValueError, match=told):
        Config.from_dict({"prompts_per_step": 32, field: value})


def test_one_field_beside_another(good):
    whole = json.loads((good / "state.json").read_text())
    for changes, told in (
        ({"num_updates": 10**6}, "num_updates is 1000000 and its critic_updates is 1, but"),
        ({"critic_updates": 0}, "its critic_updates is 0, but its optimiser moved the policy 1 times"),
        ({"critic_updates": 3}, "critic_updates is 3; it must be at most num_updates=2"),
        ({"best": {"value": 1.0, "step": 2}}, "best is .* of a step before step=2"),
        ({"frozen": [*whole["frozen"], "no.such.weight"]}, "frozen holds 'no.such.weight', which is no weight of"),
        ({"kind": "LlamaForCausalLM"}, "kind is 'LlamaForCausalLM', but the model is a GPT2LMHeadModel"),
        (
            {"limits": {**whole["limits"], "rollout_slots": 65}},
            "limits.rollout_slots is 65; it must be .* from 1 to 64",
        ),
        ({"unheard_of": 1}, "holds 'unheard_of', which this version does not know"),
        ({"format": True}, "has checkpoint format True"),
        ({"device": "cpu; rm"}, "saved on another machine: device=cpu; rm is not there"),
        ({"attention": {"": {"a": "eager"}}}, "attention is"),
    ):
        seal(good, whole | changes)
        with pytest.raises(ValueError, match=told):
            resume(good)


KINDS = [torch.int8, torch.bool, torch.complex64, torch.float8_e4m3fn, torch.int64]


@pytest.mark.parametrize("file", ["model/model", "value", "reference", "optimizer"])
def test_weights_and_moments_of_types_that_are_no_floats(good, tmp_path, file):
    for kind in KINDS:
        folder = tmp_path / str(kind)
        shutil.copytree(good, folder)
        path = folder / f"{file}.safetensors"
        tensors = load_tensors(path)
        name = next(name for name, x in tensors.items() if x.dim() == 2)
        tensors[name] = tensors[name].to(kind)
        save_tensors(path, tensors)
        make_right(folder)
        with pytest.raises(ValueError, match=r"is of type|is torch\.") as error:
            resume(folder)
        assert name.rpartition("/")[0] in str(error.value)
        assert str(folder) in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("file", "end", "change", "told"),
    [
        ("optimizer", "/step", lambda x: x + 100, "not a whole number up to num_updates=2"),
        ("optimizer", "/step", lambda x: x - 100, "is -9[89], not a whole number"),
        ("optimizer", "/step", lambda x: x - 0.5, "is [01].5, not a whole number"),
        ("optimizer", "/step", lambda x: x.double(), "is torch.float64, not torch.float32"),
        ("optimizer", "/exp_avg_sq", lambda x: x - 1, "is negative somewhere"),
        ("optimizer", "/exp_avg", lambda x: x.double(), "is torch.float64, not torch.float32"),
        ("optimizer", "/exp_avg", lambda x: x.sum(), r"is \(\), not "),
        ("optimizer", "/exp_avg", None, r"holds \['exp_avg_sq', 'step'\] of"),
        ("rng", "prompt_order", lambda x: torch.tensor([1, 1]), "prompt_order is no order of 3 prompts, each once"),
        ("rng", "prompt_order", lambda x: torch.tensor([3]), "prompt_order is no order"),
        ("rng", "prompt_order", lambda x: x.double(), "prompt_order is no order"),
        ("rng", "trainer", lambda x: x[:-1], "no state of the trainer's generator"),
        ("rng", "torch", lambda x: x[:-1], "a random state that cannot be taken"),
        ("rng", "torch", None, "the generators' state 'torch' is missing"),
        ("rng", "python", lambda x: -x, "a random state that cannot be taken"),
    ],
)
def test_tensors_that_no_run_left(good, tmp_path, file, end, change, told):
    folder = tmp_path / "copy"
    shutil.copytree(good, folder)
    path = folder / f"{file}.safetensors"
    tensors = load_tensors(path)
    name = max((name for name in tensors if name.endswith(end)), key=lambda name: (tensors[name].dim(), name))
    value = tensors.pop(name)
    save_tensors(path, tensors if change is None else tensors | {name: change(value)})
    make_right(folder)
    with pytest.raises(ValueError, match=told) as error:
        resume(folder)
    assert str(folder) in str(error.value)
