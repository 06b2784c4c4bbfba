"""TRL's model with a value head: how it is saved and loaded, and its reference copy."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from ppo.compat import trl
from ppo.compat.trl import AutoModelForCausalLMWithValueHead, PPOConfig, PPOTrainer, create_reference_model
from tests.fakes import tiny_gpt2
from tests.ppo.compat.test_trl import PLAIN, QUERIES, SETTINGS, make, moved, weights, wrap


def test_a_model_is_saved_with_its_head_and_loads_without_it(tmp_path):
    trainer = make(moved(tiny_gpt2()))
    trainer.tokenizer = None
    responses = trainer.generate(QUERIES, return_prompt=False, max_new_tokens=5, **PLAIN)
    trainer.step(QUERIES, responses, [0.0, 1.0, 2.0, 3.0])
    trainer.save_pretrained(tmp_path)
    again = AutoModelForCausalLMWithValueHead.from_pretrained(str(tmp_path))
    assert torch.equal(weights(again), weights(trainer.model))
    assert again.v_head.layers[0].weight.abs().max() > 0
    ids = torch.tensor([[2, 3, 4, 5]])
    logits, loss, values = again(ids)
    assert loss is None
    assert torch.allclose(logits, trainer.model.pretrained_model.eval()(ids).logits, atol=1e-5)
    assert values.shape == (1, 4)


def test_a_head_that_trl_saved_is_read(tmp_path):
    tiny_gpt2().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    head = {"v_head.summary.weight": torch.full((1, 16), 0.5), "v_head.summary.bias": torch.tensor([2.0])}
    save_file({**load_file(file), **head}, file, metadata={"format": "pt"})
    model = AutoModelForCausalLMWithValueHead.from_pretrained(tmp_path)
    assert model.v_head.layers[0].weight.unique().tolist() == [0.5]
    trainer = PPOTrainer(PPOConfig(**SETTINGS), model)
    assert trainer.trainer.policy.actor.value_head.layers[0].bias.item() == 2


def test_a_reference_copy_is_equal_and_frozen():
    model = wrap(tiny_gpt2())
    copied = create_reference_model(model)
    assert torch.equal(weights(copied), weights(model))
    assert not any(p.requires_grad for p in copied.parameters())
    with pytest.raises(ValueError, match="train_top_layers"):
        create_reference_model(model, num_shared_layers=1)


def test_a_device_map_names_one_device():
    for asked in (None, "auto", "cpu", {"": "cpu"}, torch.device("cpu")):
        model = AutoModelForCausalLMWithValueHead.from_pretrained(tiny_gpt2(), device_map=asked)
        assert next(model.parameters()).device.type == "cpu"
    with pytest.raises(ValueError, match=r"device=cuda:0 is not there"):
        AutoModelForCausalLMWithValueHead.from_pretrained(tiny_gpt2(), device_map={"": 0})
    with pytest.raises(ValueError, match=r"device_map=\{'transformer': 'cpu'\} is not supported"):
        AutoModelForCausalLMWithValueHead.from_pretrained(tiny_gpt2(), device_map={"transformer": "cpu"})


def test_the_trainer_takes_the_models_to_the_accelerator(monkeypatch):
    """As in TRL: a script that names no device runs on the accelerator. Here its place is pretended."""
    places = []
    monkeypatch.setattr(trl, "move", lambda model, device: places.append((model, device)))
    monkeypatch.setattr(trl, "resolve_device", lambda device: f"what {device} is")
    model, reference = (AutoModelForCausalLMWithValueHead(tiny_gpt2()) for _ in range(2))
    config = {"batch_size": 2, "mini_batch_size": 2}
    trl.PPOTrainer(trl.PPOConfig(**config), model, reference)
    assert places == [(model, "what auto is"), (reference, "what auto is")]
    trl.PPOTrainer(trl.PPOConfig(**config, accelerator_kwargs={"cpu": True}), model, reference)
    assert places[2:] == [(model, torch.device("cpu")), (reference, torch.device("cpu"))]
    with pytest.raises(ValueError, match=r"accelerator_kwargs=.*only \{'cpu': True\} has a meaning here"):
        trl.PPOConfig(**config, accelerator_kwargs={"split_batches": True})
