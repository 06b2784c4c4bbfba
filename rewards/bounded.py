"""The bounded counterfactual reference: the original's distribution, with the true token no likelier than by chance.

In the state before a memorised token the original gives that token nearly everything. The reference takes it down to
its *chance level* b and renormalises the rest:

    q(y) = b,   q(e) = p(e) for an end e of text,   q(v) = p(v) (1 - b - sum of q(e)) / (1 - p(y) - sum of p(e))

It is a bound and no ban: at the chance level the policy has nothing more to gain. With b = 0 it is
:class:`rewards.counterfactual.CounterfactualReference`. Ends of text keep the original's own probability, because they
are no way out: where the true token leaves a hole, renormalising would let the text end in the middle. This module
knows logits and tokens, nothing about passages.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

LEAST_CHANCE = 1e-4  # a chance level below it would make the reward of one token endless
MOST_CHANCE = 0.999


def bounded_logprobs(logits: Tensor, truth: Tensor, chance: Tensor, *, end_ids: Sequence[int]) -> Tensor:
    """Log-probs of the reference, float32 [N, V], from the original's logits [N, V].

    ``truth`` int64 [N]: the true token of each state. ``chance`` float32 [N]: its chance level; a token that the
    original itself finds less likely keeps the original's probability.
    """
    place = truth.unsqueeze(-1)
    plain = torch.log_softmax(logits.float(), dim=-1)
    bound = torch.minimum(chance.clamp(LEAST_CHANCE, MOST_CHANCE), plain.gather(-1, place).squeeze(-1).exp())
    ends = [end for end in end_ids if end < logits.shape[-1]]
    is_end = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
    is_end[ends] = True
    is_end = is_end.expand_as(plain).scatter(-1, place, False)  # a true end is a true token
    kept_ends = plain.masked_fill(~is_end, -torch.inf)
    rest = plain.masked_fill(is_end, -torch.inf).scatter(-1, place, -torch.inf)
    left = 1 - bound.unsqueeze(-1) - kept_ends.logsumexp(dim=-1, keepdim=True).exp()
    rest = torch.log_softmax(rest, dim=-1) + left.clamp(min=torch.finfo(torch.float32).tiny).log()
    mixed = torch.where(is_end, kept_ends, rest)
    return mixed.scatter(-1, place, bound.clamp(min=torch.finfo(torch.float32).tiny).log().unsqueeze(-1))
