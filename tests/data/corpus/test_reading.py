# ruff: noqa: RUF001
"""Tokens that know their characters, as a document stands and folded."""

from __future__ import annotations

import random

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

import data.corpus.reading
from data.corpus.document import Document, lines_of
from data.corpus.folding import folded
from data.corpus.reading import Reading, readings
from models.lab.load import load_tokenizer

TEXT = (
    "The café — “naïve” 🎈 and 日本語 text.\n\nIt  was\ta dark   night…\nand Anna’s cat sat on the re\u00adcord mat.\n"
)


def document(text: str, name: str = "a.txt") -> Document:
    return Document(name, name, text, lines_of(text))


def byte_level() -> PreTrainedTokenizerFast:
    """Bytes alone: every character beyond ASCII is several tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({sign: i for i, sign in enumerate(alphabet)}, []))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner)


def sentencepiece_like() -> PreTrainedTokenizerFast:
    """As Llama's: a mark for spaces, one in front of the text, and bytes for characters that it does not know."""
    trainer = trainers.BpeTrainer(special_tokens=["<unk>", *(f"<0x{i:02X}>" for i in range(256))], vocab_size=330)
    inner = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    marks = [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    inner.normalizer = normalizers.Sequence(marks)
    inner.train_from_iterator(["It was a dark night and the cat sat on the mat."], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner)


def whole_words() -> PreTrainedTokenizerFast:
    """Drops white space, as tokenizers of encoders do."""
    inner = Tokenizer(models.WordLevel({"<unk>": 0, "cat": 1, "mat": 2, ".": 3}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner)


TOKENIZERS = {"lab": load_tokenizer, "bytes": byte_level, "marks": sentencepiece_like, "words": whole_words}


@pytest.fixture(scope="module", params=sorted(TOKENIZERS))
def tokenizer(request):
    return TOKENIZERS[request.param]()


def test_every_character_belongs_to_tokens_in_order(tokenizer):
    for reading in readings(document(TEXT), tokenizer):
        begins, ends = reading.begins.tolist(), reading.ends.tolist()
        assert len(begins) == len(ends) == len(reading.ids)
        assert ends == sorted(ends)
        assert all(begin <= end for begin, end in zip(begins, ends, strict=True))
        assert all(begin <= end for begin, end in zip(begins[1:], ends[:-1], strict=True))  # no character in between
        assert begins[0] == 0
        assert ends[-1] == len(TEXT.rstrip()) if reading.is_folded else len(TEXT.rstrip()) <= ends[-1] <= len(TEXT)


def test_spans_of_neighbours_do_not_overlap_and_lose_only_shared_characters(tokenizer):
    for reading in readings(document(TEXT), tokenizer):
        n = len(reading.ids)
        assert reading.span(0, n) == (0, reading.ends[-1])
        for cut in range(1, n):
            (start, left), (right, end) = reading.span(0, cut), reading.span(cut, n)
            assert start <= left <= right <= end
            assert right - left <= 1  # at most one character is shared by two tokens
            assert reading.span(cut, cut + 1)[0] == right


def test_a_character_of_several_tokens_counts_only_whole():
    (reading,) = readings(document("aé🎈b"), byte_level())
    assert reading.begins.tolist() == [0, 1, 1, 2, 2, 2, 2, 3]
    assert reading.ends.tolist() == [1, 2, 2, 3, 3, 3, 3, 4]
    assert reading.span(0, 2) == (0, 1)  # half an é is no é
    assert reading.span(0, 3) == (0, 2)
    assert reading.span(2, 7) == (2, 3)
    assert reading.span(2, 8) == (2, 4)
    assert reading.span(4, 6) == (3, 3) or reading.span(4, 6)[0] == reading.span(4, 6)[1]
    assert reading.span(3, 7) == (2, 3)


def test_spans_are_what_the_tokens_decode_to():
    """The oracle: decoding whole characters gives back the text of their span."""
    tokenizer = load_tokenizer()
    (reading,) = readings(document(TEXT), tokenizer, with_folded=False)
    ids = reading.ids.tolist()
    for first in range(len(ids)):
        for last in range(first + 1, len(ids) + 1):
            start, end = reading.span(first, last)
            assert TEXT[start:end] == tokenizer.decode(ids[first:last]).strip("\ufffd")


def test_pieces_give_the_same_tokens_as_the_whole(monkeypatch):
    noise = random.Random(0)
    text = "".join(noise.choice(["word ", "x", "\n", "\n\n", "é", "long line of text "]) for _ in range(3000))
    for make in (load_tokenizer, byte_level):
        (whole,) = readings(document(text), make(), with_folded=False)
        monkeypatch.setattr(data.corpus.reading, "PIECE_CHARACTERS", 100)
        (pieces,) = readings(document(text), make(), with_folded=False)
        monkeypatch.undo()
        assert np.array_equal(whole.ids, pieces.ids)
        assert np.array_equal(whole.ends, pieces.ends)
        assert np.array_equal(whole.begins, pieces.begins)


def test_a_text_without_any_gap_is_cut_where_it_must(monkeypatch):
    monkeypatch.setattr(data.corpus.reading, "PIECE_CHARACTERS", 10)
    (reading,) = readings(document("x" * 35), byte_level())
    assert len(reading.ids) == 35


def test_a_tokenizer_without_offsets_is_refused():
    class Slow:
        is_fast = False

    with pytest.raises(ValueError, match="Slow gives no character offsets; use a fast tokenizer"):
        list(readings(document("a"), Slow()))


def test_folding_by_hand():
    text, begins, ends = folded("a \n b\u2026")
    assert text == "a b..."
    assert begins.tolist() == [0, 1, 4, 5, 5, 5]
    assert ends.tolist() == [1, 4, 5, 6, 6, 6]


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("", ""),
        (" \n ", ""),
        ("\n one\r\n\ttwo\xa0three \u3000", "one two three"),
        ("“It’s” ‚x‘ „y‟", '"It\'s" \'x\' "y"'),
        ("wait…  ﬁnd ﬀ well‑known", "wait... find ff well-known"),
        ("re\u00ad\ncord in\u00adside zero\u200bwidth \u200b \ufeff", "record inside zerowidth"),
        ("吾輩は\n猫である。\n\nOne 名前 は\nnew", "吾輩は猫である。 One 名前 は new"),
        ("a—b – c 'q' \"q\"", "a—b – c 'q' \"q\""),
    ],
)
def test_folding(text, plain):
    found, begins, ends = folded(text)
    assert found == plain
    assert len(begins) == len(ends) == len(plain)
    assert folded(plain)[0] == plain
    assert all(text[b:e] for b, e in zip(begins, ends, strict=True))


def test_folded_text_is_the_same_however_it_is_wrapped():
    noise = random.Random(1)
    words = [noise.choice(["night", "Anna's", '"so"', "é", "1.5"]) for _ in range(200)]
    wrapped = "".join(word.replace("'", "’") + noise.choice([" ", "\n", "  ", " \t\n", "\r\n"]) for word in words)
    found, begins, ends = folded(wrapped)
    assert found == " ".join(words)
    for i, sign in enumerate(found):
        assert wrapped[begins[i] : ends[i]].isspace() if sign == " " else ends[i] - begins[i] == 1


def test_a_folded_reading_has_the_tokens_of_the_plain_text_at_the_places_of_the_own():
    tokenizer = load_tokenizer()
    plain = "It was a dark night and Anna's cat sat on the mat. Nobody knew why."
    wrapped = "  It was a\n\ndark  night and Anna’s cat\n sat on the\r mat. Nobody\tknew why.\n"
    (own,) = readings(document(plain), tokenizer)  # a plain text has one reading
    as_is, fold = readings(document(wrapped), tokenizer)
    assert (as_is.is_folded, fold.is_folded) == (False, True)
    assert fold.ids.tolist() == own.ids.tolist()
    for first in range(len(own.ids)):
        for last in range(first + 1, len(own.ids) + 1):
            found = " ".join(wrapped[slice(*fold.span(first, last))].split()).replace("’", "'")
            assert found == plain[slice(*own.span(first, last))].strip()
    assert len(list(readings(document(wrapped), tokenizer, with_folded=False))) == 1


def test_a_document_of_white_space_or_nothing_has_no_tokens():
    for text in ("\n \n", ""):
        (reading,) = readings(document(text), load_tokenizer())
        assert len(reading.ids) == 0


def test_a_folded_reading_says_where_folding_changed_something():
    text = "One line of words as it stands in every book. " * 4 + "\nThe next line, “so” it is.\n"
    as_is, fold = readings(document(text), load_tokenizer())
    assert as_is.num_changed.tolist() == [0] * (len(as_is.ids) + 1)
    assert len(fold.num_changed) == len(fold.ids) + 1
    for first in range(len(fold.ids)):
        for last in range(first + 1, len(fold.ids) + 1):
            own = text[fold.begins[first] : fold.ends[last - 1]]
            is_changed = fold.num_changed[first] < fold.num_changed[last]
            assert is_changed == (own != folded(f"x{own}x")[0][1:-1])
    assert text[as_is.span(0, len(as_is.ids))[1] :] == "\n"  # the last line end is in no reading


def test_a_reading_holds_no_python_objects():
    (reading,) = readings(document("word " * 9), load_tokenizer(), with_folded=False)
    assert isinstance(reading, Reading)
    assert [reading.ids.dtype, reading.begins.dtype, reading.ends.dtype] == [np.int32, np.int64, np.int64]


@pytest.mark.parametrize("mark", ["> ", ">> ", "> > ", "# ", "// "])
def test_marks_in_front_of_quoted_lines_are_folded_with_the_line_ends_before_them(mark):
    lines = ["He wrote", "to Ann", "", "and left."]
    text = "\n".join(f"{mark}{line}".rstrip() for line in lines) + "\nEnd."
    found, begins, ends = folded(text)
    assert found == "He wrote to Ann and left. End."
    assert text[begins[0] : ends[len("He wrote") - 1]] == "He wrote"
    space = found.index(" to")
    assert text[begins[space] : ends[space]] == f"\n{mark}"
    assert all(a < b for a, b in zip(begins, ends, strict=True))


@pytest.mark.parametrize("text", ["# A title\nText.", "a > b\nc > d", "#one\n#two", "> a\n# b", "- a\n- b"])
def test_other_signs_in_front_of_lines_stay(text):
    assert folded(text)[0] == text.replace("\n", " ")
