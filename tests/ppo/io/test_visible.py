# ruff: noqa: RUF001 (letters of other scripts are what is meant)
"""Text from outside neither acts on a terminal, a page or a table, nor hides in it."""

import html
import logging
import re
import sys
import unicodedata
import warnings

import pytest

from ppo.io.console import shown_warnings
from ppo.io.visible import BLANKS, as_attribute, as_html, code, code_span, table_cell, visible

DRAWN = {0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0x110BD, 0x110CD, *range(0x600, 0x606)}
"""Format characters that are drawn: Arabic, Syriac and Kaithi number signs."""
READ = [
    "naïve …\u00a0€",
    "שלום עולם",
    "می\u200cخواهم",
    "क्\u200dष",
    "👩\u200d🚀",
    "❤\ufe0f\u200d🔥",
    "1\ufe0f\u20e3",
    "日本",
]


def test_every_sign_that_acts_or_hides_becomes_its_code():
    for number in range(0x110000):
        sign = chr(number)
        acts = unicodedata.category(sign) in ("Cc", "Cf", "Cs", "Zl", "Zp") and number not in DRAWN
        if acts or sign in BLANKS:
            assert visible(f"a{sign}b") == f"a{code(sign)}b", hex(number)
        elif sign.isprintable() and unicodedata.category(sign) != "Mn":
            assert visible(sign) == sign, hex(number)


def test_codes_are_python_s():
    for sign in "\x00\x1b\x7f\x9b\u202e\ud800\U000e0041":
        assert code(sign) == ascii(sign)[1:-1]
    assert visible("a\x1b]0;x\x07\r\nb", lines=True) == "a\\x1b]0;x\\x07\\r\nb".replace("\\r", "\\x0d")


@pytest.mark.parametrize("text", READ)
def test_what_people_write_stays(text):
    assert visible(text) == as_html(text) == text


def test_lines_and_tabs_stay_where_they_are_wanted_alone():
    assert visible("a\n\tb") == "a\\x0a\\x09b"
    assert visible("a\n\tb", lines=True) == as_html("a\n\tb") == "a\n\tb"


@pytest.mark.parametrize(
    "text", ["a\u200db", "\u200d", "a\ufe0fb", " \ufe0f", "א\u200d\u200d\u200dב", "😀\ufe0f\ufe0f"]
)
def test_joiners_and_selectors_hide_nothing_elsewhere(text):
    found = visible(text)
    assert "\\u" in found
    assert visible(found) == found


def test_a_page_gets_a_marked_code_and_no_markup():
    found = as_html("<b>\u202egnp.exe")
    assert found == '&lt;b&gt;<span class="sign" title="right-to-left override">U+202E</span>gnp.exe'
    assert as_attribute('"\u202e<') == "&quot;\\u202e&lt;"
    for number in [*range(0x20), 0x9B, 0xD800, 0xE0041]:
        text = html.unescape(re.sub("<[^>]*>", "", as_html(f"x{chr(number)}")))
        assert text in ("x\n", "x\t", f"xU+{number:04X}")


def test_markdown_s_signs_end_neither_a_cell_nor_a_code_span():
    assert table_cell("a|b\n<c>\\\x1b") == "a\\|b &lt;c>\\\\\\\\x1b"
    assert code_span("plain") == "`plain`"
    assert code_span("a`b``c\nd") == "``` a`b``c d ```"


def test_a_command_s_warning_is_its_sentence_and_is_told_once(capsys, recwarn):
    told = set()
    for _ in range(2):  # two commands of a process
        with shown_warnings(told=told):
            for text in ("3 passages share a run\x1b[2J", "another"):
                shown = warnings.WarningMessage(RuntimeWarning(text), RuntimeWarning, "/room/unlearning/run.py", 78)
                sys.stderr.write(warnings._formatwarnmsg(shown))
    assert capsys.readouterr().err == "warning: 3 passages share a run\\x1b[2J\nwarning: another\n"
    with shown_warnings():  # elsewhere, the place in the code is told as well
        assert "run.py:78: RuntimeWarning: x" in warnings.formatwarning("x", RuntimeWarning, "run.py", 78, "")


def test_warnings_and_other_libraries_lines_are_visible(capsys):
    handler, logger = logging.StreamHandler(), logging.getLogger("transformers")
    lines = []
    handler.emit = lambda record: lines.append(record.getMessage())
    logger.addHandler(handler)
    plain = warnings.formatwarning
    try:
        with shown_warnings():
            logger.warning("the class %s", "\x1b[2J")
            assert "\\x1b[2J" in warnings.formatwarning("\x1b[2J", RuntimeWarning, "a.py", 1, "")
    finally:
        logger.removeHandler(handler)
    assert lines == ["the class \\x1b[2J"]
    assert warnings.formatwarning is plain
    assert not handler.filters
