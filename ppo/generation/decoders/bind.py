"""Finding the decoder for a model, and proving that it computes what the model computes.

The proof is a probe. Two prompts of different length run through prefill and a decoding step, and through the model's
own forward with left padding. A decoder that gives other logits is not used. PPO binds a model anew for every rollout,
so a proof is remembered as long as the model exists and consists of the same modules.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ...lm.backbone import is_split, positions
from ..attention import DecodeAttention, decode, prefill
from ..cache import KVCache
from ..requests import pad_left, pad_right
from ..transformer import Network
from . import gpt2, gpt_neo, gpt_neox, llama, opt
from .weights import Reader, Unsupported, is_stand_in

_PROBE = 9  # tokens; more if a window is shorter than the sequences to come
_PROVEN: WeakKeyDictionary[nn.Module, set[object]] = WeakKeyDictionary()  # a memo: only time depends on it
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 4e-2}


@torch.no_grad()
def bind(model: nn.Module, *, rows: int | None, length: int) -> Network | None:
    """The model as a :class:`Network` for ``rows`` sequences of at most ``length`` tokens.

    It is None for an unknown family, and if the weights are split among processes, so that none of them has the whole.
    ``rows=None`` leaves weights unpacked, as a compiled step needs them. Raises :class:`Unsupported` for a model of a
    known family that the decoder cannot reproduce, or does not.
    """
    inner: Any = model
    if hasattr(inner, "get_base_model"):  # PEFT's wrapper
        inner = inner.get_base_model()
    read = _reader_for(inner)
    if read is None or is_split(inner):
        return None
    kinds = {(parameter.dtype, parameter.device) for parameter in _own_parameters(inner)}
    if len(kinds) > 1:
        raise Unsupported("its weights differ in precision or device")
    dtype, _ = kinds.pop()
    if dtype not in _TOLERANCE:
        raise Unsupported(f"its weights are {dtype}")
    network = read(inner, Reader(rows, max(length, _PROBE), dtype))
    _prove(network, inner, length)
    return network


def _own_parameters(model: nn.Module) -> list[nn.Parameter]:
    """All parameters but those of adapters, which may be more precise than the weights that they are added to."""
    stand_ins = [module for module in model.modules() if is_stand_in(module)]
    inside = {id(parameter) for module in stand_ins for parameter in module.parameters()}
    return [parameter for parameter in model.parameters() if id(parameter) not in inside]


def _reader_for(model: nn.Module) -> Callable[[Any, Reader], Network] | None:
    """The reader for a model's exact class. A subclass may compute anything, so it has none."""
    if not type(model).__module__.startswith("transformers.models."):
        return None
    match type(model).__name__:
        case "GPT2LMHeadModel":
            return gpt2.read
        case "GPTNeoForCausalLM":
            return gpt_neo.read
        case "GPTNeoXForCausalLM":
            return gpt_neox.read
        case "OPTForCausalLM":
            return opt.read
        case "LlamaForCausalLM" | "MistralForCausalLM" | "Qwen2ForCausalLM" | "Qwen3ForCausalLM":
            return llama.read
    return None


def _prove(network: Network, model: nn.Module, length: int) -> None:
    """Raise :class:`Unsupported` unless prefill and decoding give the model's own logits. A proof is remembered."""
    rows = _probe_rows(network, length)
    make = _make(model)
    proof = None if make is None else (make, network.dtype, len(rows[0]))
    if proof is not None and proof in _PROVEN.get(model, ()):
        return
    ids, mask = pad_left(rows, network.device)
    own = model(input_ids=ids, attention_mask=mask.long(), position_ids=positions(mask), logits_to_keep=2)
    expected = own.logits.float()
    if not bool(torch.isfinite(expected).all()):
        return  # nothing can be proven about a broken model; sampling reports what is wrong with it
    actual = torch.unflatten(network.output(torch.cat(_probe(network, rows))).float(), 0, (2, -1)).transpose(0, 1)
    error = float((actual - expected).norm() / expected.norm())
    if not error <= _TOLERANCE[network.dtype]:
        raise Unsupported(f"the decoder's logits are not the model's own, relative error {error:.2g}")
    if proof is not None:
        _PROVEN.setdefault(model, set()).add(proof)


def _make(model: Any) -> object | None:
    """What decides what a model computes, apart from its weights: its config, its modules and their hooks.

    Hooks are told apart by their ids, which torch never gives twice. It is None if a module has a ``forward`` of its
    own in place of its class's: two of those cannot be told apart.
    """
    modules = list(model.named_modules())
    if any("forward" in module.__dict__ for _, module in modules):
        return None
    parts = [
        (name, type(module), tuple(module._forward_hooks), tuple(module._forward_pre_hooks)) for name, module in modules
    ]
    return model.config.to_json_string(use_diff=False), tuple(parts)


def _probe_rows(network: Network, length: int) -> list[list[int]]:
    """Two prompts with one more token each. They are longer than every window that hides anything."""
    windows = [block.window for block in network.blocks if block.window is not None and block.window < length]
    longest = max([_PROBE, *(window + 3 for window in windows)])
    if network.positions is not None:
        longest = min(longest, len(network.positions))
    if longest < 3:
        raise Unsupported(f"its context of {longest} tokens is too short to try the decoder out")
    vocab = len(network.embedding)
    return [[(index * 7919 + 3) % vocab for index in range(count)] for count in (longest, longest - 1)]


def _probe(network: Network, rows: list[list[int]]) -> list[Tensor]:
    """Hidden states after all tokens but the last (by prefill), and after the last one (by a decoding step)."""
    lengths = torch.tensor([len(row) - 1 for row in rows], device=network.device)
    block, first = prefill(network, pad_right([row[:-1] for row in rows], network.device), lengths)
    cache = KVCache(network, rows=len(rows), capacity=len(rows[0]))
    cache.reserve(len(rows[0]), 0)
    cache.insert(0, block, list(range(len(rows))), len(rows[0]) - 1)
    last = torch.tensor([row[-1] for row in rows], device=network.device)
    return [first, decode(network, DecodeAttention(network, cache), last, lengths)]
