"""What goes wrong around a run: the reward, the disk, the memory, signals. What was saved is good, the error clear."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

import demem
from eval.results import write_json
from ppo import Config, Trainer
from ppo.checkpoint import folder as checkpoint
from ppo.checkpoint.random_state import random_state, set_random_state
from ppo.io import files
from ppo.run.limits import Limits, is_out_of_memory, retry_smaller
from tests.fakes import tiny_gpt2
from tests.processes import ENVIRONMENT, ROOT

PROMPTS = [[2, 3, 4], [5, 6], [7], [8, 9, 10, 11], [12, 13], [3, 3, 3], [4], [6, 5]]
SMALL = Config(prompts_per_step=8, minibatch=4, response_length=6, epochs=2, learning_rate=1e-2, save_every_steps=1)


def id_mean(samples):
    return [sum(s.ids) / len(s.ids) for s in samples]


def make(config=SMALL, *, reward=id_mean, prompts=PROMPTS, **arguments):
    return Trainer(tiny_gpt2(), prompts, reward, config, **arguments)


def weights(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.policy.actor.parameters()])


def then(first, *, steps, after):
    """A reward that is ``first`` for some steps and ``after`` from then on."""
    calls = []

    def reward(samples):
        calls.append(1)
        return (first if len(calls) <= steps else after)(samples)

    return reward


# ---------------------------------------------------------------------- the reward


def raises(samples):
    raise KeyError("suffix")


def hangs(samples):
    time.sleep(60)


@pytest.mark.parametrize(
    ("reward", "kind", "message"),
    [
        (raises, KeyError, "suffix"),
        (hangs, TimeoutError, "took more than reward_timeout_seconds=2"),
        (lambda samples: [1.0] * 7 + [float("nan")], ValueError, "the reward of sample 7 is nan"),
        (lambda samples: [1.0] * 7, ValueError, "returned 7 values for 8 samples"),
        (lambda samples: None, ValueError, "returned None values for 8 samples"),
        (lambda samples: "abcdefgh", ValueError, "the reward of sample 0 is 'a', not a number"),
    ],
)
def test_a_reward_that_fails_names_step_and_rows_and_the_run_goes_on_later(tmp_path, reward, kind, message):
    unbroken = make(out=tmp_path / "unbroken")
    unbroken.train(3, progress=False)
    config = SMALL.replace(reward_timeout_seconds=2.0)
    trainer = make(config, reward=then(id_mean, steps=2, after=reward), out=tmp_path / "run")
    started = time.perf_counter()
    with pytest.raises(kind, match=message) as caught:
        trainer.train(3, progress=False)
    assert time.perf_counter() - started < 10
    (note,) = caught.value.__notes__
    assert "in step 2, the reward being asked about 8 responses, to the prompts [" in note
    resumed = Trainer.resume(tmp_path / "run", PROMPTS, id_mean, out=tmp_path / "run")
    resumed.train(3 - resumed.step, progress=False)
    assert torch.equal(weights(resumed), weights(unbroken))


def test_a_timeout_changes_nothing_where_it_is_kept(tmp_path):
    def graded(samples):
        assert not torch.is_grad_enabled()  # as without a timeout: the thread has the settings of the caller
        return [float(torch.rand(())) for _ in samples]

    ends = []
    for seconds in (None, 30.0):
        torch.manual_seed(3)
        trainer = make(SMALL.replace(reward_timeout_seconds=seconds), reward=graded)
        trainer.train(2, progress=False)
        ends.append(weights(trainer))
    assert torch.equal(*ends)


def test_a_reward_that_writes_into_what_it_is_given_changes_nothing():
    def vandal(samples):
        scores = id_mean(samples)
        for sample in samples:
            sample.ids.clear()
            sample.prompt_ids.append(9)
            sample.row["prompt"] = [1]
            sample.row["more"]["deep"].append("x")
        samples.clear()
        return scores

    def rows():
        return [{"prompt": ids, "more": {"deep": []}} for ids in PROMPTS]

    plain, spoiled, given = make(prompts=rows()), None, rows()
    plain.train(2, progress=False)
    spoiled = make(prompts=given, reward=vandal)
    rollout = spoiled.rollout()
    assert len(rollout.samples) == 8
    spoiled.update(rollout)
    spoiled.train(1, progress=False)
    assert torch.equal(weights(plain), weights(spoiled))
    assert given == rows()


# ---------------------------------------------------------------------- the disk


def full_after(monkeypatch, owner, name, calls):
    """ENOSPC from the given call of a function on."""
    function, count = getattr(owner, name), []

    def limited(*arguments, **named):
        count.append(1)
        if len(count) > calls:
            raise OSError(errno.ENOSPC, "No space left on device")
        return function(*arguments, **named)

    monkeypatch.setattr(owner, name, limited)


def test_what_a_kill_left_undeleted_goes_when_the_run_goes_on(tmp_path):
    make(out=tmp_path).train(3, progress=False)
    folder = tmp_path / "checkpoints"
    shutil.copytree(folder / "step-000002", folder / "step-000001")  # killed before it was deleted
    shutil.copytree(folder / "step-000002", folder / "step-000004.tmp")
    Trainer.resume(folder / "step-000002", PROMPTS, id_mean, out=tmp_path).train(0, progress=False)
    assert len(list(folder.iterdir())) == 4  # an earlier one was asked for: the later one is not lost yet
    Trainer.resume(tmp_path, PROMPTS, id_mean, out=tmp_path).train(0, progress=False)
    assert sorted(p.name for p in folder.iterdir()) == ["step-000002", "step-000003"]


@pytest.mark.parametrize(("owner", "name"), [(checkpoint, "save_file"), (checkpoint, "flush"), (checkpoint, "sha256")])
@pytest.mark.parametrize("calls", [0, 2])
def test_a_full_disk_leaves_the_checkpoint_before(tmp_path, monkeypatch, owner, name, calls):
    trainer = make(out=tmp_path)
    trainer.train(1, progress=False)
    with monkeypatch.context() as patch:
        full_after(patch, owner, name, calls)
        with pytest.raises(OSError, match=r"step-000002 could not be written \(No space left on device\)") as caught:
            trainer.train(1, progress=False)
    assert caught.value.errno == errno.ENOSPC
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-000001"]  # what was half written is gone
    trainer.save_numbered()  # there is room again
    resumed = Trainer.resume(tmp_path, PROMPTS, id_mean)
    assert resumed.step == 2
    assert torch.equal(weights(resumed), weights(trainer))


FILLED = """
import resource, signal, sys
from pathlib import Path
from tests.ppo.run.test_faults import PROMPTS, id_mean, make
from ppo import Trainer
out = Path(sys.argv[1])
trainer = make(out=out)
trainer.train(1, progress=False)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    trainer.train(1, progress=False)
except OSError as error:
    print("OSError:", error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print("resumed at", Trainer.resume(out, PROMPTS, id_mean).step)
"""


def test_a_file_that_the_system_does_not_let_grow(tmp_path):
    """The error comes from inside safetensors, as on a disk that is really full."""
    command = [sys.executable, "-c", FILLED, str(tmp_path), "20000"]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "OSError: " in done.stdout
    assert "step-000002 could not be written" in done.stdout
    assert "resumed at 1" in done.stdout
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-000001"]


def test_small_files_are_flushed_before_they_take_their_name(tmp_path, monkeypatch):
    order = []
    for owner, name in ((os, "fsync"), (os, "replace")):
        function = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, f=function, n=name: (order.append(n), f(*a))[1])
    write_json(tmp_path / "evaluation.json", {"a": 1})
    assert order == ["fsync", "replace", "fsync"]
    full_after(monkeypatch, files, "flush", 0)
    with pytest.raises(OSError, match="No space left"):
        write_json(tmp_path / "evaluation.json", {"a": 2})
    assert json.loads((tmp_path / "evaluation.json").read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["evaluation.json"]


# ---------------------------------------------------------------------- the memory

CPU_TEXT = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate"
)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError(CPU_TEXT), MemoryError()])
def test_out_of_memory_is_known_in_all_its_forms(error):
    assert is_out_of_memory(error)
    assert not is_out_of_memory(RuntimeError("shapes do not match"))


def test_what_the_cpu_allocator_says_is_known():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**52)
    assert is_out_of_memory(caught.value)


def fails_above(monkeypatch, owner, name, size_of, limit, error):
    """A function that runs out of memory where it is asked for too much at once."""
    function = getattr(owner, name)

    def limited(*arguments, **named):
        if size_of(*arguments, **named) > limit:
            raise error
        return function(*arguments, **named)

    monkeypatch.setattr(owner, name, limited)


def test_a_rollout_that_runs_out_of_memory_takes_fewer_slots(monkeypatch):
    from ppo import sampler

    plain = make()
    expected = plain.rollout()
    fails_above(monkeypatch, sampler, "generate", lambda *_, slots, **__: slots, 3, RuntimeError(CPU_TEXT))
    trainer = make()
    with pytest.warns(RuntimeWarning, match=r"out of memory: going on with rollout_slots=\d instead of") as said:
        rollout = trainer.rollout()
    assert [str(w.message).split("with ")[1] for w in said] == [
        "rollout_slots=4 instead of 8", "rollout_slots=2 instead of 4",
    ]  # fmt: skip
    assert [s.ids for s in rollout.samples] == [s.ids for s in expected.samples]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.update(rollout)
        trainer.rollout()  # it stays lowered, and nothing more is said


@pytest.mark.parametrize("changes", [{}, {"train_top_layers": 1}])
def test_a_reference_that_runs_out_of_memory_is_asked_about_fewer_rows(monkeypatch, tmp_path, changes):
    from ppo.lm import frozen_blocks
    from ppo.reference import FrozenReference

    config = SMALL.replace(kl_coef=0.3, adam_eps=1e-2, min_response_length=6, **changes)
    plain = make(config)
    plain.train(2, progress=False)
    error = torch.OutOfMemoryError("CUDA out of memory")
    if changes:
        fails_above(monkeypatch, frozen_blocks, "align", len, 2, error)
    else:
        fails_above(monkeypatch, FrozenReference, "logprobs", lambda self, generation, _: len(generation), 2, error)
    trainer = make(config, out=tmp_path)
    with pytest.warns(RuntimeWarning, match="out of memory") as said:
        trainer.train(1, progress=False)
    assert [str(w.message).split("with ")[1] for w in said] == [
        "reference_rows=4 instead of 8", "reference_rows=2 instead of 4",
    ]  # fmt: skip
    resumed = Trainer.resume(tmp_path, PROMPTS, id_mean)
    assert resumed.policy.limits == trainer.policy.limits == replace(Limits.of(config), reference_rows=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.train(1, progress=False)
        resumed.train(1, progress=False)
    assert torch.equal(weights(trainer), weights(resumed))
    assert torch.allclose(weights(trainer), weights(plain), atol=1e-5)


def test_a_reference_that_one_row_is_too_much_for_ends_the_run(monkeypatch):
    def reference(generation, samples):
        raise MemoryError

    with pytest.warns(RuntimeWarning, match="reference_rows=") as said, pytest.raises(MemoryError):
        make(reference=reference).rollout()
    assert len(said) == 3


def test_processes_go_on_with_the_smallest_limits_of_all():
    limits = [Limits(8, None, 64), Limits(4, 2, 128, 3), Limits(16, None, 256, 5)]
    assert Limits.smallest(limits) == Limits(4, 2, 64, 3)
    assert Limits.smallest(limits[:1]) == limits[0]


@pytest.mark.parametrize("split", [{}, {"microbatch": 4}, {"microbatch_tokens": 40}])
def test_an_update_that_runs_out_of_memory_takes_smaller_microbatches(monkeypatch, tmp_path, split):
    from ppo import learner as gradients

    # Adam makes steps of full size out of gradients that are rounding alone: its epsilon keeps them small.
    config = SMALL.replace(**split, retain_coef=0.5, retain_tokens=8, retain_sequences=2, adam_eps=1e-2)
    retain = [[2, 4, 6, 8], [3, 5, 7]]
    plain = make(config, retain=retain)
    plain.train(2, progress=False)
    error = torch.OutOfMemoryError("CUDA out of memory")
    fails_above(monkeypatch, gradients, "ppo_loss", lambda new, *_, **__: len(new.logprobs), 2, error)
    trainer = make(config, retain=retain, out=tmp_path)
    with pytest.warns(RuntimeWarning, match="out of memory: going on with microbatch"):
        trainer.train(1, progress=False)
    resumed = Trainer.resume(tmp_path, PROMPTS, id_mean, retain=retain)
    assert resumed.policy.limits == trainer.policy.limits != Limits.of(config)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.train(1, progress=False)
        resumed.train(1, progress=False)
    assert torch.equal(weights(trainer), weights(resumed))
    assert torch.allclose(weights(trainer), weights(plain), atol=1e-5)


def test_one_row_that_does_not_fit_is_an_error(monkeypatch):
    from ppo import learner as gradients

    error = torch.OutOfMemoryError("CUDA out of memory")
    fails_above(monkeypatch, gradients, "ppo_loss", lambda *_, **__: 1, 0, error)
    trainer = make()
    with pytest.warns(RuntimeWarning) as said, pytest.raises(torch.OutOfMemoryError):
        trainer.train(1, progress=False)
    assert [str(w.message)[-25:] for w in said] == ["microbatch=2 instead of 4", "microbatch=1 instead of 2"]
    with pytest.raises(RuntimeError, match="size"):  # of another kind: nothing is tried again
        retry_smaller(lambda: torch.ones(2) @ torch.ones(3), lambda: True)


# ---------------------------------------------------------------------- signals, random states


def test_every_global_generator_belongs_to_a_checkpoint():
    def draw():
        return [float(torch.rand(())), random.random(), random.gauss(0, 1), float(np.random.randn())]  # noqa: NPY002

    draw()  # one spare normal number is kept by Python's generator, and one by numpy's
    state = random_state()
    first = [draw() for _ in range(3)]
    set_random_state(state)
    assert [draw() for _ in range(3)] == first
    with pytest.raises(ValueError, match="random state that cannot be taken"):
        set_random_state(state | {"numpy": state["numpy"][:7]})


@pytest.mark.parametrize(("moment", "save_every_steps"), [("rule", 0), ("rule", 1), ("save", 1)])
def test_a_signal_at_the_very_end_of_the_last_step_is_not_lost(tmp_path, monkeypatch, moment, save_every_steps):
    """A program that goes on to evaluate would otherwise have to be told a second time."""
    trainer = make(SMALL.replace(save_every_steps=save_every_steps), out=tmp_path)

    def signalled(function, *arguments):
        if trainer.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return function(*arguments)

    if moment == "save":
        save = trainer.save_numbered
        monkeypatch.setattr(trainer, "save_numbered", lambda: signalled(save))
    rule = (lambda metrics: signalled(lambda: trainer.step == 2)) if moment == "rule" else None
    with pytest.raises(KeyboardInterrupt):
        trainer.train(2, stop_when=rule, progress=False)
    assert Trainer.resume(tmp_path, PROMPTS, id_mean).step == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_demem_ends_with_a_word_when_it_is_told_to(tmp_path, monkeypatch, capsys, number):
    def attack(run):
        os.kill(os.getpid(), number)
        time.sleep(5)

    (tmp_path / "run").mkdir()
    monkeypatch.setattr(demem, "attack", attack)
    before = signal.getsignal(signal.SIGTERM)
    assert demem.main(["run", "--out", str(tmp_path / "run")]) == 130
    said = capsys.readouterr().err
    assert "demem: interrupted; go on with: python demem.py run --resume --out" in said
    assert signal.getsignal(signal.SIGTERM) is before
