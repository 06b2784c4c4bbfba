"""Responses of several turns in an environment: a tool, a game, a user who answers.

An environment has two methods (:class:`ppo.types.Environment`). :class:`EnvironmentSampler` lets the policy play one
for each response, and :func:`turn_rewards` hands the environments' rewards to the trainer:

    ppo.Trainer(model, rows, ppo.turn_rewards, config, sampler=ppo.EnvironmentSampler(MyEnvironment))

The ids that were sampled are the ids that are trained on, whatever a tokenizer would make of their text. This module
knows token ids and numbers, nothing about what an environment does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from .generation import generate
from .generation.turns import Turns, check_turn_ends
from .io.named import name_of
from .io.plain import finite, is_whole
from .lm.backbone import context_length, vocabulary_size
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
        check_turn_ends("EnvironmentSampler: ", end_ids, turn_length)
        self._make = make
        self._end_ids = tuple(sorted({int(i) for i in end_ids}))
        self._turn_length = None if turn_length is None else int(turn_length)

    @property
    def name(self) -> str:
        """What a checkpoint calls this sampler: it names the environment, and what ends a turn where that was given."""
        arguments = [name_of(self._make)]
        if self._end_ids:
            arguments.append(f"end_ids={list(self._end_ids)}")
        if self._turn_length is not None:
            arguments.append(f"turn_length={self._turn_length}")
        return f"{type(self).__module__}.{type(self).__qualname__}({', '.join(arguments)})"

    def __call__(
        self, policy: Policy, prompts: Sequence[Prompt], *, seed: int, request_ids: Sequence[int]
    ) -> Generation:
        """Play one episode for each prompt. When memory runs out, all begin again, with fewer side by side."""
        vocab, context = vocabulary_size(policy.model), context_length(policy.model)
        room = None if context is None else context - policy.sampling.response_length

        def play() -> Generation:
            episodes = [
                _Episode(self._new(), prompt.row, request, vocab_size=vocab, room=room)
                for request, prompt in zip(request_ids, prompts, strict=True)
            ]
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

    def _new(self) -> Environment:
        """A new environment. Raises ValueError for what has no methods ``reset`` and ``step``."""
        made = self._make()
        if isinstance(made, type):
            raise ValueError(f"make={name_of(self._make)} gave the class {made.__name__}: it must give an object of it")
        for method in ("reset", "step"):
            if not callable(getattr(made, method, None)):
                raise ValueError(
                    f"make={name_of(self._make)} gave a {type(made).__name__} without the method {method}: an "
                    "environment has reset(row) and step(ids)"
                )
        return made


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
    """An environment with its record of turns.

    request     which response of the step it is, for messages
    vocab_size  of the model that reads what the environment writes
    room        most tokens that ``reset`` may give; None: there is no limit
    """

    def __init__(self, environment: Environment, row: Row, request: int, *, vocab_size: int, room: int | None) -> None:
        self._environment = environment
        self._row = row
        self._name = f"environment {name_of(environment)}, response {request}"
        self._vocab_size = vocab_size
        self.turns: list[Turn] = []
        self._written = 0  # tokens of the response before the next turn
        with self._named("reset"):
            ids = environment.reset(row)
        self.prompt_ids = self._ids(ids, "reset")
        if not self.prompt_ids:
            raise self._wrong("reset returned no token: a policy needs at least one to start from")
        if room is not None and len(self.prompt_ids) > room:
            raise self._wrong(
                f"reset returned {len(self.prompt_ids)} tokens, wanted at most {room}: the model's context less "
                "Config.response_length"
            )

    def step(self, ids: list[int]) -> list[int] | None:
        """Hand a turn over; what the environment writes behind it, or None where the episode is over."""
        with self._named("step"):
            answer = self._environment.step(ids)
        if not isinstance(answer, tuple) or len(answer) != 2:
            raise self._wrong(f"step returned {answer!r:.60}, wanted (token ids, or None at the end; reward)")
        observation, reward = answer
        number = finite(reward)
        if number is None:
            raise self._wrong(f"step returned the reward {reward!r:.60}, wanted a finite number")
        end = self._written + len(ids)
        self.turns.append(Turn(self._written, end, number))
        if observation is None:
            return None
        written = self._ids(observation, "step")
        self._written = end + len(written)
        return written

    def _ids(self, ids: Any, method: str) -> list[int]:
        values = ids.tolist() if hasattr(ids, "tolist") else ids
        is_list = isinstance(values, Sequence) and not isinstance(values, str | bytes)
        if not is_list or not all(is_whole(i) for i in values):
            raise self._wrong(f"{method} returned {ids!r:.60}, wanted token ids")
        if outside := [i for i in values if not 0 <= i < self._vocab_size]:
            raise self._wrong(
                f"{method} returned the id {outside[0]}, outside the model's vocabulary of {self._vocab_size}"
            )
        return [int(i) for i in values]

    def _wrong(self, problem: str) -> ValueError:
        """An error in one line that names the environment and its row."""
        return ValueError(f"{self._name}: {problem}; {self._shown_row}".replace("\n", " "))

    @property
    def _shown_row(self) -> str:
        return f"its row is {dict(self._row)!r:.200}"

    @contextmanager
    def _named(self, method: str) -> Iterator[None]:
        """An error in the block gets a note that says which environment raised it, and in which row."""
        try:
            yield
        except Exception as error:
            error.add_note(f"{self._name}: {method} failed; {self._shown_row}")
            raise
