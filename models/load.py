"""Loading a causal language model with its tokenizer: the built-in lab, a Hugging Face folder, a GGUF file, a hub id.

Only safetensors weights are read, nothing is unpickled, and no code of a repository is run. Whatever cannot be loaded
is a ``ValueError`` of one line that names the model and the remedy. This module knows nothing about passages or
training.
"""

from __future__ import annotations

import importlib.util
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from models.lab.load import TWINS, load_twin

Loaded = TypeVar("Loaded")
LAB = "lab"
_LOADING_ERRORS = (
    OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, ImportError, RuntimeError, struct.error,
    SafetensorError,
)  # what a broken config, tokenizer, safetensors or GGUF file raises inside transformers  # fmt: skip


@dataclass(frozen=True)
class LoadedModel:
    """A causal LM in evaluation mode, its tokenizer, and the name it was asked for by."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    spec: str

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding: every token id lies below it."""
        return self.model.get_input_embeddings().weight.shape[0]

    @property
    def context(self) -> int | None:
        """Most tokens that fit into the model, None where it has no limit of its own."""
        return getattr(self.model.config, "max_position_embeddings", None)


def load(spec: str | Path, *, dtype: torch.dtype = torch.float32) -> LoadedModel:
    """Load ``spec`` with weights of ``dtype`` on the CPU.

    ``spec``: "lab" (the memorised twin), "lab:memorised", "lab:deduplicated", "lab:retain-only", a folder with a
    ``config.json``, a ``.gguf`` file (de-quantised; needs the extra ``gguf``), or a hub id such as
    "EleutherAI/gpt-neo-125m".
    """
    name = str(spec)
    path = Path(spec)
    if name == LAB or name.startswith(f"{LAB}:"):
        twin = name.partition(":")[2] or TWINS[0]
        return LoadedModel(*load_twin(twin, dtype=dtype), name)
    if path.suffix == ".gguf":
        return _from_gguf(path, dtype)
    if path.is_dir() and not (path / "config.json").is_file():
        raise ValueError(f"model folder {name} has no config.json; name a folder that save_pretrained wrote")
    return _from_hugging_face(name, dtype, is_local=path.is_dir())


def _from_hugging_face(name: str, dtype: torch.dtype, *, is_local: bool) -> LoadedModel:
    config = _explained(name, lambda: AutoConfig.from_pretrained(name, local_files_only=is_local))
    _check_causal(name, config)
    model, info = _explained(
        name,
        lambda: AutoModelForCausalLM.from_pretrained(
            name, config=config, dtype=dtype, use_safetensors=True, local_files_only=is_local, output_loading_info=True
        ),
    )
    tokenizer = _explained(
        f"the tokenizer of {name}", lambda: AutoTokenizer.from_pretrained(name, local_files_only=is_local)
    )
    return _checked(name, model, tokenizer, info["missing_keys"])


def _from_gguf(path: Path, dtype: torch.dtype) -> LoadedModel:
    if not path.is_file():
        raise ValueError(f"GGUF model {path} is not a file; check the path")
    if missing := [package for package in ("gguf", "accelerate") if importlib.util.find_spec(package) is None]:
        raise ValueError(f"GGUF model {path} needs the packages {' and '.join(missing)}: pip install gguf accelerate")
    name, folder, file = str(path), str(path.parent), path.name
    model, info = _explained(
        name,
        lambda: AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=file, dtype=dtype, local_files_only=True, output_loading_info=True
        ),
    )
    # The weights are plain now; with these left on it, save_pretrained refuses or writes a false claim.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    tokenizer = _explained(
        f"the tokenizer of {name}", lambda: AutoTokenizer.from_pretrained(folder, gguf_file=file, local_files_only=True)
    )
    return _checked(name, model, tokenizer, info["missing_keys"])


def _explained(name: str, action: Callable[[], Loaded]) -> Loaded:
    """Run a Hugging Face loader; what goes wrong becomes one line that names the model."""
    try:
        return action()
    except _LOADING_ERRORS as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ValueError(
            f"cannot load {name}: {reason}; give 'lab', a folder with safetensors weights, a .gguf file, or a hub id "
            "that this machine can reach"
        ) from error


def _check_causal(name: str, config: PretrainedConfig) -> None:
    """Refuse encoders and encoder-decoders, some of which would load as a causal LM with a wrong attention mask."""
    known = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    classes = config.architectures or []
    if getattr(config, "is_encoder_decoder", False) or (classes and known.isdisjoint(classes)):
        kind = ", ".join(classes) or config.model_type
        raise ValueError(f"{name} is no causal language model but {kind}; give a decoder such as GPT-Neo, OPT or Llama")


def _checked(
    name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, missing: list[str] | set[str]
) -> LoadedModel:
    if missing:
        raise ValueError(f"{name} lacks weights for {', '.join(sorted(missing)[:5])}; they would be random")
    loaded = LoadedModel(model.eval(), tokenizer, name)
    ids = tokenizer("The value of it", add_special_tokens=False)["input_ids"]
    if not tokenizer.decode(ids, skip_special_tokens=True):  # transformers makes an empty one where files are missing
        raise ValueError(f"the tokenizer of {name} encodes nothing; save the tokenizer's files next to the weights")
    if len(tokenizer) > loaded.vocab_size:
        raise ValueError(
            f"{name}: the tokenizer knows {len(tokenizer)} tokens, the model {loaded.vocab_size}; "
            "give the model with its own tokenizer"
        )
    return loaded
