"""JensUn: the Jensen-Shannon divergence to a refusal, and to the original on text to keep.

Singh et al. 2025, "Unlearning That Lasts" (arXiv 2509.02820). Where the true answer stands, the target of token t is
all mass on token t of a refusal ("No idea", again and again along the suffix). The loss is the Jensen-Shannon
divergence of the model from it, which lies in [0, log 2]. On text to keep it is the divergence from the original's
distribution. The context is the true text, as in the authors' code (``src/trainer/utils.py`` of their repository,
nmndeep/JensUn-Unlearning).

Their released function puts mass 1 on *every* token of the refusal at once, which is no distribution when there are
two; this module has the one-hot target that their text describes. The mean is over the tokens of each passage.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ppo.lm.backbone import Backbone

from ..protocols import Passage
from .tokenwise import FrozenRetain, token_loss
from .training import StepLog, Stop, Training, pairs_of, train

DEFAULT = Training(retain_weight=1.0, retain_loss="kl", learning_rate=1e-4)


def unlearn(
    model: nn.Module,
    passages: Sequence[Passage],
    retain: Sequence[Sequence[int]],
    *,
    refusal: Sequence[int],
    generator: torch.Generator,
    training: Training = DEFAULT,
    stop: Stop | None = None,
) -> StepLog:
    """JensUn. Changes ``model``; returns the log.

    ``refusal``: token ids of what is to be said in place of the passage. The loss on text to keep is the divergence
    from the original, whatever ``training.retain_loss`` says. ValueError for an empty refusal.
    """
    if not refusal:
        raise ValueError("the refusal has no tokens: give a text that the tokenizer knows, such as ' No idea'")
    pairs = pairs_of(passages, training.scope)
    labels = [[refusal[t % len(refusal)] for t in range(len(tokens))] for _, tokens in pairs]
    own = None
    if training.retain_weight:
        original = copy.deepcopy(model).requires_grad_(False).eval()
        own = FrozenRetain(original, js_divergence, chunk_tokens=training.chunk_tokens)

    def forget_loss(backbone: Backbone, indices: list[int]) -> Tensor:
        chosen, targets = [pairs[i] for i in indices], [labels[i] for i in indices]
        return token_loss(backbone, chosen, js_to_token, chunk_tokens=training.chunk_tokens, labels=targets)

    return train(
        model, len(pairs), retain, forget_loss, training=training, generator=generator, stop=stop, retain_loss=own
    )


def js_to_token(logits: Tensor, tokens: Tensor) -> Tensor:
    """Jensen-Shannon divergence [N], in nats, of softmax(logits) [N, V] from all mass on ``tokens`` [N].

    With p the probability of the token it is log 2 + (p log p - (1 + p) log(1 + p)) / 2.
    """
    logp = torch.log_softmax(logits, dim=-1).gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    p = logp.exp()
    return math.log(2) + (p * logp - (1 + p) * torch.log1p(p)) / 2


def js_divergence(logits: Tensor, other_logits: Tensor, labels: Tensor) -> Tensor:
    """Jensen-Shannon divergence [N], in nats, of two distributions given as logits [N, V]. ``labels`` play no part."""
    one, other = torch.log_softmax(logits, dim=-1), torch.log_softmax(other_logits.detach(), dim=-1)
    middle = torch.logaddexp(one, other) - math.log(2)
    return ((one.exp() * (one - middle)).sum(dim=-1) + (other.exp() * (other - middle)).sum(dim=-1)) / 2
