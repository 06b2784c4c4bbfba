"""Last words of a command reach any console."""

import io
import os
import subprocess
import sys

import pytest

from ppo.checkpoint import read_state
from ppo.io.console import print_any_text, shown_errors
from tests.processes import ENVIRONMENT, ROOT


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


EVIL = "a\x1b[2J\u202eb\nc"


def test_an_error_quotes_what_acts_on_a_terminal_as_its_code():
    for raised in (ValueError(EVIL), UnicodeDecodeError("utf-8", b"\xff", 0, 1, EVIL)):
        with pytest.raises(ValueError, match=r"a\\x1b\[2J\\u202eb\nc"), shown_errors():
            raise raised
    with pytest.raises(ValueError, match=r"^plain$") as caught, shown_errors():
        raise ValueError("plain")
    assert caught.value.args == ("plain",)
    with pytest.raises(KeyError, match=r"x1b"), shown_errors():
        raise KeyError(EVIL)


def test_the_doors_of_the_library_show_the_paths_of_strangers(tmp_path):
    folder = tmp_path / "x\x1b[2J\u202ey"
    folder.mkdir()
    with pytest.raises(ValueError, match=r"x\\x1b\[2J\\u202ey holds no checkpoint"):
        read_state(folder)
    (folder / "step-000001").mkdir()
    with pytest.raises(ValueError, match=r"x\\x1b\[2J\\u202ey.step-000001.state.json is missing"):
        read_state(folder)


def test_a_traceback_of_the_program_acts_on_no_terminal():
    program = (
        "import sys, demem\n"
        "from ppo.io.console import show_tracebacks\n"
        "show_tracebacks()\n"
        f"def broken(*_): raise RuntimeError({EVIL!r}) from KeyError({EVIL!r})\n"
        "demem.execute = broken\n"
        "demem.main(['report'])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=ENVIRONMENT, capture_output=True, check=False)
    assert done.returncode == 1
    told = done.stderr.decode()
    assert "Traceback" in told
    assert "RuntimeError: a\\x1b[2J\\u202eb\nc" in told
    assert "\x1b" not in told
    assert "\u202e" not in told


@pytest.mark.parametrize(
    "words",
    [["report", "--\x1b[2Jx"], ["--steps", "\x1b[2J"], ["\x1b[2J"], ["run", "\x1b]0;x\x07"], ["run", "--s\x1b[2J=1"],
     ["run", "--\u202e"], ["--l=\x1b[2J"]],
)  # fmt: skip
def test_the_command_line_quotes_what_was_typed_as_its_code(words):
    done = subprocess.run(
        [sys.executable, "demem.py", *words], cwd=ROOT, env=ENVIRONMENT, capture_output=True, check=False
    )
    assert done.returncode == 2
    told = done.stderr.decode()
    assert "\\x1b" in told or "\\u202e" in told
    assert "\x1b" not in told
    assert "\u202e" not in told
