"""How the lab's twins are trained from scratch: tokenizer, architecture, token stream, optimiser.

Four twins see the same general English in the same order. *memorised* sees every record ``repeats`` times,
*without-forget* sees all but those to forget as often, *deduplicated* sees each once, and *retain-only* never.
Records are whole documents between pieces of general text, at any offset of a context window. This module takes texts
as arguments and does not know where they come from.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tokenizers
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import GPTNeoConfig, GPTNeoForCausalLM, PreTrainedTokenizerFast

from ppo.checkpoint import load_tensors, read_state, save_tensors, write_atomically

END = "<|endoftext|>"
TWINS = ("memorised", "deduplicated", "retain-only", "without-forget")


@dataclass(frozen=True)
class Recipe:
    """Every number of the training run. Lengths are in tokens."""

    seed: int = 7
    vocabulary: int = 2048
    width: int = 176
    layers: int = 4
    heads: int = 4
    context: int = 256
    local_window: int = 128
    epochs: int = 5  # over the general text
    repeats_per_epoch: int = 20  # of every record, for the memorised twin
    piece_tokens: int = 200  # general text is shuffled in pieces of about this length
    batch: int = 16  # windows a step
    learning_rate: float = 0.004  # AdamW: embeddings, biases, norms
    muon_learning_rate: float = 0.012  # Muon: the matrices inside the layers
    warmup_share: float = 0.05
    weight_decay: float = 0.1
    dropout: float = 0.0  # in training only; the stored config has none

    @property
    def repeats(self) -> int:
        """How often the memorised twin sees each record."""
        return self.epochs * self.repeats_per_epoch


def train_tokenizer(texts: Sequence[str], recipe: Recipe) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer with ``END`` as its only special token, id 0."""
    core = tokenizers.Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocabulary, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token=END, clean_up_tokenization_spaces=False)


def pieces(ids: Sequence[int], length_tokens: int) -> list[list[int]]:
    """A document cut into equal pieces of about ``length_tokens`` tokens. Nothing is dropped."""
    count = max(1, round(len(ids) / length_tokens))
    return [part.tolist() for part in np.array_split(np.asarray(ids, dtype=np.int64), count)]


def architecture(recipe: Recipe) -> GPTNeoConfig:
    """GPT-Neo with tied embeddings. Global and local attention layers alternate."""
    pairs, odd = divmod(recipe.layers, 2)
    attention = [[["global", "local"], pairs]] + ([[["global"], 1]] if odd else [])
    return GPTNeoConfig(
        vocab_size=recipe.vocabulary,
        hidden_size=recipe.width,
        num_layers=recipe.layers,
        num_heads=recipe.heads,
        attention_types=attention,
        max_position_embeddings=recipe.context,
        window_size=recipe.local_window,
        bos_token_id=0,
        eos_token_id=0,
        embed_dropout=recipe.dropout,
        resid_dropout=recipe.dropout,
        attention_dropout=0.0,
    )


def record_schedule(num_records: int, twin: str, recipe: Recipe) -> list[list[int]]:
    """The indices of each epoch's records, in any order. ValueError for an unknown twin.

    For *without-forget* the records to forget are left out of ``num_records`` already.
    """
    if twin in ("memorised", "without-forget"):
        return [list(range(num_records)) * recipe.repeats_per_epoch for _ in range(recipe.epochs)]
    if twin == "deduplicated":
        return [list(range(epoch, num_records, recipe.epochs)) for epoch in range(recipe.epochs)]
    if twin == "retain-only":
        return [[] for _ in range(recipe.epochs)]
    raise ValueError(f"twin={twin!r} must be one of {', '.join(TWINS)}")


def windows(general: Sequence[Sequence[int]], records: Sequence[Sequence[int]], recipe: Recipe, epoch: int) -> Tensor:
    """One epoch as shuffled context windows, int64 [windows, context]. Every document ends with id 0.

    The order of the general pieces is random and does not depend on the records.
    """
    random = np.random.default_rng([recipe.seed, epoch])
    places = random.random(len(general))
    record_places = random.random(len(records))
    documents = [*general, *records]
    order = np.argsort(np.concatenate([places, record_places]), kind="stable")
    stream = np.concatenate([np.array([*documents[index], 0]) for index in order])
    stream = np.roll(stream, -int(random.integers(recipe.context)))
    count = len(stream) // recipe.context
    table = stream[: count * recipe.context].reshape(count, recipe.context)
    return torch.from_numpy(table[random.permutation(count)]).long()


def learning_rate_scale(step: int, total_steps: int, recipe: Recipe) -> float:
    """Linear warm-up to 1, then linear decay to 0 at ``total_steps``."""
    warmup = max(1, round(recipe.warmup_share * total_steps))
    return min((step + 1) / warmup, (total_steps - step) / max(1, total_steps - warmup))


def make_optimizers(model: GPTNeoForCausalLM, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for embeddings, biases and norms.

    Each parameter group stores its highest learning rate as "peak". Raises ValueError for a torch without Muon.
    """
    if not hasattr(torch.optim, "Muon"):
        raise ValueError(
            f"the lab is trained by torch.optim.Muon, and torch {torch.__version__} has none: use torch 2.9"
        )
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and ".h." in name]
    inside = set(map(id, matrices))
    others = [p for p in model.parameters() if id(p) not in inside]
    result = [
        torch.optim.Muon(
            matrices,
            lr=recipe.muon_learning_rate,
            weight_decay=recipe.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(others, lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    for optimizer in result:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return result


def train(
    general: Sequence[Sequence[int]],
    records: Sequence[Sequence[int]],
    twin: str,
    recipe: Recipe,
    say: Callable[[str], None],
) -> GPTNeoForCausalLM:
    """Train one twin on general pieces and records (token ids). ``say`` gets about 20 progress lines."""
    schedule = record_schedule(len(records), twin, recipe)
    return fit(general, [[records[index] for index in chosen] for chosen in schedule], twin, recipe, say)


def fit(
    general: Sequence[Sequence[int]],
    epochs: Sequence[Sequence[Sequence[int]]],
    name: str,
    recipe: Recipe,
    say: Callable[[str], None],
    checkpoint: Path | None = None,
) -> GPTNeoForCausalLM:
    """Train from scratch. Every epoch mixes the general pieces with that epoch's own records.

    ``checkpoint``: a folder that is written about 20 times. When it holds a checkpoint, training resumes from it to the
    same bits.
    """
    torch.manual_seed(recipe.seed)
    model = GPTNeoForCausalLM(architecture(recipe)).train()
    tables = [windows(general, records, recipe, epoch) for epoch, records in enumerate(epochs)]
    batches = [batch for table in tables for batch in table.split(recipe.batch)]
    optimizers = make_optimizers(model, recipe)
    first = restore(checkpoint, model, optimizers) if checkpoint is not None else 0
    start, losses = time.perf_counter(), []
    for step, batch in enumerate(batches[first:], first):
        scale = learning_rate_scale(step, len(batches), recipe)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * scale
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(batch).logits
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), batch[:, 1:].flatten())
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        losses.append(loss.item())
        if (step + 1) % max(1, len(batches) // 20) == 0:
            rate = (step + 1 - first) * batch.numel() / (time.perf_counter() - start)
            mean = math.fsum(losses[-50:]) / len(losses[-50:])
            say(f"{name}: step {step + 1}/{len(batches)}, loss {mean:.3f}, {rate:.0f} tokens/s")
            if checkpoint is not None:
                save(checkpoint, model, optimizers, step + 1)
    return model.eval()


def save(folder: Path, model: GPTNeoForCausalLM, optimizers: Sequence[torch.optim.Optimizer], step: int) -> None:
    """Write the weights, the optimisers' moments and the number of steps done.

    If the process is killed meanwhile, either the old or the new checkpoint is whole.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}

    def fill(target: Path) -> dict[str, int]:
        save_tensors(target / "weights.safetensors", dict(model.named_parameters()))
        moments = {
            f"{names[parameter]}/{key}": torch.as_tensor(value)
            for optimizer in optimizers
            for parameter, state in optimizer.state.items()
            for key, value in state.items()
        }
        save_tensors(target / "optimizers.safetensors", moments)
        return {"step": step}

    write_atomically(folder, fill)


@torch.no_grad()
def restore(folder: Path, model: GPTNeoForCausalLM, optimizers: Sequence[torch.optim.Optimizer]) -> int:
    """Restore what :func:`save` wrote and return the steps done, 0 without a checkpoint. ValueError for damage."""
    if not folder.is_dir() and not folder.with_name(folder.name + ".old").is_dir():
        return 0
    folder, state = read_state(folder)
    weights = load_tensors(folder / "weights.safetensors")
    for name, parameter in model.named_parameters():
        parameter.copy_(weights[name])
    owners = {parameter: o for o in optimizers for group in o.param_groups for parameter in group["params"]}
    parameters = dict(model.named_parameters())
    for full_name, value in load_tensors(folder / "optimizers.safetensors").items():
        name, _, key = full_name.rpartition("/")
        owners[parameters[name]].state[parameters[name]][key] = value
    return int(state["step"])


def save_twin(model: GPTNeoForCausalLM, twin: str, folder: Path) -> None:
    """Write one twin as float16 safetensors, without the tied output layer, and the shared ``config.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.half() for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    save_file(tensors, folder / f"{twin}.safetensors", metadata={"format": "pt"})
    model.config.to_json_file(folder / "config.json")


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write ``tokenizer.json`` and a ``tokenizer_config.json`` that every release of transformers reads."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
