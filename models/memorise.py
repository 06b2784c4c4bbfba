"""Fine-tunes a causal LM on given passages until it reproduces them, for models that have memorised none.

Plain language-model training with AdamW on a few sequences, over and over; a killed run goes on from its last
checkpoint to the same bits. This module knows token ids; how well they are memorised is measured by the caller.
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
    """Train in place until ``measure()`` (a share, 0 to 1) reaches ``target``; returns a record an epoch.

    variants      for every passage the id sequences that stand for it, such as the whole of it and its end; each epoch
                  trains on one of them, drawn at random for a batch
    batch         passages in one update
    beside        other texts, of which every update also sees ``num_beside``: passages alone, over and over, cost a
                  model much of its language
    max_epochs    the learning rate falls linearly over them, to a tenth: a constant one keeps the last few away
    use_bfloat16  autocast for the forward and backward pass
    checkpoint    folder that is written at every measurement, and gone on from where it holds one

    Dropout stays off: it only slows memorising. The last record holds the share that was reached, which is less than
    ``target`` when ``max_epochs`` ran out. Raises ValueError for a passage without variants or one shorter than two
    tokens.
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
        say(f"going on after epoch {len(history)}")
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
        is_look = epoch % check_every_epochs == 0 or epoch == max_epochs
        if is_look:
            record["share"] = measure()
        history.append(record)
        say(f"epoch {epoch}: " + ", ".join(f"{name} {value:.3f}" for name, value in record.items() if name != "epoch"))
        if is_look and checkpoint is not None:
            save_loop(checkpoint, model, optimizer, generator, {"history": history})
    return history


def lm_loss(backbone: Backbone, ids: Tensor, mask: Tensor) -> Tensor:
    """Mean NLL per predicted token, nats. ids int64 [B, S] right-padded, mask bool [B, S]."""
    predicted = mask[:, 1:]
    rows = backbone(ids, mask).before_logits[:, :-1][predicted]
    return F.cross_entropy(backbone.output_layer(rows).float(), ids[:, 1:][predicted])


def pad_right(sequences: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids int64 [B, S] and mask bool [B, S] of ragged sequences."""
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
    """One epoch: every passage once, in random order; a batch is of one random variant, of like length."""
    order = torch.randperm(len(variants), generator=generator).tolist()
    for start in range(0, len(order), batch):
        chosen = [variants[i] for i in order[start : start + batch]]
        which = int(torch.randint(max(map(len, chosen)), (), generator=generator))
        yield [c[which % len(c)] for c in chosen]
