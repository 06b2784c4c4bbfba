"""Loading a causal language model with its tokenizer: the built-in lab, a Hugging Face folder, a GGUF file, a hub id.

Safetensors and GGUF weights are read, or PyTorch's own as tensors only, and no code of a repository is run. A model
that cannot be loaded raises a ``ValueError`` of one line that names the model and the remedy. This module knows nothing
about passages or training.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from models.gguf_header import check_gguf, read_gguf_header
from models.lab.load import TWINS, load_twin
from ppo.io.console import shown_errors
from ppo.io.plain_files import check_plain_files, delete_links
from ppo.io.surrogates import without_surrogates
from ppo.lm.config_bounds import check_built
from ppo.lm.device import move, resolve_device
from ppo.lm.load import TOKENIZER_REMEDY, check_causal, check_tokenizer, check_weights, explained, load_pretrained

LAB = "lab"
_REMEDY = (
    "give 'lab', a folder with safetensors weights or a pytorch_model.bin, a .gguf file, or a hub id that this machine "
    "can reach"
)


@dataclass(frozen=True)
class LoadedModel:
    """A causal LM in evaluation mode, its tokenizer, and the name that it was loaded by."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    spec: str

    def on(self, device: str | torch.device) -> LoadedModel:
        """Move the model to "auto", "cpu", "cuda:1", … (:mod:`ppo.lm.device`). ValueError for a missing device."""
        move(self.model, resolve_device(device))
        return self

    def decode(self, ids: Sequence[int]) -> str:
        """Token ids as text without special tokens."""
        return without_surrogates(str(self.tokenizer.decode(ids, skip_special_tokens=True)))

    def save(self, folder: Path) -> None:
        """Write a plain Hugging Face folder with the model and the tokenizer."""
        delete_links(Path(folder))
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


@shown_errors()
def load(spec: str | Path, *, dtype: torch.dtype = torch.float32) -> LoadedModel:
    """Load ``spec`` with weights of ``dtype`` on the CPU.

    ``spec``: "lab" (the memorised twin), "lab:memorised", "lab:deduplicated", "lab:retain-only", "lab:without-forget",
    a folder with a ``config.json``, a ``.gguf`` file (de-quantised; needs the extra ``gguf``), or a hub id such as
    "EleutherAI/gpt-neo-125m".
    """
    name = str(spec)
    if name == LAB or name.startswith(f"{LAB}:"):
        twin = name.partition(":")[2] or TWINS[0]
        return LoadedModel(*load_twin(twin, dtype=dtype), name)
    if Path(spec).suffix.lower() == ".gguf":
        return _from_gguf(Path(spec), dtype)
    return LoadedModel(*load_pretrained(spec, dtype=dtype, remedy=_REMEDY), name)


def _from_gguf(path: Path, dtype: torch.dtype) -> LoadedModel:
    if not path.is_file():
        raise ValueError(f"GGUF model {path} is not a file; check the path")
    check_plain_files(path.parent)  # transformers looks for a config and a tokenizer beside it
    check_gguf(path)
    if missing := [package for package in ("gguf", "accelerate") if importlib.util.find_spec(package) is None]:
        raise ValueError(f"GGUF model {path} needs the packages {' and '.join(missing)}: pip install gguf accelerate")
    name, folder, file = f"model={str(path)!r}", str(path.parent), path.name
    explained(lambda: _check_config(path), failure=f"{name} cannot be loaded as a causal LM", remedy=_REMEDY)
    model, info = explained(
        lambda: AutoModelForCausalLM.from_pretrained(
            folder,
            gguf_file=file,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        ),
        failure=f"{name} cannot be loaded as a causal LM",
        remedy=_REMEDY,
    )
    # The weights are de-quantised now. With these attributes left, save_pretrained refuses or writes a false config.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    tokenizer = explained(
        lambda: AutoTokenizer.from_pretrained(folder, gguf_file=file, local_files_only=True, trust_remote_code=False),
        failure=f"the tokenizer of {name} cannot be loaded",
        remedy=TOKENIZER_REMEDY,
    )
    check_weights(info["missing_keys"], name=name)
    check_causal(model, name=name)
    check_tokenizer(tokenizer, model, name=name)
    return LoadedModel(model, tokenizer, str(path))


def _check_config(path: Path) -> None:
    """Raise ValueError when the header describes a larger model than the file holds."""
    config = AutoConfig.from_pretrained(
        str(path.parent), gguf_file=path.name, local_files_only=True, trust_remote_code=False
    )
    check_built(config, read_gguf_header(path).shapes, num_bytes=path.stat().st_size)
