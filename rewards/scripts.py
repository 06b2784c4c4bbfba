"""Which of sacrebleu's tokenisers parts the words of a text.

BLEU counts runs of words. Chinese, Japanese and Thai put no spaces between words, so that the usual tokeniser (13a)
makes one word of a whole clause, and half a copied clause counts for nothing. This module knows characters, no scores.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable

SHARE = 0.2
"""Of the letters of a text. A Chinese letter is a word and a Latin one a fifth of a word: this is half of the words."""
_HAN = ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x323AF))
_KANA = ((0x3041, 0x30FF), (0x31F0, 0x31FF), (0xFF66, 0xFF9F))
_NO_SPACES = (
    (0x0E00, 0x0EFF),
    (0x0F00, 0x0FFF),
    (0x1000, 0x109F),
    (0x1780, 0x17FF),
    (0x1950, 0x19DF),
    (0x1A20, 0x1AAF),
)


def tokenizer_of(texts: Iterable[str]) -> str:
    """The name of sacrebleu's tokeniser for texts: "13a" where words stand apart.

    "zh" for Chinese (a letter is a word), "ja-mecab" for Japanese where the packages of ``sacrebleu[ja]`` are
    installed, else "char"; "char" (a letter is a word) for Thai, Lao, Tibetan, Burmese, Khmer and Tai scripts.
    Korean has spaces.
    """
    text = "".join(texts)
    letters = sum(map(str.isalpha, text))
    han, kana, others = (sum(_is_in(character, ranges) for character in text) for ranges in (_HAN, _KANA, _NO_SPACES))
    if han + kana + others < SHARE * letters or not han + kana + others:
        return "13a"
    if others > han + kana:
        return "char"
    if kana <= SHARE * (han + kana):
        return "zh"
    return "ja-mecab" if _has_mecab() else "char"


def _is_in(character: str, ranges: Iterable[tuple[int, int]]) -> bool:
    return any(low <= ord(character) <= high for low, high in ranges)


def _has_mecab() -> bool:
    return all(importlib.util.find_spec(name) is not None for name in ("MeCab", "ipadic"))
