"""The checks of the zoo, on the kinds whose ways differ most from Llama's. ``python -m tests.zoo`` tries all kinds."""

from __future__ import annotations

import pytest

from .checks import CHECKS
from .configs import kinds

ODD = {
    "bamba": "a block returns more than its hidden states",
    "gemma3n_text": "hidden states are stacked streams",
    "got_ocr2": "a part computes attention in another way than the whole",
    "jamba": "states and keys side by side, and experts",
    "emu3": "the text part of a larger model",
    "minimax": "a cache of its own, which cannot drop rows",
    "rembert": "an output layer of another width than the hidden states",
    "rwkv": "a state, and weights that change in place",
    "youtu": "loading it changes its weights",
    "zamba": "one block stands in several places",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
@pytest.mark.parametrize("kind", ODD)
def test_odd_kinds(kind, check):
    if kind not in kinds():
        pytest.skip("this transformers does not have it")
    check(kind)
