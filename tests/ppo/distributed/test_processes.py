"""Two processes do what one does: the same samples, updates, stops, files and checkpoints.

One torchrun of two processes on the CPU (gloo) runs every case of tests/processes_cases.py. The same functions, called
in this process, are the oracle.
"""

import json
import warnings

import pytest
import torch

import ppo
from ppo.distributed import Processes
from tests import processes_cases
from tests.processes import torchrun

pytestmark = pytest.mark.slow

# Absolute, on weights, Adam's moments and every number. A case moves the weights by about 8e-3. The only difference is
# the order in which gradients are added.
TOLERANCE = {"float32": 5e-7, "float64": 1e-10}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("two")
    done = torchrun("-m", "tests.processes_cases", str(path))
    assert done.returncode == 0, done.stderr[-6000:]
    return path


def of_two(folder, name):
    """What each of the two processes saved for the case ``name``."""
    first, second = (torch.load(folder / f"{name}-{rank}.pt", weights_only=True) for rank in (0, 1))
    return first, second


def of_one(function, path):
    """The same case in this process."""
    path.mkdir(exist_ok=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return function(path)
    finally:
        torch.set_num_threads(threads)


def assert_same_training(one, two, *, tolerance, case=""):
    for name in ("weights", "adam", "numbers"):
        difference = (one[name] - two[name]).abs().max().item()
        assert difference <= tolerance, (case, name, difference)
    assert torch.equal(one["order"], two["order"])
    assert one["metrics"].keys() == two["metrics"].keys()
    for name, value in one["metrics"].items():
        if not name.endswith("clip_fraction"):  # one token at the bound of the clip changes it by 1 / tokens
            assert two["metrics"][name] == pytest.approx(value, rel=1e-4, abs=1e-5), (case, name)


def assert_identical(a, b):
    for name, value in a.items():
        assert torch.equal(value, b[name]) if isinstance(value, torch.Tensor) else value == b[name], name


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", list(processes_cases.UPDATES))
def test_two_processes_give_the_update_of_one(folder, tmp_path, case, dtype):
    name = case if dtype == "float32" else f"{case}_{dtype}"
    first, second = of_two(folder, name)
    for a, b in zip(first.pop("tokens"), second.pop("tokens"), strict=True):
        assert torch.equal(a, b)
    assert_identical(first, second)  # weights, moments, statistics and samples
    one = of_one(processes_cases.cases()[name], tmp_path)
    assert one["samples"] == first["samples"]  # of the second step, sampled from weights that have moved
    assert_same_training(one, first, tolerance=TOLERANCE[dtype], case=name)


def test_token_rewards_a_kl_loss_and_the_penalty_for_a_missing_eos(folder, tmp_path):
    one = of_one(processes_cases.cases()["dense"], tmp_path)
    for two in of_two(folder, "dense"):
        assert_same_training(one, two, tolerance=TOLERANCE["float32"])


def test_all_processes_stop_together(folder, tmp_path):
    one = of_one(processes_cases.stops, tmp_path)
    first, second = of_two(folder, "stops")
    for two in (first, second):
        assert two["step"] == one["step"] == 2
        assert two["early"]["metrics"]["update/stopped_early"] == 1
        assert two["early"]["metrics"]["update/minibatches"] == one["early"]["metrics"]["update/minibatches"] < 16
        skipped = [x["skipped"]["metrics"]["update/skipped_minibatches"] for x in (one, two)]
        assert skipped[0] == skipped[1] > 0
    assert first["asked"] == [0.0, 0.0]  # the probe's numbers are those of process 0
    assert second["asked"] == []  # only process 0 is asked whether to go on


def test_ctrl_c_on_one_process_stops_and_saves_on_all(folder):
    for two in of_two(folder, "interrupted"):
        assert two == {"step": 2, "checkpoint": "step-000002"}
    assert [p.name for p in (folder / "interrupted" / "checkpoints").iterdir()] == ["step-000002"]
    assert len((folder / "interrupted" / "metrics.jsonl").read_text().splitlines()) == 2


def test_an_error_on_one_process_ends_all_of_them(folder):
    first, second = (answer["texts"] for answer in of_two(folder, "errors"))
    assert first[0].startswith("OtherProcessError: process 1: KeyError: 'suffix'; in step 0, when the reward was asked")
    assert first[1] == "OtherProcessError: process 1: KeyError: 'suffix'"
    assert second[:2] == ["KeyError: 'suffix'"] * 2
    assert first[2:] == second[2:]
    assert "Config.prompts_per_step=9 counts over all processes and must be a multiple of their number, 2" in first[2]
    assert "Config.minibatch=1 counts over all processes" in first[3]


def test_checks_come_to_the_same_verdict_on_all_processes(folder):
    first, second = of_two(folder, "checks")
    assert first["rollout"] == second["rollout"]
    assert "ref_logprobs is not finite: in 1 of 8 rows, such as row 4" in first["rollout"]
    found = ppo.replay(folder / "checks" / "dumps" / "step-000000-rollout")
    assert found.problems["ref_logprobs is not finite"] == [4]
    assert_identical(first["not_finite"], second["not_finite"])
    assert first["not_finite"]["metrics"]["update/skipped_not_finite"] == 1
    assert first["not_finite"]["metrics"]["update/minibatches"] == 3
    assert second["said"] == []
    (said,) = first["said"]
    assert "1 of 3 such updates in a row" in said
    assert "no dump: [Errno 28] No space left on device; this update is skipped" in said
    assert first["dumps"] == second["dumps"] == ["step-000000-rollout"]


def test_memory_that_runs_out_on_one_process_lowers_the_limits_of_all_and_of_the_checkpoint(folder):
    for two in of_two(folder, "memory"):
        assert two["limits"] == {
            "rollout_slots": 64,
            "microbatch": 1,
            "microbatch_tokens": None,
            "reference_rows": None,
        }
        assert_identical(two["unbroken"], two["resumed"])


def test_resume_on_as_many_processes_is_bit_for_bit(folder):
    for two in of_two(folder, "resumed"):  # its reward draws from each process's own generator
        assert_identical(two["unbroken"], two["resumed"])


def test_a_checkpoint_goes_on_with_another_number_of_processes(folder, tmp_path):
    one = of_one(processes_cases.resumed, tmp_path)
    assert one["unbroken"]["weights"].equal(one["resumed"]["weights"])
    (tmp_path / "of-1").rename(folder / "of-1")
    done = torchrun("-m", "tests.processes_cases", str(folder), "continued")
    assert done.returncode == 0, done.stderr[-6000:]
    here = of_one(processes_cases.continued, folder)
    there = of_two(folder, "continued")[0]
    for other in (here["of-2"], there["of-1"], there["of-2"]):
        assert_same_training(here["of-1"], other, tolerance=TOLERANCE["float32"])


def test_process_0_alone_writes_what_one_process_writes(folder, tmp_path):
    of_one(processes_cases.files, tmp_path)
    one, two = tmp_path / "run-1", folder / "run-2"
    assert sorted(p.name for p in one.iterdir()) == sorted(p.name for p in two.iterdir())
    assert (one / "samples.jsonl").read_text() == (two / "samples.jsonl").read_text()
    rows = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (one, two)]
    assert [list(row) for row in rows[0]] == [list(row) for row in rows[1]]
    assert [row["score/mean"] for row in rows[0]] == [row["score/mean"] for row in rows[1]]


def test_an_evaluation_is_that_of_one_process(folder, tmp_path):
    """Also of split weights, of prompts that cannot be shared evenly, and of fewer prompts than processes."""
    first, second = of_two(folder, "evaluated")
    assert first == second
    one = of_one(processes_cases.evaluated, tmp_path)
    assert first.keys() == one.keys()
    for name, numbers in one.items():
        assert first[name] == (pytest.approx(numbers, rel=1e-6) if isinstance(numbers, dict) else numbers), name
    assert one["whole 5"]["eval/prompts"] == 5
    assert (folder / "best-2" / "best" / "state.json").is_file()


@pytest.mark.parametrize(("total", "count"), [(8, 2), (5, 2), (1, 3), (7, 3), (0, 2)])
def test_the_shares_are_all_rows_once(total, count):
    shares = [range(total)[Processes(rank, count).share(total)] for rank in range(count)]
    assert [i for share in shares for i in share] == list(range(total))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_split_weights_give_the_update_of_whole_ones(folder, tmp_path):
    first, second = of_two(folder, "fsdp")
    for name in ("gae", "microbatches", "critic"):
        one = of_one(processes_cases.cases()[name], tmp_path)
        assert_same_training(one, first[name], tolerance=TOLERANCE["float32"], case=name)
        assert first[name]["metrics"] == second[name]["metrics"]
    for name, (changes, kind) in processes_cases.PARTLY_TRAINED.items():
        one = processes_cases.updates(changes, model=processes_cases.adapted(kind))
        assert_same_training(one, first[name], tolerance=TOLERANCE["float32"], case=name)
        assert first[name]["metrics"] == second[name]["metrics"]
    changes = processes_cases.UPDATES["rare_retain"] | {"retain_loss": "kl"}
    one = processes_cases.updates(changes)
    assert_same_training(one, first["rare_retain"], tolerance=TOLERANCE["float32"], case="rare_retain")
    one = processes_cases.updates({"autocast": "bfloat16"}, model=processes_cases.tiny_llama())
    assert (one["weights"] - first["llama"]["weights"]).abs().max() < 1e-3
    assert first["local"] + second["local"] == pytest.approx(1)
    assert 0.4 < first["local"] < 0.6


def test_weights_that_are_never_whole_give_the_rollout_and_the_update_of_whole_ones(folder, tmp_path):
    first, second = of_two(folder, "fsdp_in_step")
    for name in ("gae", "grpo", "retain_kl", "critic"):
        one = of_one(processes_cases.cases()[name], tmp_path)
        assert one["samples"] == first[name]["samples"]
        assert_same_training(one, first[name], tolerance=TOLERANCE["float32"], case=name)
        assert first[name]["metrics"] == second[name]["metrics"]
    for name, (changes, kind) in processes_cases.PARTLY_TRAINED.items():
        one = processes_cases.updates(changes, model=processes_cases.adapted(kind))
        assert_same_training(one, first[name], tolerance=TOLERANCE["float32"], case=name)
    one = processes_cases.updates({}, model=processes_cases.tiny_llama())
    assert_same_training(one, first["llama"], tolerance=TOLERANCE["float32"], case="llama")
    one = processes_cases.updates(processes_cases.UNEVEN, model=processes_cases.eager_to_end())
    assert_same_training(one, first["uneven"], tolerance=TOLERANCE["float32"], case="uneven")
    lengths = [len(ids) for ids in first["uneven"]["samples"]]
    assert len(lengths) == 8
    assert sum(lengths[:4]) != sum(lengths[4:])  # the two processes needed different numbers of forwards
    assert first["was_split"] == second["was_split"] == [True]  # when the reward was asked, in the middle of a rollout
    assert first["text"].startswith(
        "OtherProcessError: process 1: KeyError: 'suffix'; in step 0, when the reward was asked"
    )
    assert second["text"] == "KeyError: 'suffix'"


def test_given_responses_are_measured_in_shares_and_are_those_of_one_process(folder, tmp_path):
    first, second = of_two(folder, "given")
    one = of_one(processes_cases.given, tmp_path)
    split, _ = of_two(folder, "given_fsdp")
    assert_same_given(one, first)
    for name in ("gathered", "in_step"):
        assert_same_given(one, split[name])
    state, other = first.pop("state"), second.pop("state")
    assert_identical(state, other)
    texts, others = first.pop("texts"), second.pop("texts")
    assert_identical(first, second)
    assert "process 1 was given other logprobs than process 0" in texts[0]
    assert texts[0] == others[0]
    assert others[1].startswith("ValueError: logprobs holds 7 rows")
    assert texts[1].startswith("OtherProcessError: process 1: ")
    assert first["places"] == list(range(8))


def assert_same_given(one, two):
    assert_same_training(one["state"], two["state"], tolerance=TOLERANCE["float32"], case="given")
    assert one["state"]["metrics"]["sampler/staleness"] == 0
    for name, x in one.items():
        if isinstance(x, torch.Tensor):
            torch.testing.assert_close(two[name], x, rtol=1e-4, atol=1e-5, msg=name)
    assert one["kept_sets-1"].any()


def test_split_weights_are_saved_as_a_plain_folder_and_go_on_from_it(folder):
    from transformers import AutoModelForCausalLM

    first, _ = of_two(folder, "fsdp")
    assert_identical(first["unbroken"], first["resumed"])
    for path in (folder / "fsdp" / "model", folder / "fsdp-model"):
        model, info = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True)
        assert not info["unexpected_keys"]
        assert not info["missing_keys"]
    alone = ppo.Trainer.resume(
        folder / "fsdp", processes_cases.PROMPTS, processes_cases.count_fives, retain=processes_cases.RETAIN
    )
    assert torch.equal(alone.model.lm_head.weight, model.lm_head.weight)
    alone.train(2, progress=False)
    assert_same_training(
        processes_cases.state(alone), first["unbroken"] | {"metrics": {}}, tolerance=TOLERANCE["float32"]
    )


def test_torchrun_without_process_group_is_an_error_with_the_remedy(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import ppo\nfrom tests.fakes import tiny_gpt2\n"
        "ppo.Trainer(tiny_gpt2(), [[2]], lambda s: [0.0] * len(s), ppo.Config(prompts_per_step=2, minibatch=2))\n"
    )
    done = torchrun(str(program))
    assert done.returncode != 0
    assert "put the program into `with ppo.process_group():`" in done.stderr


def test_one_process_gets_back_what_it_passed():
    processes = Processes.current()
    assert processes == Processes(0, 1)
    x = torch.arange(6).view(3, 2)
    assert processes.gather_rows(x) is x
    assert processes.share(8) == slice(0, 8)
    with warnings.catch_warnings(), ppo.process_group() as joined:
        assert joined == processes
        assert joined.first(lambda: 3) == 3


@pytest.mark.parametrize("count", [1, 2, 3])
def test_every_row_is_dealt_once_and_every_process_gets_about_as_many_tokens(count):
    generator = torch.Generator().manual_seed(count)
    lengths = torch.randint(1, 40, (12,), generator=generator)
    mask = torch.arange(40) < lengths[:, None]
    shares = [Processes(rank, count).deal(mask) for rank in range(count)]
    assert sorted(torch.cat(shares).tolist()) == list(range(12))
    totals = [int(lengths[share].sum()) for share in shares]
    assert max(totals) - min(totals) <= int(lengths.max() - lengths.min())
