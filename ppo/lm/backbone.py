"""Where a causal LM is cut in two: the part that gives hidden states, and the output layer.

Log-probs are computed from hidden states in chunks, so that a [B, T, V] tensor never exists. That needs the model in
two parts. Most models are ``output_layer(backbone(x))`` and nothing else. Some scale or squash their logits afterwards
(Gemma 2, Cohere, Granite). Those are cut after their logits instead: this costs memory, but the logits are right.
Tokens that the embedding has no row for are left out of the logits: nothing could be computed after one of them.

This module knows nothing about sampling, losses or value functions.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers.modeling_layers import GradientCheckpointingLayer

from .departures import departure

_LOGIT_TRANSFORMS = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier")


@dataclass(frozen=True)
class Features:
    """``hidden`` [B, S, H] feeds a value head; ``output_layer(before_logits)`` gives logits [B, S, V].

    If the model is cut before its output layer, both are the same tensor. ``cache`` is the model's own key/value
    cache, if the caller asked for one.
    """

    hidden: Tensor
    before_logits: Tensor
    cache: Any = None


class Backbone:
    """Calls a causal LM and returns its :class:`Features`. It holds no weights of its own.

    ``model`` may be any Hugging Face causal LM, or a PEFT model around one; see :func:`causal_lm` for the errors.
    """

    def __init__(self, model: nn.Module) -> None:
        inner = causal_lm(model)
        check_wrapper(model, inner)
        output_layer = inner.get_output_embeddings()
        self.model = inner
        base_model = getattr(inner, "base_model", inner)
        self.is_cut_before_logits = base_model is not inner and _is_plain_head(inner, base_model, output_layer)
        self._called: nn.Module = base_model if self.is_cut_before_logits else inner
        own = output_layer if self.is_cut_before_logits else _identity
        vocab = vocabulary_size(inner)
        self.hidden_size, width = _sizes(inner, output_layer)
        self.output_layer: Callable[[Tensor], Tensor] = own if width <= vocab else Readable(own, vocab)
        parameters = inspect.signature(self._called.forward).parameters
        self.accepts_positions = "position_ids" in parameters
        self.accepts_cache = "past_key_values" in parameters
        self.first_position = first_position(inner)
        self.short_length = short_length(inner)

    def __call__(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        *,
        position_ids: Tensor | None = None,
        cache: Any = None,
        use_cache: bool = False,
    ) -> Features:
        """Features of every position. ``input_ids`` int64 [B, S]; ``attention_mask`` bool [B, S + cached].

        Positions count real tokens only, so left padding changes nothing. Models without ``position_ids`` (ALiBi)
        compute positions from the mask.

        With "longrope" a longer sequence rotates all its positions in another way. A token was sampled when its own
        sequence was the whole one, so right-padded rows are computed twice: their first tokens as a short sequence.
        """
        short = self.short_length
        if short is None or input_ids.shape[1] <= short or cache is not None or not bool(attention_mask[:, 0].all()):
            return self._call(input_ids, attention_mask, position_ids=position_ids, cache=cache, use_cache=use_cache)
        early = None if position_ids is None else position_ids[:, :short]
        first = self._call(input_ids[:, :short], attention_mask[:, :short], position_ids=early)
        whole = self._call(input_ids, attention_mask, position_ids=position_ids, use_cache=use_cache)
        hidden = torch.cat([first.hidden, whole.hidden[:, short:]], dim=1)
        if self.is_cut_before_logits:
            return Features(hidden, as_input_of(self.output_layer, hidden), whole.cache)
        return Features(hidden, torch.cat([first.before_logits, whole.before_logits[:, short:]], dim=1), whole.cache)

    def _call(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        *,
        position_ids: Tensor | None = None,
        cache: Any = None,
        use_cache: bool = False,
    ) -> Features:
        arguments: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask.long()}
        if self.accepts_positions:
            if position_ids is None:
                position_ids = positions(attention_mask)[:, -input_ids.shape[1] :] + self.first_position
            arguments["position_ids"] = position_ids
        if self.accepts_cache and cache is not None:
            arguments["past_key_values"] = cache
        arguments["use_cache"] = use_cache
        if self.is_cut_before_logits:
            output = self._called(**arguments)
            hidden = output.last_hidden_state
            return Features(hidden, as_input_of(self.output_layer, hidden), getattr(output, "past_key_values", None))
        output, hidden = call_with_hidden(self.model, arguments)
        return Features(hidden, output.logits, getattr(output, "past_key_values", None))


class Readable:
    """An output layer without the logits of tokens from ``vocab`` on, which no embedding has a row for."""

    def __init__(self, output_layer: Callable[[Tensor], Tensor], vocab: int) -> None:
        self._output_layer = output_layer
        self.out_features = vocab

    def __call__(self, before_logits: Tensor) -> Tensor:
        """Logits [..., V] from what the layer takes."""
        return self._output_layer(before_logits)[..., : self.out_features]


def call_with_hidden(model: Any, arguments: Mapping[str, Any]) -> tuple[Any, Tensor]:
    """A whole model's output, and the states [B, S, H] that its output layer took.

    The last of transformers' ``hidden_states`` would be other states in some models: from before a last norm or
    projection, or several streams in a stack. They are taken if the output layer is not called as a module.
    """
    taken: list[Tensor] = []
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: taken.append(inputs[0]))
    try:
        output = model(output_hidden_states=True, **arguments)
    finally:
        hook.remove()
    return output, taken[-1] if taken else output.hidden_states[-1]


def positions(attention_mask: Tensor) -> Tensor:
    """Position ids that do not count padding: [0 0 1 1 1] -> [0 0 0 1 2]. int64, same shape as the mask."""
    return (attention_mask.long().cumsum(dim=-1) - 1).clamp(min=0)


def first_position(model: nn.Module) -> int:
    """The position id of a text's first token: 0, but ``pad_token_id`` + 1 for RoBERTa and its kin."""
    is_roberta = any(hasattr(module, "create_position_ids_from_input_ids") for module in model.modules())
    config: Any = model.config
    return int(config.pad_token_id) + 1 if is_roberta else 0


def as_input_of(output_layer: Any, hidden: Tensor) -> Tensor:
    """Hidden states in the dtype of the output layer's weight: Mamba's are in float32 also where its weights are not.

    Under autocast the layer casts by itself.
    """
    weight = getattr(output_layer, "weight", None)
    is_mixed = isinstance(weight, Tensor) and weight.is_floating_point() and weight.dtype != hidden.dtype
    if not is_mixed or torch.is_autocast_enabled(hidden.device.type):
        return hidden
    return hidden.to(cast(Tensor, weight).dtype)


def short_length(model: Any) -> int | None:
    """The most tokens that a "longrope" model rotates by its short factors, or None for every other model."""
    kinds = [getattr(module, "rope_type", None) for module in model.modules()]
    if "longrope" not in kinds:
        return None
    config = model.config.get_text_config()
    length = (getattr(config, "rope_parameters", None) or {}).get("original_max_position_embeddings")
    return int(length if length is not None else config.original_max_position_embeddings)


def _identity(logits: Tensor) -> Tensor:
    return logits


@torch.no_grad()
def _sizes(model: Any, output_layer: Any) -> tuple[int, int]:
    """How many states an output layer takes, and how many logits it gives; measured where nothing says so."""
    taken, given = (getattr(output_layer, f"{end}_features", None) for end in ("in", "out"))
    if taken is not None and given is not None:
        return int(taken), int(given)
    weight = getattr(output_layer, "weight", None)
    if isinstance(weight, Tensor):
        return int(weight.shape[-1]), int(weight.shape[0])
    with evaluation_mode(model):
        output, hidden = call_with_hidden(model, {"input_ids": probe_ids(model)})
    return int(hidden.shape[-1]), int(output.logits.shape[-1])


@torch.no_grad()
def _is_plain_head(model: Any, base_model: nn.Module, output_layer: nn.Module) -> bool:
    """Whether the logits are the output layer of the base model's last hidden state and nothing more.

    A hook or a forward of the model's own may act on what the probe does not show, so then the whole model is called.
    """
    if not is_split(model) and departure(model):  # split weights are called in step, by a forward put in its place
        return False
    for name in _LOGIT_TRANSFORMS:
        if getattr(model.config, name, None) not in (None, 1, 1.0):
            return False
    probe = probe_ids(model)
    with evaluation_mode(model):
        logits = model(input_ids=probe).logits
        hidden = base_model(input_ids=probe).last_hidden_state
        if hidden.shape[-1] != _sizes(model, output_layer)[0]:  # there is a projection between them
            return False
        rebuilt = output_layer(as_input_of(output_layer, hidden))
    return bool(torch.allclose(logits.float(), rebuilt.float(), rtol=1e-5, atol=1e-5))


def probe_ids(model: Any) -> Tensor:
    """Four tokens to try a model with, int64 [1, 4]; fewer if its context is shorter."""
    length = min(4, context_length(model) or 4)
    return torch.arange(length, device=next(model.parameters()).device).unsqueeze(0) % vocabulary_size(model)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Within the context dropout is off. Afterwards every module has its own training flag again."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, is_training in flags:
            module.training = is_training


@contextmanager
def swapped_forwards(modules: Sequence[nn.Module], make: Callable[[Any], Callable[..., Any]]) -> Iterator[None]:
    """Within the context every module's forward is ``make(its own forward)``. Afterwards it is its own again."""
    own = [vars(module).get("forward") for module in modules]
    for module in modules:
        module.forward = make(module.forward)
    try:
        yield
    finally:
        for module, own_forward in zip(modules, own, strict=True):
            if own_forward is None:
                del module.forward  # the class's own method shows again
            else:
                module.forward = own_forward


def unwrapped(model: nn.Module) -> Any:
    """The model inside the wrappers of PEFT and ``torch.compile``, or the model itself."""
    inner: Any = getattr(model, "_orig_mod", model)
    return getattr(inner.get_base_model(), "_orig_mod", inner.get_base_model()) if _is_wrapper(inner) else inner


def _is_wrapper(model: nn.Module) -> bool:
    return hasattr(model, "get_base_model")


@torch.no_grad()
def check_wrapper(wrapper: nn.Module, inner: nn.Module) -> None:
    """Raise ValueError for a wrapper whose own forward does something, such as prompt, prefix or p-tuning.

    The model inside it is what is called. A hook on the wrapper would never act, and a weight of its own may not. What
    acts is measured on a few tokens.
    """
    wrapper = getattr(wrapper, "_orig_mod", wrapper)
    if wrapper is inner or is_split(inner):
        return
    found = departure(wrapper)
    if found is None:
        with evaluation_mode(wrapper):
            found = _beyond(wrapper, inner)
    if found is not None:
        raise ValueError(
            f"{type(wrapper).__name__} has {found} acting outside the {type(inner).__name__} in it, and would be "
            "by-passed: prompt, prefix and p-tuning are of this kind; use an adapter inside the layers, such as LoRA"
        )


def _beyond(wrapper: nn.Module, inner: nn.Module) -> str | None:
    """What a wrapper does that the model in it does not, in words, or None."""
    probe, inside = probe_ids(inner), {id(p) for p in inner.parameters()}
    outside = {n: p for n, p in wrapper.named_parameters() if p.requires_grad and id(p) not in inside}
    with torch.set_grad_enabled(bool(outside)):
        called = inner(input_ids=probe).logits
        total = called.float().sum()
    if outside:
        gradients: Sequence[Tensor | None] = [None] * len(outside)
        if total.requires_grad:
            gradients = torch.autograd.grad(total, list(outside.values()), allow_unused=True)
        unused = [name for name, gradient in zip(outside, gradients, strict=True) if gradient is None]
        if unused:
            return f"weights such as {unused[0]}"
    if type(wrapper).forward is nn.Module.forward:  # it has none: a bag for a model and its adapter
        return None
    own = wrapper(input_ids=probe).logits
    is_same = own.shape == called.shape and torch.allclose(own.float(), called.float(), rtol=1e-5, atol=1e-5)
    return None if is_same else "parts"


def causal_lm(model: nn.Module) -> Any:
    """The causal LM itself, taken out of its PEFT wrapper if it has one. Its adapters are inside its layers and stay.

    Raises ValueError for a model without an output layer over its vocabulary, and for an encoder-decoder. An encoder
    with an output layer passes here; :func:`is_causal` tells it apart. ``torch.compile``'s wrapper is taken off too:
    the model is called in parts, which it did not compile.
    """
    inner = unwrapped(model)
    if not hasattr(inner, "get_output_embeddings") or inner.get_output_embeddings() is None:
        raise ValueError(f"{type(inner).__name__} is no causal LM: it has no output embeddings")
    if getattr(getattr(inner, "config", None), "is_encoder_decoder", False):
        raise ValueError(f"{type(inner).__name__} is no causal LM but an encoder-decoder; give a decoder such as GPT-2")
    return inner


@torch.no_grad()
def is_causal(model: nn.Module) -> bool:
    """Whether a token's logits depend on nothing after it.

    It is measured: the tokens after the first are changed, and the first token's logits must stay as they are. No
    config can tell: GPT-NeoX says ``is_decoder=False`` as BERT does, and a Llama can be told ``is_causal=False``.
    Rounding may move the first token's logits (routed experts multiply other batches). So they may move by 1e-4 of
    what the other logits move by, or by 4 units of the last place in half precision. A trained encoder moves them by
    more. Raises ValueError as :func:`causal_lm` does.
    """
    inner = causal_lm(model)
    vocab, ids = vocabulary_size(inner), probe_ids(inner)
    others = torch.cat([ids[:, :1], (ids[:, 1:] + vocab // 2) % vocab], dim=1)
    with evaluation_mode(inner):
        first, second = inner(input_ids=ids).logits, inner(input_ids=others).logits
    moved = (first.float() - second.float()).abs()
    tolerance = max(1e-4, 4 * torch.finfo(first.dtype).eps)
    return not bool(moved[:, 0].max() > tolerance * moved[:, 1:].max())  # nan passes: other checks find it


def blocks(model: nn.Module) -> list[Any]:
    """The repeated blocks of a model: those that transformers marks as such, else the children of its longest list."""
    marked = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    if marked:
        return [m for m in marked if not any(m is not o and m in set(o.modules()) for o in marked)]
    lists = [list(m) for m in model.modules() if isinstance(m, nn.ModuleList)]
    return max(lists, key=len, default=[])


def is_split(model: nn.Module) -> bool:
    """Whether this process holds only a part of some weights at the moment (:mod:`ppo.distributed.sharding`)."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def vocabulary_size(model: Any) -> int:
    """V: the number of ids that the input embedding has a row for."""
    return int(model.get_input_embeddings().weight.shape[0])


def context_length(model: Any) -> int | None:
    """The most tokens, prompt and response together, that may go into a model; None if it has no limit.

    What would happen to one token more decides:
    - A table of positions has no row for it, and the forward breaks: GPT-2, OPT, CTRL, and MPT, whose ALiBi bias is
      such a table. This is a limit.
    - Rotary positions can be computed for it but were never trained, so the log-probs are wrong without an error:
      Llama, GPT-NeoX, Falcon. This is a limit too.
    - ALiBi that is computed from the mask (BLOOM, Falcon with ``alibi``) and state-space models work as before. There
      is no limit, although Falcon's config names one in both cases.
    """
    config = model.config.get_text_config()
    if getattr(config, "alibi", False):
        return None
    for name in ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"):
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value - first_position(model)
    return None


def end_ids(model: Any) -> tuple[int, ...]:
    """The token ids that end a response, from the generation config or the config; () if there are none.

    Raises ValueError if a config names anything but whole numbers.
    """
    ids = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    if ids is None:
        ids = getattr(model.config, "eos_token_id", None)
    if ids is None:
        return ()
    listed = ids if isinstance(ids, (list, tuple)) else [ids]
    if not all(isinstance(i, int) for i in listed):
        raise ValueError(f"the model's config names eos_token_id={ids!r:.80}; it must be a token id or a list of them")
    # A config may name an EOS outside its own vocabulary. A token that cannot be sampled cannot end a response.
    return tuple(int(i) for i in listed if 0 <= int(i) < vocabulary_size(model))
