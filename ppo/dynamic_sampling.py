"""Dynamic sampling: prompts whose samples all score the same teach a group estimator nothing, and give way to others.

Source: DAPO, Yu et al. 2025, sec. 3.2. Groups of equal scores are left out and other prompts are drawn in their place,
for a number of rounds at most. What is still missing then is filled up with groups of equal scores, so that a step has
always the same size. This module knows scores and groups, nothing about models.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from .buffer import join_responses, response_rows
from .types import Responses

Collect = Callable[[int], Responses]
"""``(number of prompts)`` to the responses to the next so many prompts, prompt-major, on every process."""


def varied_groups(scores: Tensor, group_size: int) -> Tensor:
    """Which groups of adjacent samples do not all have the same score; scores [B] -> bool [B / group_size]."""
    groups = scores.view(-1, group_size)
    return groups.amax(dim=1) != groups.amin(dim=1)


def collect_varied(collect: Collect, *, num_groups: int, group_size: int, rounds: int) -> Responses:
    """Responses in ``num_groups`` groups, as many as can be of different scores, after at most ``1 + rounds`` draws.

    Groups stand in the order in which they were drawn, those that fill up come last.

    Metrics: ``redraw/rounds`` (draws after the first), ``redraw/equal_share`` (of all drawn groups), and
    ``redraw/filled_share`` (of the groups of the step: how many have equal scores after all). Seconds are summed over
    the draws; of other metrics the largest counts.
    """
    draws, is_varied = [collect(num_groups)], []
    while True:
        is_varied.append(varied_groups(draws[-1].scores, group_size))
        found = sum(int(x.sum()) for x in is_varied)
        if found == num_groups or len(draws) > rounds:
            break
        draws.append(collect(num_groups - found))
    drawn = torch.cat(is_varied)
    order = torch.argsort(drawn.byte(), descending=True, stable=True)[:num_groups]
    chosen = (order.unsqueeze(1) * group_size + torch.arange(group_size, device=order.device)).flatten()
    metrics = {
        "redraw/rounds": float(len(draws) - 1),
        "redraw/equal_share": 1 - float(drawn.float().mean()),
        "redraw/filled_share": 1 - found / num_groups,
    }
    joined = draws[0] if len(draws) == 1 else join_responses(draws)
    responses = joined if len(joined.samples) == len(chosen) else response_rows(joined, chosen)
    return replace(responses, metrics=responses.metrics | metrics)
