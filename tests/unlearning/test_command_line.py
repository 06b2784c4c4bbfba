"""The command line: every documented command is read, each command takes its own options, and the help is short."""

import dataclasses
import json
import re
import shlex
from pathlib import Path

import pytest

import demem
import ppo
from ppo.io.options import flag_of
from unlearning.attack import AttackOptions
from unlearning.command_line import COMMANDS, flags, make_parsers, parse
from unlearning.compare.settings import Comparison
from unlearning.options import Options
from unlearning.trace import TraceOptions

ROOT = Path(demem.__file__).parent
PAGES = (ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "results").rglob("*.md"))
SOURCES = (ROOT / "demem.py", ROOT / "Makefile", ROOT / ".ci" / "run", *(ROOT / "unlearning").rglob("*.py"))
RECORDS = (*(ROOT / "results").rglob("*.json"), *(ROOT / "results").rglob("*.jsonl"))
CONFIG = {field.name for field in dataclasses.fields(ppo.Config)}


def commands_of(text):
    """The words behind ``demem.py`` where it is started: in backticks, or on a line of a program or a code block."""
    text = text.replace("\\\n", " ")
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    spans = [span.replace("\n", " ") for span in re.findall(r"`+([^`]+)`+", prose)]
    for words in (*spans, *(re.sub(r"`.*", "", line) for line in text.splitlines())):
        if found := re.search(r"(?:python3?|\$\(BIN\)/python|nproc-per-node \d) demem\.py(?!\w)([^|;&\x22{]*)", words):
            yield shlex.split(found[1], comments=True)


def documented():
    """Every command line in pages, sources and recorded results, once."""
    found = {}
    for path in (*PAGES, *SOURCES):
        for words in commands_of(path.read_text(encoding="utf-8")):
            found[" ".join(words)] = path.relative_to(ROOT)
    for path in RECORDS:
        for line in re.findall(r'"command": "((?:[^"\\]|\\.)*)"', path.read_text(encoding="utf-8")):
            command = json.loads(f'"{line}"')
            if "demem.py" in command:
                found[command.split("demem.py", 1)[1].strip()] = path.relative_to(ROOT)
    return found


def error_of(capsys, line):
    with pytest.raises(SystemExit) as end:
        parse(shlex.split(line))
    assert end.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def help_of(capsys, line):
    with pytest.raises(SystemExit) as end:
        parse(shlex.split(line))
    assert end.value.code == 0
    return capsys.readouterr().out


def test_every_command_line_that_is_written_down_is_read(capsys):
    lines = documented()
    assert len(lines) > 25
    for line, place in lines.items():
        if "--help" in line.split():
            help_of(capsys, line)
            continue
        try:
            command, _ = parse(shlex.split(line))
        except SystemExit:
            pytest.fail(f"{place}: demem.py {line}: {capsys.readouterr().err}")
        assert command in COMMANDS


def test_commands_are_found_where_they_stand():
    page = """`python demem.py run --seed K`, `python demem.py trace
--rows 2`

```bash
X=1 python demem.py --out a \\
    --steps 2   # stopped early
python demem.py attack | tee log
.venv/bin/python demem.py report   # as `demem.py run` does
```
what demem.py does, and rewards/demem.py
"""
    assert list(commands_of(page)) == [
        ["run", "--seed", "K"], ["trace", "--rows", "2"], ["--out", "a", "--steps", "2"], ["attack"], ["report"],
    ]  # fmt: skip


def test_run_is_the_command_where_none_is_named():
    assert parse([])[0] == parse(["--out", "x"])[0] == parse(["--resume"])[0] == "run"
    assert parse(["train", "--out", "x"])[0] == parse(["--out", "x", "train"])[0] == "train"
    command, parsed = parse(["--out", "run", "--rows", "2", "trace"])
    assert (command, parsed.out, parsed.rows) == ("trace", "run", "2")


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_fits_on_two_screens(capsys, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "120")
    lines = help_of(capsys, f"{command} --help").splitlines()
    assert len(lines) <= 90
    assert max(map(len, lines)) <= 120
    assert "--out" in "".join(lines)


def test_the_first_help_has_a_line_for_each_command(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    text = help_of(capsys, "--help")
    assert re.findall(r"^    (\w+) +\w", text, flags=re.MULTILINE) == list(COMMANDS)
    assert len(text.splitlines()) <= 25
    assert help_of(capsys, "-h") == text


@pytest.mark.parametrize("command", COMMANDS)
def test_the_long_help_shows_every_option_and_the_short_one_none_that_is_not_taken(capsys, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "120")
    shown = {line: set(re.findall(r"^  (--[a-z0-9-]+)", help_of(capsys, f"{command} {line}"), flags=re.MULTILINE))
             for line in ("--help", "--help-all")}  # fmt: skip
    taken = {"--help-all", *flags(command)} - {flag_of(name) for name in COMMANDS[command].refused}
    assert shown["--help-all"] == taken
    assert shown["--help"] <= taken
    assert ("--help-all shows" in help_of(capsys, f"{command} --help")) == (shown["--help"] < taken)


def test_short_help_of_run_has_what_people_set_and_the_long_one_is_grouped(capsys):
    short, long = (help_of(capsys, f"run {option}") for option in ("--help", "--help-all"))
    assert "--learning-rate" in short
    assert "(default 0.0006, less for a model wider than 176)" in " ".join(short.split())  # not ppo.Config's
    assert "(default 0.0002)" in help_of(capsys, "memorise --help")
    assert "--adam-eps" not in short
    assert "(default runs/demem)" in short
    assert "(default runs/trace)" in help_of(capsys, "trace --help")
    assert "PPO: KL penalty:" in long
    assert help_of(capsys, "--help-all") == long


def test_every_setting_is_taken_somewhere_and_none_twice():
    for command in COMMANDS.values():
        names = command.names()
        assert len(names) == len(set(names))
    for name in ("run", "attack", "train", "compare", "trace"):
        assert set(COMMANDS[name].names()) >= CONFIG
    everywhere = {name for command in COMMANDS.values() for name in command.names()}
    for cls in (Options, Comparison, AttackOptions, TraceOptions):
        assert everywhere >= {field.name for field in dataclasses.fields(cls)}


def test_options_stand_with_their_commands():
    takers = {cls: {name for name, command in COMMANDS.items() if fields & set(command.names())}
              for cls in (Comparison, AttackOptions, TraceOptions)
              for fields in ({field.name for field in dataclasses.fields(cls)},)}  # fmt: skip
    assert takers == {Comparison: {"compare"}, AttackOptions: {"attacks", "compare"}, TraceOptions: {"trace"}}
    of_options = {name: set(command.names()) & {f.name for f in dataclasses.fields(Options)}
                  for name, command in COMMANDS.items()}  # fmt: skip
    everything, training = set(dataclasses.asdict(Options())), {"memorise_epochs", "memorise_beside"}
    assert of_options["run"] == of_options["train"] == everything - training
    assert of_options["attack"] == everything - training - {"live"}
    assert of_options["report"] == {"out"}
    assert of_options["evaluate"] == {"out", "device"}
    assert {name for name, taken in of_options.items() if "memorise_epochs" in taken} == {"memorise"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("run --rows 3", "--rows is no option of run, but of trace"),
        ("--rows=3", "--rows is no option of run, but of trace"),
        ("train --memorise-epochs 3", "--memorise-epochs is no option of train, but of memorise"),
        ("run --hints 5", "--hints is no option of run, but of attacks, compare"),
        ("trace --no-live", "--no-live is no option of trace, but of run, train"),
        ("report --steps 3", "--steps is no option of report, but of run, attack, train, compare"),
        ("memorise --kl-coef 0.1", "--kl-coef is no option of memorise, but of run, attack, train, compare, trace"),
        ("run --lerning-rate 1", "there is no option --lerning-rate: did you mean --learning-rate?"),
        ("compare --metods ul", "there is no option --metods: did you mean --methods?"),
        ("run --metods ul", "there is no option --metods: did you mean --methods?"),
        ("report --zzzz", "there is no option --zzzz: demem.py report --help-all lists all there are"),
        ("run now", "what is 'now'? All that run takes are options"),
        ("retrain --out x", "invalid choice: 'retrain' (choose from"),
        ("run --kl-estimator k9", "argument --kl-estimator: invalid choice: 'k9'"),
    ],
)
def test_what_a_command_does_not_take_is_an_error_with_a_remedy(capsys, line, message):
    assert message in error_of(capsys, line)


def test_no_option_of_another_command_is_taken_for_an_abbreviation(capsys):
    every = {flag for command in COMMANDS for flag in flags(command)}
    risky = [(command, flag) for command in COMMANDS for flag in sorted(every - set(flags(command)))
             if any(own.startswith(flag) for own in flags(command))]  # fmt: skip
    assert ("attacks", "--top-k") in risky  # the attackers' grid is --top-ks
    for command, flag in risky:
        assert f"{flag} is no option of {command}, but of " in error_of(capsys, f"{command} {flag} 1")
    assert parse(["run", "--learning", "1e-3"])[1].learning_rate == "1e-3"


def test_a_parser_can_be_made_for_every_command():
    assert list(make_parsers(is_whole=True)[1]) == list(COMMANDS)
