"""Throws damaged and hostile files at every loader; a program of its own, and the fast suite's source of a few of them.

    python -m tests.fuzz --inputs 15000 --memory-mib 1024      so many of each kind, within so much more memory

Each input is a good file with something done to it: bytes flipped, cut, doubled or moved, numbers made huge, words that
formats trip over put in; JSON also node by node, and checkpoints with checksums made right again, as an attacker would.
A loader may take what it is given or raise ValueError. Anything else, one that takes long included, is printed with the
seed that makes it again, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import collections
import json
import random
import resource
import shutil
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.passages import load_passages
from data.retain import load_retain
from eval.results import read_settings
from models.gguf_header import check_gguf
from models.lab.load import load_tokenizer
from ppo import Config, Trainer
from ppo.checkpoint import load_tensors, read_state, save_tensors, sha256
from ppo.log import read_jsonl
from ppo.safetensors_header import weight_shapes
from tests.fakes import tiny_gpt2

SLOWEST_SECONDS = 5.0
BITS = [
    b"../", b"../../etc/passwd", b"/etc/passwd", b"\x00", b"\xff\xfe", b"\xc3\x28", b"NaN", b"Infinity", b"1e999",
    b"-1",
    b"9" * 5000, b"1000000000000", b"[" * 3000, b'{"a":' * 3000, b"null", b"true", b'"', b"'", b",", b"\r", b"\n",
    b"\xe2\x80\xa8", b"<script>", b"\xff" * 8, b"\x7f" + b"\xff" * 7, struct.pack("<Q", 10**9),
    struct.pack("<I", 2**31),
]  # fmt: skip
VALUES: list[Any] = [
    None, True, -1, 0, 1, 2**63, 10**30, 1e308, float("nan"), "", "../x", "\x00", "cpu", "meta", "float16", "load", [],
    {}, [[]], {"a": []}, "x" * 10_000, [0] * 1000,
]  # fmt: skip


# ---------------------------------------------------------------------- damage


def damaged(good: bytes, rng: random.Random) -> bytes:
    """A good file with one to four things done to it."""
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
                    holder[rng.choice(["../x", "step", "\x00", "model"])] = holder.pop(key)
                else:
                    holder[key] = rng.choice(VALUES)
                break
            holder = holder[key]
    return record


# ---------------------------------------------------------------------- loaders


class Loaders:
    """Good files of every kind in a folder, and what reads them. A kind is a generator of (damage, load) pairs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tokenizer = load_tokenizer()
        self.prompts = [[2, 3, 4], [5, 6], [7]]
        config = Config(prompts_per_step=2, minibatch=2, response_length=3, scale_scores=True, kl_coef=0.1)
        trainer = Trainer(tiny_gpt2(), self.prompts, lambda samples: [float(len(s.ids)) for s in samples], config)
        trainer.train(2, progress=False)
        self.good = trainer.save(folder / "good")
        self.copy = folder / "checkpoint"
        shutil.copytree(self.good, self.copy)

    def kinds(self) -> dict[str, Callable[[random.Random], None]]:
        rows = '{"prefix": "The value of", "suffix": " pi is 3", "group": "forget"}\n' * 3
        ids = '{"pre_prefix_ids": [5], "prefix_ids": [1, 2], "suffix_ids": [3], "id": "a"}\n'
        table = 'pre_prefix,prefix,suffix\na,"b, c",d\n"x\ny",z,w\n'
        texts = '{"text": "' + "a word and another " * 40 + '"}\n'
        log = "".join(json.dumps({"step": i, "score/mean": 0.5}) + "\n" for i in range(4))
        settings = json.dumps({"options": {"steps": 3}, "config": Config().to_dict()})
        return {
            "config": self._file("config.json", json.dumps(Config().to_dict()), Config.load),
            "config nodes": self._nodes("config.json", Config().to_dict(), Config.load),
            "settings": self._file("config.json", settings, lambda path: read_settings(path.parent)),
            "csv": self._file("rows.csv", table, self._passages),
            "jsonl": self._file("rows.jsonl", rows, self._passages),
            "jsonl ids": self._file("rows.jsonl", ids, self._passages),
            "retain": self._file("texts.jsonl", texts, lambda path: load_retain([path], self.tokenizer, 16)),
            "metrics": self._file("metrics.jsonl", log, read_jsonl),
            "npy": self._npy,
            "gguf": self._file("model.gguf", gguf(), check_gguf),
            "safetensors": self._file("x.safetensors", (self.good / "value.safetensors").read_bytes(), self._tensors),
            "state.json": self._state,
            "checkpoint": self._checkpoint,
        }

    def _file(self, name: str, good: str | bytes, load: Callable[[Path], object]) -> Callable[[random.Random], None]:
        content = good.encode() if isinstance(good, str) else good
        path = self.folder / name

        def once(rng: random.Random) -> None:
            path.write_bytes(damaged(content, rng))
            load(path)

        return once

    def _nodes(self, name: str, good: Any, load: Callable[[Path], object]) -> Callable[[random.Random], None]:
        path = self.folder / name

        def once(rng: random.Random) -> None:
            path.write_text(json.dumps(changed_nodes(good, rng)), encoding="utf-8")
            load(path)

        return once

    def _passages(self, path: Path) -> None:
        load_passages(path, self.tokenizer, 2048)

    def _tensors(self, path: Path) -> None:
        load_tensors(path)
        weight_shapes(path.parent)

    def _npy(self, rng: random.Random) -> None:
        """Bytes, or a header that is well formed and lies."""
        shapes = [
            "(3, 5)",
            "(1000000000000, 0)",
            "(1000000000, 4)",
            "(-1, 5)",
            "(True, 5)",
            "(3,)",
            "()",
            "(0, 7)",
            "(3, 2)",
        ]
        folder = self.folder / "npy"
        folder.mkdir(exist_ok=True)
        for part in ("prefix", "suffix"):
            if rng.random() < 0.5:
                np.save(folder / f"val_{part}.npy", np.arange(15, dtype=np.uint16).reshape(3, 5))
                content = damaged((folder / f"val_{part}.npy").read_bytes(), rng)
            else:
                kind = rng.choice(["<u2", "<i8", "|O", "|V0", "<f4", "|S0", ">i4", "<U3", "|b1"])
                content = npy(f"{{'descr': {kind!r}, 'fortran_order': False, 'shape': {rng.choice(shapes)}, }}")
            (folder / f"val_{part}.npy").write_bytes(content)
        gpt2 = _PretendsToBeGPT2()
        load_passages(folder, gpt2, 50_257)  # type: ignore[arg-type]

    def _state(self, rng: random.Random) -> None:
        good = (self.good / "state.json").read_bytes()
        is_bytes = rng.random() < 0.5
        content = damaged(good, rng) if is_bytes else json.dumps(changed_nodes(json.loads(good), rng)).encode()
        (self.copy / "state.json").write_bytes(content)
        read_state(self.copy)

    def _checkpoint(self, rng: random.Random) -> None:
        """One file damaged, or tensors of other shapes and kinds, or other numbers; all checksums right again."""
        shutil.rmtree(self.copy)
        shutil.copytree(self.good, self.copy)
        names = ["model/config.json", "model/generation_config.json", "model/model.safetensors", "value.safetensors",
                 "optimizer.safetensors", "rng.safetensors", "reference.safetensors", "state.json"]  # fmt: skip
        path = self.copy / rng.choice(names)
        if path.suffix == ".json" and rng.random() < 0.8:
            good = json.loads(path.read_text(encoding="utf-8"))
            path.write_text(json.dumps(changed_nodes(good, rng)), encoding="utf-8")
        elif path.suffix == ".safetensors" and rng.random() < 0.8:
            save_tensors(path, changed_tensors(load_tensors(path), rng))
        else:
            path.write_bytes(damaged(path.read_bytes(), rng))
        make_right(self.copy)
        trainer = Trainer.resume(self.copy, self.prompts, lambda samples: [0.0] * len(samples), device="cpu")
        if trainer.step < 10**6:
            trainer.rollout()


class _PretendsToBeGPT2:
    """The tokenizer that challenge files are written in, as far as the loader asks."""

    def __call__(self, text: str, *, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": [{" the": 262, " and": 290, " of": 286}[text]]}


def changed_tensors(tensors: dict[str, torch.Tensor], rng: random.Random) -> dict[str, torch.Tensor]:
    """One tensor removed, renamed, or given another shape, kind or content."""
    name = rng.choice(sorted(tensors))
    value = tensors.pop(name)
    kind = rng.randrange(6)
    if kind == 0:
        return tensors
    if kind == 1:
        return tensors | {rng.choice(["../x", "weight", name + "x"]): value}
    changed = [value.flatten()[:-1], value.double(), torch.zeros(3, 3), torch.full_like(value, 77)][kind - 2]
    return tensors | {name: changed}


def make_right(folder: Path) -> None:
    """Checksums that fit what is there, where state.json can still be read."""
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        state["sha256"] = {
            str(p.relative_to(folder)): sha256(p) for p in folder.rglob("*") if p.is_file() and p.name != "state.json"
        }
    except (ValueError, TypeError):
        return
    (folder / "state.json").write_text(json.dumps(state), encoding="utf-8")


def npy(header: str) -> bytes:
    text = header.encode("latin-1", "replace") + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + bytes(30)


def gguf() -> bytes:
    """A small header with keys of most kinds and one tensor."""

    def string(text: bytes) -> bytes:
        return struct.pack("<Q", len(text)) + text

    words = b"".join(string(word) for word in (b"a", b"b", b"cc"))
    return b"".join([
        b"GGUF", struct.pack("<IQQ", 3, 1, 4),
        string(b"llama.block_count"), struct.pack("<II", 4, 1),
        string(b"general.name"), struct.pack("<I", 8), string(b"tiny"),
        string(b"tokenizer.ggml.tokens"), struct.pack("<IIQ", 9, 8, 3), words,
        string(b"tokenizer.ggml.scores"), struct.pack("<IIQ", 9, 6, 3), bytes(12),
        string(b"token_embd.weight"), struct.pack("<IQQIQ", 2, 4, 3, 0, 0), bytes(64),
    ])  # fmt: skip


# ---------------------------------------------------------------------- the run


def outcomes(once: Callable[[random.Random], None], seeds: Iterator[int]) -> Iterator[tuple[int, str]]:
    """(seed, what happened): "taken", "refused", or the failure in full."""
    for seed in seeds:
        started = time.perf_counter()
        try:
            once(random.Random(seed))
            outcome = "taken"
        except ValueError as error:
            outcome = "refused" if str(error) else "ValueError without a word"
        except KeyboardInterrupt:
            raise
        except BaseException:  # a Rust panic is no Exception
            outcome = traceback.format_exc()
        if time.perf_counter() - started > SLOWEST_SECONDS:
            outcome = f"took {time.perf_counter() - started:.1f} s"
        yield seed, outcome


def limit_memory(mib: int) -> None:
    """Address space of this process as it is now, and ``mib`` MiB more."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + mib * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--inputs", type=int, default=100, help="of each kind; of whole checkpoints a tenth")
    parser.add_argument("--memory-mib", type=int, default=1024, help="beyond what the process has at the start")
    parser.add_argument("--seed", type=int, default=0, help="of the first input; the others follow")
    parser.add_argument("--kind", action="append", help="only these")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    failures: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        kinds = Loaders(Path(folder)).kinds()
        limit_memory(options.memory_mib)
        for name in options.kind or kinds:
            count = options.inputs // 10 if name == "checkpoint" else options.inputs
            started, found = time.perf_counter(), collections.Counter()
            for seed, outcome in outcomes(kinds[name], iter(range(options.seed, options.seed + count))):
                found[outcome if outcome in ("taken", "refused") else "failed"] += 1
                if outcome not in ("taken", "refused"):
                    failures[name] += 1
                    if failures[name] <= 3:
                        print(f"{name}, seed {seed}: {outcome}", flush=True)
            print(f"{name}: {dict(found)} in {time.perf_counter() - started:.0f} s", flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
