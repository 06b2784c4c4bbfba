"""Defences at decoding time: they leave the model unchanged and change how text is generated.

DP decoding mixes the distribution with the uniform distribution (Majmudar et al. 2022). UL's code mixes the *logits*
with their mean instead, which only changes the temperature; that method has its own name here. MemFree decoding vetoes
every token that would complete a blocked n-gram (Ippolito et al. 2023, "Preventing Verbatim Memorization …", sec. 3).

Neither mixture changes the argmax. They therefore change samples, but not greedy extraction.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ppo.config import Sampling
from ppo.generation.api import evaluation_mode
from ppo.generation.requests import pad_left
from ppo.generation.sampling import draw, uniforms
from ppo.lm.backbone import Backbone, end_ids
from ppo.lm.distribution import early_steps
from ppo.types import Generation


class UniformMixture(nn.Module):
    """An output layer with the distribution lambda * q + (1 - lambda) / V: hidden [..., H] to log-probs [..., V]."""

    def __init__(self, output_layer: nn.Module, strength: float) -> None:
        super().__init__()
        self.output_layer = output_layer
        self.strength = strength
        self.in_features: Any = getattr(output_layer, "in_features", None)
        self.weight: Any = output_layer.weight

    def forward(self, hidden: Tensor) -> Tensor:
        return mixed_logprobs(self.output_layer(hidden).float(), self.strength)


class LogitMixture(nn.Module):
    """An output layer with the logits lambda * z + (1 - lambda) * mean(z): hidden [..., H] to logits [..., V]."""

    def __init__(self, output_layer: nn.Module, strength: float) -> None:
        super().__init__()
        self.output_layer = output_layer
        self.strength = strength
        self.in_features: Any = getattr(output_layer, "in_features", None)
        self.weight: Any = output_layer.weight

    def forward(self, hidden: Tensor) -> Tensor:
        logits = self.output_layer(hidden).float()
        return self.strength * logits + (1 - self.strength) * logits.mean(dim=-1, keepdim=True)


def mixed_logprobs(logits: Tensor, strength: float) -> Tensor:
    """log(lambda softmax(z) + (1 - lambda) / V) [..., V], computed in log space. ``strength`` is lambda."""
    logprobs = torch.log_softmax(logits, dim=-1)
    if strength == 1:
        return logprobs
    floor = torch.tensor((1 - strength) / logits.shape[-1], dtype=logits.dtype, device=logits.device).log()
    kept = logprobs + torch.tensor(strength, dtype=logits.dtype, device=logits.device).log()
    return torch.logaddexp(kept, floor)


@contextmanager
def dp_decoding(model: Any, *, strength: float) -> Iterator[None]:
    """Within the context the model's distribution is ``strength`` * q + (1 - ``strength``) / V; 1 changes nothing.

    The change affects every use of the model: generation, teacher forcing, perplexity. ValueError for a strength
    outside [0, 1], and for a model that transforms its logits after the output layer.
    """
    with _output_layer(model, UniformMixture, strength):
        yield


@contextmanager
def logit_mixing(model: Any, *, strength: float) -> Iterator[None]:
    """Within the context the model's logits are mixed with their mean, as UL's code does; 1 changes nothing.

    It acts as a temperature of 1 / ``strength``. ValueError as for :func:`dp_decoding`.
    """
    with _output_layer(model, LogitMixture, strength):
        yield


@contextmanager
def _output_layer(model: Any, mixture: type[UniformMixture] | type[LogitMixture], strength: float) -> Iterator[None]:
    if not 0 <= strength <= 1:
        raise ValueError(f"strength={strength!r} must lie in [0, 1]: it is the weight of the model's own distribution")
    if not Backbone(model).is_cut_before_logits:
        raise ValueError(
            f"{type(model).__name__} transforms its logits after the output layer: it cannot be mixed here"
        )
    layer = model.get_output_embeddings()
    model.set_output_embeddings(mixture(layer, strength))
    try:
        yield
    finally:
        model.set_output_embeddings(layer)


def logit_mixing_temperature(strength: float) -> float:
    """The temperature that equals mixing logits with their mean, lambda * z + (1 - lambda) * mean(z): 1 / lambda.

    The mean is one number for the whole vocabulary and cancels in the softmax. Use the result as
    ``Sampling.temperature``.
    """
    if not 0 < strength <= 1:
        raise ValueError(f"strength={strength!r} must lie in (0, 1]: 0 would be the uniform distribution")
    return 1 / strength


class MemFree:
    """MemFree decoding, called like ``ppo.generate``: no token may complete a blocked n-gram.

    ``blocked``: token sequences whose n-grams are vetoed (the passages to protect). The prompt counts as history, so an
    n-gram that starts in the prompt and ends in the response is vetoed too. If every token would be vetoed, none is:
    the model's own distribution is used.
    """

    def __init__(self, blocked: Sequence[Sequence[int]], *, n: int = 10) -> None:
        if n < 1:
            raise ValueError(f"n={n} must be at least 1")
        self.n = n
        self.vetoes: dict[tuple[int, ...], set[int]] = {}
        for sequence in blocked:
            for i in range(len(sequence) - n + 1):
                *history, last = sequence[i : i + n]
                self.vetoes.setdefault(tuple(history), set()).add(last)

    def can_write(self, prompt: Sequence[int], response: Sequence[int]) -> bool:
        """Whether no blocked n-gram ends inside the response. If one does, this decoding gives it probability 0."""
        ids = [*prompt, *response]
        ends = range(max(len(prompt), self.n - 1), len(ids))
        return not any(ids[i] in self.vetoes.get(tuple(ids[i - self.n + 1 : i]), ()) for i in ends)

    @torch.no_grad()
    def __call__(
        self, model: nn.Module, prompts: list[list[int]], sampling: Sampling, *, seed: int = 0, slots: int = 64
    ) -> Generation:
        """Responses in prompt-major order. ``slots`` sequences are decoded at once."""
        requests = [prompt for prompt in prompts for _ in range(sampling.num_samples)]
        numbers = uniforms(seed, range(len(requests)), sampling.response_length)
        device = next(model.parameters()).device
        prompt_ids, prompt_mask = pad_left(requests, device)
        shape = (len(requests), sampling.response_length)
        tokens = torch.zeros(shape, dtype=torch.long, device=device)
        logprobs, entropy = (torch.zeros(shape, dtype=torch.float32, device=device) for _ in range(2))
        mask = torch.zeros(shape, dtype=torch.bool, device=device)
        is_ended = torch.zeros(len(requests), dtype=torch.bool, device=device)
        result = Generation(prompt_ids, prompt_mask, tokens, mask, logprobs, entropy, is_ended)
        backbone = Backbone(model)
        with evaluation_mode(model):
            for start in range(0, len(requests), slots):
                self._decode(backbone, result, slice(start, start + slots), numbers.to(device), sampling)
        return result

    def _decode(self, backbone: Backbone, result: Generation, part: slice, numbers: Tensor, sampling: Sampling) -> None:
        """Fill the rows of ``part`` token by token. Finished rows stay in the batch and are ignored."""
        ends = end_ids(backbone.model) if sampling.eos_ids is None else sampling.eos_ids
        sampling = replace(sampling, eos_ids=ends)
        ids, mask, cache = result.prompt_ids[part], result.prompt_mask[part], None
        for t in range(result.tokens.shape[1]):
            features = backbone(ids, mask, cache=cache, use_cache=True)
            cache = features.cache
            logits = backbone.output_layer(features.before_logits[:, -1]).float()
            logits = self.veto(logits, result, part, t)
            steps = torch.full((len(logits),), t, device=logits.device)
            drawn = draw(logits, numbers[part, t], sampling, early_steps(steps, sampling))
            is_live = ~result.is_ended[part]
            result.tokens[part, t] = drawn.tokens * is_live
            result.mask[part, t] = is_live
            result.logprobs[part, t] = drawn.logprobs * is_live
            result.entropy[part, t] = drawn.entropy * is_live
            result.is_ended[part] |= torch.isin(drawn.tokens, torch.tensor(ends, device=mask.device)) & is_live
            if bool(result.is_ended[part].all()):
                break
            ids, mask = drawn.tokens.unsqueeze(1), torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)

    def veto(self, logits: Tensor, result: Generation, part: slice, t: int) -> Tensor:
        """The logits [N, V] with the vetoed tokens at -inf, given the first t response tokens of every row."""
        logits = logits.clone()
        rows = range(*part.indices(len(result)))
        for row, i in enumerate(rows):
            history = [*result.prompt_ids[i][result.prompt_mask[i]].tolist(), *result.tokens[i, :t].tolist()]
            vetoed = self.vetoes.get(tuple(history[len(history) - self.n + 1 :]), ())
            if 0 < len(vetoed) < logits.shape[-1]:
                logits[row, list(vetoed)] = -torch.inf
        return logits
