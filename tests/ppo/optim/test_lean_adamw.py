"""AdamW in bfloat16: its formula, its stochastic rounding, and that its state can be resumed."""

import math

import pytest
import torch
from torch import nn

from ppo import Config, Trainer
from ppo.optim.lean_adamw import LeanAdamW, round_into
from ppo.optim.optimizer import Optimizer
from tests.fakes import tiny_gpt2

PROMPTS = [[2, 3, 4], [5, 6], [7], [8, 9, 10, 11]]
SMALL = Config(prompts_per_step=4, minibatch=2, response_length=6, epochs=2, learning_rate=1e-2)


def make(parameter, *, lr=0.1, moment_dtype=torch.float32, decay=0.0, seed=0, beta2=0.999):
    return LeanAdamW(
        [{"params": [parameter], "lr": lr}], betas=(0.9, beta2), eps=1e-3, weight_decay=decay,
        moment_dtype=moment_dtype, seed=seed,
    )  # fmt: skip


def test_in_float32_it_is_adamw_s_formula(monkeypatch):
    monkeypatch.setattr("ppo.optim.lean_adamw._BLOCK", 2)
    gradients = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    parameter = nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizer = make(parameter, decay=0.1, moment_dtype=torch.float64)
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
    for i in range(3):
        w, m, v = 1.0, 0.0, 0.0
        for t, g in enumerate(gradients[:, i].tolist(), start=1):
            w -= 0.1 * 0.1 * w
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            w -= 0.1 * (m / (1 - 0.9**t)) / (math.sqrt(v / (1 - 0.999**t)) + 1e-3)
        assert parameter[i].item() == pytest.approx(w, abs=1e-12)


def test_stochastic_rounding_is_right_on_average_and_always_goes_to_a_neighbour():
    values = torch.tensor([1.0, 1.0 + 2**-9, -1.0 - 2**-8 * 0.75, 3e-5, 0.0, -math.inf])
    num = 20_000
    many = values.repeat(num)
    bits = torch.empty(len(many), dtype=torch.int32).random_(generator=torch.Generator().manual_seed(0))
    target = torch.empty(len(many), dtype=torch.bfloat16)
    round_into(target, many, bits)
    found = target.view(num, -1).double()
    for i, value in enumerate(values.tolist()):
        seen = found[:, i].unique().tolist()
        if value == float(torch.tensor(value).bfloat16()):
            assert seen == [value]
            continue
        low, high = seen
        assert low < value < high
        assert high - low == pytest.approx(abs(2.0 ** (math.floor(math.log2(abs(value))) - 7)))
        share = (value - low) / (high - low)
        assert (found[:, i] == high).double().mean().item() == pytest.approx(share, abs=4 * 0.5 / math.sqrt(num))


@pytest.mark.parametrize("is_random", [True, False])
def test_small_steps_are_not_lost(is_random, monkeypatch):
    """A thousand steps of 1e-5 on a weight of 1.0. Each is 1/400 of the last bit, so rounding to nearest loses all."""
    if not is_random:
        monkeypatch.setattr("ppo.optim.lean_adamw.round_into", lambda target, values, bits: target.copy_(values))
    parameter = nn.Parameter(torch.ones(4096, dtype=torch.bfloat16))
    optimizer = make(parameter, lr=1e-5, moment_dtype=torch.bfloat16)
    for _ in range(1000):
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    moved = 1 - parameter.double().mean().item()
    if is_random:
        assert moved == pytest.approx(1000 * 1e-5, rel=0.1)
        second = optimizer.state[parameter]["exp_avg_sq"].double().mean().item()
        assert second == pytest.approx(1 - 0.999**1000, rel=0.05)
    else:
        assert moved == 0


def test_dtypes_are_kept_and_float16_is_refused():
    parameter = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    optimizer = Optimizer({"w": parameter}, set(), Config(learning_rate=0.1))
    parameter.grad = torch.ones_like(parameter)
    optimizer.step(0)
    moments = optimizer.state_tensors()
    assert moments["w/exp_avg"].dtype == moments["w/exp_avg_sq"].dtype == torch.float32
    assert parameter.dtype == torch.bfloat16
    whole = nn.Parameter(torch.ones(3))
    optimizer = Optimizer({"w": whole}, set(), Config(moment_dtype="bfloat16"))
    whole.grad = torch.ones(3)
    optimizer.step(0)
    assert optimizer.state_tensors()["w/exp_avg_sq"].dtype == torch.bfloat16
    with pytest.raises(ValueError, match="weights are float16"):
        Optimizer({"w": nn.Parameter(torch.ones(3).half())}, set(), Config())


@pytest.mark.parametrize(("dtype", "moments"), [(torch.bfloat16, "bfloat16"), (torch.bfloat16, "float32"),
                                                (torch.float32, "bfloat16")])  # fmt: skip
def test_resume_goes_on_bit_for_bit(tmp_path, dtype, moments):
    def reward(samples):
        return [float(s.ids.count(7)) for s in samples]

    trainer = Trainer(tiny_gpt2().to(dtype), PROMPTS, reward, SMALL.replace(moment_dtype=moments))
    trainer.train(2, progress=False)
    trainer.save(tmp_path / "ckpt")
    trainer.train(2, progress=False)
    resumed = Trainer.resume(tmp_path / "ckpt", PROMPTS, reward)
    assert next(resumed.model.parameters()).dtype == dtype
    resumed.train(2, progress=False)
    for p, q in zip(trainer.policy.actor.parameters(), resumed.policy.actor.parameters(), strict=True):
        assert torch.equal(p, q)
