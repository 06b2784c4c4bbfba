# ruff: noqa: RUF001
"""Encodings: declared ones are taken, others found, and what was guessed says so."""

from __future__ import annotations

import builtins
import random

import pytest

from data.corpus.encoding import NoTextError, find_encoding

FRENCH = "Le garçon a mangé une crème brûlée à l'Hôtel de Ville, près de la Cathédrale. Où est-il allé après ça ? " * 5
RUSSIAN = "Все счастливые семьи похожи друг на друга, каждая несчастливая семья несчастлива по-своему. " * 5
JAPANESE = (
    "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。何でも薄暗いじめじめした所で泣いていた。" * 5
)


def found(content: bytes, size: int = 7):
    """The encoding of bytes that come in small pieces."""
    encoding, length = find_encoding(lambda: (content[i : i + size] for i in range(0, len(content), size)))
    assert length == len(content)
    content.decode(encoding.name)
    return encoding


@pytest.mark.parametrize("name", ["utf-8", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("text", ["Plain English text. ", FRENCH, RUSSIAN, JAPANESE])
def test_a_byte_order_mark_is_taken_and_is_no_text(name, text):
    content = ("\ufeff" + text).encode(name)
    encoding = found(content)
    assert encoding.how == "byte-order mark"
    assert content.decode(encoding.name) == text


@pytest.mark.parametrize("name", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("text", ["Plain English text. ", FRENCH])
def test_zeros_show_wide_encodings_without_a_mark(name, text):
    content = text.encode(name)
    assert (found(content).name, found(content).how) == (name, "places of the zeros")


@pytest.mark.parametrize("text", ["Plain English text. ", FRENCH, RUSSIAN, JAPANESE])
def test_strict_utf_8_is_no_guess(text):
    assert (found(text.encode()).name, found(text.encode()).how) == ("utf-8", "utf-8")


@pytest.mark.parametrize(
    ("start", "name"),
    [
        (b'<html><head><meta charset="koi8-r">', "koi8-r"),
        (b"<META http-equiv=Content-Type content='text/html; charset=windows-1251'>", "cp1251"),
        (b'<?xml version="1.0" encoding="iso-8859-5"?>', "iso8859-5"),
        (b"#!/usr/bin/env python\n# -*- coding: koi8-r -*-\n", "koi8-r"),
    ],
)
def test_a_declaration_is_taken(start, name):
    content = start + RUSSIAN.encode(name)
    encoding = found(content)
    assert encoding.how == "declared"
    assert content.decode(encoding.name).endswith(RUSSIAN)


@pytest.mark.parametrize("declared", ["unicode_escape", "utf-7", "rot13", "undefined", "no-such", "zlib", "utf-16"])
def test_a_declaration_that_cannot_be_is_not_taken(declared):
    content = f"<meta charset={declared}>".encode() + RUSSIAN.encode()
    assert found(content).how == "utf-8"


def test_a_declaration_that_is_wrong_is_not_taken():
    assert found(b"<meta charset=utf-8>" + FRENCH.encode("cp1252")).how == "guessed"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (FRENCH, "cp1252"),
        ("El niño comió la piña mañana; ¿dónde está el señor? Así lo decidió la nación. ", "cp1252"),
        ("Die Straße führt über die Brücke, und die Mädchen hören schöne Lieder. ", "cp1252"),
        ("The café was closed — “we’ll return,” said the owner, who didn’t look up from his résumé. ", "cp1252"),
        ("Příliš žluťoučký kůň úpěl ďábelské ódy. Dnes je velmi hezké počasí a my jdeme do města. ", "cp1250"),
        ("Türkiye'nin başkenti Ankara'dır. Çocuklar bahçede oynuyor, ağaçların gölgesinde. ", "cp1254"),
        ("Η Ελλάδα είναι μια όμορφη χώρα με πολλά νησιά και πλούσια ιστορία. ", "cp1253"),
        (RUSSIAN, "cp1251"),
        (RUSSIAN, "koi8-r"),
        (JAPANESE, "shift_jis"),
        (JAPANESE, "euc_jp"),
        ("道可道，非常道。名可名，非常名。无名天地之始；有名万物之母。", "gb18030"),
        ("모든 국민은 인간으로서의 존엄과 가치를 가지며, 행복을 추구할 권리를 가진다. ", "euc_kr"),
    ],
)
def test_others_are_guessed(text, name):
    pytest.importorskip("charset_normalizer")
    content = (text * 3).encode(name)
    encoding = found(content)
    assert encoding.how == "guessed"
    assert content.decode(encoding.name) == text * 3


def test_without_charset_normalizer_the_guess_is_western(monkeypatch):
    plain = builtins.__import__

    def without(name, *rest, **named):
        if name == "charset_normalizer":
            raise ImportError
        return plain(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    assert (found(FRENCH.encode("cp1252")).name, found(FRENCH.encode("cp1252")).how) == ("cp1252", "guessed")
    assert found(b"caf\xe9 \x81 and more").name == "latin-1"  # cp1252 has no \x81


def test_a_wrong_byte_at_the_very_end_counts():
    content = b"English text. " * 100_000 + b"caf\xe9"
    assert found(content, size=2**16).how == "guessed"


def test_binary_is_no_text():
    noise = random.Random(0)
    for content in (b"\x00" * 99, b"text\x00text", noise.randbytes(5000), b"%PDF-1.7 text", bytes(range(1, 9))):
        with pytest.raises(NoTextError):
            found(content)


def test_a_few_control_characters_are_text():
    assert found(b"a page\x0c of a listing\x1b[0m, and one \x01" + b" more text" * 20).name == "utf-8"
