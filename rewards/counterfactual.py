"""The counterfactual reference: what the frozen model would write if it had to leave the memorised path.

As long as the response follows the true suffix, the true next token is forbidden, and the rest of the frozen model's
distribution is renormalised. Once the response has left the suffix, the reference is the frozen model itself. This is
the closed form of the KL-regularised optimum with the true token forbidden: to maximise -KL(p || q) subject to
p(y*) = 0 gives p(v) = q(v) / (1 - q(y*)). KL to this reference asks for forgetting and for fluency at once. KL to the
plain frozen model, in contrast, is largest exactly where the policy forgets.

This module knows nothing about rewards or about how the KL is used.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ppo.actor_critic import ActorCritic
from ppo.buffer import align, microbatches, trim
from ppo.config import Sampling
from ppo.lm.device import device_of
from ppo.lm.distribution import early_tokens, next_token_logprobs, pick
from ppo.lm.logprobs import response_positions
from ppo.types import Generation, Sample

NOTHING = -1  # in the place of a token where none is forbidden


class CounterfactualReference:
    """A ``ppo.types.Reference`` made from a frozen causal LM.

    sampling            the distribution that the policy samples from; it applies to this reference too
    forbidden_logprob   log-prob (nats) of a forbidden token; the true value is -inf, which no penalty can be made of
    suffix_key          column of the row with the true suffix as token ids; rows without it get the plain frozen model
    """

    def __init__(
        self,
        model: nn.Module,
        sampling: Sampling,
        *,
        forbidden_logprob: float = -20.0,
        suffix_key: str = "suffix_ids",
        chunk_tokens: int = 1024,
        batch_tokens: int = 8192,
    ) -> None:
        if not -1e4 < forbidden_logprob < 0:
            raise ValueError(f"forbidden_logprob={forbidden_logprob} must be negative and finite, for example -20 nats")
        self.model = model
        self.sampling = sampling
        self.forbidden_logprob = forbidden_logprob
        self.suffix_key = suffix_key
        self.chunk_tokens = chunk_tokens
        self.batch_tokens = batch_tokens
        self._backbone = ActorCritic(model, value_head=None).backbone

    @torch.no_grad()
    def logprobs(self, generation: Generation, samples: Sequence[Sample]) -> Tensor:
        """Log-probs of the response tokens under this reference, float32 [B, T], 0 on padding."""
        back, generation = generation.mask.device, generation.to(device_of(self.model))
        suffixes = [sample.row.get(self.suffix_key) or () for sample in samples]
        forbidden = forbidden_tokens(generation.tokens, suffixes)
        result = torch.zeros(generation.mask.shape, dtype=torch.float32, device=generation.mask.device)
        for indices in microbatches(generation.layout.attention_mask, tokens=self.batch_tokens):
            part = trim(generation.rows(indices))
            width = part.mask.shape[1]
            result[indices, :width] = self._part_logprobs(part, forbidden[indices, :width])
        return result.to(back)

    def _part_logprobs(self, generation: Generation, forbidden: Tensor) -> Tensor:
        mask = generation.action_mask
        aligned = align(generation)
        features = self._backbone(aligned.input_ids, aligned.attention_mask)
        rows = response_positions(features.before_logits, aligned.prompt_lengths, mask.shape[1])[mask]
        is_early = early_tokens(generation.mask, mask, self.sampling)
        tokens, banned = generation.tokens[mask], forbidden[mask]
        parts = []
        for start in range(0, rows.shape[0], self.chunk_tokens):
            part = slice(start, start + self.chunk_tokens)
            logits = forbid(self._backbone.output_layer(rows[part]).float(), banned[part])
            logprobs = next_token_logprobs(logits, self.sampling, is_early=is_early[part], keep=tokens[part])
            picked = pick(logprobs, tokens[part])
            parts.append(picked.masked_fill(tokens[part] == banned[part], self.forbidden_logprob))
        return torch.zeros(mask.shape, dtype=torch.float32, device=mask.device).masked_scatter(mask, torch.cat(parts))


def forbidden_tokens(tokens: Tensor, suffixes: Sequence[Sequence[int]]) -> Tensor:
    """The token forbidden at each response position, int64 [B, T]; -1 where none is.

    ``tokens`` [B, T] are the responses. At position t the true token suffix[t] is forbidden iff tokens[:t] equals
    suffix[:t]. Example: suffix 5 6 7, response 5 9 7 -> forbidden 5 6 -1.
    """
    truth = torch.full(tokens.shape, NOTHING, dtype=torch.long, device=tokens.device)
    for i, suffix in enumerate(suffixes):
        known = torch.as_tensor(list(suffix[: tokens.shape[1]]), dtype=torch.long, device=tokens.device)
        truth[i, : len(known)] = known
    follows = (tokens == truth).long().cumprod(dim=1)  # 1 up to and including position t
    follows_before = torch.cat([torch.ones_like(follows[:, :1]), follows[:, :-1]], dim=1).bool()
    return truth.masked_fill(~follows_before, NOTHING)


def forbid(logits: Tensor, forbidden: Tensor) -> Tensor:
    """Logits [N, V] with one token a row at -inf: ``forbidden`` int64 [N], -1 for none.

    The token is forbidden *before* the softmax: log(1 - q), computed from q itself, would lose all digits as q -> 1.
    """
    is_forbidden = forbidden.unsqueeze(-1) == torch.arange(logits.shape[-1], device=logits.device)
    return logits.masked_fill(is_forbidden, -torch.inf)
