"""When memory runs out, a run goes on with fewer rows at a time, and its results stay the same."""

import warnings
from dataclasses import replace

import pytest
import torch

from ppo import Trainer
from ppo.run.limits import Limits, is_out_of_memory, retry_smaller
from tests.ppo.run.small import PROMPTS, SMALL, id_mean, make, weights

CPU_TEXT = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate"
)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError(CPU_TEXT), MemoryError()])
def test_every_kind_of_out_of_memory_error_is_recognised(error):
    assert is_out_of_memory(error)
    assert not is_out_of_memory(RuntimeError("shapes do not match"))


def test_the_cpu_allocator_s_own_error_is_recognised_as_out_of_memory():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**52)
    assert is_out_of_memory(caught.value)


def fails_above(monkeypatch, owner, name, size_of, limit, error):
    """Patch a function: it raises ``error`` when the size of its arguments is above ``limit``."""
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
        trainer.rollout()  # the limit stays lowered, and there is no further warning


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


def test_a_reference_that_cannot_take_one_row_ends_the_run(monkeypatch):
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

    # Adam turns gradients that are only rounding into steps of full size. A large epsilon keeps these steps small.
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
    with pytest.raises(RuntimeError, match="size"):  # an error of another kind is not tried again
        retry_smaller(lambda: torch.ones(2) @ torch.ones(3), lambda: True)
