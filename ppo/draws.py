"""The responses of a step: to the next prompts, and to others where all samples of a prompt score the same.

Dynamic sampling (DAPO, Yu et al. 2025, sec. 3.2): groups of equal scores teach a group estimator nothing. They are left
out, and other prompts are drawn in their place, for a number of rounds at most. What is still missing then is filled up
with such groups, so that a step has always the same size. This module knows prompts and scores, not what a score means.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .advantages import spread_is_rounding
from .buffer import join_responses, response_rows
from .collector import Collector
from .config import Config
from .prompts import Prompt, PromptStream
from .types import Responses


class Draws:
    """Takes prompts from the stream, and asks for responses until a step is full."""

    def __init__(self, collector: Collector, prompts: Sequence[Prompt], stream: PromptStream, config: Config) -> None:
        self._collector = collector
        self._prompts = prompts
        self._stream = stream
        self._config = config

    def responses(self, *, step: int, policy_version: int) -> Responses:
        """The measured responses of a step, prompt-major, the same on every process.

        With ``config.redraw_rounds`` as many groups as can be have different scores; they stand in the order in which
        they were drawn, and those that fill up come last. Metrics then: ``redraw/rounds`` (draws after the first),
        ``redraw/equal_share`` (of all drawn groups), and ``redraw/filled_share`` (of the groups of the step: how many
        have equal scores after all). Raises ValueError without prompts.
        """
        config = self._config
        wanted, size = config.prompts_per_step, config.samples_per_prompt
        draws = [self._draw(wanted, step, policy_version)]
        if config.redraw_rounds == 0:
            return draws[0]
        is_varied = varied_groups(draws[0].scores, size)
        while (found := int(is_varied.sum())) < wanted and len(draws) <= config.redraw_rounds:
            draws.append(self._draw(wanted - found, step, policy_version))
            is_varied = torch.cat([is_varied, varied_groups(draws[-1].scores, size)])
        metrics = {
            "redraw/rounds": float(len(draws) - 1),
            "redraw/equal_share": 1 - float(is_varied.float().mean()),
            "redraw/filled_share": 1 - found / wanted,
        }
        order = torch.argsort(is_varied.byte(), descending=True, stable=True)[:wanted]
        rows = (order.unsqueeze(1) * size + torch.arange(size, device=order.device)).flatten()
        chosen = draws[0] if len(draws) == 1 else response_rows(join_responses(draws), rows)
        return replace(chosen, metrics=chosen.metrics | metrics)

    def _draw(self, num_prompts: int, step: int, policy_version: int) -> Responses:
        """The responses to the next prompts, each of which is sampled ``samples_per_prompt`` times.

        Where the processes cannot share them evenly, the last one is sampled a few times more, for nothing.
        """
        if not self._prompts:
            raise ValueError("the trainer has no prompts: pass prompts=…, or bring responses along (ppo.given)")
        indices = self._stream.take(num_prompts)
        prompts = [self._prompts[i] for i in indices for _ in range(self._config.samples_per_prompt)]
        spare = -len(prompts) % self._collector.policy.processes.count
        asked = prompts + prompts[-1:] * spare
        responses = self._collector.collect(asked, step=step, policy_version=policy_version)
        return response_rows(responses, torch.arange(len(prompts), device="cpu")) if spare else responses


def varied_groups(scores: Tensor, group_size: int) -> Tensor:
    """Which groups of adjacent samples do not all have the same score; scores [B] -> bool [B / group_size].

    Scores that are equal but for rounding are the same score, as in :func:`ppo.advantages.group_relative`.
    """
    groups = scores.view(-1, group_size)
    low, high = groups.amin(dim=1), groups.amax(dim=1)
    return ~spread_is_rounding(low, high, torch.maximum(low.abs(), high.abs()))
