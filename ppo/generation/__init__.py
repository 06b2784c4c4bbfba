"""Batched sampling of causal language models: exact, reproducible, with what PPO needs gathered on the way.

``generate`` is the only entrance. ``sampling.py`` holds the mathematics, ``engine.py`` the fast path for known
families, ``hf.py`` the path for every other model.
"""

from .api import generate
from .sampling import filter_logits

__all__ = ["filter_logits", "generate"]
