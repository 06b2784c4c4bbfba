"""Evaluation while training: other prompts, maybe another sampling, the same reward; nothing of the run moves.

The sampler is the run's own. The same prompts get the same random numbers in every evaluation, so that two evaluations
differ by the policy alone. With several processes each takes its share of the prompts, and all return the numbers of
the whole. This module knows nothing about updates or files.
"""

from __future__ import annotations

import difflib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..checkpoint.random_state import undisturbed
from ..config import Config, Sampling
from ..policy import Policy
from ..prompts import Prompt, make_samples
from ..scoring import Scorer
from ..types import RewardFn, Sampler

NAMES = (
    "eval/score_mean", "eval/score_std", "eval/score_min", "eval/score_max", "eval/length_mean", "eval/ended_share",
    "eval/distinct_share", "eval/prompts",
)  # fmt: skip
"""The numbers of an evaluation; ``time/eval_s`` beside them is its duration."""


@dataclass(frozen=True)
class _Response:
    """What one response says about the policy."""

    score: float
    ids: tuple[int, ...]
    is_ended: bool


class Evaluator:
    """Samples responses to ``prompts`` and scores them.

    ``sampling``: of the evaluation; None: greedy, of the config's response length. ``scorer``: its raw scores are
    taken, so its moments do not move. ``tokenizer``: decodes responses for the reward.
    """

    def __init__(
        self,
        policy: Policy,
        sampler: Sampler,
        scorer: Scorer,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        *,
        seed: int,
        tokenizer: Any | None = None,
    ) -> None:
        eos_ids = policy.sampling.eos_ids if sampling.eos_ids is None else sampling.eos_ids
        self._policy = policy.drawing(replace(sampling, num_samples=1, eos_ids=eos_ids))
        self._sampler = sampler
        self._scorer = scorer
        self._num_prompts = len(prompts)
        self._requests = [prompt for prompt in prompts for _ in range(sampling.num_samples)]
        self._seed = seed
        self._tokenizer = tokenizer

    @torch.no_grad()
    def __call__(self, *, step: int) -> dict[str, float]:
        """The numbers of all processes, named in :data:`NAMES`, and ``time/eval_s``. All processes must call this.

        ``step``: for the messages of errors. No generator moves, neither the run's own nor a global one.
        """
        if not self._requests:
            raise ValueError("the trainer has nothing to evaluate: pass eval_prompts=… to the Trainer")
        started = time.perf_counter()
        processes = self._policy.processes
        own = processes.share(len(self._requests))
        with undisturbed(), processes.together(), self._policy.readable():
            responses = self._ask(own, step=step) if own.start < own.stop else []
        self._policy.agree_on_limits()  # memory may have run out on some of the processes only
        found = [response for part in processes.all_gather(responses) for response in part]
        seconds = processes.max(time.perf_counter() - started)
        return _summary(found) | {"eval/prompts": float(self._num_prompts), "time/eval_s": seconds}

    def _ask(self, own: slice, *, step: int) -> list[_Response]:
        prompts = self._requests[own]
        generation = self._sampler(self._policy, prompts, seed=self._seed, request_ids=range(own.start, own.stop))
        samples = make_samples(prompts, generation, self._tokenizer)
        scores, _ = self._scorer.ask(samples, step=step)
        return [
            _Response(score, tuple(sample.ids), sample.is_ended)
            for score, sample in zip(scores.tolist(), samples, strict=True)
        ]


def _summary(responses: Sequence[_Response]) -> dict[str, float]:
    """Scores, lengths (tokens), the share that ended by itself and the share of distinct responses."""
    scores = torch.tensor([response.score for response in responses], dtype=torch.float64, device="cpu")
    return {
        "eval/score_mean": float(scores.mean()),
        "eval/score_std": float(scores.std(correction=0)),
        "eval/score_min": float(scores.min()),
        "eval/score_max": float(scores.max()),
        "eval/length_mean": sum(len(response.ids) for response in responses) / len(responses),
        "eval/ended_share": sum(response.is_ended for response in responses) / len(responses),
        "eval/distinct_share": len({response.ids for response in responses}) / len(responses),
    }


def sampling_of(config: Config) -> Sampling:
    """The sampling of an evaluation that was given none: greedy, as long as the run's responses."""
    return Sampling(
        response_length=config.response_length, min_response_length=config.min_response_length, temperature=0.0
    )


def check_evaluation(config: Config, prompts: Any, sampling: Sampling | None, reward: RewardFn | None) -> None:
    """Raise ValueError for an evaluation that lacks something, and for a ``best_metric`` that is none of its names."""
    if prompts is None and config.eval_every_steps > 0:
        raise ValueError(f"Config.eval_every_steps={config.eval_every_steps} needs eval_prompts=…; or leave it at 0")
    if prompts is None and sampling is not None:
        raise ValueError("eval_sampling=… needs eval_prompts=…: there is nothing to evaluate")
    if sampling is not None and not isinstance(sampling, Sampling):
        raise ValueError(f"eval_sampling={sampling!r:.60} must be a ppo.Sampling, or None for greedy responses")
    if prompts is not None and reward is None:
        raise ValueError("eval_prompts=… need a reward to score the responses: pass reward=…")
    name = config.best_metric
    if name is not None and name.startswith("eval/") and name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(NAMES)}"
        raise ValueError(f"Config.best_metric={name!r} is no metric of an evaluation; {hint}")
