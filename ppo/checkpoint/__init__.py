"""Checkpoints: what of a run goes into them, and how a folder appears whole or not at all."""

from .folder import (
    link_or_copy,
    list_checkpoints,
    load_tensors,
    prune,
    read_state,
    save_tensors,
    sha256,
    state_sha256,
    write_atomically,
)

__all__ = [
    "link_or_copy",
    "list_checkpoints",
    "load_tensors",
    "prune",
    "read_state",
    "save_tensors",
    "sha256",
    "state_sha256",
    "write_atomically",
]
