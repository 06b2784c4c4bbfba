"""What the tests of the trace share: a small trainer, its traces, and how a printed formula is checked."""

import math

import torch

from ppo import Config, Trainer
from tests.fakes import Letters, tiny_gpt2

PROMPTS = [[2, 3, 4], [5, 6], [7], [8, 9, 10, 11], [12, 13], [3, 3, 3], [4], [6, 5]]
SMALL = Config(prompts_per_step=8, minibatch=4, response_length=6, epochs=3, learning_rate=3e-2, kl_coef=0.3, seed=4)
GROUPS = {"prompts_per_step": 4, "samples_per_prompt": 2}
EVIL = '</script><img src="http://x/y.png" onerror=alert(1)>&\u2028'


def id_mean(samples):
    return [sum(s.ids) / len(s.ids) for s in samples]


def make(retain=None, reward=id_mean, own_loss=None, **changes):
    trainer = Trainer(
        tiny_gpt2(), PROMPTS, reward, SMALL.replace(**changes), tokenizer=Letters(), retain=retain,
        policy_loss=own_loss,
    )  # fmt: skip
    with torch.no_grad():  # move the policy away from its reference
        trainer.model.transformer.h[0].mlp.c_fc.weight += 0.3
    return trainer


def all_rows(trainer, **arguments):
    rollout = trainer.rollout()
    return rollout, trainer.trace(rollout, range(len(rollout)), **arguments)


class Evil:
    """A tokenizer. Of its tokens one is HTML, one a line end, one empty, one a wide letter. The others are words."""

    def decode(self, token_ids, *, skip_special_tokens=False):
        return "".join({5: EVIL, 6: "\n", 7: "", 8: "語"}.get(int(i), f" w{int(i)}") for i in token_ids)

    def __call__(self, text, *, add_special_tokens=True):
        return {"input_ids": [2, 3]}


def trace_of(**changes):
    trainer = make(**changes)
    trainer.tokenizer = Evil()
    rollout = trainer.rollout()
    return trainer.trace(rollout, [0, 3, 5])


def recomputed(text: str) -> float:
    """The number that a reader gets by typing a printed formula into a calculator."""
    plain = text.replace("\N{MINUS SIGN}", "-").replace("\N{MULTIPLICATION SIGN}", "*").replace("²", "**2")
    plain = plain.replace("\N{GREATER-THAN OR EQUAL TO}", ">=")
    names = {
        "exp": math.exp,
        "sqrt": math.sqrt,
        "max": max,
        "min": min,
        "abs": abs,
        "clip": lambda x, a, b: min(max(x, a), b),
    }
    return eval(plain, {"__builtins__": {}}, names)


def last_digit(text: str) -> float:
    """The value of one unit in the last printed digit."""
    digits, _, exponent = text.replace("\N{MINUS SIGN}", "-").partition("e")
    return 10.0 ** (int(exponent or 0) - len(digits.partition(".")[2]))


def assert_agrees(formula: str, result: str, where: str) -> None:
    printed = float(result.replace("\N{MINUS SIGN}", "-"))
    assert abs(recomputed(formula) - printed) <= 1.001 * last_digit(result), (where, formula, result)
