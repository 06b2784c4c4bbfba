"""BLEU parts words as the script of the text does."""

import pytest
import sacrebleu

from ppo.types import Sample
from rewards import demem
from rewards.bleu import Bleu
from rewards.scripts import tokenizer_of

CHINESE = "\u8fd9\u4efd\u62a5\u544a\u5728\u4e94\u6708\u5e95\u7ed3\u675f\u3002"
JAPANESE = "\u3053\u306e\u5831\u544a\u306f\u4e94\u6708\u306b\u7d42\u308f\u308b\u3002"
THAI = "\u0e23\u0e32\u0e22\u0e07\u0e32\u0e19\u0e19\u0e35\u0e49\u0e2a\u0e34\u0e49\u0e19\u0e2a\u0e38\u0e14"
KOREAN = "\uc774 \ubcf4\uace0\uc11c\ub294 \uc624\uc6d4\uc5d0 \ub05d\ub09c\ub2e4"


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["the report ends in May"], "13a"),
        ([""], "13a"),
        ([], "13a"),
        ([KOREAN], "13a"),
        (["the sign \u4e2d means middle, and it is the only one here"], "13a"),
        ([CHINESE], "zh"),
        (["the report says", CHINESE], "zh"),
        ([CHINESE + " GPT-2 model"], "zh"),
        ([THAI], "char"),
    ],
)
def test_the_tokeniser_of_a_script(texts, expected):
    assert tokenizer_of(texts) == expected


@pytest.mark.parametrize(("has_mecab", "expected"), [(True, "ja-mecab"), (False, "char")])
def test_japanese_where_its_packages_are(monkeypatch, has_mecab, expected):
    monkeypatch.setattr("rewards.scripts._has_mecab", lambda: has_mecab)
    assert tokenizer_of([JAPANESE]) == expected


@pytest.mark.parametrize(("text", "name"), [(CHINESE, "zh"), (THAI, "char")])
def test_it_is_sacrebleu_s_number_and_its_name_is_in_the_signature(text, name):
    half = text[: len(text) // 2] + text[:3]
    bleu = Bleu.of([text])
    assert bleu.sentence(half, text) == pytest.approx(sacrebleu.sentence_bleu(half, [text], tokenize=name).score)
    assert bleu.corpus([half], [text]) == pytest.approx(sacrebleu.corpus_bleu([half], [[text]], tokenize=name).score)
    assert f"|tok:{name}|" in bleu.signature
    assert f"|tok:{name}|" in bleu.corpus_signature
    assert bleu.sentence(half, text) > 20 > Bleu().sentence(half, text)


def test_spaced_text_keeps_its_signature():
    assert Bleu.of(["a report"]).signature == Bleu().signature
    assert "|tok:13a|" in Bleu().signature


def test_the_rewards_take_the_tokeniser():
    half = Sample("p", CHINESE[:8], [2], list(range(8)), {"suffix": CHINESE, "suffix_ids": list(range(11))}, False)
    blind, seeing = (demem.paper(tokenize=name) for name in ("13a", "zh"))
    assert seeing([half])[0] < -0.4 < blind([half])[0]
    dense = demem.default(dense="words", decode=lambda ids: "".join(CHINESE[i] for i in ids), tokenize="zh")
    assert sum(dense([half])[0]) == pytest.approx(demem.default(tokenize="zh")([half])[0])
    assert "|tok:zh|" in dense.signature


def test_an_unknown_tokeniser_is_named():
    with pytest.raises(ValueError, match=r"tokenize='jieba' must be one of sacrebleu's: .*zh"):
        Bleu(tokenize="jieba")
