"""``Config.deterministic``: a run repeats bit for bit, and torch's switches are restored."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ppo import Config, Trainer
from ppo.run.determinism import deterministic_algorithms
from tests.fakes import tiny_gpt2

PROMPTS = [[2, 3, 4], [5, 6], [7], [8, 9, 10, 11]]
SMALL = Config(
    prompts_per_step=4, minibatch=2, microbatch=1, response_length=6, epochs=2, learning_rate=1e-2, entropy_coef=0.1,
    retain_coef=0.1, retain_tokens=4, value_head="mlp", deterministic=True, seed=5,
)  # fmt: skip


def run(config=SMALL, reward=lambda samples: [float(len(s.ids)) for s in samples]):
    """Metrics, tokens, weights and Adam's moments of two steps, as one tensor in float64."""
    trainer = Trainer(tiny_gpt2(), PROMPTS, reward, config, retain=[[2, 3, 4, 5, 6]])
    numbers = []
    for _ in range(2):
        rollout = trainer.rollout()
        metrics = rollout.metrics | trainer.update(rollout)
        numbers += [v for k, v in sorted(metrics.items()) if not k.startswith(("time/", "generate/"))]
        numbers += rollout.generation.tokens.flatten().tolist()
    state = [*trainer.policy.actor.parameters(), *trainer.learner.optimizer.state_tensors().values()]
    return torch.cat([torch.tensor(numbers, dtype=torch.float64), *(x.detach().double().flatten() for x in state)])


def test_the_same_bits_on_repeat():
    first = run()
    assert torch.equal(first, run())
    assert torch.equal(first, run(SMALL.replace(deterministic=False)))  # for tensors this small a CPU has one algorithm
    assert not torch.equal(first, run(SMALL.replace(seed=6)))


def test_torch_is_deterministic_within_a_step_and_as_before_after_it():
    seen = []

    def reward(samples):
        seen.append((torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark))
        return [0.0] * len(samples)

    torch.backends.cudnn.benchmark = True
    try:
        run(reward=reward)
        run(SMALL.replace(deterministic=False), reward=reward)
        assert seen == [(True, False)] * 2 + [(False, True)] * 2
        with pytest.raises(ZeroDivisionError):
            run(reward=lambda samples: 1 // 0)
        assert torch.backends.cudnn.benchmark
        assert not torch.are_deterministic_algorithms_enabled()
    finally:
        torch.backends.cudnn.benchmark = False


@pytest.mark.parametrize("is_warning", [False, True])
def test_stricter_settings_of_the_caller_stay(is_warning):
    torch.use_deterministic_algorithms(True, warn_only=is_warning)
    try:
        with deterministic_algorithms(True):
            assert torch.is_deterministic_algorithms_warn_only_enabled() == is_warning
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled() == is_warning
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.slow
def test_the_same_bits_in_another_process_with_another_order_of_sets():
    program = "import hashlib, tests.ppo.run.test_determinism as t; print(hashlib.sha256(t.run().numpy()).hexdigest())"
    answers = [
        subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=300,
            cwd=Path(__file__).parents[3],
            env={"PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"},
        ).stdout
        for seed in ("1", "2")
    ]  # fmt: skip
    assert answers[0] == answers[1]
    assert len(answers[0].strip()) == 64
