"""The checkpoint of a plain training loop: it restores what was saved, and it refuses another model's checkpoint."""

import re

import pytest
import torch
from torch import nn

from ppo.checkpoint import load_tensors, save_tensors
from ppo.checkpoint.loop import has_loop, restore_loop, save_loop
from tests.fuzz_damage import make_right


def make(width: int = 3) -> tuple[nn.Module, torch.optim.Optimizer, torch.Generator]:
    """A model after one optimiser step."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, width), nn.Linear(width, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    step(model, optimizer)
    return model, optimizer, torch.Generator().manual_seed(5)


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.ones(4, 2)).square().sum().backward()
    optimizer.step()


def test_a_restored_loop_gives_the_bits_of_the_unbroken_one(tmp_path):
    model, optimizer, generator = make()
    torch.rand(3, generator=generator)
    save_loop(tmp_path / "loop", model, optimizer, generator, {"steps": 1})
    assert has_loop(tmp_path / "loop")
    assert not has_loop(tmp_path / "none")
    other, its_optimizer, its_generator = make()
    step(other, its_optimizer)  # its weights differ now
    assert restore_loop(tmp_path / "loop", other, its_optimizer, its_generator)["steps"] == 1
    for _ in range(2):
        step(model, optimizer)
        step(other, its_optimizer)
    for mine, its in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, its)
    assert torch.equal(torch.rand(3, generator=generator), torch.rand(3, generator=its_generator))


def test_another_models_checkpoint_is_refused_before_anything_changes(tmp_path):
    save_loop(tmp_path / "loop", *make(), {})
    wider = make(width=4)
    before = [p.clone() for p in wider[0].parameters()]
    with pytest.raises(ValueError, match=re.escape("0.weight has the shape [3, 2] there, [4, 2] here")):
        restore_loop(tmp_path / "loop", *wider)
    assert all(torch.equal(a, b) for a, b in zip(before, wider[0].parameters(), strict=True))
    one = nn.Sequential(nn.Linear(2, 3))
    with pytest.raises(ValueError, match=r"1\.bias"):
        restore_loop(tmp_path / "loop", one, torch.optim.Adam(one.parameters()), torch.Generator())


def test_damage_is_found(tmp_path):
    save_loop(tmp_path / "loop", *make(), {})
    file = tmp_path / "loop" / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match=r"optimizer\.safetensors is damaged"):
        restore_loop(tmp_path / "loop", *make())


@pytest.mark.parametrize(
    ("file", "name", "change", "told"),
    [
        ("weights", "0.weight", lambda x: x.to(torch.int8), r"0.weight is torch.int8, which does not fit"),
        ("weights", "0.bias", lambda x: x.to(torch.complex64), r"0.bias is torch.complex64"),
        ("optimizer", "0.weight/exp_avg", lambda x: x.to(torch.int64), r"'0.weight/exp_avg' is int64 \[3, 2\]"),
        ("optimizer", "0.weight/exp_avg", lambda x: x[:1], r"'0.weight/exp_avg' is float32 \[1, 2\]"),
        ("optimizer", "5.weight/exp_avg", lambda x: torch.ones(1), "'5.weight/exp_avg' is .* fits no weight"),
        ("rng", "generator", lambda x: x[:-1], "no state of the generator"),
    ],
)
def test_tensors_of_another_kind_are_refused_before_anything_moves(tmp_path, file, name, change, told):
    model, optimizer, generator = make()
    folder = tmp_path / "loop"
    save_loop(folder, model, optimizer, generator, {"steps": 1})
    path = folder / f"{file}.safetensors"
    tensors = load_tensors(path)
    save_tensors(path, tensors | {name: change(tensors.get(name))})
    make_right(folder)
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(ValueError, match=told) as error:
        restore_loop(folder, model, optimizer, generator)
    assert str(folder) in str(error.value)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
