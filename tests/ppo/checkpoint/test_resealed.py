"""Every field of state.json is held to its range, and every tensor to its kind, also where the checksums are right.

Each field, at every depth, gets many wrong values. A resume either gives a trainer whose next step runs, or raises a
ValueError of one line that names the field. What a config may say is more than a test can run, so that a config that is
taken is only resumed.
"""

from __future__ import annotations

import copy
import json
import math
import shutil

import pytest
import torch

from ppo import Config, Trainer
from ppo.checkpoint import load_tensors, save_tensors, state_sha256
from tests.fakes import tiny_gpt2
from tests.fuzz_damage import make_right

PROMPTS, KEEP = [[2, 3, 4], [5, 6], [7]], [[2, 3, 4, 5], [6, 7]]
CONFIG = Config(
    prompts_per_step=2, minibatch=2, response_length=2, epochs=1, scale_scores=True, kl_coef=0.1, retain_coef=0.1,
    retain_tokens=4, retain_sequences=2, critic_warmup_steps=1, detach_value_head=True, best_metric="score/mean",
    microbatch_tokens=500, train_top_layers=1,
)  # fmt: skip
WRONG = {
    "null": None, "true": True, "negative": -1, "zero": 0, "half": 0.5, "more than any count": 2**53 + 1,
    "beyond int64": 2**63, "beyond floats": 10**400, "large": 1e308, "largest below 0": -1e308, "NaN": math.nan,
    "infinite": math.inf, "subnormal": 5e-324, "empty": "", "text": "x", "long text": "x" * 10_000, "list": [],
    "nested": [[[[]]]], "long list": [0] * 1000, "object": {}, "deep object": {"a": {"b": 1}}, "left out": ...,
}  # fmt: skip
HARMLESS = {  # what is no error, and why
    "kind": {"left out"},  # older checkpoints lack these
    "limits": {"left out"},
    "own": {"left out"},
    "critic_updates": {"left out"},
    "kl_coef": {"half", "subnormal"},
    "moments.mean": {"zero", "negative", "half", "more than any count", "beyond int64", "subnormal"},
    "moments.squares": {"zero", "half", "more than any count", "beyond int64", "subnormal"},
    "best.value": {"half", "large", "largest below 0", "subnormal"},
    "num_not_finite": {"zero"},
    "frozen": {"null", "list"},  # the config's train_top_layers freezes them once more
    "frozen.0": {"left out"},
    "attention": {"null"},
    "limits.microbatch": {"null"},
    "limits.reference_rows": {"null", "left out"},
}


def reward(samples):
    return [float(sum(sample.ids) % 5) for sample in samples]


def resume(folder):
    return Trainer.resume(folder, PROMPTS, reward, retain=KEEP)


@pytest.fixture
def good(saved):
    """A checkpoint whose state.json a test may change; it is whole again afterwards."""
    file = saved / "state.json"
    whole = file.read_text()
    yield saved
    file.write_text(whole)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    trainer = Trainer(tiny_gpt2(), PROMPTS, reward, CONFIG, retain=KEEP, out=folder)
    trainer.train(2, progress=False)
    return trainer.save(folder / "good")


def fields(record, path=()):
    """The path of every field, lists by their first item."""
    for key, value in record.items() if isinstance(record, dict) else list(enumerate(record))[:1]:
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from fields(value, (*path, key))


def changed(state, path, value):
    state = copy.deepcopy(state)
    holder = state
    for key in path[:-1]:
        holder = holder[key]
    if value is ...:
        del holder[path[-1]]
    else:
        holder[path[-1]] = value
    return state


def seal(folder, state):
    (folder / "state.json").write_text(json.dumps(state | {"state_sha256": state_sha256(state)}))


def outcome(folder, names):
    """ "taken", or "refused" if the error is one line that has one of the names in it; else what went wrong."""
    try:
        trainer = resume(folder)
    except ValueError as error:
        text = str(error)
        is_one_line = "\n" not in text and len(text) < 2000
        return "refused" if is_one_line and any(name in text for name in names) else f"unnamed: {text:.300}"
    return trainer


def test_every_field_of_state_json(good):
    whole = json.loads((good / "state.json").read_text())
    count, wrong = 0, []
    for path in fields({name: x for name, x in whole.items() if name not in ("sha256", "state_sha256", "config")}):
        name = ".".join(map(str, path))
        for how, value in WRONG.items():
            state = changed(whole, path, value)
            if state == whole:
                continue
            seal(good, state)
            count += 1
            found = outcome(good, {str(path[0]), "kl_coef"} if path[0] != "moments" else {"moments"})
            if isinstance(found, Trainer):
                found.train(1, progress=False)
                found = "taken"
            if found != ("taken" if how in HARMLESS.get(name, ()) else "refused"):
                wrong.append((name, how, found))
    assert wrong == []
    assert count > 500
    seal(good, whole)
    resume(good).train(1, progress=False)


@pytest.mark.slow
def test_every_field_of_the_config_within(good):
    """Its range is the one that Config has. A field that is left out is none that an older version knew."""
    whole = json.loads((good / "state.json").read_text())
    count, refused = 0, 0
    for name in whole["config"]:
        for value in [value for value in WRONG.values() if value is not ...]:
            seal(good, changed(whole, ("config", name), value))
            found = outcome(good, {name})
            assert isinstance(found, Trainer) or found == "refused", (name, value, found)
            count, refused = count + 1, refused + (found == "refused")
    assert count > 1500
    assert refused > 1000


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
