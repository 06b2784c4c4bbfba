"""Forwards in step, as one process sees them. tests/ppo/distributed/test_processes.py (slow) runs two processes."""

import pytest
import torch

import ppo
from ppo import Config
from ppo.distributed import OutOfStepError, Processes
from ppo.distributed.lockstep import in_step
from ppo.run.limits import retry_smaller
from tests.fakes import tiny_gpt2, tiny_opt

IDS = torch.tensor([[2, 3, 4]])


class Busy(Processes):
    """This process among others that still want ``more`` forwards of the model with the given index."""

    def __init__(self, more: int, index: int) -> None:
        super().__init__()
        object.__setattr__(self, "left", more)
        object.__setattr__(self, "index", index)

    def max(self, number: float) -> float:
        if self.left and number < self.index:
            object.__setattr__(self, "left", self.left - 1)
            return float(self.index)
        return number


def count_forwards(model):
    calls = []
    model.base_model.register_forward_hook(lambda *_: calls.append(1))
    return calls


def test_a_process_takes_part_in_forwards_that_only_others_need():
    policy, critic = tiny_gpt2().eval(), tiny_gpt2().eval()
    expected = policy(IDS).logits
    of_policy, of_critic = count_forwards(policy), count_forwards(critic)
    with torch.no_grad(), in_step([policy, critic], [], Busy(3, index=1)):
        logits = policy(IDS).logits  # before it, the others want the critic three times
        assert (len(of_policy), len(of_critic)) == (1, 3)
    assert torch.equal(logits, expected)
    with torch.no_grad(), in_step([policy, critic], [], Busy(2, index=0)):
        pass  # this process needs no forward, but the others do
    assert (len(of_policy), len(of_critic)) == (3, 3)
    policy(IDS)
    assert len(of_policy) == 4  # outside the context nobody is asked


def test_an_error_between_forwards_reaches_the_caller_when_the_others_are_done():
    model = tiny_gpt2()
    calls = count_forwards(model)
    with pytest.raises(KeyError), in_step([model], [], Busy(2, index=0)):
        raise KeyError("suffix")
    assert len(calls) == 2


def test_after_an_error_inside_a_forward_no_other_forward_can_begin():
    model, processes = tiny_gpt2(), Busy(0, index=0)
    model.transformer.h[1].register_forward_pre_hook(fail)
    with pytest.raises(OutOfStepError, match="CUDA out of memory"), in_step([model], [], processes):
        model(IDS)
    with pytest.raises(OutOfStepError, match="CUDA out of memory"), in_step([model], [], processes):
        retry_smaller(lambda: model(IDS), lambda: True)  # a second try, as with half as many rows


def test_a_model_that_bypasses_its_base_model_asks_the_others_too():
    """OPT calls its decoder and not its base model. A model that calls its base model still asks only once."""
    for model in (tiny_opt().eval(), tiny_gpt2().eval()):
        asked = []
        processes = Busy(0, index=0)
        object.__setattr__(processes, "max", lambda number, asked=asked: asked.append(number) or number)
        with torch.no_grad(), in_step([model], [], processes):
            model(IDS)
            model.base_model(IDS)
        assert asked == [0, 0, -1]
        assert "forward" not in vars(model)


def fail(*_):
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_with_one_process_no_weights_are_split_and_the_fast_decoder_samples():
    with pytest.raises(ValueError, match=r"gather_for_rollouts=False needs sharding='fsdp'"):
        Config(gather_for_rollouts=False)
    config = Config(
        sharding="fsdp", gather_for_rollouts=False, prompts_per_step=2, minibatch=2, response_length=3, epochs=1
    )
    trainer = ppo.Trainer(tiny_gpt2(), [[2], [3]], lambda samples: [float(len(s.ids)) for s in samples], config)
    assert trainer.rollout().metrics["generate/is_fast"] == 1
