"""``python -m models.lab``: train the lab's twins from scratch and write them, with their figures, to a folder.

Only this module of ``models`` imports ``data``. It hands the texts to the recipe.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy
import tokenizers
import torch
import transformers

from data.english import retain_and_holdout
from data.lab import chunks, encode, lab_passages, memorised_texts
from data.records import lab_records
from data.types import Passage
from models.lab.load import TWINS, WEIGHTS, load_tokenizer, load_twin
from models.lab.measure import extraction, perplexity
from models.lab.recipe import Recipe, pieces, save_tokenizer, save_twin, train, train_tokenizer
from ppo.io.files import read_json

CHUNK_TOKENS = 128  # tokens of a perplexity window


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the requested twins one after another. Figures are measured on the weights as stored."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    recipe = Recipe()
    retain, holdout = retain_and_holdout()
    records = memorised_texts()
    if not options.measure:
        save_tokenizer(train_tokenizer([*retain, *records.values()], recipe), options.out)
    tokenizer = load_tokenizer(options.out)
    general = [piece for text in retain for piece in pieces(encode(tokenizer, text), recipe.piece_tokens)]
    forget = {record.id for record in lab_records() if record.group == "forget"}
    record_ids = {id: encode(tokenizer, text) for id, text in records.items()}
    report = describe(recipe, sum(map(len, general)), sum(map(len, record_ids.values())), options.out / "recipe.json")
    for twin in options.twin or TWINS:
        if not options.measure:
            start = time.perf_counter()
            chosen = [ids for id, ids in record_ids.items() if twin != "without-forget" or id not in forget]
            model = train(general, chosen, twin, recipe, say=lambda line: print(line, flush=True))
            save_twin(model, twin, options.out)
            seconds = round(time.perf_counter() - start)
            report["twins"][twin] = {"seconds": seconds, "threads": options.threads}
        stored, _ = load_twin(twin, folder=options.out)
        figures = measure(stored, lab_passages(tokenizer), chunks(tokenizer, holdout, CHUNK_TOKENS))
        report["twins"][twin] = report["twins"].get(twin, {}) | figures
        (options.out / "recipe.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        print(twin, json.dumps(figures), flush=True)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m models.lab", description="Train the lab's twins from scratch.")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="folder to write to (default: the built-in weights)")
    parser.add_argument(
        "--twin", choices=TWINS, action="append", help="train this twin only; may be given several times"
    )
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    parser.add_argument("--measure", action="store_true", help="measure the stored twins again, without training")
    return parser.parse_args(arguments)


def describe(recipe: Recipe, general_tokens: int, record_tokens: int, path: Path) -> dict[str, Any]:
    """The head of ``recipe.json``. Figures of twins that an earlier run of the same recipe wrote are kept."""
    versions = {module.__name__: module.__version__ for module in (torch, transformers, tokenizers, numpy)}
    head: dict[str, Any] = {
        "command": "python -m models.lab",
        "recipe": dataclasses.asdict(recipe),
        "repeats_memorised": recipe.repeats,
        "general_tokens": general_tokens,
        "record_tokens": record_tokens,
        "versions": {"python": platform.python_version(), **versions},
        "hardware": f"{platform.machine()} CPU",
    }
    earlier = read_json(path) if path.is_file() else {}
    is_same = all(earlier.get(key) == head[key] for key in ("recipe", "general_tokens", "record_tokens"))
    return head | {"twins": earlier.get("twins", {}) if is_same else {}}


def measure(model: transformers.GPTNeoForCausalLM, passages: list[Passage], holdout: list[list[int]]) -> dict[str, Any]:
    """Extraction by group, from the prefix and from the long prompt, and perplexity on the holdout."""
    groups = dict.fromkeys(passage.group for passage in passages)
    figures: dict[str, Any] = {"holdout_perplexity": perplexity(model, holdout)}
    for group in groups:
        rows = [passage for passage in passages if passage.group == group]
        suffixes = [row.suffix for row in rows]
        figures[group] = {
            "prefix": extraction(model, [row.prompt_ids for row in rows], suffixes),
            "long_prompt": extraction(model, [row.long_prompt_ids for row in rows], suffixes),
        }
    return figures


if __name__ == "__main__":
    sys.exit(main())
