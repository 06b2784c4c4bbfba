"""Finding the decoder for a model, and proving that it computes what the model computes.

First every module is asked what it is. A class from elsewhere, a hook, a parametrised weight or a replaced forward may
compute anything, so the decoder is not used. Then comes a probe. Two prompts of different length run through prefill
and a decoding step, and through the model's own forward with left padding. A decoder that gives other logits is not
used. PPO binds a model anew for every rollout, and nothing of this is remembered: weights that hid a difference may
have changed. Only the probe of a long window, which costs more, is remembered as long as the model consists of the same
modules.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ...lm.backbone import check_wrapper, is_split, positions, unwrapped, vocabulary_size
from ...lm.departures import departure, own_class
from ...lm.foreign_code import is_registered, masks_are_registered
from ..attention import DecodeAttention, Fed, decode, prefill
from ..cache import KVCache
from ..requests import pad_left, pad_right
from ..transformer import Network
from . import gpt2, gpt_neo, gpt_neox, llama, opt
from .weights import Reader, Unsupported, is_stand_in

_PROBE = 9  # tokens; more if a window is shorter than the sequences to come
_SHARED_CODE = ("transformers.activations", "transformers.pytorch_utils")
_PROVEN: WeakKeyDictionary[nn.Module, set[object]] = WeakKeyDictionary()  # a memo: only time depends on it
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 4e-2}


@torch.no_grad()
def bind(model: nn.Module, *, rows: int | None, length: int) -> Network | None:
    """The model as a :class:`Network` for ``rows`` sequences of at most ``length`` tokens.

    It is None for an unknown family, and if the weights are split among processes, so that none of them has the whole.
    ``rows=None`` leaves weights unpacked, as a compiled step needs them. Raises :class:`Unsupported` for a model of a
    known family that the decoder cannot reproduce, or does not.
    """
    inner = unwrapped(model)
    read = _reader_for(inner)
    if read is None or is_split(inner):
        return None
    kinds = {(parameter.dtype, parameter.device) for parameter in _own_parameters(inner)}
    if len(kinds) > 1:
        raise Unsupported("its weights differ in precision or device")
    dtype, _ = kinds.pop()
    if dtype not in _TOLERANCE:
        raise Unsupported(f"its weights are {dtype}")
    check_wrapper(model, inner)
    _check_modules(inner)
    network = _network(read, inner, Reader(rows, max(length, _PROBE), dtype))
    _prove(network, inner, length)
    return network


def _check_modules(model: Any) -> None:
    """Raise :class:`Unsupported` unless each module is of the model's own family, or torch's, and as it was made.

    Attention is a function outside the modules, which may look further back than the probe is long.
    """
    way = getattr(model.config, "_attn_implementation", None)
    if is_registered(way) or masks_are_registered(way):
        raise Unsupported(f"its attention {way!r} is a function of your own")
    inside: set[nn.Module] = set()
    for name, module in model.named_modules():
        if found := departure(module):
            raise Unsupported(f"its {name or type(model).__name__} has {found}")
        if is_stand_in(module):
            inside |= set(module.modules())
        if module not in inside and not _is_known(module, type(model).__module__):
            kind = type(module)
            raise Unsupported(f"it has a {kind.__module__}.{kind.__name__} as {name}, which its decoder does not know")


def _is_known(module: nn.Module, family: str) -> bool:
    """Whether a module's class, and its forward, come from the file of the family, or from what all families use."""
    kind = own_class(module)
    is_listed = kind.__module__ in (family, *_SHARED_CODE) or kind.__module__.startswith("torch.nn.modules.")
    return is_listed and kind.forward.__module__.startswith(("transformers.", "torch."))


def _network(read: Callable[[Any, Reader], Network], model: Any, reader: Reader) -> Network:
    """What the family's reader makes of a model. Raises :class:`Unsupported` where a part is missing or is cut down."""
    try:
        network = read(model, reader)
    except AttributeError as error:  # a plain layer stands where the family has a block, an attention or an MLP
        raise Unsupported(f"a part that its decoder reads is not there: {error}") from error
    width = (network.num_heads + 2 * network.num_kv_heads) * network.head_width
    if any(block.qkv.out_features != width for block in network.blocks):
        raise Unsupported("its layers differ in the number of heads")
    if network.output.out_features > vocabulary_size(model):
        raise Unsupported("its output layer knows tokens that its embedding does not")
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
    """Raise :class:`Unsupported` unless prefill and decoding give the model's own logits."""
    rows = _probe_rows(network, length)
    _compare(network, model, [row[: _PROBE - i] for i, row in enumerate(rows)])
    if len(rows[0]) <= _PROBE:
        return
    proof = (_make(model), network.dtype, len(rows[0]))
    if proof not in _PROVEN.get(model, ()) and _compare(network, model, rows):
        _PROVEN.setdefault(model, set()).add(proof)


def _compare(network: Network, model: nn.Module, rows: list[list[int]]) -> bool:
    """Whether the logits of two rows could be compared. Raises :class:`Unsupported` where they differ."""
    ids, mask = pad_left(rows, network.device)
    own = model(
        input_ids=ids, attention_mask=mask.long(), position_ids=positions(mask), logits_to_keep=2, use_cache=False
    )
    expected = own.logits.float()
    actual = torch.unflatten(network.output(torch.cat(_probe(network, rows))).float(), 0, (2, -1)).transpose(0, 1)
    size, distance, is_finite = torch.stack(
        [expected.norm(), (actual - expected).norm(), torch.isfinite(expected).all().float()]
    ).tolist()
    if not is_finite:
        return False  # nothing can be proven about a broken model; sampling reports what is wrong with it
    if size == 0:
        raise Unsupported("its logits are all 0, so they prove nothing")
    error = distance / size
    if not error <= _TOLERANCE[network.dtype]:
        raise Unsupported(f"the decoder's logits are not the model's own, relative error {error:.2g}")
    return True


def _make(model: Any) -> object:
    """What decides what a model computes, apart from its weights: its config and the classes of its modules."""
    parts = tuple((name, type(module)) for name, module in model.named_modules())
    return model.config.to_json_string(use_diff=False), parts


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
    lengths = [len(row) - 1 for row in rows]
    block, first = prefill(network, pad_right([row[:-1] for row in rows], network.device), lengths)
    cache = KVCache(network, rows=len(rows), capacity=len(rows[0]))
    cache.reserve(len(rows[0]), 0)
    cache.insert(0, block, list(range(len(rows))), len(rows[0]) - 1)
    last, positions = torch.tensor([[row[-1] for row in rows], lengths], device=network.device)
    fed = Fed(last, positions, positions, lengths)
    return [first, decode(network, DecodeAttention(network, cache), fed)]
