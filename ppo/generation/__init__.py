"""Batched sampling from causal language models. It is exact and reproducible, and collects what PPO needs.

``generate`` is the only entrance. ``sampling.py`` draws tokens. ``engine.py`` is the fast path, for known families.
``hf/`` is the path for every other model.
"""

from .api import generate

__all__ = ["generate"]
