"""A small run for the tests of this folder: prompts, a config, a reward, a trainer."""

import torch

from ppo import Config, Trainer
from tests.fakes import tiny_gpt2

PROMPTS = [[2, 3, 4], [5, 6], [7], [8, 9, 10, 11], [12, 13], [3, 3, 3], [4], [6, 5]]
SMALL = Config(prompts_per_step=8, minibatch=4, response_length=6, epochs=2, learning_rate=1e-2, save_every_steps=1)


def id_mean(samples):
    return [sum(s.ids) / len(s.ids) for s in samples]


def make(config=SMALL, *, reward=id_mean, prompts=PROMPTS, **arguments):
    return Trainer(tiny_gpt2(), prompts, reward, config, **arguments)


def weights(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.policy.actor.parameters()])
