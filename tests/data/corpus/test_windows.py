# ruff: noqa: RUF001
"""Tokens that know their characters, folded text, windows along a document, and equal windows."""

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
from data.corpus.windows import Distinct, Shape, suffix_starts, windows
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


def test_a_document_of_white_space_or_nothing_has_no_windows():
    tokenizer = load_tokenizer()
    for text in ("\n \n", "", "a"):
        for reading in readings(document(text), tokenizer):
            assert list(windows(reading, Shape(prefixes=(3,), suffix=3))) == []


def test_suffixes_stand_a_stride_apart_and_the_last_ends_the_document():
    assert suffix_starts(10, Shape((3,), 3, 3)) == [3, 6, 7]
    assert suffix_starts(9, Shape((3,), 3, 3)) == [3, 6]
    assert suffix_starts(6, Shape((3,), 3, 3)) == [3]
    assert suffix_starts(5, Shape((3,), 3, 3)) == []
    assert suffix_starts(10, Shape((3, 8), 2, 2)) == [3, 5, 7, 8]


@pytest.mark.parametrize("shape", [Shape((4,), 3, 2), Shape((2, 5, 9), 4, 3), Shape((1,), 1, 1), Shape((3,), 5, 11)])
def test_windows_against_plain_loops(tokenizer, shape):
    for reading in readings(document(TEXT), tokenizer):
        ids, n = reading.ids.tolist(), len(reading.ids)
        wanted = []
        for middle in range(n):
            on_grid = middle >= shape.prefixes[0] and (middle - shape.prefixes[0]) % shape.stride == 0
            is_last = middle + shape.suffix == n and middle >= shape.prefixes[0]
            if (on_grid or is_last) and middle + shape.suffix <= n:
                for first in [middle - length for length in shape.prefixes if length <= middle]:
                    last = middle + shape.suffix
                    own = TEXT[reading.begins[first] : reading.ends[last - 1]]
                    if not reading.is_folded or own != folded(f"x{own}x")[0][1:-1]:
                        wanted.append((ids[first:middle], ids[middle:last], first == 0))
        found = list(windows(reading, shape))
        assert [(list(w.prefix), list(w.suffix), w.is_start) for w in found] == wanted
        for window in found:
            assert window.start <= window.cut <= window.end
            assert window.place.line == TEXT.count("\n", 0, window.cut) + 1
            assert (window.place.start, window.place.end) == (window.cut, window.end)


def test_text_is_not_measured_twice_where_folding_changes_nothing():
    tokenizer, shape = load_tokenizer(), Shape((4,), 4, 1)
    text = "One line of words as it stands in every book. " * 4 + "\nThe next line.\n"
    as_is, fold = readings(document(text), tokenizer)
    assert as_is.num_changed.tolist() == [0] * (len(as_is.ids) + 1)
    found = list(windows(fold, shape))
    assert 1 <= len(found) <= 8  # the line end lies in eight windows of eight tokens
    assert all("\n" in text[w.start : w.end] for w in found)
    assert text[as_is.span(0, len(as_is.ids))[1] :] == "\n"  # and nobody asks for the last line end


def test_a_window_at_the_start_of_a_later_piece_is_no_start():
    (reading,) = readings(Document("a", "a#2", "one two three", ((0, 9),), is_start=False), byte_level())
    first = next(windows(reading, Shape((3,), 3, 3)))
    assert (first.first, first.is_start, first.place.line) == (0, False, 9)


def test_equal_windows_are_measured_once_and_keep_their_places():
    tokenizer, shape, distinct = byte_level(), Shape((2,), 2, 2), Distinct()
    new = []
    for name, text in (("a", "ababab"), ("b", "xyab"), ("c", "abab")):
        for reading in readings(document(text, name), tokenizer):
            new += distinct.new(windows(reading, shape))
    assert [(number, window.prefix, window.document.name) for number, window in new] == [
        (0, new[0][1].prefix, "a"),
        (1, new[1][1].prefix, "b"),
    ]
    assert [[(p.name, p.start, p.end) for p in places] for places in distinct.places] == [
        [("a", 2, 4), ("a", 4, 6), ("c", 2, 4)],
        [("b", 2, 4)],
    ]


def test_equal_ids_with_another_cut_are_other_windows():
    (reading,) = readings(document("aaaa"), byte_level())
    distinct = Distinct()
    assert len(list(distinct.new(windows(reading, Shape((1, 2), 2, 1))))) == 2
    assert len(list(distinct.new(windows(reading, Shape((1,), 3, 1))))) == 1
    assert len(distinct.places) == 3


def test_the_same_characters_as_they_stand_and_folded_are_one_place():
    tokenizer, distinct = load_tokenizer(), Distinct()
    text = "It was a dark night and the cat sat on the mat.\nSo it was."
    for reading in readings(document(text), tokenizer):
        list(distinct.new(windows(reading, Shape((2,), 2, 1))))
    for places in distinct.places:
        assert len({(p.start, p.end) for p in places}) == len(places)
    (first, *_) = (places for places in distinct.places if places[0].start <= 10)
    assert [p.is_folded for p in first] == [False]


@pytest.mark.parametrize(
    "changes",
    [{"prefixes": ()}, {"prefixes": (5, 3)}, {"prefixes": (5, 5)}, {"suffix": 0}, {"stride": True}, {"stride": 1.0}],
)
def test_shapes_that_cannot_be(changes):
    with pytest.raises(ValueError, match="must be"):
        Shape(**changes)


def test_a_reading_holds_no_python_objects():
    (reading,) = readings(document("word " * 9), load_tokenizer(), with_folded=False)
    assert isinstance(reading, Reading)
    assert [reading.ids.dtype, reading.begins.dtype, reading.ends.dtype] == [np.int32, np.int64, np.int64]
