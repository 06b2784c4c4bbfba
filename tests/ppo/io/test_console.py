"""Last words of a command reach any console."""

import io
import os
import subprocess
import sys

from ppo.io.console import print_any_text


def test_a_console_that_is_not_utf8_shows_escapes():
    for encoding, expected in (("ascii", b"na\\xefve \\u2026\n"), ("cp1252", b"na\xefve \x85\n"), ("utf-8", None)):
        raw = io.BytesIO()
        stream = io.TextIOWrapper(raw, encoding=encoding, newline="\n")
        print_any_text(stream, io.StringIO())
        print("naïve …", file=stream, flush=True)
        assert raw.getvalue() == (expected or "naïve …\n".encode())


def test_a_benchmark_prints_its_help_to_any_console():
    command = [sys.executable, "-m", "benchmarks.rollout", "--help"]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    assert b"usage" in subprocess.run(command, env=environment, capture_output=True, check=True).stdout
