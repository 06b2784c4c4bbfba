"""BERTScore with any Hugging Face encoder: greedy cosine matching of contextual embeddings.

Every token of one text is matched with the most similar token of the other. Recall averages over the reference's
tokens, precision averages over the candidate's tokens, and F = 2PR / (P + R) (Zhang et al. 2020, "BERTScore", eq. 1-3,
without idf). As in the bert-score package, special tokens have weight 0 in both averages, though they may be the best
match of a real token; and a text begins with a space where that is part of a tokenizer's first token (RoBERTa).

A *negative* BERTScore reward prefers gibberish, which has the lowest similarity. An empty text has F = 0, the best
score of all. Use guards with it. This module knows nothing about guards.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ppo.lm.backbone import first_position
from ppo.lm.device import resolve_device
from ppo.lm.hub import find
from ppo.lm.load import load_encoder
from ppo.types import Sample

from .bertscore_layers import known_layer
from .samples import truth_text


@dataclass(frozen=True)
class Matches:
    """Precision, recall and F of every pair, float32 [B] on the CPU."""

    precision: Tensor
    recall: Tensor
    f1: Tensor


class BertScore:
    """Scores pairs of texts with a loaded encoder.

    encoder        any module whose forward takes input_ids, attention_mask, output_hidden_states and returns
                   hidden_states
    tokenizer      the encoder's Hugging Face tokenizer
    name           the encoder's name in the signature
    layer          which hidden state to compare: 0 the embeddings, k the output of block k, negative from the end
    baseline       rescales every value x to (x - baseline) / (1 - baseline); each encoder and layer has its own
    max_tokens     texts are cut to this length, special tokens included, and to the encoder's own limit
    batch_size     texts encoded at once

    Raises ValueError for an encoder without the layer, and for a tokenizer that cannot pad.
    """

    def __init__(
        self,
        encoder: nn.Module,
        tokenizer: Any,
        *,
        name: str,
        layer: int = -1,
        baseline: float | None = None,
        max_tokens: int = 512,
        batch_size: int = 64,
    ) -> None:
        if baseline is not None and not baseline < 1:
            raise ValueError(
                f"baseline={baseline} must be below 1: values are rescaled to (x - baseline) / (1 - baseline)"
            )
        check_encoder(encoder, tokenizer, name=name, layer=layer)
        self.encoder = encoder.eval()
        self.tokenizer = tokenizer
        self.layer = layer
        self.baseline = baseline
        self.max_tokens = min(max_tokens, most_tokens(encoder, max_tokens))
        self.batch_size = batch_size
        self._start = " " if marks_a_space(tokenizer) else ""
        self.signature = f"bertscore|encoder:{name}|layer:{layer}|idf:no|baseline:{baseline}|match:greedy"

    @classmethod
    def load(
        cls, name: str, *, layer: int | None = None, baseline: float | None = None, device: str | torch.device = "auto"
    ) -> BertScore:
        """Load an encoder by hub id or folder, in float32. The paper's choice is microsoft/deberta-large, layer 16.

        A hub id may name a revision, as ``owner/name@revision``. ``layer``: None takes that of the bert-score package
        (:mod:`rewards.bertscore_layers`); for an encoder that it does not know, the last one, with a warning.
        ``device``: as in :func:`ppo.lm.device.resolve_device`. Raises ValueError of one line for a device or an encoder
        that is not there.
        """
        place = resolve_device(device)
        failure = f"encoder={name!r} cannot be loaded"
        remedy = "give a folder, or a hub id that this machine can reach"
        found = find(name, failure=failure, remedy=remedy)
        encoder, tokenizer = load_encoder(found.model(), failure=failure, remedy=remedy)
        encoder = encoder.to(place)
        if layer is None:
            layer = known_layer(found.name)
        if layer is None:
            layer = -1
            warnings.warn(f"no best layer of {name} is known, so its last one is compared: give layer=…", stacklevel=2)
        return cls(encoder, tokenizer, name=name, layer=layer, baseline=baseline)

    @torch.no_grad()
    def __call__(self, candidates: Sequence[str], references: Sequence[str]) -> Matches:
        """P, R and F of each candidate against its reference. An empty text gives 0 (before rescaling)."""
        if len(candidates) != len(references):
            raise ValueError(f"{len(candidates)} candidates but {len(references)} references")
        parts = [
            self._batch(candidates[i : i + self.batch_size], references[i : i + self.batch_size])
            for i in range(0, len(candidates), self.batch_size)
        ]
        precision, recall = (
            torch.cat([p[k] for p in parts]) if parts else torch.zeros(0, dtype=torch.float32, device="cpu")
            for k in (0, 1)
        )
        f1 = torch.where(precision + recall > 0, 2 * precision * recall / (precision + recall), 0.0)
        return Matches(*(self._rescale(x) for x in (precision, recall, f1)))

    def _batch(self, candidates: Sequence[str], references: Sequence[str]) -> tuple[Tensor, Tensor]:
        return greedy_match(*self._embed(candidates), *self._embed(references))

    def _embed(self, texts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Unit embeddings [B, S, H], attention mask [B, S], and the mask of tokens that count [B, S]."""
        encoded = self.tokenizer(
            [self._start + text.strip() if text.strip() else "" for text in texts],
            padding=True,
            truncation=True,
            max_length=self.max_tokens,
            return_special_tokens_mask=True,
            return_tensors="pt",
        )
        device = next(self.encoder.parameters()).device
        mask = encoded["attention_mask"].bool()
        counted = mask & ~encoded["special_tokens_mask"].bool()
        output = self.encoder(
            input_ids=encoded["input_ids"].to(device), attention_mask=mask.to(device), output_hidden_states=True
        )
        states = output.hidden_states
        if not -len(states) <= self.layer < len(states):
            raise ValueError(f"layer={self.layer} does not exist: the encoder has hidden states 0 … {len(states) - 1}")
        embeddings = nn.functional.normalize(states[self.layer].float(), dim=-1).cpu()
        return embeddings, mask, counted

    def _rescale(self, values: Tensor) -> Tensor:
        return values if self.baseline is None else (values - self.baseline) / (1 - self.baseline)


def check_encoder(encoder: nn.Module, tokenizer: Any, *, name: str, layer: int) -> None:
    """Raise ValueError for what could not score a batch: no such layer, or no token to pad with."""
    blocks = getattr(getattr(encoder, "config", None), "num_hidden_layers", None)
    if isinstance(blocks, int) and not -blocks - 1 <= layer <= blocks:
        raise ValueError(f"layer={layer} does not exist: the encoder {name} has hidden states 0 … {blocks}")
    if getattr(tokenizer, "pad_token", "given") is None:
        raise ValueError(
            f"the tokenizer of {name} has no pad token, so it makes no batch: set tokenizer.pad_token, for example "
            "to its eos_token"
        )


def marks_a_space(tokenizer: Any) -> bool:
    """Whether a first word has another token after a space: in byte-level tokenizers, such as GPT-2's and RoBERTa's."""
    tokenize = getattr(tokenizer, "tokenize", None)
    return tokenize is not None and any(token.startswith("Ġ") for token in tokenize(" a"))


def most_tokens(encoder: nn.Module, default: int) -> int:
    """How many tokens the encoder has positions for; ``default`` where its config names no number."""
    positions = getattr(getattr(encoder, "config", None), "max_position_embeddings", None)
    if not isinstance(positions, int) or positions <= 0:
        return default
    return positions - first_position(encoder)


def greedy_match(
    candidate: Tensor, candidate_mask: Tensor, candidate_counted: Tensor,
    reference: Tensor, reference_mask: Tensor, reference_counted: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Precision and recall [B] from unit embeddings [B, S, H] and [B, R, H].

    ``*_mask``: tokens that may be matched. ``*_counted``: tokens that enter the averages. When one side has no counted
    token, precision and recall are both 0.
    """
    similarity = candidate @ reference.transpose(1, 2)  # [B, S, R]
    allowed = candidate_mask.unsqueeze(2) & reference_mask.unsqueeze(1)
    similarity = similarity.masked_fill(~allowed, -1.0)  # the least a cosine can be
    precision = _mean(similarity.amax(dim=2), candidate_counted)
    recall = _mean(similarity.amax(dim=1), reference_counted)
    is_empty = ~(candidate_counted.any(dim=1) & reference_counted.any(dim=1))
    return precision.masked_fill(is_empty, 0.0), recall.masked_fill(is_empty, 0.0)


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    return (values * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


@dataclass(frozen=True)
class BertScoreMeasure:
    """Samples to |F| against the true suffix, as the paper uses it. |F| is in [0, 1] without a baseline."""

    score: BertScore

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        matches = self.score([s.text for s in samples], [truth_text(s) for s in samples])
        return matches.f1.abs().tolist()
