"""Fine-tune a causal LM on given passages until it reproduces them, for models that have not memorised any.

This is plain language-model training with AdamW on a few sequences for many epochs. A killed run resumes from its last
checkpoint to the same bits. This module knows only token ids; the caller measures how well they are memorised.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppo.checkpoint.loop import has_loop, restore_loop, save_loop
from ppo.lm.backbone import Backbone
from ppo.lm.precision import autocast

History = list[dict[str, float]]


def memorise(
    model: nn.Module,
    variants: Sequence[Sequence[Sequence[int]]],
    *,
    measure: Callable[[], float],
    target: float = 0.98,
    learning_rate: float = 1e-4,
    batch: int = 16,
    beside: Sequence[Sequence[int]] = (),
    num_beside: int = 0,
    max_epochs: int = 12,
    check_every_epochs: int = 2,
    use_bfloat16: bool = False,
    seed: int = 0,
    checkpoint: Path | None = None,
    say: Callable[[str], None] = print,
) -> History:
    """Train in place until ``measure()`` (a share, 0 to 1) reaches ``target``. Returns one record per epoch.

    variants      for every passage, the id sequences to train on, such as the whole passage and its end; every batch
                  draws which variant of its passages it uses
    batch         passages in one update
    beside        other texts; every update also trains on ``num_beside`` of them, because training on the passages
                  alone damages the model's language
    max_epochs    the learning rate falls linearly to about a tenth over these epochs; with a constant rate the last few
                  passages are not memorised
    check_every_epochs  epochs between two calls of ``measure``; the last epoch is always measured
    use_bfloat16  autocast to bfloat16 for the forward and backward pass
    checkpoint    folder written at every measurement; when it already holds a checkpoint, training resumes from it

    Dropout stays off, because it only slows memorising. The last record holds the share that was reached, which is less
    than ``target`` when ``max_epochs`` ran out. ValueError for a passage without variants, for a variant shorter than
    two tokens, and for ``num_beside`` above the number of texts.
    """
    for index, choices in enumerate(variants):
        if not choices or min(len(sequence) for sequence in choices) < 2:
            raise ValueError(f"passage {index} needs at least one variant, each of two tokens or more")
    if num_beside > len(beside):
        raise ValueError(f"num_beside={num_beside} is more than the {len(beside)} texts beside the passages")
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    backbone, device = Backbone(model), next(model.parameters()).device
    history: History = []
    if checkpoint is not None and has_loop(checkpoint):
        history = list(restore_loop(checkpoint, model, optimizer, generator)["history"])
        say(f"resuming after epoch {len(history)}")
    model.eval()
    while len(history) < max_epochs and (not history or history[-1].get("share", 0.0) < target):
        epoch = len(history) + 1
        losses = []
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * (1 - 0.9 * (epoch - 1) / max_epochs)
        for passages in _batches(variants, batch, generator):
            drawn = torch.randperm(len(beside), generator=generator)[:num_beside].tolist() if num_beside else []
            sequences = [*passages, *(beside[i] for i in drawn)]
            with autocast("bfloat16" if use_bfloat16 else "off", device):
                loss = lm_loss(backbone, *pad_right(sequences, device))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
        record = {"epoch": float(epoch), "loss": sum(losses) / len(losses)}
        is_measured = epoch % check_every_epochs == 0 or epoch == max_epochs
        if is_measured:
            record["share"] = measure()
        history.append(record)
        say(f"epoch {epoch}: " + ", ".join(f"{name} {value:.3f}" for name, value in record.items() if name != "epoch"))
        if is_measured and checkpoint is not None:
            save_loop(checkpoint, model, optimizer, generator, {"history": history})
    return history


def lm_loss(backbone: Backbone, ids: Tensor, mask: Tensor) -> Tensor:
    """Mean NLL per predicted token, nats. ids int64 [B, S] right-padded, mask bool [B, S]."""
    predicted = mask[:, 1:]
    rows = backbone(ids, mask).before_logits[:, :-1][predicted]
    return F.cross_entropy(backbone.output_layer(rows).float(), ids[:, 1:][predicted])


def pad_right(sequences: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Right-padded ids int64 [B, S] and mask bool [B, S] of sequences of any lengths."""
    length = max(len(sequence) for sequence in sequences)
    ids = torch.zeros(len(sequences), length, dtype=torch.long)
    mask = torch.zeros(len(sequences), length, dtype=torch.bool)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.tensor(list(sequence))
        mask[row, : len(sequence)] = True
    return ids.to(device), mask.to(device)


def _batches(
    variants: Sequence[Sequence[Sequence[int]]], batch: int, generator: torch.Generator
) -> Iterator[list[Sequence[int]]]:
    """One epoch: every passage once, in random order. A batch takes the same variant of all its passages.

    The same variant of different passages has a similar length, so that batches need little padding.
    """
    order = torch.randperm(len(variants), generator=generator).tolist()
    for start in range(0, len(order), batch):
        chosen = [variants[i] for i in order[start : start + batch]]
        which = int(torch.randint(max(map(len, chosen)), (), generator=generator))
        yield [c[which % len(c)] for c in chosen]
