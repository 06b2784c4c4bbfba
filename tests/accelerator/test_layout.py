"""The layout that the host knows of a batch is that of its masks, whatever was cut out of the batch."""

from dataclasses import fields, replace

import pytest
import torch

from ppo.buffer import join, rows, trim_rollout, without_rows
from tests.accelerator.device import DEVICE, counted
from tests.fakes import random_rollout


def rollout_there():
    """Rows of which two have a token that an environment wrote, on the device."""
    rollout = random_rollout([4, 1, 6, 3], prompt_lengths=[2, 5, 3, 4])
    generation, actions = rollout.generation, rollout.generation.mask.clone()
    actions[[0, 2], 1] = False
    is_ended = torch.tensor([True, False, True, False])
    generation = replace(generation, action_mask=actions, is_ended=is_ended).to(DEVICE)
    tensors = {f.name: x.to(DEVICE) for f in fields(rollout) if isinstance(x := getattr(rollout, f.name), torch.Tensor)}
    return replace(rollout, generation=generation, **tensors)


@pytest.mark.parametrize(
    "change",
    [
        lambda rollout: rollout,
        lambda rollout: rows(rollout, torch.tensor([3, 1])),
        lambda rollout: trim_rollout(rows(rollout, torch.tensor([1, 0]))),
        lambda rollout: rows(trim_rollout(rows(rollout, torch.tensor([3, 1, 0]))), torch.tensor([2, 0])),
        lambda rollout: without_rows(rollout, ~rollout.generation.layout.is_ended),
        lambda rollout: trim_rollout(without_rows(rows(rollout, torch.tensor([2, 3])), torch.tensor([False, True]))),
        lambda rollout: join([trim_rollout(rows(rollout, torch.tensor([1]))), rollout]),
    ],
)
def test_the_layout_is_that_of_the_masks(change):
    generation = change(rollout_there()).generation
    for name in ("prompt_mask", "mask", "action_mask", "is_ended"):
        found = getattr(generation.layout, name)
        assert found.device.type == "cpu"
        assert torch.equal(found, getattr(generation, name).cpu()), name


def test_it_is_read_once():
    rollout = rollout_there()
    with counted() as counts:
        for indices in ([0, 1], [2, 3], [1, 3]):
            part = trim_rollout(rows(rollout, torch.tensor(indices)))
            assert part.generation.layout.mask.shape == part.generation.mask.shape
    assert counts.num_waits == 1, counts.waits


def test_a_batch_with_another_mask_has_another_layout():
    generation = rollout_there().generation
    assert generation.layout.action_mask[0].sum() == 3
    changed = replace(generation, action_mask=torch.zeros_like(generation.action_mask))
    assert not changed.layout.action_mask.any()
