"""Batched sampling of causal language models: exact, reproducible, with what PPO needs gathered on the way.

``generate`` is the only entrance. ``sampling.py`` holds the draw, ``engine.py`` the fast path for known
families, ``hf/`` the path for every other model.
"""

from .api import generate

__all__ = ["generate"]
