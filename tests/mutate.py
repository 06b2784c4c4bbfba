"""Break the library in one place at a time and check that a test fails: ``python -m tests.mutate --out FOLDER``.

A mutant flips one sign, comparison, bound, index, boolean or extreme (max for min) of a module that holds mathematics.
The tests of that module run against a copy of the tree with the mutant and stop at the first failure. Each result is
written to FOLDER/mutants.jsonl at once, so a stopped run continues where it was. FOLDER/mutants.md is the table.
``--seconds`` ends a run in time, ``--every N`` takes each N-th mutant only, ``--module`` takes one module, and
``--again`` repeats the mutants that lived. tests/mutants.md records the outcome, and why each survivor lives.

Every mutant runs in a fork of this process, which has imported torch and transformers but no module of the library.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
ORACLE, PROPERTIES = "tests/ppo/test_oracle.py", "tests/ppo/test_properties.py"
TARGETS = {
    "ppo/advantages.py": ["tests/ppo/test_advantages.py", PROPERTIES, ORACLE],
    "ppo/kl.py": ["tests/ppo/test_kl.py", PROPERTIES, ORACLE],
    "ppo/policy_losses.py": ["tests/ppo/test_policy_losses.py", PROPERTIES, ORACLE],
    "ppo/losses.py": ["tests/ppo/test_losses.py", PROPERTIES, ORACLE],
    "ppo/buffer.py": ["tests/ppo/test_buffer.py", PROPERTIES, ORACLE],
    "ppo/lm/distribution.py": ["tests/ppo/lm/test_distribution.py", PROPERTIES, ORACLE],
    "ppo/lm/logprobs.py": ["tests/ppo/lm/test_tiled_logprobs.py", PROPERTIES, ORACLE],
    "ppo/lm/tiled_logprobs.py": ["tests/ppo/lm/test_tiled_logprobs.py", ORACLE],
    "ppo/metrics.py": ["tests/ppo/checks/test_checks.py", ORACLE],
    "ppo/scoring.py": ["tests/ppo/test_scoring.py", ORACLE],
    "ppo/optim/optimizer.py": ["tests/ppo/optim/test_optimizer.py", ORACLE],
    "ppo/importance.py": ["tests/ppo/test_importance.py"],
    "ppo/draws.py": ["tests/ppo/test_draws.py"],
    "ppo/environment.py": ["tests/ppo/test_environment.py"],
    "ppo/lm/kept_sets.py": ["tests/ppo/test_kept_sets.py"],
    "ppo/generation/turns.py": ["tests/ppo/generation/test_turns.py"],
    "ppo/generation/sampling.py": ["tests/ppo/generation/test_sampling.py", PROPERTIES, ORACLE],
}
_MODELS = [f"transformers.models.{name}.modeling_{name}" for name in ("gpt2", "llama", "bloom")]
SECONDS_A_MUTANT = 150  # a mutant that hangs counts as caught, but by no test; the table shows that
NO_TEST = ("hung", "broke the run", "lived")

_OPERATORS: dict[type, type] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.RShift: ast.LShift, ast.Pow: ast.Mult,
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip
_NAMES = {
    "max": "min", "min": "max", "maximum": "minimum", "minimum": "maximum", "amax": "amin", "argmax": "argmin",
    "any": "all", "all": "any", "sum": "mean", "mean": "sum",
}  # fmt: skip


_DIMENSION_FIRST = {"gather", "scatter_", "scatter_add_", "squeeze", "unsqueeze", "flatten", "flip"}


@dataclass(frozen=True)
class Mutant:
    """One change of one node: the ``index``-th in the walk over the module. ``line`` and the texts are for readers."""

    module: str
    index: int
    line: int
    before: str
    after: str

    @property
    def key(self) -> str:
        return f"{self.module}:{self.line}: {self.before} -> {self.after} ({self.index})"


def mutations(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that may replace this node."""
    other = copy.deepcopy(node)
    if isinstance(other, ast.BinOp | ast.AugAssign | ast.BoolOp) and type(other.op) in _OPERATORS:
        other.op = _OPERATORS[type(other.op)]()
        yield other
    elif isinstance(other, ast.Compare) and type(other.ops[0]) in _OPERATORS:
        other.ops[0] = _OPERATORS[type(other.ops[0])]()
        yield other
    elif isinstance(other, ast.UnaryOp) and isinstance(other.op, ast.USub | ast.Not | ast.Invert):
        yield other.operand
    elif isinstance(other, ast.Constant) and isinstance(other.value, bool):
        yield ast.Constant(not other.value)
    elif isinstance(other, ast.Constant) and isinstance(other.value, int | float):
        yield ast.Constant(other.value + 1 if isinstance(other.value, int) else other.value * 2 or 1.0)
    elif isinstance(other, ast.Call):
        function = other.func
        if isinstance(function, ast.Attribute) and function.attr in _NAMES:
            function.attr = _NAMES[function.attr]
            yield other
        elif isinstance(function, ast.Name) and function.id in ("max", "min"):
            function.id = _NAMES[function.id]
            yield other


def places(tree: ast.Module) -> Iterator[tuple[ast.AST, str, int | None, ast.AST]]:
    """Every node of a module's functions and its position: (parent, field, place in a list or None, node).

    It skips annotations, texts, raised errors, dimension arguments (a change breaks at once or changes nothing),
    switches such as ``inplace`` and ``fused``, and the module's own constants (sizes that were tuned for speed).
    """
    stack: list[ast.AST] = [n for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)]
    while stack:
        parent = stack.pop()
        for name, value in ast.iter_fields(parent):
            if name in ("annotation", "returns", "decorator_list", "args") and not isinstance(parent, ast.Call):
                continue
            for place, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
                if not isinstance(child, ast.AST) or isinstance(child, ast.Raise | ast.JoinedStr):
                    continue
                if says_how(parent, name, place):
                    continue
                yield parent, name, place, child
                stack.append(child)


def says_how(parent: ast.AST, name: str, place: int | None) -> bool:
    """Whether a node only names a dimension of a tensor, or says how to compute something rather than what."""
    if isinstance(parent, ast.keyword):
        return parent.arg in ("dim", "keepdim", "strict", "inplace", "fused", "stable")
    if isinstance(parent, ast.Subscript):
        return name == "slice" and isinstance(parent.value, ast.Attribute) and parent.value.attr == "shape"
    is_method = isinstance(parent, ast.Call) and isinstance(parent.func, ast.Attribute)
    return is_method and name == "args" and place == 0 and parent.func.attr in _DIMENSION_FIRST


def mutants_of(module: str) -> Iterator[tuple[Mutant, str]]:
    """Every mutant of a module and its source."""
    source = (ROOT / module).read_text("utf-8")
    count = sum(1 for _ in places(ast.parse(source)))
    for index in range(count):
        tree = ast.parse(source)
        parent, name, place, node = list(places(tree))[index]
        for changed in mutations(node):
            if place is None:
                setattr(parent, name, changed)
            else:
                getattr(parent, name)[place] = changed
            mutant = Mutant(module, index, getattr(node, "lineno", 0), ast.unparse(node), ast.unparse(changed))
            yield mutant, ast.unparse(ast.fix_missing_locations(tree))


def run_tests(tree: Path, tests: list[str], log: Path) -> str:
    """ "lived", or how the mutant was caught: the name of the first test that failed, "hung" or "broke the run"."""
    child = os.fork()
    if child == 0:
        _child(tree, tests, log)
    deadline = time.monotonic() + SECONDS_A_MUTANT
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return "lived" if os.waitstatus_to_exitcode(status) == 0 else _first_failure(log)
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "hung"


def _child(tree: Path, tests: list[str], log: Path) -> None:
    code = 1
    try:
        os.chdir(tree)
        sys.path[0] = str(tree)
        for name in [name for name in sys.modules if name.split(".")[0] == "tests"]:
            del sys.modules[name]
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        import pytest

        code = int(pytest.main(["-x", "-q", "-m", "not slow", "-p", "no:cacheprovider", "--tb=line", *tests]))
        sys.stdout.flush()
    finally:
        os._exit(code)


def _first_failure(log: Path) -> str:
    for line in log.read_text("utf-8", errors="replace").splitlines():
        if line.startswith(("FAILED ", "ERROR ")):
            return line.split(" ")[1].removeprefix("tests/")
    return "broke the run"


def copy_tree(target: Path) -> None:
    """Copy what the tests need, without compiled files."""
    for name in ("ppo", "tests", "models", "rewards", "eval", "data"):
        shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", target)


def write_table(out: Path) -> str:
    """Write one line per module, and by name the mutants that hung, broke the run or lived. Returns the summary."""
    results = [json.loads(line) for line in (out / "mutants.jsonl").read_text("utf-8").splitlines()]
    latest = {result["key"]: result for result in results}
    lines = ["| module | mutants | caught by a test | hung | broke the run | lived |", "|---|---|---|---|---|---|"]
    for module in TARGETS:
        own = [r["outcome"] for r in latest.values() if r["module"] == module]
        others = [own.count(outcome) for outcome in NO_TEST]
        if own:
            lines.append(f"| {module} | " + " | ".join(map(str, [len(own), len(own) - sum(others), *others])) + " |")
    keys = {outcome: sorted(r["key"] for r in latest.values() if r["outcome"] == outcome) for outcome in NO_TEST}
    caught = len(latest) - len(keys["lived"])
    summary = f"{caught} of {len(latest)} mutants caught ({100 * caught / max(len(latest), 1):.1f} %)"
    if named := [f"{len(keys[outcome])} {outcome}" for outcome in NO_TEST[:2] if keys[outcome]]:
        summary += f", of which {' and '.join(named)} before a test could fail"
    lists = [line for outcome in NO_TEST if keys[outcome]
             for line in ("", f"{outcome.capitalize()}:", *(f"- `{key}`" for key in keys[outcome]))]  # fmt: skip
    (out / "mutants.md").write_text("\n".join([summary, "", *lines, *lists]) + "\n", "utf-8")
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--module", choices=list(TARGETS), action="append")
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--again", action="store_true", help="repeat the mutants that lived")
    arguments = parser.parse_args()
    deadline = time.monotonic() + arguments.seconds
    sys.dont_write_bytecode = True
    arguments.out.mkdir(parents=True, exist_ok=True)
    log = arguments.out / "mutants.jsonl"
    known = [json.loads(line) for line in log.read_text("utf-8").splitlines()] if log.exists() else []
    outcomes = {result["key"]: result["outcome"] for result in known}
    done = {key for key, outcome in outcomes.items() if not (arguments.again and outcome == "lived")}
    for name in ("torch._inductor.config", "hypothesis", *_MODELS):
        importlib.import_module(name)
    with tempfile.TemporaryDirectory() as folder, log.open("a", encoding="utf-8") as results:
        tree = Path(folder) / "tree"
        copy_tree(tree)
        modules = arguments.module or list(TARGETS)
        tests = sorted({test for module in modules for test in TARGETS[module]})
        if (failed := run_tests(tree, tests, tree.parent / "log")) != "lived":
            raise SystemExit(f"{failed} fails without any mutant")
        for module in modules:
            _run_module(module, tree, done, arguments, results, deadline)
    print(write_table(arguments.out))


def _run_module(module, tree, done, arguments, results, deadline) -> None:
    original = (tree / module).read_text("utf-8")
    for number, (mutant, source) in enumerate(mutants_of(module)):
        if mutant.key in done or number % arguments.every or time.monotonic() > deadline:
            continue
        (tree / module).write_text(source, "utf-8")
        started = time.monotonic()
        outcome = run_tests(tree, TARGETS[module], tree.parent / "log")
        entry = {"key": mutant.key, **asdict(mutant), "outcome": outcome, "seconds": time.monotonic() - started}
        results.write(json.dumps(entry) + "\n")
        results.flush()
        print(f"{entry['seconds']:5.1f} s  {outcome:60.60}  {mutant.key}", flush=True)
    (tree / module).write_text(original, "utf-8")


if __name__ == "__main__":
    main()
