"""Writes docs/api.md from the docstrings of the public names.

    python -m docs.generate_api            # write the page
    python -m docs.generate_api --check    # exit status 1 if it is stale

Sources are parsed, not imported: the page does not depend on what is installed. A class is shown with its fields (a
dataclass's, with the comments behind them) or the arguments of its ``__init__``, and its public methods; all docstrings
are whole, and cross-references are bare names. The names come first as a list of links.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "api.md"

# A package's ``__all__``, or names of a module.
SECTIONS: dict[str, dict[str, tuple[str, ...]]] = {
    "ppo, the library": {
        "ppo": (),
        "ppo.trace": (),
        "ppo.given": ("given_responses",),
        "ppo.sampler": ("collate", "sample_policy"),
        "ppo.policy": ("Policy",),
        "ppo.log.to_wandb": ("to_wandb",),
        "ppo.log.to_trackio": ("to_trackio",),
        "ppo.log.to_mlflow": ("to_mlflow",),
        "ppo.compat.trl": (),
    },
    "rewards": {"rewards": (), "rewards.demem": ("paper", "default", "spans", "with_fluency")},
    "models": {
        "models.load": ("load", "LoadedModel"),
        "models.lora": ("LoraConfig", "add_lora", "save_adapter", "load_adapter", "merge", "unmerge"),
        "models.memorise": ("memorise",),
        "models.own_text": ("own_text",),
    },
    "data": {
        "data.types": ("Passage",),
        "data.study": ("Study", "load_study", "windows"),
        "data.passages": ("load_passages",),
        "data.retain": ("load_retain",),
        "data.splits": ("leak_free_split", "split_holdout"),
        "data.dedup": ("deduplicate", "deduplicate_texts"),
        "data.challenge": ("read_challenge",),
        "data.lab": ("lab_passages", "lab_retain", "lab_holdout"),
        "data.subjects.load": ("load_subject",),
        "data.corpus.files": ("corpus_files", "Corpus", "CorpusFile"),
        "data.corpus.formats": ("read_file",),
        "data.corpus.document": ("Document",),
        "data.corpus.reading": ("readings", "Reading"),
        "data.corpus.personal": ("personal_data",),
    },
    "eval": {
        "eval.evaluate": ("evaluate", "probe", "Evaluation"),
        "eval.settings": ("Settings",),
        "eval.extraction": ("is_exact", "extraction_strength", "extraction_probability", "is_discoverable"),
        "eval.memorization": ("memorization_accuracy", "extraction_likelihood"),
        "eval.membership": ("membership", "auc", "tpr_at_fpr"),
        "eval.perplexity": ("perplexity",),
        "eval.baselines.gradient_ascent": ("unlearn", "unlearn_with_difference"),
        "eval.baselines.preference": ("unlearn_npo", "unlearn_simnpo"),
        "eval.baselines.distillation": ("unlearn",),
        "eval.baselines.undial": ("unlearn",),
        "eval.baselines.reweighted": ("unlearn_wga", "unlearn_satimp"),
        "eval.baselines.jensun": ("unlearn",),
        "eval.baselines.rmu": ("unlearn",),
        "eval.baselines.undo": ("unlearn",),
        "eval.baselines.dpo": ("unlearn",),
        "eval.baselines.decoding": ("dp_decoding", "logit_mixing", "MemFree"),
        "eval.attacks.suite": ("run_attacks", "make_attacks", "AttackSettings"),
        "eval.attacks.result": ("AttackResult",),
        "eval.utility": (
            "cloze_accuracy",
            "Cloze",
            "read_cloze",
            "multiple_choice",
            "MultipleChoice",
            "Question",
            "read_questions",
            "Accuracy",
        ),
        "eval.harness": ("run_tasks",),
    },
}


def main(arguments: list[str]) -> int:
    page = render()
    if arguments == ["--check"]:
        is_fresh = PAGE.is_file() and PAGE.read_text(encoding="utf-8") == page
        print("docs/api.md is " + ("fresh" if is_fresh else "stale: run python -m docs.generate_api"))
        return 0 if is_fresh else 1
    PAGE.write_text(page, encoding="utf-8")
    print(f"{PAGE}: {page.count(chr(10) + '### ')} names")
    return 0


def render() -> str:
    """The whole page."""
    parts = [
        "# Reference\n\nGenerated from the docstrings by `python -m docs.generate_api`; "
        "shapes and words are those of the glossary in `ppo/types.py`.\n",
        contents(),
    ]
    section = ""
    for title, module, name in listed():
        parts += [f"\n## {title}\n"] if title != section else []
        section = title
        parts.append(entry(*find(module, name), name=name, module=module))
    return "".join(parts)


def listed() -> Iterator[tuple[str, str, str]]:
    """All that the page shows, in order: section, module, name."""
    for title, modules in SECTIONS.items():
        for module, names in modules.items():
            yield from ((title, module, name) for name in names or exported(module))


def contents() -> str:
    """A list of links for each section: its names, module by module."""
    text, before, seen = "", ("", ""), Counter[str]()
    for title, module, name in listed():
        anchor = re.sub(r"[^\w-]", "", f"{module}.{name}".lower())  # as Markdown renderers make them of headings
        link = f"[{name}](#{anchor}{f'-{seen[anchor]}' if seen[anchor] else ''})"
        seen[anchor] += 1
        if title != before[0]:
            text += f"\n\n**{title}**\n"
        text += f", {link}" if (title, module) == before else f"\n- `{module}`: {link}"
        before = (title, module)
    return text.removeprefix("\n") + "\n"


def source_of(module: str) -> Path:
    """The file of a module or package."""
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def exported(module: str) -> list[str]:
    """The names in a module's ``__all__``. ValueError where it has none."""
    for node in ast.parse(source_of(module).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "__all__":
            return [str(name) for name in ast.literal_eval(node.value)]
    raise ValueError(f"{module} has no __all__: name what is to be shown")


def find(module: str, name: str) -> tuple[ast.stmt, str, Path]:
    """Where a name is defined, through relative imports: its node, its docstring, its file. ValueError if nowhere."""
    path = source_of(module)
    body = ast.parse(path.read_text(encoding="utf-8")).body
    for place, node in enumerate(body):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == name:
            return node, ast.get_docstring(node) or "", path
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            return node, _string_after(body, place), path
        if isinstance(node, ast.ImportFrom) and node.level and name in [alias.name for alias in node.names]:
            return find(_absolute(module, path, node), name)
    raise ValueError(f"{module} defines and imports no {name}")


def _absolute(module: str, path: Path, node: ast.ImportFrom) -> str:
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    return ".".join(package[: len(package) - node.level + 1] + ([node.module] if node.module else []))


def _string_after(body: list[ast.stmt], place: int) -> str:
    """The string that stands behind an assignment, as a docstring does."""
    node = body[place + 1] if place + 1 < len(body) else None
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
        return inspect.cleandoc(node.value.value)
    return ""


def entry(node: ast.stmt, doc: str, path: Path, *, name: str, module: str) -> str:
    """One name of the page."""
    lines = path.read_text(encoding="utf-8").splitlines()
    where = path.relative_to(ROOT).as_posix()
    text = f"\n### {module}.{name}\n\n`{where}`\n\n```text\n{_signature(node, lines)}\n```\n"
    text += f"\n```text\n{plain(doc)}\n```\n" if doc else ""  # as text: ruff would format Python in a page
    if isinstance(node, ast.ClassDef):
        for method in _methods(node):
            head = f"{'@property ' if _is_property(method) else ''}{_call(method)}"
            text += f"\n- `{head}`: {_item(plain(ast.get_docstring(method) or ''))}\n"
    return text


def _signature(node: ast.stmt, lines: list[str]) -> str:
    if isinstance(node, ast.FunctionDef):
        return _call(node)
    if not isinstance(node, ast.ClassDef):
        return ast.unparse(node)
    fields = [item for item in node.body if isinstance(item, ast.AnnAssign)]
    inits = [item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "__init__"]
    if fields and _is_dataclass(node):
        return "\n".join([f"class {node.name}:", *(_field(item, lines) for item in fields)])
    return _call(inits[0], name=node.name) if inits else f"class {node.name}"


def _field(item: ast.AnnAssign, lines: list[str]) -> str:
    last = lines[(item.end_lineno or item.lineno) - 1]
    comment = last.partition("  # ")[2].removesuffix("# fmt: skip").strip()
    return f"    {ast.unparse(item)}" + (f"  # {comment}" if comment else "")


def _call(node: ast.FunctionDef, name: str | None = None) -> str:
    arguments = [a for a in (*node.args.posonlyargs, *node.args.args) if a.arg in ("self", "cls")]
    text = ast.unparse(node.args)
    for argument in arguments[:1]:
        text = text.removeprefix(argument.arg).removeprefix(", ")
    answer = f" -> {ast.unparse(node.returns)}" if node.returns is not None and name is None else ""
    whole = f"{name or node.name}({text}){answer}"
    return whole


def _methods(node: ast.ClassDef) -> Iterator[ast.FunctionDef]:
    """Public methods and properties that say what they do."""
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and not item.name.startswith("_") and ast.get_docstring(item):
            yield item


def _is_property(node: ast.FunctionDef) -> bool:
    return any(isinstance(d, ast.Name) and d.id == "property" for d in node.decorator_list)


def _is_dataclass(node: ast.ClassDef) -> bool:
    return any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list)


def _item(doc: str) -> str:
    """A docstring behind a list mark: each paragraph in one line, the later ones indented."""
    return "\n\n  ".join(" ".join(paragraph.split()) for paragraph in doc.split("\n\n"))


def plain(doc: str) -> str:
    """A docstring with bare names where Sphinx would put links."""
    return re.sub(r":(?:class|data|func|meth|mod):`~?([\w.]+)`", r"`\1`", doc)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
