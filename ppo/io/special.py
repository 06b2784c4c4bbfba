"""The special tokens that a tokenizer puts around text: one BOS, no EOS where a response is to follow.

A chat template may write the BOS into its text while the tokenizer puts one before any text. A tokenizer may append
EOS, and a policy that goes on behind an end has nothing to say. What is mended here is said in a warning. This module
knows tokenizers, nothing about models.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any


def encode_text(text: str, tokenizer: Any, *, is_whole: bool = False) -> list[int]:
    """Token ids of a text with its tokenizer's special tokens, but with one BOS at most, and no EOS that it appended.

    ``is_whole``: the text ends where it ends, so an appended EOS stays. An EOS that the text itself spells out stays,
    too. A RuntimeWarning, the same for all texts, tells of ids that were left out.
    """
    check_kind(tokenizer)
    ids = [int(i) for i in tokenizer(text)["input_ids"]]
    bos, ends = getattr(tokenizer, "bos_token_id", None), _end_marks(tokenizer)
    is_doubled = bos is not None and ids[:2] == [bos, bos]
    is_ended = bool(ids) and ids[-1] in ends and not is_whole
    if not is_doubled and not is_ended:
        return ids
    own = [int(i) for i in tokenizer(text, add_special_tokens=False)["input_ids"]]
    before = _run(ids, [bos]) - _run(own, [bos])
    behind = min(_run(ids[::-1], ends) - _run(own[::-1], ends), len(ids) - len(own) - before)
    if is_ended and behind > 0:
        mark, ids = tokenizer.convert_ids_to_tokens(ids[-1]), ids[:-behind]
        _warn(f"the tokenizer ends prompts with {mark!r}, behind which a policy has nothing to say: it is left out")
    if is_doubled and 0 < before < _run(ids, [bos]):
        ids = ids[before:]
        _warn(f"text begins with {tokenizer.bos_token!r}, and the tokenizer adds another one: only the text's is kept")
    return ids


def check_special_tokens(tokenizer: Any | None, ends: Sequence[int], *, vocab_size: int) -> None:
    """Warn of an EOS that the tokenizer knows and that ends no response. ``ends``: the ids that the model ends at.

    A chat model's tokenizer often ends a turn with a token of its own. Raises ValueError for what is no tokenizer of
    transformers (:func:`check_kind`).
    """
    if tokenizer is None:
        return
    check_kind(tokenizer)
    end = getattr(tokenizer, "eos_token_id", None)
    if not isinstance(end, int) or end in ends or not 0 <= end < vocab_size:
        return
    known = f"the model's config ends them at {list(ends)}" if ends else "the model's config names no end"
    _warn(
        f"the tokenizer's EOS {tokenizer.eos_token!r} ({end}) ends no response, because {known}: set "
        f"model.generation_config.eos_token_id = {[*ends, end]} if it should"
    )


def check_kind(tokenizer: Any) -> None:
    """Raise ValueError for what cannot be called as transformers' tokenizers are."""
    if not callable(tokenizer):
        kind = f"{type(tokenizer).__module__.partition('.')[0]}.{type(tokenizer).__name__}"
        raise ValueError(
            f"tokenizer is a {kind}, which cannot be called: wrap it, "
            "transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=…)"
        )


def _end_marks(tokenizer: Any) -> tuple[int, ...]:
    """The ids that end a text: EOS, and SEP of tokenizers that were made for encoders."""
    found = (getattr(tokenizer, f"{name}_token_id", None) for name in ("eos", "sep"))
    return tuple(i for i in found if isinstance(i, int))


def _run(ids: Sequence[int], wanted: Sequence[Any]) -> int:
    """How many ids at the start are among the wanted ones."""
    return next((place for place, i in enumerate(ids) if i not in wanted), len(ids))


def _warn(text: str) -> None:
    warnings.warn(text, RuntimeWarning, stacklevel=2)
