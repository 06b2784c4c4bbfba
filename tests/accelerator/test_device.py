"""The pretend device refuses what accelerators refuse, computes what the CPU computes, and counts what waits for it."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.accelerator.device import DEVICE, counted, plugged_in
from tests.fakes import tiny_gpt2

IS_AVAILABLE_WITHOUT = torch.accelerator.is_available()  # no test has begun


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "mistake",
    [
        lambda x: x + numbers(3, 4),
        lambda x: F.linear(x, numbers(2, 4)),
        lambda x: torch.cat([x, numbers(1, 4)]),
        lambda x: x.gather(1, torch.zeros(3, 1, dtype=torch.long)),
        lambda x: numbers(3, 4)[torch.zeros(1, dtype=torch.long, device=DEVICE)],
        lambda x: F.embedding(torch.zeros(1, dtype=torch.long), x),
        lambda x: x.numpy(),
        lambda x: torch.rand(3, device=DEVICE, generator=torch.Generator()),
        lambda x: torch.ops.mkldnn._reorder_linear_weight(x, 4),
    ],
)
def test_what_every_accelerator_refuses(mistake):
    with pytest.raises((RuntimeError, TypeError)):
        mistake(numbers(3, 4).to(DEVICE))


@pytest.mark.parametrize(
    ("waits", "uploads", "action"),
    [
        (0, 0, lambda x: (x * 2 + 1).softmax(-1)),
        (1, 0, lambda x: x.sum().item()),
        (1, 0, lambda x: bool((x > 0).any())),
        (1, 0, lambda x: x.tolist()),
        (1, 0, lambda x: x.cpu()),
        (1, 0, lambda x: torch.empty(3, 4).copy_(x)),
        (1, 0, lambda x: (x > 0).nonzero()),
        (1, 0, lambda x: torch.where(x > 0)),
        (1, 0, lambda x: torch.equal(x, x)),
        (1, 0, lambda x: x.unique()),
        (1, 0, lambda x: x.masked_select(x > 0)),
        (1, 0, lambda x: x[x > 0]),
        (0, 0, lambda x: x.index_put_((x > 0,), torch.zeros((), device=DEVICE))),
        (0, 0, lambda x: x.masked_fill_(x > 0, 0.0)),
        (0, 0, lambda x: x.repeat_interleave(2, dim=0)),
        (0, 0, lambda x: x[:, 1].add_(1)),
        (0, 1, lambda x: torch.tensor([1, 2], device=DEVICE)),
        (0, 1, lambda x: x + numbers(3, 4).to(DEVICE)),
        (0, 1, lambda x: x[torch.tensor([0, 2])]),
        (0, 1, lambda x: x[[0, 2]]),
        (0, 0, lambda x: x + torch.tensor(1.0)),
        (0, 0, lambda x: torch.arange(4, device=DEVICE)),
    ],
)
def test_what_the_host_waits_for(waits, uploads, action):
    x = numbers(3, 4).to(DEVICE)
    with counted() as counts:
        action(x)
    assert (counts.num_waits, counts.num_uploads) == (waits, uploads), counts


def test_a_mask_on_the_left_of_an_assignment_is_read():
    x = numbers(3, 4).to(DEVICE)
    is_positive = x > 0
    values = x[is_positive] * 2
    with counted() as counts:
        x[is_positive] = values
    assert counts.num_waits == 1


def test_numbers_repeats_and_gradients_are_those_of_the_cpu():
    """Through a module with tied weights, a step of the optimiser and a copy."""
    torch.manual_seed(0)
    cpu = tiny_gpt2(dropout=0.0)
    there = copy.deepcopy(cpu).to(DEVICE)
    assert there.lm_head.weight is there.transformer.wte.weight
    assert all(type(parameter) is nn.Parameter for parameter in there.parameters())
    ids = torch.tensor([[2, 3, 4, 5]])
    for model, device in ((cpu, "cpu"), (there, DEVICE)):
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
        model(ids.to(device)).logits.log_softmax(-1)[..., 1].sum().backward()
        optimizer.step()
    twin = copy.deepcopy(there)
    for expected, found, copied in zip(cpu.parameters(), there.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(found.cpu(), expected, rtol=1e-5, atol=1e-6)
        assert torch.equal(found.cpu(), copied.cpu())
        assert found.data_ptr() != copied.data_ptr()


def test_views_share_their_memory():
    x = torch.zeros(3, 4, device=DEVICE)
    x[1:, 2].add_(1)
    x.view(-1)[0] = 5
    torch.view_as_complex(x.view(3, 2, 2)).mul_(2)
    assert x.tolist() == [[10, 0, 0, 0], [0, 0, 2, 0], [0, 0, 2, 0]]


def test_autocast_computes_products_in_bfloat16():
    layer = nn.Linear(4, 2).to(DEVICE)
    x = numbers(3, 4).to(DEVICE)
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
        assert (x + 1).dtype == torch.float32
        with torch.autocast(DEVICE.type, enabled=False):
            assert layer(x).dtype == torch.float32


def test_a_generator_of_the_device_repeats_its_numbers():
    first, second = (torch.Generator(DEVICE).manual_seed(3) for _ in range(2))
    assert first.device == DEVICE
    drawn = torch.rand(5, device=DEVICE, generator=first)
    assert torch.equal(drawn, torch.rand(5, device=DEVICE, generator=second))


def test_torch_knows_the_device_only_where_it_is_plugged_in():
    assert not IS_AVAILABLE_WITHOUT
    assert torch.accelerator.is_available()
    assert torch.accelerator.current_accelerator().type == DEVICE.type
    with plugged_in():  # a second time
        pass
    assert torch.accelerator.is_available()
