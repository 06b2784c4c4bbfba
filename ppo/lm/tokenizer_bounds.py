"""Whether the rules in a tokenizer's files let text grow without end, before any text goes through them.

A tokenizer.json is a list of rules. One of them may replace each "a" by a million letters, and forty of them, each
replacing "a" by "aa", make 2^40 letters of one. The package tokenizers obeys, in compiled code that nothing interrupts.
So this module multiplies what the rules say, and refuses a product that no tokenizer of the field comes near.

Not bounded: the table of a ``Precompiled`` normalizer, the time that a regular expression takes, and tokenizers that
have no tokenizer.json.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from ..io.files import read_json
from ..io.visible import visible

MAX_TOKENIZER_BYTES = 128 * 2**20  # Gemma's has 33 million
MOST_ADDED_TOKENS = 100_000
MOST_GROWTH = 1000  # characters or tokens that one character may become
_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json")
_RULES = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
_MOST_RULES = 10_000


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder, by transformers, after :func:`check_tokenizer_file`. No code of the folder is run."""
    check_tokenizer_file(folder / "tokenizer.json")
    for name in _SETTINGS:
        check_names(folder / name)
    return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def check_tokenizer_file(path: Path) -> None:
    """Raise ValueError for a tokenizer.json that is too large, or whose rules multiply text. It may be missing."""
    if not path.is_file():
        return
    record = read_json(path, max_bytes=MAX_TOKENIZER_BYTES)
    if not isinstance(record, dict):
        raise ValueError(f"{path} is damaged: it holds a {type(record).__name__}")
    added = record.get("added_tokens")
    if isinstance(added, list) and len(added) > MOST_ADDED_TOKENS:
        raise ValueError(f"{path} adds {len(added)} tokens, at most {MOST_ADDED_TOKENS}")
    for part in _RULES:
        nodes = list(_nodes(record.get(part), path))
        growth = math.prod(_growth(node) for node in nodes if isinstance(node, dict))
        if growth > MOST_GROWTH:
            raise ValueError(f"{path}: its {part} makes {growth:.3g} characters of one, at most {MOST_GROWTH}")
    pieces = _pieces(record.get("post_processor"))
    if pieces > MOST_GROWTH:
        raise ValueError(f"{path}: its post_processor adds {pieces} tokens to a text, at most {MOST_GROWTH}")


def check_names(path: Path) -> None:
    """Raise ValueError for a name in a tokenizer's settings that would act on a terminal. The file may be missing.

    The package tokenizers prints names that it does not know, in compiled code that no filter of Python sees.
    """
    if not path.is_file():
        return
    waiting = [read_json(path)]
    while waiting:
        node = waiting.pop()
        if wrong := next((name for name in node if visible(name) != name), None) if isinstance(node, dict) else None:
            raise ValueError(f"{visible(str(path))} is damaged: it has the name {wrong!r:.80}")
        waiting += node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()


def _nodes(record: Any, path: Path) -> Iterator[Any]:
    """A record and all within it."""
    waiting, seen = [record], 0
    while waiting:
        node = waiting.pop()
        seen += 1
        if seen > _MOST_RULES:
            raise ValueError(f"{path} has more than {_MOST_RULES} rules in one part")
        yield node
        inner = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
        waiting += [value for value in inner if isinstance(value, dict | list)]


def _growth(rule: dict[str, Any]) -> float:
    """How many characters a rule may make of one. An expression may match nothing, before every character."""
    if rule.get("type") == "Prepend":
        return max(1.0, float(len(str(rule.get("prepend", "")))))
    if rule.get("type") != "Replace":
        return 1.0
    content, pattern = rule.get("content"), rule.get("pattern")
    text = pattern.get("String") if isinstance(pattern, dict) else None
    taken = len(text) if isinstance(text, str) and text else 1
    return max(1.0, len(content) / taken) if isinstance(content, str) else 1.0


def _pieces(processor: Any) -> int:
    """How many tokens a post-processor puts around a text, at most."""
    if not isinstance(processor, dict):
        return 0
    inner = processor.get("processors")
    nested = sum(_pieces(one) for one in inner) if isinstance(inner, list) else 0
    pieces = [x for name in ("single", "pair") if isinstance(x := processor.get(name), list)]
    tokens = processor.get("special_tokens")
    ids = [len(x.get("ids", ())) for x in tokens.values() if isinstance(x, dict)] if isinstance(tokens, dict) else []
    return nested + max((len(x) for x in pieces), default=0) * max([1, *ids])
