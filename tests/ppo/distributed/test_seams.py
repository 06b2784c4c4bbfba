"""The seams in two processes, with whole weights and with split ones: two give the update of one, and errors are named.

One torchrun of two processes on the CPU (gloo) runs every case of tests/processes_seams.py. The same functions, called
in this process without split weights, are the oracle.
"""

import json
import re

import pytest
import torch

from ppo import Config, Trainer
from ppo.distributed import Processes
from tests import processes_seams
from tests.fakes import tiny_gpt2
from tests.ppo.distributed.test_processes import TOLERANCE, assert_identical, assert_same_training, of_one, of_two
from tests.processes import torchrun
from tests.processes_cases import PROMPTS, RETAIN, count_fives, state


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("seams")
    done = torchrun("-m", "tests.processes_seams", str(path))
    assert done.returncode == 0, done.stderr[-6000:]
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", list(processes_seams.UPDATES))
def test_two_processes_give_the_update_of_one(folder, tmp_path, name):
    one = of_one(processes_seams.cases()[name], tmp_path)
    for kind in ("", "_gathered", "_in_step"):  # whole weights; split ones, gathered for rollouts or never
        first, second = of_two(folder, name + kind)
        left_out = ("weights", "adam") if kind else ()  # split ones are gathered on the first process only
        assert_identical({k: x for k, x in first.items() if k not in left_out}, second)
        assert one["samples"] == first["samples"]  # of the second step, sampled from weights that have moved
        assert_same_training(one, first, tolerance=TOLERANCE["float32"], case=name + kind)
    if name == "environment":
        assert one["actions"] == 8 * 4
        return
    written = [info["written"] for _, info in one["samples"] if info]
    assert written == ([2, 4] * 4 if name in ("sampler", "all", "all_blocks") else [])
    num_tokens = sum(len(ids) for ids, _ in one["samples"])
    assert one["actions"] == num_tokens - sum(written)


@pytest.mark.slow
def test_the_seams_were_asked(folder):
    """The cases differ from each other, and from a run without them."""
    found = {name: of_two(folder, name)[0] for name in processes_seams.UPDATES}
    assert {"policy/pull", "policy/long"} <= found["all"]["metrics"].keys()  # long: on the processes with long rows
    assert "policy/pull" in found["loss"]["metrics"]
    sums = [float(case["weights"].sum()) for case in found.values()]
    assert len(set(sums)) == len(sums)


@pytest.mark.slow
def test_only_the_first_process_is_shown_a_step_and_its_error_ends_all(folder):
    first, second = of_two(folder, "shown")
    assert first["seen"] == [(0, 0, 8, True), (0, 1, 8, True)]
    assert second["seen"] == []
    assert first["text"] == "KeyError: 'tracker'"
    assert second["text"] == "OtherProcessError: process 0: KeyError: 'tracker'"


SAID = {
    "sampler": "sampler=tests.processes_seams.two_few returned 2 responses to 4 prompts",
    "advantage": "advantage=tests.processes_seams.not_finite returned advantages that are NaN or infinite",
    "policy_loss": "policy_loss=tests.processes_seams.without_gradient returned a loss without a gradient",
    "value": "value=tests.processes_seams.Moody returned a tensor",
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["", "_gathered", "_in_step"])
def test_a_wrong_answer_on_one_process_ends_all_of_them_by_name(folder, kind):
    first, second = of_two(folder, f"wrong{kind}")
    assert set(first) == {"sampler", "values", "advantage", "policy_loss", *([] if kind else ["value"])}
    for name in set(first) - {"values"}:
        assert second[name].startswith(f"ValueError: {SAID[name]}")
        assert first[name].startswith(f"OtherProcessError: process 1: ValueError: {SAID[name]}")
    for text in (first["values"], second["values"]):
        assert text == "ValueError: the sampler gave values on one process and not on another: always give the same"


@pytest.mark.slow
def test_the_first_process_s_draw_is_what_all_of_them_train_on(folder):
    first, second = of_two(folder, "drawn")
    assert first["advantages"].abs().sum() > 0
    assert torch.equal(first["advantages"], second["advantages"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["", "_gathered", "_in_step"])
def test_a_checkpoint_of_an_own_critic_goes_on_to_the_same_bits(folder, tmp_path, kind):
    for two in of_two(folder, f"resumed{kind}"):
        assert_identical(two["unbroken"], two["resumed"])
    critic = processes_seams.Blocks if kind else processes_seams.Table
    path = folder / {"": "Table", "_gathered": "Blocks-fsdp", "_in_step": "Blocks-fsdp-False"}[kind]
    assert "value" in json.loads((path / "state.json").read_text())["own"]
    given = processes_seams.everything(critic())
    alone = Trainer.resume(path, PROMPTS, count_fives, retain=RETAIN, **given)
    alone.train(1, progress=False)
    unbroken = of_two(folder, f"resumed{kind}")[0]["unbroken"]
    assert_same_training(state(alone), unbroken | {"metrics": {}}, tolerance=TOLERANCE["float32"])


def test_a_critic_with_other_weights_than_the_checkpoint_is_refused(tmp_path):
    trainer = processes_seams.make({}, {"value": processes_seams.Table()})
    trainer.save(tmp_path / "ckpt")

    class Taller(processes_seams.Table):
        def __init__(self):
            super().__init__()
            self.more = torch.nn.Linear(1, 1)

    says = r"value.safetensors holds weights that do not fit the value function, .*critic.more.bias"
    with pytest.warns(RuntimeWarning, match="resume got"), pytest.raises(ValueError, match=says):
        Trainer.resume(tmp_path / "ckpt", PROMPTS, count_fives, retain=RETAIN, value=Taller())


def test_one_process_adds_and_takes_its_own():
    one, x = Processes(), torch.ones(2)
    assert one.sum_named({"a": 1.0}) == {"a": 1.0}
    assert one.of_first(x) is x


# ---------------------------------------------------------------------- settings that nothing reads any more


def estimator(rewards, values, mask, samples):
    return rewards, rewards


@pytest.mark.parametrize(
    ("seam", "changes", "named"),
    [
        ("policy_loss", {"policy_loss": "gspo"}, "policy_loss='gspo'"),
        ("policy_loss", {"policy_clip": 0.1, "policy_clip_high": 0.3}, "policy_clip=0.1, policy_clip_high=0.3"),
        ("policy_loss", {"policy_dual_clip": 3.0}, "policy_dual_clip=3.0"),
        ("policy_loss", {"loss_mean": "sequences"}, "loss_mean='sequences'"),
        ("policy_loss", {"loss_mean": "sequences", "kl_as": "loss", "kl_estimator": "k3", "kl_coef": 0.0},
         "loss_mean='sequences'"),
        ("advantage", {"advantage": "reinforce++", "gamma": 0.9}, "advantage='reinforce++', gamma=0.9"),
        ("advantage", {"gae_lambda": 1.0, "whiten_advantages": False}, "gae_lambda=1.0, whiten_advantages=False"),
        ("advantage", {"gae_length_alpha": 0.1, "value_gae_lambda": 1.0}, "value_gae_lambda=1.0, gae_length_alpha=0.1"),
        ("sampler", {"compiled_rollout": True}, "compiled_rollout=True"),
    ],
)  # fmt: skip
def test_a_setting_that_nothing_would_read_is_refused(seam, changes, named):
    functions = {"policy_loss": processes_seams.squared, "advantage": estimator, "sampler": processes_seams.with_a_tool}
    says = re.escape(f" would never read Config({named}): leave ") + ".* at (its default|their defaults)"
    with pytest.raises(ValueError, match=f"^{seam}=tests[^ ]*{says}$"):
        Trainer(tiny_gpt2(), PROMPTS, count_fives, Config(**changes), **{seam: functions[seam]})


@pytest.mark.parametrize("changes", [{"entropy_coef": 0.1}, {"kl_as": "loss", "kl_estimator": "k3"}])
def test_the_mean_over_tokens_is_read_by_entropy_and_kl_under_any_loss(changes):
    config = Config(loss_mean="sequences", response_length=6, **changes)
    Trainer(tiny_gpt2(), PROMPTS, count_fives, config, policy_loss=processes_seams.squared)
