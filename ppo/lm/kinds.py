"""Which class of causal LM transformers builds from a config. This module reads no file and no weight."""

from __future__ import annotations

from typing import Any

import transformers
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM, PreTrainedModel


def class_of(config: Any) -> Any:
    """The class by the kind of config or, for the text part of a larger model (Emu3, Mllama), by the architecture.

    The name counts only for a class of transformers that takes this very kind of config. ``AutoModelForCausalLM``
    where there is neither: its error says what is missing.
    """
    if MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None) is not None:
        return AutoModelForCausalLM
    kinds = [getattr(transformers, name, None) for name in architectures(config)]
    return next((kind for kind in kinds if _takes(kind, config)), AutoModelForCausalLM)


def architectures(config: Any) -> list[str]:
    """The classes that a config names. ValueError where they are no list of names: config.json is a stranger's."""
    names = config.architectures or []
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"its config.json has architectures={names!r:.80}; it must be a list of names")
    return list(names)


def is_of_config(kind: type, config: Any) -> bool:
    """Whether transformers finds this class again from a config of it that was saved."""
    known = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    if known is not None:
        return known is kind
    return _takes(kind, config) and getattr(transformers, kind.__name__, None) is kind


def build(config: Any) -> Any:
    """The model of a config, with new weights."""
    kind = class_of(config)
    if kind is AutoModelForCausalLM:
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    return kind(config)


def _takes(kind: Any, config: Any) -> bool:
    is_model = isinstance(kind, type) and issubclass(kind, PreTrainedModel)
    return is_model and vars(kind).get("config_class") is type(config)
