"""Who may import whom: no circle, no arrow that runs back up. Imports for type checking and inside functions count too.

A *room* of ``ppo`` is a file of its root or a sub-package. Outside, a room is a top-level package or program.
"""

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# A room may import rooms of earlier floors, and rooms further left on its own floor.
FLOORS = [
    ["types", "io"],
    ["config", "buffer", "prompts"],
    ["lm", "run", "kl"],
    ["generation", "actor_critic", "advantages", "importance", "policy_losses", "losses", "retain"],
    ["scoring", "reference", "metrics", "distributed"],
    ["policy", "optim"],
    ["sampler", "checkpoint"],
    ["collector", "evaluation", "checks", "trace", "log", "environment", "draws"],
    ["learner"],
    ["replay", "trainer"],
    ["compat"],
    ["given", "__init__"],
]
WHOLE = [
    ["ppo"],
    ["rewards", "models", "data"],
    ["eval"],
    ["unlearning"],
    ["demem"],
    ["benchmarks", "examples", "docs"],
    ["tests"],
]
# Between siblings: what one may take from another. ``eval`` may use ``rewards`` for metrics of text.
SIBLINGS = {"rewards": {"ppo"}, "models": {"ppo"}, "data": {"ppo"}, "eval": {"ppo", "rewards"}}


@cache
def imported(file: Path) -> set[str]:
    """Absolute names of the modules that a file imports, wherever the import stands in it."""
    found: set[str] = set()
    package = list(file.relative_to(ROOT).parts[:-1])
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {name if is_module(name := f"{module}.{alias.name}") else module for alias in node.names}
    return found


@cache
def is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def arrows_within_ppo() -> dict[tuple[str, str], set[str]]:
    """(room, room that it imports) -> the files that do so."""
    arrows: dict[tuple[str, str], set[str]] = {}
    for file in sorted((ROOT / "ppo").rglob("*.py")):
        room = file.relative_to(ROOT / "ppo").parts[0].removesuffix(".py")
        for name in imported(file):
            parts = name.split(".")
            if parts[0] != "ppo" or not is_module(name):
                continue
            target = parts[1] if len(parts) > 1 else "__init__"
            if target != room and name != ".".join(file.relative_to(ROOT).with_suffix("").parts):
                arrows.setdefault((room, target), set()).add(str(file.relative_to(ROOT)))
    return arrows


def floor_of(floors: list[list[str]]) -> dict[str, tuple[int, int]]:
    return {room: (height, place) for height, floor in enumerate(floors) for place, room in enumerate(floor)}


def test_every_room_of_the_library_has_a_floor():
    rooms = {path.name.removesuffix(".py") for path in (ROOT / "ppo").iterdir() if path.name != "__pycache__"}
    assert rooms - {"py.typed"} == set(floor_of(FLOORS))


def test_no_import_of_the_library_runs_back_up():
    floor = floor_of(FLOORS)
    arrows = arrows_within_ppo()
    assert len(arrows) > 80  # the walk sees them
    assert {arrow: files for arrow, files in arrows.items() if floor[arrow[0]] <= floor[arrow[1]]} == {}


def test_no_file_is_part_of_a_circle():
    """Also within a room; a package's own list of names is the one file that its modules may not ask back."""
    graph = {}
    for file in (ROOT / "ppo").rglob("*.py"):
        name = ".".join(file.relative_to(ROOT).with_suffix("").parts)
        graph[name] = {f"{n}.__init__" if (ROOT / n.replace(".", "/")).is_dir() else n for n in imported(file)}
    graph = {name: {n for n in names if n in graph} for name, names in graph.items()}
    while leaves := [name for name, names in graph.items() if not names]:
        graph = {name: names - set(leaves) for name, names in graph.items() if name not in leaves}
    assert graph == {}, "these files import each other in a circle, or something that does"


def test_the_trainer_is_imported_by_its_front_doors_alone():
    files = {
        str(file.relative_to(ROOT / "ppo")) for file in (ROOT / "ppo").rglob("*.py") if "ppo.trainer" in imported(file)
    }
    assert files == {"__init__.py", "compat/given.py", "compat/trl.py"}


def test_no_function_of_the_library_takes_a_trainer():
    """But for those front doors, and hooks that a caller gives to the trainer itself."""
    takers = []
    for file in (ROOT / "ppo").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                for argument in arguments:
                    noted = ast.unparse(argument.annotation) if argument.annotation else ""
                    if argument.arg == "trainer" or "Trainer" in noted.replace("PPOTrainer", ""):
                        takers.append(f"{file.relative_to(ROOT / 'ppo')}: {node.name}")
    assert takers == ["compat/given.py: given_responses"]


def test_the_packages_import_downwards():
    """torch, transformers ← ppo ← rewards, models, data, eval ← unlearning ← demem.py, benchmarks, tests.

    A ``__main__.py`` is a program, and stands above them all.
    """
    floor = floor_of(WHOLE)
    wrong = []
    for file in [f for package in floor for f in [*ROOT.glob(f"{package}.py"), *(ROOT / package).rglob("*.py")]]:
        room = file.relative_to(ROOT).parts[0].removesuffix(".py")
        if room not in floor or file.name == "__main__.py" or "tests" in file.parts:
            continue
        for target in {name.split(".")[0] for name in imported(file)} & set(floor) - {room}:
            is_allowed = target in SIBLINGS[room] if room in SIBLINGS else floor[target][0] < floor[room][0]
            if not is_allowed or room == "ppo":
                wrong.append(f"{file.relative_to(ROOT)} imports {target}")
    assert wrong == []
