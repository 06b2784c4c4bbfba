"""Last words of a command reach any console."""

import io

from unlearning.outcome import print_any_text


def test_a_console_that_is_not_utf8_shows_escapes():
    for encoding, expected in (("ascii", b"na\\xefve \\u2026\n"), ("cp1252", b"na\xefve \x85\n"), ("utf-8", None)):
        raw = io.BytesIO()
        stream = io.TextIOWrapper(raw, encoding=encoding, newline="\n")
        print_any_text(stream, io.StringIO())
        print("naïve …", file=stream, flush=True)
        assert raw.getvalue() == (expected or "naïve …\n".encode())
