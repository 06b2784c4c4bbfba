"""PPO-ptx: text that the policy should keep, mixed into every minibatch as a loss of its own.

"lm" is the language-model loss on the text (Ouyang et al. 2022, sec. 3.5). "kl" is KL(reference || policy) over the
whole vocabulary at every position of the text: it keeps what the reference predicts, not what the text says. This
module knows nothing about rewards, rollouts or optimisers.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence, Sized
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .config import Config
from .lm.adapters import adapter_off
from .lm.backbone import Backbone, context_length, vocabulary_size
from .lm.precision import as_statistics
from .prompts import read_texts


@dataclass(frozen=True)
class RetainBatch:
    """The text to keep that goes with one minibatch: ``ids`` int64 [R, L], right-padded, and ``mask`` bool [R, L]."""

    ids: Tensor
    mask: Tensor

    @property
    def num_predictions(self) -> int:
        """The number of predicted tokens: every real token but the first of each row."""
        return count_predictions(self.mask)

    def to(self, device: torch.device) -> RetainBatch:
        return RetainBatch(self.ids.to(device), self.mask.to(device))


class RetainTexts:
    """The texts to keep. Batches are drawn from them at random, with replacement.

    ``sequences``: token ids of any length, which are cut into pieces of at most ``length`` tokens. ``num_sequences``:
    R, the rows of a batch. ``generator`` (CPU) decides which pieces are drawn. A prediction needs two tokens; raises
    ValueError when no piece has them.
    """

    def __init__(
        self, sequences: Sequence[Sequence[int]], *, num_sequences: int, length: int, generator: torch.Generator
    ) -> None:
        pieces = (list(s[i : i + length]) for s in sequences for i in range(0, len(s), length))
        self.pieces = [piece for piece in pieces if len(piece) >= 2]
        if not self.pieces:
            raise ValueError(f"none of the {len(sequences)} retain texts has two tokens or more")
        self._num_sequences = num_sequences
        self._generator = generator

    def draw(self, device: torch.device) -> RetainBatch:
        """A random batch."""
        chosen = torch.randint(len(self.pieces), (self._num_sequences,), generator=self._generator, device="cpu")
        batch = [self.pieces[i] for i in chosen.tolist()]
        length = max(len(piece) for piece in batch)
        ids = torch.zeros(len(batch), length, dtype=torch.long, device="cpu")
        mask = torch.zeros(len(batch), length, dtype=torch.bool, device="cpu")
        for row, piece in enumerate(batch):
            ids[row, : len(piece)] = torch.tensor(piece, device="cpu")
            mask[row, : len(piece)] = True
        return RetainBatch(ids.to(device), mask.to(device))


class RetainLoss:
    """The loss on a batch of texts to keep.

    kind            "lm" or "kl"
    reference       a frozen model, which "kl" needs and "lm" does not use; raises ValueError where "kl" has none
    chunk_tokens    tokens that pass the output layer at once
    is_adapter_off  True switches the adapter of the reference off while it is asked, if it has one
    """

    def __init__(
        self,
        kind: Literal["lm", "kl"],
        *,
        reference: nn.Module | None,
        chunk_tokens: int,
        is_adapter_off: bool = True,
    ) -> None:
        if kind == "kl" and reference is None:
            raise ValueError("retain_loss='kl' needs a reference model")
        self.kind = kind
        self._reference = Backbone(reference) if reference is not None and kind == "kl" else None
        self._switched_off = reference if is_adapter_off else None  # its adapter is off while the reference is asked
        self._chunk_tokens = chunk_tokens

    def __call__(self, policy: Backbone, ids: Tensor, mask: Tensor, *, num_tokens: int) -> Tensor:
        """The loss summed over the predicted tokens of ``ids`` and divided by ``num_tokens``: a scalar, nats per token.

        ``ids`` int64 and ``mask`` bool [r, L] are some rows of a batch; ``num_tokens``: predicted tokens of all of it.
        They are best on the CPU, wherever the policy is: the host has to know which places are predicted.
        """
        device = next(policy.model.parameters()).device
        predicting = (mask[:, 1:] & mask[:, :-1]).cpu().nonzero().to(device).unbind(dim=1)
        ids, mask = ids.to(device), mask.to(device)
        targets = ids[:, 1:][predicting]
        ref_rows = None
        if self._reference is not None:
            with torch.no_grad(), self._adapter_off():
                ref_rows = self._reference(ids, mask).before_logits[predicting]
        rows = policy(ids, mask).before_logits[predicting]
        total = torch.zeros((), dtype=torch.float32, device=ids.device)
        for start in range(0, rows.shape[0], self._chunk_tokens):
            part = slice(start, start + self._chunk_tokens)
            ref_part = ref_rows[part] if ref_rows is not None else None
            total = total + checkpoint(self._chunk, policy, rows[part], targets[part], ref_part, use_reentrant=False)
        return total / num_tokens

    def _adapter_off(self) -> AbstractContextManager[None]:
        return adapter_off(self._switched_off) if self._switched_off is not None else nullcontext()

    def _chunk(self, policy: Backbone, rows: Tensor, targets: Tensor, ref_rows: Tensor | None) -> Tensor:
        logprobs = torch.log_softmax(as_statistics(policy.output_layer(rows)), dim=-1)
        if ref_rows is None or self._reference is None:
            return -logprobs.gather(-1, targets.unsqueeze(-1)).sum()
        with torch.no_grad(), self._adapter_off():
            ref_logprobs = torch.log_softmax(as_statistics(self._reference.output_layer(ref_rows)), dim=-1)
        apart = (ref_logprobs - logprobs).masked_fill(ref_logprobs == -torch.inf, 0.0)  # 0 · (-inf - -inf) is 0 here
        return (ref_logprobs.exp() * apart).sum()


def count_predictions(mask: Tensor) -> int:
    """The number of predicted tokens in a right-padded batch: every real token but the first of each row."""
    return int((mask[:, 1:] & mask[:, :-1]).sum())


def make_retain_texts(
    texts: Sequence[Any] | None, tokenizer: Any | None, model: nn.Module, config: Config, generator: torch.Generator
) -> RetainTexts | None:
    """The texts that a run keeps, or None where its config asks for none.

    Raises ValueError when texts are missing, have pieces longer than the model's context, or hold ids outside its
    vocabulary.
    """
    if config.retain_coef == 0:
        if texts is not None and not (isinstance(texts, Sized) and len(texts) == 0):
            warnings.warn("retain=… is not used: Config.retain_coef is 0", RuntimeWarning, stacklevel=3)
        return None
    if texts is None or (isinstance(texts, Sized) and len(texts) == 0):
        raise ValueError(f"retain_coef={config.retain_coef} needs texts: pass retain=[…] to the Trainer")
    pieces = [text.ids for text in read_texts(texts, tokenizer)]
    length, context, vocab = config.retain_tokens, context_length(model), vocabulary_size(model)
    longest = min(length, max(map(len, pieces)))
    if context is not None and longest > context:
        raise ValueError(f"Config.retain_tokens={length} exceeds the model's context of {context}: lower it")
    if wrong := [token for piece in pieces for token in piece if not 0 <= token < vocab]:
        raise ValueError(f"a retain text holds the id {wrong[0]}, which is none of the model's {vocab} tokens")
    return RetainTexts(pieces, num_sequences=config.retain_sequences, length=length, generator=generator)


def make_retain_loss(frozen: nn.Module | None, config: Config) -> RetainLoss | None:
    """The retain loss that a config asks for, or None. ``frozen``: the model as it was at the start."""
    if config.retain_coef == 0:
        return None
    return RetainLoss(
        config.retain_loss,
        reference=frozen,
        chunk_tokens=config.logprob_chunk_tokens,
        is_adapter_off=config.reference_adapter == "off",
    )
