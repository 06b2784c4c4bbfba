"""The command line of ``demem.py``: the commands, the options of each, and the help.

``--help`` shows what people set, ``--help-all`` shows every option. A command takes the options that it reads. Any
other option is an error that names the commands which take it, or the nearest name there is. This module knows the
words, not what the commands do.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from functools import partial
from itertools import chain
from typing import Any, NoReturn

import ppo
from ppo.io.options import add_options, field_sections, flag_of
from ppo.io.visible import visible
from unlearning.attack import AttackOptions
from unlearning.compare.settings import Comparison
from unlearning.options import (
    DATA,
    EVALUATION,
    MEMORISE,
    MEMORISING,
    PPO_KNOBS,
    PPO_MACHINE,
    PRESETS,
    RECIPE,
    STOPPING,
    Options,
)  # fmt: skip
from unlearning.run import DEEP_RATE, DEEP_WIDTH
from unlearning.scan import OUT as SCAN_OUT
from unlearning.scan import ScanOptions
from unlearning.trace import OUT as TRACE_OUT
from unlearning.trace import TraceOptions

NOT_OF_COMPARE = ("lora_rank", "windows")  # a method, and what --forget-on says for all methods
DEFAULT = "run"  # the command where none is named

# What --help shows as the default of a knob: the preset's, and what a run takes from its data.
OF_DEFAULT_PRESET = {
    **PRESETS[Options.preset],
    "learning_rate": f"{DEEP_RATE:g}, less for a model wider than {DEEP_WIDTH}",
    "total_steps": "fitted to --steps",
    "response_length": "the usual suffix's",
}
OF_MEMORISE = {**OF_DEFAULT_PRESET, **MEMORISE}
OF_COMPARE = dict.fromkeys(PRESETS[Options.preset], "each preset's") | {
    "learning_rate": "each preset's",
    "response_length": "the usual suffix's",
}


class Parser(argparse.ArgumentParser):
    """A parser whose errors quote the command line as it may be shown."""

    def error(self, message: str) -> NoReturn:
        """Exit with status 2 and one line after the usage."""
        super().error(visible(message))


@dataclass(frozen=True)
class Group:
    """Options that stand together in the help: fields of ``Options``, of ``ppo.Config``, and of one more dataclass."""

    title: str
    options: tuple[str, ...] = ()
    config: tuple[str, ...] = ()
    more: type | None = None  # all of its fields

    def parts(self) -> Iterator[tuple[type, tuple[str, ...]]]:
        """The dataclasses with the fields that are taken of each."""
        if self.options:
            yield Options, self.options
        if self.config:
            yield ppo.Config, self.config
        if self.more is not None:
            yield self.more, tuple(field.name for field in fields(self.more))

    def names(self) -> tuple[str, ...]:
        return tuple(name for _, names in self.parts() for name in names)


@dataclass(frozen=True)
class Command:
    """``shown`` stands in ``--help``, ``behind`` in ``--help-all`` alone, ``refused`` in neither.

    A refused option is taken so that the command can say what to give instead.
    """

    help: str
    shown: tuple[Group, ...]
    behind: tuple[Group, ...] = ()
    refused: tuple[str, ...] = ()
    out: str = Options.out  # the folder where none is named
    defaults: Mapping[str, Any] = field(default_factory=lambda: OF_DEFAULT_PRESET)  # what the help shows

    def names(self) -> tuple[str, ...]:
        """The fields of all options, each once."""
        return (*(name for group in (*self.shown, *self.behind) for name in group.names()), *self.refused)


def rest_of_ppo() -> tuple[Group, ...]:
    """The knobs of PPO that no other group has, under the headings of :class:`ppo.Config`."""
    known = {"seed", *PPO_KNOBS, *PPO_MACHINE}
    rest = {title: tuple(n for n in names if n not in known) for title, names in field_sections(ppo.Config).items()}
    return tuple(Group(f"PPO: {title}", config=names) for title, names in rest.items() if names)


STOP = Group("when to stop", STOPPING)
TRAINING = Group("the recipe", ("preset", *RECIPE))
MEASURING = Group("evaluation", EVALUATION)
HERE = Group("machine and seed", ("device", "dtype"), ("seed",))
MACHINE = Group("machine and seed", ("device", "dtype"), ("seed", *PPO_MACHINE))
COMPARED = Group("machine and seed", ("device",), ("seed", *PPO_MACHINE))  # the rivals' plain Adam needs float32
KNOBS = Group(f"PPO (the defaults are those of --preset {Options.preset})", config=PPO_KNOBS)
EACH = Group("PPO, of the methods that are PPO", config=PPO_KNOBS)
RUN = (Group("what to work on", (*DATA, "out", "resume", "live")), STOP, TRAINING, MEASURING, MACHINE, KNOBS)

COMMANDS: dict[str, Command] = {
    "run": Command("attack, train, evaluate and report (the default command)", RUN, rest_of_ppo()),
    "attack": Command(
        "measure what the model gives away, and keep the settings for a train in the same folder",
        (Group("what to work on", (*DATA, "out", "resume")), MEASURING, HERE),
        (STOP, TRAINING, Group("the machine in training", config=PPO_MACHINE), KNOBS, *rest_of_ppo()),
    ),
    "train": Command("unlearn with PPO, after an attack where the folder holds none", RUN, rest_of_ppo()),
    "evaluate": Command(
        "measure the unlearned model of a run beside its attack", (Group("the run", ("out", "device")),)
    ),
    "report": Command("write report.html of a run again and print its tables", (Group("the run", ("out",)),)),
    "memorise": Command(
        "fine-tune a model on the passages until it reproduces them, for a test subject",
        (
            Group("what to work on", (*DATA, "out", "resume")),
            Group("memorising", MEMORISING, ("learning_rate", "minibatch", "prompts_per_step")),
            Group("machine and seed", ("device",), ("seed", "autocast")),
        ),
        defaults=OF_MEMORISE,
    ),
    "attacks": Command(
        "try what a determined attacker would, on the model before and after unlearning",
        (
            Group("the attacks", more=AttackOptions),
            Group("what to work on", (*DATA, "out")),
            Group("machine and seed", ("device", "dtype"), ("seed", "autocast")),
        ),
    ),
    "scan": Command(
        "find the passages of a corpus that a model recites, with controls",
        (
            Group("the scan", more=ScanOptions),
            Group("what to work on", ("model", "out", "resume")),
            Group("machine and seed", ("device", "dtype"), ("seed",)),
        ),
        out=SCAN_OUT,
    ),
    "compare": Command(
        "compare DeMem with its rivals; to continue, repeat the command",
        (
            Group("what to compare", more=Comparison),
            Group("what to work on", (*DATA, "out")),
            STOP,
            MEASURING,
            COMPARED,
            Group("attacks on every point, with --attacks", more=AttackOptions),
        ),
        (
            Group("the recipe", tuple(name for name in RECIPE if name not in NOT_OF_COMPARE)),
            EACH,
            *rest_of_ppo(),
        ),
        refused=("preset", *NOT_OF_COMPARE),
        defaults=OF_COMPARE,
    ),
    "trace": Command(
        "open one PPO step up, token by token, as text and as a page",
        (
            Group("what to show", more=TraceOptions),
            Group("what to work on", (*DATA, "out", "resume")),
            Group("the recipe", ("preset", *RECIPE, "bleu_floor")),
            MACHINE,
            KNOBS,
        ),
        rest_of_ppo(),
        out=TRACE_OUT,
    ),
}  # fmt: skip


def parse(arguments: Sequence[str]) -> tuple[str, argparse.Namespace]:
    """The command ("run" where none is named) and the options that were given. SystemExit as argparse raises it."""
    is_first = bool(arguments) and (arguments[0] in ("-h", "--help") or not arguments[0].startswith("-"))
    parser, parsers = make_parsers(is_whole=False)
    parsed, left_over = parser.parse_known_args(arguments if is_first else [DEFAULT, *arguments])
    late = [word for word in left_over if word in COMMANDS]
    if late and not is_first:  # the command behind its options: --out runs/mine train
        words = list(arguments)
        words.remove(late[0])
        return parse([late[0], *words])
    foreign = [word for word in arguments if takers(word) and parsed.command not in takers(word)]
    if foreign or left_over:  # argparse would take --top-k for short of the attacks' --top-ks
        parsers[parsed.command].error(why_not(parsed.command, foreign or left_over))
    if parsed.help_all:
        make_parsers(is_whole=True)[1][parsed.command].print_help()
        raise SystemExit(0)
    return parsed.command, parsed


def make_parsers(*, is_whole: bool) -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The parser of the program and those of the commands. ``is_whole``: their help shows every option."""
    parser = Parser(
        prog="demem.py",
        usage="demem.py [command] [options]",
        description="Make a language model stop reproducing memorised passages, and measure what that cost.",
        epilog=f"Without a command: {DEFAULT}. The options of a command: demem.py COMMAND --help",
    )
    below = parser.add_subparsers(title="commands", dest="command", metavar="command", required=True)
    return parser, {name: _add_command(below, name, command, is_whole) for name, command in COMMANDS.items()}


def _add_command(below: Any, name: str, command: Command, is_whole: bool) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = below.add_parser(
        name,
        prog=f"demem.py {name}",
        help=command.help,
        description=f"{command.help[0].upper()}{command.help[1:]}.",
        usage="%(prog)s [options]",
        epilog=None if is_whole or not command.behind else "--help-all shows the other options.",
        formatter_class=partial(argparse.HelpFormatter, max_help_position=32),
    )
    parser.add_argument("--help-all", action="store_true", help="show every option of this command and exit")
    defaults = {**command.defaults, "out": command.out}
    for groups, is_shown in ((command.shown, True), (command.behind, is_whole)):
        for group in groups:
            place = parser.add_argument_group(group.title)
            for cls, names in group.parts():
                add_options(place, cls, names, defaults=defaults, is_shown=is_shown)
    add_options(parser, Options, command.refused, is_shown=False)
    return parser


def why_not(command: str, left_over: Sequence[str]) -> str:
    """What is wrong with the words of a command line that ``command`` does not take."""
    typed = next((word.split("=")[0] for word in left_over if word.startswith("-")), "")
    if not typed:
        return f"what is {left_over[0]!r}? All that {command} takes are options"
    if takers(typed):
        return f"{typed} is no option of {command}, but of {', '.join(takers(typed))}"
    everywhere = list(chain.from_iterable(map(flags, COMMANDS)))
    near = get_close_matches(typed, flags(command), 1, cutoff=0.8) or get_close_matches(typed, everywhere, 1)
    hint = f"did you mean {near[0]}?" if near else f"demem.py {command} --help-all lists all there are"
    return f"there is no option {typed}: {hint}"


def takers(word: str) -> list[str]:
    """The commands that take an option, typed as on the command line: ``--steps=3`` and ``--no-live`` count."""
    flag = word.split("=")[0].replace("--no-", "--", 1)
    return [name for name in COMMANDS if flag in flags(name)]


def flags(command: str) -> list[str]:
    """The options of a command."""
    return [flag_of(name) for name in COMMANDS[command].names()]
