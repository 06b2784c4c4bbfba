"""A model's files may name code that is somewhere else. None of it is fetched, and none is run.

``trust_remote_code=False`` and ``local_files_only=True`` do not close every door of transformers. With the package
``kernels`` installed, a config that names a way to compute attention, or a way of quantisation, makes it fetch compiled
code from the hub. So this module accepts a closed list of ways, and switches such fetching off while a model is built.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig
from transformers.integrations import hub_kernels
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

ATTENTIONS = {"eager": None, "sdpa": None, "flex_attention": None, "paged|eager": None,
              "flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}  # fmt: skip
"""Ways to compute attention, each with the package that it needs. Without it, transformers would ask the hub."""
EXPERTS = ("eager", "batched_mm", "grouped_mm")
QUANTISATIONS = ("gguf", "bitsandbytes", "bitsandbytes_4bit", "bitsandbytes_8bit", "gptq", "awq", "hqq", "quanto",
                 "compressed-tensors", "bitnet")  # fmt: skip
_MOST_CONFIGS = 100  # in one another


class ForeignCodeError(FileNotFoundError):
    """Code of the hub was asked for. Where transformers can do without, it takes this for a missing file."""


def check_config_code(config: Any) -> None:
    """Raise ValueError if a config, or one inside it, names a way of attention, experts or quantisation not listed."""
    for part in _configs(config):
        check_attention(getattr(part, "_attn_implementation", None))
        experts = getattr(part, "_experts_implementation", None)
        if experts is not None and experts not in EXPERTS:
            raise ValueError(_refusal("experts_implementation", experts, EXPERTS))
        quantisation = getattr(part, "quantization_config", None)
        if quantisation is None:
            continue
        fields = quantisation if isinstance(quantisation, Mapping) else vars(quantisation)
        method = getattr(fields.get("quant_method"), "value", fields.get("quant_method"))
        if method not in QUANTISATIONS:
            raise ValueError(_refusal("quant_method", method, QUANTISATIONS))


def check_attention(way: Any) -> None:
    """Raise ValueError for a way to compute attention that is not listed, or whose package is not installed.

    What this process has registered with ``transformers.AttentionInterface`` is known, too.
    """
    for one in way.values() if isinstance(way, dict) else [way]:
        if one is None or is_registered(one):
            continue
        if one not in ATTENTIONS:
            raise ValueError(_refusal("attn_implementation", one, ATTENTIONS))
        package = ATTENTIONS[one]
        if package is not None and importlib.util.find_spec(package) is None:
            raise ValueError(f"its config asks for attn_implementation={one!r}, which needs the package {package}")


def is_registered(way: Any) -> bool:
    """Whether a function of the user's own has this name, a new one or one of transformers' names."""
    return _is_own(ALL_ATTENTION_FUNCTIONS.get(way) if isinstance(way, str) else None)


def masks_are_registered(way: Any) -> bool:
    """Whether a function of the user's own makes the masks of a way to compute attention."""
    return _is_own(ALL_MASK_ATTENTION_FUNCTIONS.get(way) if isinstance(way, str) else None)


def _is_own(function: Any) -> bool:
    return function is not None and not str(getattr(function, "__module__", "")).startswith("transformers.")


def check_no_adapter(folder: Path) -> None:
    """Raise ValueError for a folder with an adapter: transformers would load another model, the one that it names."""
    if (folder / "adapter_config.json").exists():
        raise ValueError(
            "it holds a PEFT adapter: load the base model, put the adapter on it with peft, and give the result"
        )


def _refusal(name: str, value: Any, known: Any) -> str:
    return f"its config asks for {name}={value!r:.80}, which may bring foreign code; known are {', '.join(known)}"


def _configs(config: Any) -> Iterator[Any]:
    """A config and those inside it, at any depth."""
    waiting, seen = [config], 0
    while waiting:
        part = waiting.pop()
        seen += 1
        if seen > _MOST_CONFIGS:
            raise ValueError(f"its config holds more than {_MOST_CONFIGS} others")
        yield part
        waiting += [value for value in vars(part).values() if isinstance(value, PretrainedConfig)]


@contextmanager
def no_hub_kernels() -> Iterator[None]:
    """Within the context transformers gets no code from the hub through the package ``kernels``."""
    own = getattr(hub_kernels, "get_kernel", None)  # older versions have no such function

    def refuse(name: str, *_: Any, **__: Any) -> None:
        raise ForeignCodeError(f"code of the hub, {name!r:.80}, is not run")

    hub_kernels.get_kernel = refuse
    try:
        yield
    finally:
        if own is None:
            del hub_kernels.get_kernel
        else:
            hub_kernels.get_kernel = own
