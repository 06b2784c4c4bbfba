"""Loading: from a hub id, a folder or a model to a causal LM and its tokenizer, checked before any work is done.

A checkpoint can load without an error and still be no language model. Missing weights are filled with random numbers.
An encoder sees the tokens that it should predict. A tokenizer without its files encodes nothing. The checks are
functions of their own, for callers that load in another way. This module trains nothing.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import AutoModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from ..io.console import shown_errors, shown_warnings
from ..io.files import read_json
from ..io.visible import visible
from .backbone import Backbone, evaluation_mode, is_causal, probe_ids, unwrapped, vocabulary_size
from .config_bounds import MAX_CONFIG_BYTES, check_room, read_config
from .device import move, resolve_dtype
from .foreign_code import no_hub_kernels
from .hub import find
from .kinds import architectures, class_of
from .tokenizer_bounds import read_tokenizer

Loaded = TypeVar("Loaded")
REMEDY = "give a folder with safetensors weights or a pytorch_model.bin, or a hub id that this machine can reach"
TOKENIZER_REMEDY = "save the tokenizer's files next to the weights, or give a loaded model and its tokenizer"
_DECODER = "give a decoder such as GPT-Neo, OPT or Llama"


@shown_errors()
def load_model(
    model: str | Path | nn.Module,
    tokenizer: Any | None,
    *,
    device: torch.device | None = None,
    dtype: str | torch.dtype | None = None,
) -> tuple[Any, Any | None]:
    """(model, tokenizer): a loaded model, or a hub id or a folder by :func:`load_pretrained`.

    ``device``: where it goes, in place (:func:`ppo.lm.device.resolve_for`); None: it stays where it is, and a name on
    the CPU. ``dtype``: of a name's weights, float32 if None. A loaded model is never cast. ``torch.compile``'s wrapper
    is taken off: the model is called in parts, which it did not compile.

    Raises ValueError of one line for a model that is no causal LM or cannot be loaded as one, and for a loaded model
    of another ``dtype``.
    """
    wanted = None if dtype is None else resolve_dtype(dtype)
    if isinstance(model, nn.Module):
        loaded: Any = getattr(model, "_orig_mod", model)
        check_dtype(loaded, wanted)
        if device is not None:
            move(loaded, device)
        check_causal(loaded, name="the loaded model")
    else:
        loaded, tokenizer = load_pretrained(model, dtype=wanted or torch.float32, tokenizer=tokenizer)
        if device is not None:
            move(loaded, device)
    align(loaded)
    return loaded, tokenizer


def check_dtype(model: nn.Module, dtype: torch.dtype | None) -> None:
    """Raise ValueError for a loaded model with weights of another dtype: a cast in place would lose digits unasked."""
    found = sorted({str(p.dtype) for p in model.parameters() if p.is_floating_point()})
    if dtype is not None and found != [str(dtype)]:
        raise ValueError(
            f"dtype={str(dtype).removeprefix('torch.')!r} is for a name: the loaded model has weights in "
            f"{' and '.join(found)}; cast it before, model.to({dtype}), or leave dtype out"
        )


@shown_errors()
def load_pretrained(
    source: str | Path, *, dtype: torch.dtype = torch.float32, tokenizer: Any | None = None, remedy: str = REMEDY
) -> tuple[Any, Any]:
    """(model, tokenizer) of a folder or a hub id, both checked; weights of ``dtype`` on the CPU, in evaluation mode.

    Safetensors weights are read or, where there are none, PyTorch's own by ``weights_only`` loading, with a warning. No
    object is unpickled, and no code of a repository is run. For a folder the hub is never asked. A hub id may name a
    revision, as ``owner/name@revision`` (:mod:`ppo.lm.hub`). A given ``tokenizer`` is used as it is. Raises ValueError
    of one line that names the model and a remedy (``remedy``, if no more exact one is known).
    """
    name = f"model={str(source)!r}"
    folder = _folder(source, name=name, remedy=remedy)
    model = _causal(folder, name=name, dtype=dtype, remedy=remedy)
    if tokenizer is None:
        tokenizer = explained(
            lambda: read_tokenizer(folder),
            failure=f"the tokenizer of {name} cannot be loaded",
            remedy=TOKENIZER_REMEDY,
        )
        check_tokenizer(tokenizer, model, name=name)
    return model, tokenizer


@shown_errors()
def load_causal(source: str | Path, *, dtype: torch.dtype = torch.float32, remedy: str = REMEDY) -> Any:
    """The model alone, as :func:`load_pretrained` loads it. It is for a folder without a tokenizer."""
    name = f"model={str(source)!r}"
    return _causal(_folder(source, name=name, remedy=remedy), name=name, dtype=dtype, remedy=remedy)


def _folder(source: str | Path, *, name: str, remedy: str) -> Path:
    """The folder of a causal LM. Of a hub id the config comes first, so that no weights are downloaded in vain."""
    if not isinstance(source, str | Path):
        raise ValueError(f"{name:.80} must be a loaded causal LM (an nn.Module), a folder or a hub id")
    if Path(source).is_dir():
        if not (Path(source) / "config.json").is_file():
            raise ValueError(f"{name} is a folder that has no config.json; name a folder that save_pretrained wrote")
        return Path(source)
    found = find(source, failure=_failure(name), remedy=remedy)
    first = found.files("config.json")
    check_config(explained(lambda: _written_config(first), failure=_failure(name), remedy=remedy), name=name)
    return found.model()


def _failure(name: str) -> str:
    return f"{name} cannot be loaded as a causal LM"


def _causal(folder: Path, *, name: str, dtype: torch.dtype, remedy: str) -> Any:
    failure = _failure(name)
    config = explained(lambda: read_config(folder), failure=failure, remedy=remedy)
    check_config(config, name=name)
    explained(lambda: check_room(config, folder), failure=failure, remedy=remedy)
    is_safe = any(folder.glob("*.safetensors"))
    if not is_safe:
        warnings.warn(f"{name} has no safetensors file: its pytorch_model.bin is read, tensors only", stacklevel=4)
    model, info = explained(
        lambda: class_of(config).from_pretrained(
            folder, config=config, dtype=dtype, use_safetensors=is_safe, weights_only=True, local_files_only=True,
            trust_remote_code=False, output_loading_info=True,
        ),
        failure=failure,
        remedy=remedy,
    )  # fmt: skip
    check_weights(info["missing_keys"], name=name)
    check_causal(model, name=name)
    return model


def load_encoder(folder: Path, *, failure: str, remedy: str) -> tuple[Any, Any]:
    """(encoder, tokenizer) of a folder, in float32 on the CPU, by the rules of :func:`load_pretrained`.

    Raises ValueError of one line: ``failure``, the reason, ``remedy``.
    """
    config = explained(lambda: read_config(folder), failure=failure, remedy=remedy)
    encoder = explained(
        lambda: AutoModel.from_pretrained(
            folder, config=config, dtype=torch.float32, use_safetensors=any(folder.glob("*.safetensors")),
            weights_only=True, local_files_only=True, trust_remote_code=False,
        ),
        failure=failure,
        remedy=remedy,
    )  # fmt: skip
    tokenizer = explained(
        lambda: read_tokenizer(folder),
        failure=failure,
        remedy=TOKENIZER_REMEDY,
    )
    return encoder, tokenizer


def _written_config(folder: Path) -> SimpleNamespace:
    """The fields that :func:`check_config` reads, from config.json alone."""
    written = read_json(folder / "config.json", max_bytes=MAX_CONFIG_BYTES)
    if not isinstance(written, dict):
        raise ValueError("its config.json holds no object")
    kinds = written.get("architectures")
    return SimpleNamespace(
        architectures=[kind for kind in kinds if isinstance(kind, str)] if isinstance(kinds, list) else [],
        is_encoder_decoder=bool(written.get("is_encoder_decoder")),
        model_type=written.get("model_type"),
    )


def explained(action: Callable[[], Loaded], *, failure: str, remedy: str) -> Loaded:
    """Run a Hugging Face loader. Any error in it becomes a ValueError of one line: failure, reason, remedy.

    For a broken config, tokenizer, safetensors or GGUF file a loader may raise any kind of error; ``tokenizers``
    raises a bare Exception. Compiled code of the hub is not run meanwhile (:mod:`ppo.lm.foreign_code`), and names in
    the loader's warnings are shown as what they are.
    """
    try:
        with no_hub_kernels(), shown_warnings():
            return action()
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ValueError(f"{failure}: {reason}; {remedy}") from error


def check_config(config: Any, *, name: str) -> None:
    """Raise ValueError if a config says that the weights are those of an encoder, a classifier or a T5.

    It reads the saved architecture, so that no weights are downloaded in vain. Upper and lower case count as equal:
    ``MPTForCausalLM`` on the hub is ``MptForCausalLM`` in transformers.
    """
    known = {kind.lower() for kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()}
    try:
        kinds = architectures(config)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    if getattr(config, "is_encoder_decoder", False) or (kinds and known.isdisjoint(kind.lower() for kind in kinds)):
        kind = visible(", ".join(kinds) or str(config.model_type))[:200]
        raise ValueError(f"{name} is no causal LM but {kind}; {_DECODER}")


def check_trainable(model: nn.Module) -> None:
    """Raise ValueError for a model of which no weight is trained, or whose passes for training end in an error.

    A few tokens are passed forward and back, as far as to the first vector of weights that is trained. A weight that
    holds NaN is an error, too, and so are states that are not finite.
    """
    if torch.is_inference_mode_enabled():
        raise ValueError("inside torch.inference_mode() nothing can be trained: leave it before you make a Trainer")
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise ValueError(
            f"none of the weights of this {type(model).__name__} requires a gradient, so nothing would be trained: "
            "call model.requires_grad_(True), or add an adapter (PEFT's merge_and_unload leaves every weight frozen)"
        )
    for name, parameter in model.named_parameters():
        if bool(parameter.isnan().any()):
            raise ValueError(f"the weight {name} holds NaN before any training: give a model that is whole")
    early = next((p for p in trained if p.dim() == 1), trained[0])

    def passes() -> None:
        backbone = Backbone(model)
        ids = probe_ids(backbone.model)
        features = backbone(ids, torch.ones_like(ids, dtype=torch.bool))
        if not bool(features.hidden.isfinite().all()):
            raise ValueError("its states are not finite before any training")
        torch.autograd.grad(features.hidden.sum(), early, allow_unused=True)

    with evaluation_mode(model), torch.enable_grad():
        explained(
            passes,
            failure=f"this {type(unwrapped(model)).__name__} cannot be trained",
            remedy="give a model that can be trained as it is, with its dropout off",
        )


@torch.no_grad()
def align(model: nn.Module) -> None:
    """Move weights on the CPU to addresses that are multiples of 64, as new tensors have; mapped files give others.

    Products of one row round otherwise there, so a resumed run would not go on to the same bits.
    """
    unique = {id(t): t for t in [*model.parameters(), *model.buffers()]}.values()
    tensors = [t for t in unique if t.device.type == "cpu" and not isinstance(t, DTensor)]
    places = Counter(t.data_ptr() for t in tensors)
    for tensor in tensors:
        if tensor.data_ptr() % 64 and places[tensor.data_ptr()] == 1:  # two tensors in one place stay together
            tensor.data = tensor.data.clone()


def check_weights(missing: Collection[str], *, name: str) -> None:
    """Raise ValueError if a checkpoint lacked weights. ``missing`` are their names (transformers' ``missing_keys``)."""
    if missing:
        raise ValueError(
            f"{name} lacks weights for {', '.join(sorted(missing)[:5])}; they would be random: name a whole checkpoint"
        )


def check_causal(model: nn.Module, *, name: str) -> None:
    """Raise ValueError for a loaded model that is no causal LM, that sees later tokens, or that cannot be run."""
    inner = getattr(model, "module", None)
    if isinstance(inner, nn.Module) and not hasattr(model, "config"):
        raise ValueError(
            f"{name} is a {type(model).__name__} around a {type(inner).__name__}: pass its .module; several processes "
            "share the work by themselves under torchrun"
        )
    if not explained(lambda: is_causal(model), failure=f"{name} cannot be run", remedy="is its config its own?"):
        raise ValueError(
            f"{name} is no causal LM: this {type(model).__name__} lets a token see the tokens after it, as an encoder "
            f"does (is its config.is_decoder False?); {_DECODER}"
        )


def check_tokenizer(tokenizer: Any, model: Any, *, name: str) -> None:
    """Raise ValueError for a tokenizer that encodes nothing, or that has more tokens than ``model``."""
    # If a tokenizer's files are missing, transformers makes one that has the special tokens and no others.
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        raise ValueError(f"the tokenizer of {name} encodes nothing; {TOKENIZER_REMEDY}")
    explained(
        lambda: [int(i) for i in tokenizer("a b", add_special_tokens=False)["input_ids"]],
        failure=f"the tokenizer of {name} cannot encode",
        remedy=TOKENIZER_REMEDY,
    )
    if len(tokenizer) > vocabulary_size(model):
        raise ValueError(
            f"{name}: the tokenizer knows {len(tokenizer)} tokens, the model {vocabulary_size(model)}; "
            "give the model with its own tokenizer"
        )
