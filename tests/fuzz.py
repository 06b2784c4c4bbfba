"""Give damaged and hostile files to every loader. This is a program; the fast suite runs a few of its inputs.

    python -m tests.fuzz --inputs 15000 --memory-mib 1024      this many inputs of each kind, this much more memory

Each input is a good file with damage: bytes flipped, cut, doubled or moved, numbers made huge, strings inserted that
break parsers. JSON is also damaged node by node. Checkpoints get correct checksums again, as an attacker would give
them. A loader may accept an input, or raise a ValueError of one line that names the file or its folder and holds
nothing that acts on a terminal; the folder's name and some inputs do. Any other outcome, and any that takes long, is
printed with the seed that reproduces it, and the exit status is 1.

The file has more than 300 lines: every kind of input is one short method.
"""

from __future__ import annotations

import argparse
import collections
import importlib.util
import json
import random
import resource
import shutil
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
from transformers import LlamaConfig, LlamaForCausalLM

from data.passages import load_passages
from data.retain import load_retain
from eval.challenge import read_guesses, read_truths
from eval.compared import compared_points
from eval.points import store_point
from eval.report.comparison.page import write_pages
from eval.results import read_settings
from eval.utility import read_cloze, read_questions
from models.gguf_header import check_gguf
from models.lab.load import load_tokenizer
from models.load import load
from models.lora import LoraConfig, adapters, add_lora, load_adapter, save_adapter, unload
from ppo import Config, Trainer, replay
from ppo.checkpoint import load_tensors, read_state, save_tensors
from ppo.checks.dump import Dumps, read_dump
from ppo.io.visible import visible
from ppo.lm.load import load_pretrained
from ppo.lm.safetensors_header import weight_shapes
from ppo.log import read_jsonl
from tests.fakes import tiny_gpt2
from tests.fuzz_damage import changed_nodes, changed_tensors, damaged, make_right
from tests.fuzz_files import gguf, npy, point, write_gguf

SLOWEST_SECONDS = 5.0  # of the processor; other programs may keep it busy
LONGEST_WAIT = 60.0
SLOW = ("points", "checkpoint", "model", "tokenizer", "gguf model", "replay")
ADAPTER = LoraConfig(("c_attn",), rank=2)
SHAPES = [
    "(3, 5)", "(1000000000000, 0)", "(1000000000, 4)", "(-1, 5)", "(True, 5)", "(3,)", "()", "(0, 7)", "(3, 2)",
]  # fmt: skip
OUT_OF_MEMORY = ("DefaultCPUAllocator", "not enough memory", "Cannot allocate memory", "out of memory")
Load = Callable[[], object]
# ---------------------------------------------------------------------- loaders


class Loaders:
    """Good files of every kind in a folder. A kind is a function that damages one of them and returns its loader."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tokenizer = load_tokenizer()
        self.prompts = [[2, 3, 4], [5, 6], [7]]
        config = Config(
            prompts_per_step=2, minibatch=2, response_length=3, scale_scores=True, kl_coef=0.1, retain_coef=0.1,
            retain_tokens=4, retain_sequences=2,
        )  # fmt: skip
        self.keep = [[2, 3, 4, 5], [6, 7]]
        reward = lambda samples: [float(len(s.ids)) for s in samples]  # noqa: E731
        trainer = Trainer(tiny_gpt2(), self.prompts, reward, config, retain=self.keep)
        trainer.train(2, progress=False)
        self.good = trainer.save(folder / "good")
        self.copy = folder / "checkpoint"
        shutil.copytree(self.good, self.copy)
        dumps = Dumps(folder, trainer.state.save, trainer.processes)
        rollout = trainer.rollout()
        dumps.write("a check", "what it said", rollout, trainer.learner.draw_retain(), step=trainer.step)
        self.dump = next((folder / "dumps").iterdir())
        self.base = tiny_gpt2()
        add_lora(self.base, ADAPTER)
        save_adapter(self.base, folder / "adapter", ADAPTER)
        unload(self.base, keep=False)

    def kinds(self) -> dict[str, Callable[[random.Random], Load]]:
        rows = '{"prefix": "The value of", "suffix": " pi is 3", "group": "forget"}\n' * 3
        ids = '{"pre_prefix_ids": [5], "prefix_ids": [1, 2], "suffix_ids": [3], "id": "a"}\n'
        table = 'pre_prefix,prefix,suffix\na,"b, c",d\n"x\ny",z,w\n'
        texts = '{"text": "' + "a word and another " * 40 + '"}\n'
        log = "".join(json.dumps({"step": i, "score/mean": 0.5}) + "\n" for i in range(4))
        settings = json.dumps({"options": {"steps": 3}, "config": Config().to_dict()})
        guesses = 'Example ID,Suffix Guess,Confidence\n0,"[1,2]",-0.5\n1,"[3, 4]",-1e-3\n'
        cloze = '{"text": "He gave it to Anna"}\n{"context": "a b", "target": " c"}\n'
        questions = '{"context": "2 + 2 =", "choices": ["4", " 5"], "answer": 0}\n' * 2
        return {
            "config": self._file("config.json", json.dumps(Config().to_dict()), Config.load),
            "config nodes": self._nodes("config.json", Config().to_dict(), Config.load),
            "points": self._points,
            "settings": self._file("config.json", settings, lambda path: read_settings(path.parent)),
            "csv": self._file("rows.csv", table, self._passages),
            "jsonl": self._file("rows.jsonl", rows, self._passages),
            "jsonl ids": self._file("rows.jsonl", ids, self._passages),
            "retain": self._file("texts.jsonl", texts, lambda path: load_retain([path], self.tokenizer, 16)),
            "metrics": self._file("metrics.jsonl", log, read_jsonl),
            "guesses": self._file("guesses.csv", guesses, read_guesses),
            "cloze": self._file("cloze.jsonl", cloze, read_cloze),
            "questions": self._file("questions.jsonl", questions, read_questions),
            "npy": self._npy,
            "truths": self._truths,
            "gguf": self._file("model.gguf", gguf(), check_gguf),
            "safetensors": self._file("x.safetensors", (self.good / "value.safetensors").read_bytes(), self._tensors),
            "adapter": self._adapter,
            "dump": self._dump,
            "replay": self._replay,
            "state.json": self._state,
            "checkpoint": self._checkpoint,
            "model": self._model,
            "tokenizer": self._tokenizer,
            **({"gguf model": self._gguf_model} if has_gguf() else {}),
        }

    def _file(self, name: str, good: str | bytes, load: Callable[[Path], object]) -> Callable[[random.Random], Load]:
        content = good.encode() if isinstance(good, str) else good
        path = self.folder / name

        def damage(rng: random.Random) -> Load:
            path.write_bytes(damaged(content, rng))
            return lambda: load(path)

        return damage

    def _nodes(self, name: str, good: Any, load: Callable[[Path], object]) -> Callable[[random.Random], Load]:
        path = self.folder / name

        def damage(rng: random.Random) -> Load:
            path.write_text(json.dumps(changed_nodes(good, rng)), encoding="utf-8")
            return lambda: load(path)

        return damage

    def _points(self, rng: random.Random) -> Load:
        """A point of a comparison beside a good one; an accepted one must become pages."""
        folder = self.folder / "compared"
        if not folder.exists():
            store_point(folder, "original", point("original", "original"))
        good = point()
        is_bytes = rng.random() < 0.3
        content = damaged(json.dumps(good).encode(), rng) if is_bytes else json.dumps(changed_nodes(good, rng)).encode()
        (folder / "points" / "a.json").write_bytes(content)
        return lambda: write_pages(folder, compared_points(folder), order=["original", "demem"])

    def _passages(self, path: Path) -> None:
        load_passages(path, self.tokenizer, 2048)

    def _tensors(self, path: Path) -> None:
        load_tensors(path)
        weight_shapes(path.parent)

    def _npy(self, rng: random.Random) -> Load:
        folder = self.folder / "npy"
        folder.mkdir(exist_ok=True)
        for part in ("prefix", "suffix"):
            self._array(folder / f"val_{part}.npy", rng)
        gpt2 = _PretendsToBeGPT2()
        return lambda: load_passages(folder, gpt2, 50_257)  # type: ignore[arg-type]

    def _truths(self, rng: random.Random) -> Load:
        self._array(self.folder / "truths.npy", rng)
        return lambda: read_truths(self.folder / "truths.npy")

    def _array(self, path: Path, rng: random.Random) -> None:
        """A .npy file with damaged bytes, or with a well-formed header that lies."""
        if rng.random() < 0.5:
            np.save(path, np.arange(15, dtype=np.uint16).reshape(3, 5))
            content = damaged(path.read_bytes(), rng)
        else:
            kind = rng.choice(["<u2", "<i8", "|O", "|V0", "<f4", "|S0", ">i4", "<U3", "|b1"])
            content = npy(f"{{'descr': {kind!r}, 'fortran_order': False, 'shape': {rng.choice(SHAPES)}, }}")
        path.write_bytes(content)

    def _state(self, rng: random.Random) -> Load:
        good = (self.good / "state.json").read_bytes()
        is_bytes = rng.random() < 0.5
        content = damaged(good, rng) if is_bytes else json.dumps(changed_nodes(json.loads(good), rng)).encode()
        (self.copy / "state.json").write_bytes(content)
        return lambda: read_state(self.copy)

    def _harmed(self, path: Path, rng: random.Random) -> None:
        """Damage one JSON or safetensors file: mostly by changing its content, sometimes its bytes."""
        if path.suffix == ".json" and rng.random() < 0.8:
            good = json.loads(path.read_text(encoding="utf-8"))
            path.write_text(json.dumps(changed_nodes(good, rng)), encoding="utf-8")
        elif path.suffix == ".safetensors" and rng.random() < 0.8:
            save_tensors(path, changed_tensors(load_tensors(path), rng))
        else:
            path.write_bytes(damaged(path.read_bytes(), rng))

    def _adapter(self, rng: random.Random) -> Load:
        """A damaged adapter. A refused one must leave the model unchanged; an accepted one is removed again."""
        copy = _fresh_copy(self.folder / "adapter", self.folder / "adapter copy")
        self._harmed(copy / rng.choice(["adapter_config.json", "adapter_model.safetensors"]), rng)

        def load_it() -> None:
            try:
                load_adapter(self.base, copy)
            except ValueError:
                if adapters(self.base):
                    raise RuntimeError("load_adapter refused the file but left its adapter on the model") from None
                raise
            unload(self.base, keep=False)

        return load_it

    def _dump(self, rng: random.Random) -> Load:
        copy = self._harmed_dump(rng)
        return lambda: read_dump(copy)

    def _replay(self, rng: random.Random) -> Load:
        copy = self._harmed_dump(rng)
        return lambda: replay(copy, device="cpu")

    def _harmed_dump(self, rng: random.Random) -> Path:
        copy = _fresh_copy(self.dump, self.folder / "dump copy")
        self._harmed(copy / rng.choice(["dump.json", "rows.safetensors"]), rng)
        return copy

    def _model(self, rng: random.Random) -> Load:
        """A damaged folder with a plain model, as a download could be."""
        copy = _fresh_copy(self.good / "model", self.folder / "model copy")
        self._harmed(copy / rng.choice(["config.json", "generation_config.json", "model.safetensors"]), rng)
        return lambda: load_pretrained(copy, tokenizer=self.tokenizer)

    def _tokenizer(self, rng: random.Random) -> Load:
        good = self.folder / "with tokenizer"
        if not good.exists():
            tiny_gpt2(vocab=len(self.tokenizer)).save_pretrained(good)
            self.tokenizer.save_pretrained(good)
        copy = _fresh_copy(good, self.folder / "tokenizer copy")
        self._harmed(copy / rng.choice(["tokenizer.json", "tokenizer_config.json"]), rng)

        def load_and_use() -> None:
            _, tokenizer = load_pretrained(copy)
            tokenizer("The value of π is 3", add_special_tokens=False)
            tokenizer.decode([5, 6, 7])

        return load_and_use

    def _gguf_model(self, rng: random.Random) -> Load:
        good = self.folder / "whole.gguf"
        if not good.exists():
            config = LlamaConfig(
                vocab_size=len(self.tokenizer), hidden_size=16, intermediate_size=8, num_hidden_layers=1,
                num_attention_heads=2, max_position_embeddings=64, tie_word_embeddings=False,
            )  # fmt: skip
            write_gguf(good, LlamaForCausalLM(config), json.loads(self.tokenizer.backend_tokenizer.to_str()))
        path = self.folder / "damaged.gguf"
        path.write_bytes(damaged(good.read_bytes(), rng))
        return lambda: load(path)

    def _checkpoint(self, rng: random.Random) -> Load:
        """A checkpoint with one damaged file: bytes, tensors or numbers. All checksums are made correct again."""
        _fresh_copy(self.good, self.copy)
        names = ["model/config.json", "model/generation_config.json", "model/model.safetensors", "value.safetensors",
                 "optimizer.safetensors", "rng.safetensors", "reference.safetensors", "state.json"]  # fmt: skip
        self._harmed(self.copy / rng.choice(names), rng)
        make_right(self.copy)
        device = rng.choice(["cpu", None])  # None: the device that state.json names

        def resume() -> None:
            reward = lambda samples: [0.0] * len(samples)  # noqa: E731
            trainer = Trainer.resume(self.copy, self.prompts, reward, retain=self.keep, device=device)
            if trainer.step < 10**6:
                trainer.rollout()

        return resume


def _fresh_copy(good: Path, target: Path) -> Path:
    shutil.rmtree(target, ignore_errors=True)
    return Path(shutil.copytree(good, target))


class _PretendsToBeGPT2:
    """GPT-2's tokenizer, as far as the loader of challenge files tests it."""

    def __call__(self, text: str, *, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": [{" the": 262, " and": 290, " of": 286}[text]]}


# ---------------------------------------------------------------------- the run


def has_gguf() -> bool:
    """Whether the packages that read whole GGUF models are installed."""
    return all(importlib.util.find_spec(name) for name in ("gguf", "accelerate"))


def outcomes(
    damage: Callable[[random.Random], Load], seeds: Iterator[int], *, folder: str = ""
) -> Iterator[tuple[int, str]]:
    """(seed, outcome): "taken", "refused" (a ValueError whose message has the folder in it), or the traceback."""
    for seed in seeds:
        load = damage(random.Random(seed))
        started, began = time.process_time(), time.perf_counter()
        try:
            load()
            outcome = "taken"
        except ValueError as error:
            is_said, is_shown = bool(str(error)) and visible(folder) in str(error), visible(str(error)) == str(error)
            outcome = "refused" if is_said else f"a ValueError that names no file: {traceback.format_exc()}"
            if not is_shown:
                outcome = f"a ValueError with what acts on a terminal, or of several lines: {error!s:.500}"
            if ran_out_of_memory(error):  # a ValueError made from a MemoryError does not refuse the file
                outcome = traceback.format_exc()
        except KeyboardInterrupt:
            raise
        except BaseException:  # a Rust panic is not an Exception
            outcome = traceback.format_exc()
        seconds, waited = time.process_time() - started, time.perf_counter() - began
        if seconds > SLOWEST_SECONDS or waited > LONGEST_WAIT:
            outcome = f"took {seconds:.1f} s of the processor, {waited:.1f} s in all"
        yield seed, outcome


def ran_out_of_memory(error: BaseException | None) -> bool:
    """Whether the error, or any error that it was raised from, is a lack of memory."""
    while error is not None:
        if isinstance(error, MemoryError) or any(text in str(error) for text in OUT_OF_MEMORY):
            return True
        error = error.__cause__ or error.__context__
    return False


def limit_memory(mib: int) -> None:
    """Limit the address space of this process to its present size plus ``mib`` MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + mib * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--inputs", type=int, default=100, help="inputs per kind; a tenth of slow kinds")
    parser.add_argument("--memory-mib", type=int, default=1024, help="memory beyond that of the process at the start")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first input; the next inputs count up")
    parser.add_argument("--kind", action="append", help="run this kind only; may be given several times")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    failures: collections.Counter[str] = collections.Counter()
    where = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(prefix="x\x1b[2J\u202ey", dir=where) as folder:
        kinds = Loaders(Path(folder)).kinds()
        limit_memory(options.memory_mib)
        for name in options.kind or kinds:
            count = options.inputs // 10 if name in SLOW else options.inputs
            started, found = time.perf_counter(), collections.Counter()
            for seed, outcome in outcomes(kinds[name], iter(range(options.seed, options.seed + count)), folder=folder):
                found[outcome if outcome in ("taken", "refused") else "failed"] += 1
                if outcome not in ("taken", "refused"):
                    failures[name] += 1
                    if failures[name] <= 3:
                        print(f"{name}, seed {seed}: {outcome}", flush=True)
            print(f"{name}: {dict(found)} in {time.perf_counter() - started:.0f} s", flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
