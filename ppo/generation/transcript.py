"""What has been sampled so far, request by request; the one place where tokens are chosen and responses end.

An engine decides which requests advance together and computes their logits; it may take them in any order.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..types import Generation, ValueFn
from .requests import Requests
from .sampling import ban, draw


class Transcript:
    """Tokens, log-probs, entropy and values of R requests, [R, T], filled in as engines advance."""

    def __init__(self, requests: Requests, device: torch.device, value_fn: ValueFn | None) -> None:
        count, length = len(requests), requests.sampling.response_length
        self._requests = requests
        self._sampling = requests.sampling
        self._value_fn = value_fn
        self._eos = torch.tensor(requests.sampling.eos_ids, dtype=torch.long, device=device)
        self._uniforms = requests.uniforms.to(device)
        self._tokens = torch.zeros(count, length, dtype=torch.long, device=device)
        self._logprobs = torch.zeros(count, length, device=device)
        self._entropy = torch.zeros(count, length, device=device)
        self._values = torch.zeros(count, length, device=device) if value_fn is not None else None
        self._lengths = torch.zeros(count, dtype=torch.long, device=device)
        self._is_ended = torch.zeros(count, dtype=torch.bool, device=device)

    def advance(self, rows: Tensor, logits: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Choose the next token of the requests ``rows`` int64 [N] (each at most once).

        ``logits`` [N, V] are overwritten if float32; ``hidden`` [N, H] is what they were computed from and what the
        value function sees. Returns the tokens int64 [N] and which requests are now finished, bool [N].
        """
        logits, step = logits.float(), self._lengths[rows]
        if self._sampling.min_response_length and self._eos.numel():
            ban(logits, step < self._sampling.min_response_length, self._eos)
        drawn = draw(logits, self._uniforms[rows, step], self._sampling)
        self._tokens[rows, step] = drawn.tokens
        self._logprobs[rows, step] = drawn.logprobs
        self._entropy[rows, step] = drawn.entropy
        if self._values is not None and self._value_fn is not None:
            self._values[rows, step] = self._value_fn(hidden).float()
        is_finished = step + 1 >= self._sampling.response_length
        if self._eos.numel():
            is_eos = torch.isin(drawn.tokens, self._eos)
            self._is_ended[rows] = is_eos
            is_finished = is_finished | is_eos
        self._lengths[rows] = step + 1
        return drawn.tokens, is_finished

    @property
    def num_tokens(self) -> int:
        """Response tokens sampled so far."""
        return int(self._lengths.sum())

    def generation(self, metrics: dict[str, float]) -> Generation:
        """The finished batch in request order; T is the longest response that came about."""
        length = int(self._lengths.max())
        prompt_ids, prompt_mask = self._requests.padded_prompts(self._tokens.device)
        return Generation(
            prompt_ids=prompt_ids,
            prompt_mask=prompt_mask,
            tokens=self._tokens[:, :length].contiguous(),
            mask=torch.arange(length, device=self._tokens.device) < self._lengths.unsqueeze(-1),
            logprobs=self._logprobs[:, :length].contiguous(),
            entropy=self._entropy[:, :length].contiguous(),
            is_ended=self._is_ended,
            values=None if self._values is None else self._values[:, :length].contiguous(),
            metrics=metrics,
        )
