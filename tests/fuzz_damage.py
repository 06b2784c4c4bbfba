"""The damage that tests/fuzz.py does to good files: bytes, JSON nodes and tensors, changed by a seeded generator.

This module knows no loader, and no format but JSON and safetensors.
"""

from __future__ import annotations

import copy
import json
import random
import struct
from pathlib import Path
from typing import Any

import torch

from ppo.checkpoint import sha256, state_sha256

BITS = [
    b"../", b"../../etc/passwd", b"/etc/passwd", b"\x00", b"\xff\xfe", b"\xc3\x28", b"NaN", b"Infinity", b"1e999",
    b"-1",
    b"9" * 5000, b"1000000000000", b"[" * 3000, b'{"a":' * 3000, b"null", b"true", b'"', b"'", b",", b"\r", b"\n",
    b"\xe2\x80\xa8", b"<script>", b"\xff" * 8, b"\x7f" + b"\xff" * 7, struct.pack("<Q", 10**9),
    struct.pack("<I", 2**31),
]  # fmt: skip
VALUES: list[Any] = [
    None, True, -1, 0, 1, 2**63, 10**30, 1e308, float("nan"), "", "../x", "\x00", "cpu", "meta", "float16", "load", [],
    "\x1b[2J\u202ex\n", {}, [[]], {"a": []}, "x" * 10_000, [0] * 1000, [1], ["q"], "(.|.)*!",
]  # fmt: skip


def damaged(good: bytes, rng: random.Random) -> bytes:
    """The bytes of a good file with one to four changes."""
    content = bytearray(good)
    for _ in range(rng.randint(1, 4)):
        place, length = rng.randrange(len(content) + 1), rng.randint(1, 40)
        kind = rng.randrange(7)
        if kind == 0 and content:
            content[min(place, len(content) - 1)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del content[place:]
        elif kind == 2:
            del content[place : place + length]
        elif kind == 3:
            content[place:place] = rng.choice(BITS)
        elif kind == 4:
            content[place : place + length] = rng.choice(BITS)
        elif kind == 5:
            content[place:place] = content[max(place - length, 0) : place]
        else:
            content[place : place + length] = rng.randbytes(length)
    return bytes(content)


def changed_nodes(record: Any, rng: random.Random) -> Any:
    """JSON content with one to three of its nodes replaced, removed or renamed."""
    record = json.loads(json.dumps(record))
    for _ in range(rng.randint(1, 3)):
        holder = record
        while isinstance(holder, dict | list) and holder:
            key = rng.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
            if not isinstance(holder[key], dict | list) or not holder[key] or rng.random() < 0.3:
                if isinstance(holder, dict) and rng.random() < 0.2:
                    holder[rng.choice(["../x", "step", "\x00\x1b[2J", "model"])] = holder.pop(key)
                else:
                    holder[key] = copy.deepcopy(rng.choice(VALUES))  # a copy: the next change may modify it
                break
            holder = holder[key]
    return record


def changed_tensors(tensors: dict[str, torch.Tensor], rng: random.Random) -> dict[str, torch.Tensor]:
    """The tensors with one of them removed, renamed, or given another shape, dtype or content."""
    name = rng.choice(sorted(tensors))
    value = tensors.pop(name)
    kind = rng.randrange(6)
    if kind == 0:
        return tensors
    if kind == 1:
        return tensors | {rng.choice(["../x\x1b[2J", "weight", name + "x"]): value}
    changed = [value.flatten()[:-1], value.double(), torch.zeros(3, 3), torch.full_like(value, 77)][kind - 2]
    return tensors | {name: changed}


def make_right(folder: Path) -> None:
    """Write the checksums of the present files into state.json, if it can still be read."""
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        state["sha256"] = {
            str(p.relative_to(folder)): sha256(p) for p in folder.rglob("*") if p.is_file() and p.name != "state.json"
        }
        state["state_sha256"] = state_sha256(state)
    except (ValueError, TypeError):
        return
    (folder / "state.json").write_text(json.dumps(state), encoding="utf-8")
