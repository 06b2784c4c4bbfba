"""Responses that were sampled elsewhere: :func:`given_responses`, which lives in :mod:`ppo.compat.given`."""

from .compat.given import given_responses

__all__ = ["given_responses"]
