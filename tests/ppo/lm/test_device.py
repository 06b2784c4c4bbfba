"""Devices and dtypes as people ask for them. The accelerators of these tests are pretended: torch names them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch import nn

import ppo
import ppo.lm.load
from ppo import trainer
from ppo.checkpoint import random_state, snapshot
from ppo.distributed import processes, sharding
from ppo.lm.device import accelerator, move, resolve_device, resolve_dtype, resolve_for
from ppo.lm.precision import as_float64
from tests.fakes import Letters, one_line, tiny_gpt2

CPU = torch.device("cpu")


@pytest.fixture
def pretend(monkeypatch):
    """``pretend(kind, count, **environment)``: torch names so many accelerators; torchrun has set these variables."""
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_RANK", "RANK"):
        monkeypatch.delenv(name, raising=False)

    def pretended(kind: str | None, count: int = 1, *, current: int = 0, **environment: str) -> None:
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: kind is not None)
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: kind and torch.device(kind))
        monkeypatch.setattr(torch.accelerator, "device_count", lambda: count)
        monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: current)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)

    pretended(None)
    return pretended


def ranks(local_rank: int, count: int, *, world: int | None = None) -> dict[str, str]:
    return {"LOCAL_RANK": str(local_rank), "LOCAL_WORLD_SIZE": str(count), "WORLD_SIZE": str(world or count)}


def test_without_an_accelerator_auto_is_the_cpu(pretend):
    assert accelerator() is None
    assert [resolve_device(name) for name in ("auto", "cpu", "cpu:0", CPU)] == [CPU] * 4


@pytest.mark.parametrize("kind", ["cuda", "mps", "xpu"])
def test_auto_is_whatever_accelerator_torch_names(pretend, kind):
    pretend(kind, 2, current=1)
    assert resolve_device("auto") == resolve_device(kind) == torch.device(kind, 1)
    assert resolve_device(f"{kind}:0") == resolve_device(torch.device(kind, 0)) == torch.device(kind, 0)
    assert resolve_device("cpu") == CPU


@pytest.mark.parametrize(
    "device", ["cuda:2", "cuda:99", "mps", "cpu:1", "meta", "gpu", "", "cuda:-1", torch.device("xpu")]
)
def test_what_is_not_there_is_an_error_that_names_what_is(pretend, device):
    pretend("cuda", 2)
    with pytest.raises(ValueError, match=one_line("is not there: this machine has cpu, cuda:0, cuda:1; take one")):
        resolve_device(device)


@pytest.mark.parametrize("device", [0, 1.5, True, ["cpu"]])
def test_what_is_no_name_at_all(device):
    with pytest.raises(ValueError, match=one_line("must be 'auto', a name such as 'cpu' or 'cuda:1'")):
        resolve_device(device)


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_each_process_takes_its_own(pretend, rank):
    pretend("cuda", 3, **ranks(rank, 3, world=6))
    assert (
        resolve_device("auto") == resolve_device("cuda") == resolve_device(f"cuda:{rank}") == torch.device("cuda", rank)
    )
    with pytest.raises(ValueError, match=one_line(f"belongs to another process, this one has cuda:{rank}")):
        resolve_device(f"cuda:{(rank + 1) % 3}")
    assert resolve_device("cpu") == CPU


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_more_processes_than_accelerators_is_an_error_on_every_process(pretend, rank):
    pretend("cuda", 2, **ranks(rank, 3))
    for device in ("auto", "cuda"):
        with pytest.raises(ValueError, match=one_line("3 processes run on this machine, which has 2 of cuda: start 2")):
            resolve_device(device)
    assert resolve_device("cuda:1") == torch.device("cuda", 1)  # whoever shares one on purpose says so


def test_one_process_under_torchrun_keeps_the_current_device(pretend):
    pretend("cuda", 4, current=2, **ranks(0, 1))
    assert resolve_device("auto") == torch.device("cuda", 2)


def test_several_machines_with_an_accelerator_that_cannot_speak(pretend):
    pretend("mps", 1, **ranks(0, 1, world=2))
    with pytest.raises(ValueError, match=one_line("several processes cannot share their work on mps")):
        resolve_device("auto")


def test_a_name_goes_to_the_accelerator_and_a_loaded_model_stays(pretend):
    pretend("cuda", 1)
    assert resolve_for("gpt2", None) == resolve_for(Path("folder"), None) == torch.device("cuda", 0)
    assert resolve_for(nn.Linear(1, 1), None) is None
    assert resolve_for(nn.Linear(1, 1), "auto") == torch.device("cuda", 0)
    assert resolve_for("gpt2", "cpu") == CPU


def test_dtypes_by_name_or_as_torch_has_them():
    assert resolve_dtype("bfloat16") == resolve_dtype(torch.bfloat16) == torch.bfloat16
    for wrong in ("auto", "int8", torch.int8, "bf16", None, 16):
        with pytest.raises(ValueError, match=one_line("must be one of float32, bfloat16, float16, float64")):
            resolve_dtype(wrong)


def test_a_move_is_in_place_and_leaves_tied_weights_tied():
    model = tiny_gpt2()
    embedding = model.transformer.wte
    move(model, torch.device("meta"))
    assert {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} == {"meta"}
    assert model.lm_head.weight is model.transformer.wte.weight
    assert model.transformer.wte is embedding


def test_a_model_that_cannot_be_moved_is_one_line_with_the_reason():
    class Pinned(nn.Linear):
        def to(self, *_, **__):
            raise RuntimeError("You can't move a model that has\nsome modules offloaded")

    with pytest.raises(
        ValueError, match=one_line("this Pinned cannot be moved to meta: You can't move a model that has")
    ):
        move(Pinned(1, 1), torch.device("meta"))
    move(Pinned(1, 1), CPU)  # it is there already


def test_memory_that_runs_out_in_a_move_stays_that_error():
    class Large(nn.Linear):
        def to(self, *_, **__):
            raise torch.OutOfMemoryError("out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        move(Large(1, 1), torch.device("meta"))


def test_mps_has_no_float64():
    with pytest.raises(ValueError, match=one_line("device=mps:0 has no float64: load the model in float32")):
        move(nn.Linear(1, 1).double(), torch.device("mps", 0))
    assert as_float64(torch.ones(1)).dtype == torch.float64


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_the_accelerators_generator_is_among_the_random_states(monkeypatch, kind):
    states = [torch.tensor([1, 2], dtype=torch.uint8)]
    module = SimpleNamespace(get_rng_state=lambda: states[-1], set_rng_state=states.append)
    monkeypatch.setattr(random_state, "accelerator", lambda: kind)
    monkeypatch.setattr(random_state, "of_accelerator", lambda: module)
    with random_state.undisturbed():
        states.append(torch.tensor([9, 9], dtype=torch.uint8))
    assert states[-1].tolist() == [1, 2]
    assert random_state.random_state()[kind].tolist() == [1, 2]


# ---------------------------------------------------------------------- several processes


@pytest.mark.parametrize(
    ("kind", "count", "backend"), [("cuda", 2, "cpu:gloo,cuda:nccl"), ("xpu", 4, "cpu:gloo,xpu:xccl"),
                                   ("cuda", 1, "gloo"), ("mps", 2, "gloo"), (None, 0, "gloo")],
)  # fmt: skip
def test_a_process_group_takes_a_device_and_speaks_its_language(pretend, monkeypatch, kind, count, backend):
    taken = []
    monkeypatch.setattr(torch.accelerator, "set_device_index", taken.append)
    pretend(kind, count, **ranks(1, 2))
    assert processes._take_device() == backend
    assert taken == ([1] if backend != "gloo" else [])
    monkeypatch.setattr(dist, "get_backend_config", lambda: backend)
    assert processes.kind_of_group() == ("cpu" if backend == "gloo" else kind)


@pytest.fixture
def two(monkeypatch):
    monkeypatch.setattr(processes.Processes, "current", classmethod(lambda cls: cls(rank=1, count=2)))


def test_a_resumed_run_of_several_processes_takes_its_own_and_not_that_of_the_process_that_saved(pretend, two):
    pretend("cuda", 2, **ranks(1, 2))
    assert snapshot._saved_device("cuda:0") == torch.device("cuda", 1)
    assert snapshot._saved_device("cpu") == CPU
    with pytest.raises(ValueError, match=one_line("it was saved on another machine: device=xpu is not there")):
        snapshot._saved_device("xpu:0")


@pytest.mark.parametrize(("split", "place"), [("none", torch.device("cuda", 1)), ("fsdp", None)])
def test_a_model_whose_weights_will_be_split_is_loaded_on_the_cpu(pretend, two, monkeypatch, split, place):
    pretend("cuda", 2, **ranks(1, 2))
    asked = []

    def load(model, tokenizer, *, device, dtype):
        asked.append(device)
        raise RuntimeError("far enough")

    monkeypatch.setattr(trainer, "load_model", load)
    with pytest.raises(RuntimeError, match="far enough"):
        ppo.Trainer("gpt2", PROMPTS, reward, CONFIG.replace(sharding=split))
    assert asked == [place]


def test_a_resumed_run_hands_its_device_on_to_what_splits_the_weights(pretend, two, monkeypatch):
    pretend("cuda", 2, **ranks(1, 2))
    read = SimpleNamespace(model=tiny_gpt2(), config=CONFIG, tokenizer=None, device=torch.device("cuda", 1))
    monkeypatch.setattr(trainer, "read_snapshot", lambda *_: read)
    asked = []
    monkeypatch.setattr(trainer, "resolve_for", lambda model, device: asked.append(device) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ppo.Trainer.resume("checkpoint", PROMPTS, reward)
    assert asked == [torch.device("cuda", 1)]


def test_weights_cannot_be_split_on_a_device_that_the_group_cannot_reach(pretend, monkeypatch):
    pretend("cuda", 2, **ranks(0, 2))
    monkeypatch.setattr(dist, "get_backend_config", lambda: "gloo")
    actor = ppo.ActorCritic(tiny_gpt2())
    with pytest.raises(
        ValueError, match=one_line("device=cuda:0, but the processes speak to each other on the CPU only")
    ):
        sharding.shard(actor, None, torch.device("cuda", 0))


# ---------------------------------------------------------------------- who hands device and dtype on


@pytest.fixture
def moved(monkeypatch):
    """Where models were moved to. Nothing is moved: the accelerator is pretended."""
    places: list[torch.device] = []
    monkeypatch.setattr(ppo.lm.load, "move", lambda model, device: places.append(device))
    return places


@pytest.fixture
def folder(tmp_path):
    tiny_gpt2().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


CONFIG = ppo.Config(prompts_per_step=2, minibatch=2, response_length=3, epochs=1)
PROMPTS = [[2, 3], [4, 5, 6]]


def reward(samples):
    return [float(len(s.ids)) for s in samples]


def test_a_trainer_puts_a_name_on_the_accelerator_and_leaves_a_loaded_model(pretend, moved, folder):
    pretend("cuda", 2)
    ppo.Trainer(folder, PROMPTS, reward, CONFIG, tokenizer=Letters())
    assert moved == [torch.device("cuda", 0)]
    ppo.Trainer(str(folder), PROMPTS, reward, CONFIG, tokenizer=Letters(), device="cpu")
    assert moved[1:] == [CPU]
    ppo.Trainer(tiny_gpt2(), PROMPTS, reward, CONFIG)
    assert moved[2:] == []
    ppo.Trainer(tiny_gpt2(), PROMPTS, reward, CONFIG, device="cuda:1")
    assert moved[2:] == [torch.device("cuda", 1)]


def test_generate_takes_a_name(pretend, moved, folder):
    pretend("xpu", 1)
    sampling = ppo.Sampling(response_length=3)
    by_name = ppo.generate(folder, ["ab", "c"], sampling, tokenizer=Letters())
    assert moved == [torch.device("xpu", 0)]
    loaded = ppo.generate(tiny_gpt2(), ["ab", "c"], sampling, tokenizer=Letters())
    assert moved[1:] == []
    assert torch.equal(by_name.tokens, loaded.tokens)
    assert torch.equal(by_name.logprobs, loaded.logprobs)


def test_a_missing_device_is_found_before_anything_is_loaded(pretend, monkeypatch):
    monkeypatch.setattr(ppo.lm.load, "load_pretrained", lambda *_, **__: pytest.fail("it was loaded"))
    for ask in (
        lambda: ppo.Trainer("gpt2", PROMPTS, reward, CONFIG, device="cuda"),
        lambda: ppo.generate("gpt2", PROMPTS, device="cuda"),
        lambda: ppo.Trainer.resume("nowhere", PROMPTS, reward, device="cuda"),
        lambda: ppo.replay("nowhere", device="cuda"),
    ):
        with pytest.raises(ValueError, match=one_line("device=cuda is not there")):
            ask()


def test_dtype_is_of_a_name_and_a_loaded_model_is_never_cast(folder):
    run = ppo.Trainer(folder, PROMPTS, reward, CONFIG, tokenizer=Letters(), device="cpu", dtype="bfloat16")
    assert {p.dtype for p in run.model.parameters()} == {torch.bfloat16}
    run.update(run.rollout())
    found = ppo.generate(folder, PROMPTS, ppo.Sampling(response_length=2), tokenizer=Letters(), dtype=torch.float64)
    assert len(found) == 2
    for ask in (
        lambda model: ppo.Trainer(model, PROMPTS, reward, CONFIG, dtype="bfloat16"),
        lambda model: ppo.generate(model, PROMPTS, dtype="bfloat16"),
    ):
        model = tiny_gpt2()
        with pytest.raises(ValueError, match=one_line("the loaded model has weights in torch.float32; cast it before")):
            ask(model)
        assert model.dtype == torch.float32
    assert ppo.Trainer(tiny_gpt2(), PROMPTS, reward, CONFIG, dtype="float32").policy.dtype == torch.float32


def test_the_progress_bar_says_where_the_run_is(capfd):
    ppo.Trainer(tiny_gpt2(), PROMPTS, reward, CONFIG).train(1)
    assert "PPO on cpu" in capfd.readouterr().err


class Spy(nn.Module):
    """A critic that notes where it was moved to."""

    def __init__(self):
        super().__init__()
        self.line = nn.Linear(1, 1)

    def forward(self, input_ids, attention_mask):
        return self.line(attention_mask.to(self.line.weight.dtype).unsqueeze(-1)).squeeze(-1)


def test_an_own_critic_goes_where_the_model_is():
    critic = Spy().to("meta")
    with pytest.raises(ValueError, match=one_line("this Spy cannot be moved to cpu")):  # a move was tried, in place
        ppo.Trainer(tiny_gpt2(), PROMPTS, reward, CONFIG, value=critic)


def test_a_reference_may_be_on_another_device_than_the_policy(monkeypatch):
    """The rows go to it, and what it says comes back: here all places are the CPU, so only the calls are counted."""
    generation = ppo.generate(tiny_gpt2(), PROMPTS, ppo.Sampling(response_length=3))
    asked: list[torch.device] = []
    original = ppo.Generation.to
    monkeypatch.setattr(ppo.Generation, "to", lambda self, device: (asked.append(device), original(self, device))[1])
    reference = ppo.FrozenReference(tiny_gpt2(), ppo.Sampling(response_length=3))
    assert reference.logprobs(generation, []).shape == generation.mask.shape
    assert asked == [CPU]
