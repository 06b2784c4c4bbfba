"""Responses of several turns in an environment: a tool, a game, a user who answers.

An environment has two methods (:class:`ppo.types.Environment`). :class:`EnvironmentSampler` lets the policy play one
for each response, and :func:`turn_rewards` hands the environments' rewards to the trainer:

    ppo.Trainer(model, rows, ppo.turn_rewards, config, sampler=ppo.EnvironmentSampler(MyEnvironment))

The ids that were sampled are the ids that are trained on, whatever a tokenizer would make of their text. This module
knows token ids and numbers, nothing about what an environment does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from .checks.seams import name_of
from .generation import generate
from .generation.turns import Turns
from .policy import Policy
from .prompts import Prompt
from .run.limits import retry_smaller
from .types import Environment, Generation, Row, Sample


@dataclass(frozen=True)
class Turn:
    """One turn of the policy: the response tokens from ``start`` up to ``end``, and the reward that they brought."""

    start: int
    end: int
    reward: float


class EnvironmentSampler:
    """A sampler (:data:`ppo.types.Sampler`) in which every response is an episode of an environment of its own.

    make         gives a new environment: a class without arguments, or a function
    end_ids      tokens that end a turn, besides the model's own end tokens
    turn_length  most tokens of a turn; None: as many as the response has room for

    ``Config.response_length`` counts all tokens of an episode, those that the environment wrote among them. An episode
    that has no room for another turn is cut: ``is_ended`` is then False. ``Sample.info`` is the list of its
    :class:`Turn` records. What an episode has of turns and tokens is in the metrics (:func:`ppo.metrics.turn_metrics`).

    An environment is called in the middle of sampling, without gradients; one that trains something of its own does so
    in ``torch.enable_grad()``. The whole batch waits for it. A run resumes to the same bits if what an environment does
    depends on its row and on the policy's tokens alone.
    """

    def __init__(
        self, make: Callable[[], Environment], *, end_ids: Sequence[int] = (), turn_length: int | None = None
    ) -> None:
        if not callable(make):
            raise ValueError(f"make={make!r:.60} must be a class or a function that gives a new environment")
        self._make = make
        self._end_ids = tuple(end_ids)
        self._turn_length = turn_length

    @property
    def name(self) -> str:
        """What a checkpoint calls this sampler: it names the environment, too."""
        return f"{type(self).__module__}.{type(self).__qualname__}({name_of(self._make)})"

    def __call__(
        self, policy: Policy, prompts: Sequence[Prompt], *, seed: int, request_ids: Sequence[int]
    ) -> Generation:
        """Play one episode for each prompt. When memory runs out, all begin again, with fewer side by side."""

        def play() -> Generation:
            episodes = [_Episode(self._make(), prompt.row, index) for index, prompt in enumerate(prompts)]
            generation = generate(
                policy.model,
                [episode.prompt_ids for episode in episodes],
                policy.sampling,
                seed=seed,
                request_ids=request_ids,
                slots=policy.limits.rollout_slots,
                value_fn=policy.actor.value_fn,
                turns=Turns(lambda request, ids: episodes[request].step(ids), self._end_ids, self._turn_length),
            )
            turns = [episode.turns for episode in episodes]
            return replace(generation, info=turns)

        return retry_smaller(play, lambda: policy.limits.halve_slots(len(prompts)))


def turn_rewards(samples: list[Sample]) -> list[list[float]]:
    """The environments' rewards as token rewards, each on the last action of its turn; a :data:`ppo.types.RewardFn`.

    Raises ValueError for samples that no :class:`EnvironmentSampler` drew.
    """
    rewards = []
    for index, sample in enumerate(samples):
        if not isinstance(sample.info, list) or not all(isinstance(turn, Turn) for turn in sample.info):
            raise ValueError(f"sample {index} holds no turns: turn_rewards goes with sampler=EnvironmentSampler(…)")
        row = [0.0] * len(sample.ids)
        for turn in sample.info:
            row[turn.end - 1] = turn.reward
        rewards.append(row)
    return rewards


class _Episode:
    """An environment with its record of turns; ``index``: which response it is, for messages."""

    def __init__(self, environment: Environment, row: Row, index: int) -> None:
        self._environment = environment
        self._row = row
        self._name = f"environment {name_of(environment)}, response {index}"
        self.turns: list[Turn] = []
        self._written = 0  # tokens of the response before the next turn
        with self._named("reset"):
            ids = environment.reset(row)
        self.prompt_ids = self._ids(ids, "reset")

    def step(self, ids: list[int]) -> list[int] | None:
        """Hand a turn over; what the environment writes behind it, or None where the episode is over."""
        with self._named("step"):
            answer = self._environment.step(ids)
        if not isinstance(answer, tuple) or len(answer) != 2:
            raise ValueError(
                f"{self._name}: step returned {answer!r:.60}, wanted (token ids, or None at the end; reward)"
            )
        observation, reward = answer
        if isinstance(reward, bool) or not isinstance(reward, int | float) or not math.isfinite(reward):
            raise ValueError(f"{self._name}: step returned the reward {reward!r:.60}, wanted a finite number")
        end = self._written + len(ids)
        self.turns.append(Turn(self._written, end, float(reward)))
        if observation is None:
            return None
        written = self._ids(observation, "step")
        self._written = end + len(written)
        return written

    def _ids(self, ids: Any, method: str) -> list[int]:
        values = ids.tolist() if hasattr(ids, "tolist") else ids
        is_list = isinstance(values, Sequence) and not isinstance(values, str | bytes)
        if not is_list or not all(isinstance(i, int) and not isinstance(i, bool) for i in values):
            raise ValueError(f"{self._name}: {method} returned {ids!r:.60}, wanted token ids")
        return list(values)

    @contextmanager
    def _named(self, method: str) -> Iterator[None]:
        """An error in the block gets a note that says which environment raised it, and in which row."""
        try:
            yield
        except Exception as error:
            error.add_note(f"{self._name}: {method} failed; its row is {dict(self._row)!r:.200}")
            raise
