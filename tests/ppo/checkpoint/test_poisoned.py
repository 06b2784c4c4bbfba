"""Weights and moments that are not finite: the run ends, no checkpoint holds them, a resume passes over old ones."""

from __future__ import annotations

import pytest
import torch

from ppo import Config, Trainer
from ppo.checkpoint import list_checkpoints
from ppo.checkpoint.run_state import RunState
from tests.fakes import tiny_gpt2, tiny_llama

CONFIG = Config(prompts_per_step=4, minibatch=2, response_length=4, epochs=1, save_every_steps=1, keep_checkpoints=9)
PROMPTS = [[2, 3], [4], [5, 6, 7], [8]]


def odd(samples):
    return [float(sum(sample.ids) % 5) for sample in samples]


def poison(tensor, value):
    with torch.no_grad():
        tensor.view(-1)[3] = value


def break_after(trainer, step, value, where):
    """After the last optimiser step of a PPO step, a weight or a moment holds a value that is not finite."""
    update = trainer.learner.step

    def broken(*arguments, **options):
        result = update(*arguments, **options)
        if trainer.step == step:
            weight = trainer.model.get_input_embeddings().weight
            state = trainer.learner.optimizer._adam.state[weight]
            poison(weight if where == "weight" else state[where], value)
        return result

    trainer.learner.step = broken


@pytest.mark.parametrize("where", ["weight", "exp_avg", "exp_avg_sq"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("make", [tiny_gpt2, lambda: tiny_llama().bfloat16()], ids=["float32", "bfloat16"])
def test_the_run_ends_and_says_where(tmp_path, make, value, where):
    trainer = Trainer(make(), PROMPTS, odd, CONFIG, out=tmp_path)
    break_after(trainer, 2, value, where)
    told = r"step 2: .*(wte|embed_tokens).* holds NaN or an infinity, so no checkpoint of it is written; go on "
    with pytest.raises(FloatingPointError, match=told):
        trainer.train(5, progress=False)
    assert [path.name for path in list_checkpoints(tmp_path / "checkpoints")] == ["step-000001", "step-000002"]
    resumed = Trainer.resume(tmp_path, PROMPTS, odd, out=tmp_path)
    assert resumed.step == 2
    resumed.train(2, progress=False)


def test_nobody_saves_it_by_hand(tmp_path):
    trainer = Trainer(tiny_gpt2(), PROMPTS, odd, CONFIG, out=tmp_path)
    poison(trainer.model.get_input_embeddings().weight, torch.nan)
    for save in (lambda: trainer.save(tmp_path / "mine"), trainer.save_numbered):
        with pytest.raises(FloatingPointError, match=r"step 0: .* holds NaN or an infinity, .*; start again"):
            save()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("where", ["weight", "exp_avg_sq"])
def test_a_resume_passes_over_checkpoints_that_hold_it(tmp_path, monkeypatch, where):
    """An older version wrote them."""
    monkeypatch.setattr(RunState, "check_sound", lambda self: None)
    trainer = Trainer(tiny_gpt2(), PROMPTS, odd, CONFIG, out=tmp_path)
    break_after(trainer, 2, torch.nan, where)
    try:
        trainer.train(3, progress=False)
    finally:
        monkeypatch.undo()
    assert len(list_checkpoints(tmp_path / "checkpoints")) == 3
    with pytest.warns(RuntimeWarning, match=r"is NaN or infinite, because the run was broken .*going on from .*000002"):
        assert Trainer.resume(tmp_path, PROMPTS, odd).step == 2
    with pytest.raises(ValueError, match=r"step-000003.* is NaN or infinite, because the run was broken"):
        Trainer.resume(tmp_path / "checkpoints" / "step-000003", PROMPTS, odd)


def test_an_infinity_that_was_there_before_may_stay(tmp_path):
    """Some models forbid tokens by a bias of -inf."""
    model = tiny_llama()
    layer = model.get_output_embeddings()
    layer.bias = torch.nn.Parameter(torch.zeros(layer.out_features))
    with torch.no_grad():
        layer.bias[7] = -torch.inf
    trainer = Trainer(model, PROMPTS, odd, CONFIG, out=tmp_path)
    trainer.train(2, progress=False)
    assert layer.bias[7] == -torch.inf
    assert len(list_checkpoints(tmp_path / "checkpoints")) == 2
