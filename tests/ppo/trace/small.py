"""What the tests of the trace share: a small trainer, its traces, and how a printed formula is checked."""

import math
import re
from dataclasses import replace

import pytest
import torch

from ppo import Config, Trainer
from ppo.sampler import collate
from ppo.trace.formulas import numbers_at, quantities_of, shown, substituted
from tests.fakes import Letters, tiny_gpt2

PROMPTS = [[2, 3, 4], [5, 6], [7], [8, 9, 10, 11], [12, 13], [3, 3, 3], [4], [6, 5]]
SMALL = Config(prompts_per_step=8, minibatch=4, response_length=6, epochs=3, learning_rate=3e-2, kl_coef=0.3, seed=4)
GROUPS = {"prompts_per_step": 4, "samples_per_prompt": 2}
EVIL = '</script><img src="http://x/y.png" onerror=alert(1)>&\u2028'


def id_mean(samples):
    return [sum(s.ids) / len(s.ids) for s in samples]


# Responses of a policy and a tool: 14 and above are the tool's. It writes first, last, twice, or not at all.
RESPONSES = [[5, 14, 15, 6, 7], [8, 9], [3, 16, 17, 18, 4], [6, 15, 7, 14, 2, 1], [14, 5, 6], [7, 15], [9, 9, 9],
             [16, 4, 17, 4, 18]]  # fmt: skip


def with_a_tool(policy, prompts, *, seed, request_ids):
    """A sampler: the same conversations in every step, another one for each request."""
    chosen = [RESPONSES[i % len(RESPONSES)] for i in request_ids]
    drawn = collate([p.ids for p in prompts], chosen, eos_ids=(1,))
    drawn = replace(drawn, action_mask=drawn.mask & (drawn.tokens < 14))
    found = policy.measure(drawn)
    return replace(drawn, logprobs=found.logprobs, entropy=found.entropy, values=found.values)


def half_and_full(rewards, values, mask, samples):
    """An estimator of nobody's: half of the response's reward above 3, less its place; the whole as the return."""
    totals, places = rewards.sum(dim=1, keepdim=True), torch.arange(mask.shape[1])
    return (totals / 2 - 3 - places) * mask, (totals + places) * mask


def make(retain=None, reward=id_mean, own_loss=None, own_advantage=None, sampler=None, model=None, **changes):
    trainer = Trainer(
        model or tiny_gpt2(), PROMPTS, reward, SMALL.replace(**changes), tokenizer=Letters(), retain=retain,
        policy_loss=own_loss, advantage=own_advantage, sampler=sampler,
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


def assert_formulas_agree(trace):
    """Every formula of every action, with its numbers in it, gives the number that is shown, to enough digits."""
    known, num_digits = quantities_of(trace), []
    assert len({q.key for q in known}) == len(known)
    for row in trace.rows:
        for t in row.actions:
            for visit in range(len(row.tokens[t].updates)):
                numbers = numbers_at(trace, row, t, visit)
                for q in known:
                    result = shown(numbers[q.key], q.formula, numbers)
                    assert float(result) == pytest.approx(numbers[q.key], abs=0.51 * last_digit(result))
                    if q.formula:
                        assert_agrees(substituted(q.formula, numbers), result, q.key)
                    if q.formula and q.key != "gate" and abs(numbers[q.key]) > 1e-3:
                        num_digits.append(len(re.sub(r"^-?0?\.?0*|e.*|\.", "", result)))
    assert min(num_digits) >= 3
    assert sum(num_digits) / len(num_digits) > 5
