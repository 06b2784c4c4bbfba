"""The fast decoders: from a Hugging Face causal LM to the shared fused step, one file a family."""

from .bind import bind
from .weights import Unsupported

__all__ = ["Unsupported", "bind"]
