"""AdamW equals plain loops in both of its styles, schedules equal their closed form, and gradients are clipped."""

import math

import pytest
import torch
from torch import nn

from ppo.config import Config
from ppo.optim.optimizer import Optimizer, schedule_factor

GRADIENTS = [0.3, -0.02, 0.5, 1e-6, -0.7]


def run(config, gradients=GRADIENTS, start=1.0):
    parameter = nn.Parameter(torch.tensor([start], dtype=torch.float64))
    optimizer = Optimizer({"w": parameter}, set(), config)
    for gradient in gradients:
        parameter.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step(0)
    return parameter.item(), optimizer


def naive_adam(gradients, *, eps, style, lr=0.1, beta1=0.9, beta2=0.999, decay=0.0, w=1.0):
    m = v = 0.0
    for t, g in enumerate(gradients, start=1):
        w -= lr * decay * w
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
        if style == "torch":
            w -= lr * (m / (1 - beta1**t)) / (math.sqrt(v / (1 - beta2**t)) + eps)
        else:  # TensorFlow: epsilon joins the uncorrected root ("epsilon hat")
            w -= lr * math.sqrt(1 - beta2**t) / (1 - beta1**t) * m / (math.sqrt(v) + eps)
    return w


@pytest.mark.parametrize("style", ["torch", "tensorflow"])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adam_is_its_formula(style, decay):
    config = Config(learning_rate=0.1, adam_eps=1e-3, adam_eps_style=style, weight_decay=decay, max_grad_norm=None)
    assert run(config)[0] == pytest.approx(naive_adam(GRADIENTS, eps=1e-3, style=style, decay=decay), abs=1e-12)


def test_the_two_epsilons_differ():
    assert naive_adam(GRADIENTS, eps=1e-3, style="torch") != pytest.approx(
        naive_adam(GRADIENTS, eps=1e-3, style="tensorflow"), abs=1e-4
    )


def test_gradients_are_clipped_by_their_global_norm():
    first, second = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    optimizer = Optimizer({"a": first, "b": second}, {"b"}, Config(max_grad_norm=1.0))
    first.grad, second.grad = torch.tensor([3.0]), torch.tensor([4.0])
    norm, _ = optimizer.step(0)
    assert norm == pytest.approx(5.0)
    moments = optimizer.state_tensors()
    assert moments["a/exp_avg"].item() == pytest.approx(0.1 * 3 / 5, rel=1e-4)
    assert moments["b/exp_avg"].item() == pytest.approx(0.1 * 4 / 5, rel=1e-4)


def test_the_value_function_has_its_own_rate():
    policy, value = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    config = Config(learning_rate=0.01, value_learning_rate=0.1, max_grad_norm=None)
    optimizer = Optimizer({"p": policy, "v": value}, {"v"}, config)
    policy.grad, value.grad = torch.ones(1), torch.ones(1)
    optimizer.step(0)
    assert policy.item() == pytest.approx(-0.01, rel=1e-4)
    assert value.item() == pytest.approx(-0.1, rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [1, 1, 1, 1]),
        ({"total_steps": 3}, [1, 1, 1, 1]),
        ({"warmup_steps": 2}, [0.5, 1, 1, 1]),
        ({"schedule": "linear", "total_steps": 4}, [1, 0.75, 0.5, 0.25]),
        ({"schedule": "linear", "total_steps": 4, "warmup_steps": 2}, [0.5, 1, 1, 0.5]),
        ({"schedule": "cosine", "total_steps": 4}, [1, (2 + math.sqrt(2)) / 4, 0.5, (2 - math.sqrt(2)) / 4]),
    ],
)
def test_schedules(changes, expected):
    config = Config(**changes)
    assert [schedule_factor(config, step) for step in range(4)] == pytest.approx(expected)
    if config.schedule != "constant":
        assert schedule_factor(config, 4) == schedule_factor(config, 99) == pytest.approx(0)


def test_the_rate_follows_the_schedule():
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = Optimizer({"w": parameter}, set(), Config(learning_rate=0.1, schedule="linear", total_steps=4))
    rates = []
    for step in range(3):
        parameter.grad = torch.ones(1)
        rates.append(optimizer.step(step)[1])
    assert rates == pytest.approx([0.1, 0.075, 0.05])


def test_nothing_to_train_is_an_error():
    with pytest.raises(ValueError, match="no parameter with requires_grad=True"):
        Optimizer({}, set(), Config())


def test_state_is_saved_and_restored_and_unknown_names_are_refused():
    _, optimizer = run(Config(learning_rate=0.1))
    parameter = nn.Parameter(torch.tensor([0.0], dtype=torch.float64))
    other = Optimizer({"w": parameter}, set(), Config(learning_rate=0.1))
    other.load_state_tensors(optimizer.state_tensors(), optimizer.num_updates)
    assert other.num_updates == 5
    for name, value in optimizer.state_tensors().items():
        assert torch.equal(other.state_tensors()[name], value)
    with pytest.raises(ValueError, match="knows 'x'"):
        other.load_state_tensors({"x/exp_avg": torch.zeros(1)}, 1)
