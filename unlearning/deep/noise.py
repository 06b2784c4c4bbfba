"""What a model says of a memorised passage once its memory is shaken: the same model with noise on its weights.

What was learned from one passage hangs on few weights just so. Language hangs on many. So a little noise takes the
passage and leaves the language: behind its true beginning the noisy model says of a true token about what it would say
of a stranger's. On 32 passages of the web that SmolLM2-135M had memorised, the log-probs rank the tokens as the model
before memorising does with 0.72 (Spearman), where three true tokens behind another passage reach 0.39.

The noise is Gaussian, in proportion to the deviation of each weight matrix. Its size is the one at which the passages
have become a little unlikely. Their mean is then raised to a power, so that it is that of a stranger's passage.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import nn

from eval.teacher import teacher_force

NUM_DRAWS = 8  # of the noise; their probabilities are averaged
SHAKEN = 1 / 6  # of a stranger's NLL: from there on less is left of the language than of the passages
FIRST_SIZE = 0.1  # of the noise, in deviations of a weight matrix
MOST_PASSAGES = 32  # that the search for the size looks at
_TOLERANCE = 1.25  # a factor
_MOST_TRIES = 8

Ids = Sequence[int]


def noisy_logprobs(model: nn.Module, passages: Sequence[Ids], *, nll: float, seed: int) -> list[np.ndarray]:
    """log p of every token under the noisy model, one float64 array a passage; 0 for the first token, which has none.

    It is the log of the mean probability over ``NUM_DRAWS`` draws. ``nll``: of a stranger's passage under the model,
    nats per token; the search for the size of the noise ends near ``SHAKEN`` of it. The model stays as it is.
    """
    shaken, weights = copy.deepcopy(model), list(_weights(model))
    targets = [target for _, target in _weights(shaken)]

    def draw(size: float, number: int, rows: Sequence[Ids]) -> list[np.ndarray]:
        generator = torch.Generator().manual_seed((seed * 1_000_003 + number) % 2**63)
        with torch.no_grad():
            for (scale, weight), target in zip(weights, targets, strict=True):
                noise = torch.randn(weight.shape, generator=generator).to(weight.device)
                target.copy_(weight + size * scale * noise)
        found = teacher_force(shaken, [list(row) for row in rows], has_moments=False)
        return [x.logprobs.astype(np.float64) for x in found]

    size = _size(lambda size: mean_nll(draw(size, 0, passages[:MOST_PASSAGES])), SHAKEN * nll)
    draws = [draw(size, number, passages) for number in range(NUM_DRAWS)]
    found = []
    for rows in zip(*draws, strict=True):
        logprobs = np.zeros(len(rows[0]))
        logprobs[1:] = np.logaddexp.reduce([row[1:] for row in rows], axis=0) - np.log(NUM_DRAWS)
        found.append(logprobs)
    return found


def _weights(model: nn.Module) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The deviation of each weight matrix but the embeddings', and the matrix itself."""
    embeddings = {id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    for weight in model.parameters():
        if weight.dim() > 1 and weight.is_floating_point() and id(weight) not in embeddings:
            yield weight.detach().float().std(), weight.detach()


def _size(nll_at: Callable[[float], float], aim: float) -> float:
    """The size of noise whose NLL is ``aim`` nats within a factor of ``_TOLERANCE``, or the nearest that was tried."""
    low, high, size = 0.0, np.inf, FIRST_SIZE
    tried: list[tuple[float, float]] = []
    for _ in range(_MOST_TRIES):
        found = max(nll_at(size), 1e-6)
        tried.append((abs(np.log(found / aim)), size))
        if tried[-1][0] <= np.log(_TOLERANCE):
            break
        low, high = (size, high) if found < aim else (low, size)
        size = 2 * low if high == np.inf else high / 2 if low == 0 else (low * high) ** 0.5
    return min(tried)[1]


def mean_nll(logprobs: Sequence[np.ndarray]) -> float:
    """Of all tokens but the first of each passage, nats."""
    return float(-np.concatenate([x[1:] for x in logprobs]).mean())
