"""General English that every machine with Python has: the prose of Python's own documentation.

Documents come from ``pydoc_data.topics`` and from the docstrings of a fixed list of standard modules. The docstrings
are read from source; no module is imported. Only prose paragraphs are kept: no code, no grammar, no tables. Each
paragraph is kept once. The hash of a document's name decides whether it belongs to the holdout, so the choice does not
depend on the Python version. A holdout paragraph that shares a run of words with retain text is dropped. The text
itself may vary a little between Python versions. This module knows nothing about tokenizers or models.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import re
import sysconfig
from pathlib import Path
from pydoc_data.topics import topics

HOLDOUT_SHARE = 0.1  # of the documents
RUN_WORDS = 8  # retain and holdout share no run of this many words
_MIN_CHARACTERS = 60
_NOT_PROSE = re.compile(r"[^A-Za-z ,.;:'()\"-]")
_CODE = re.compile(r">>>|::=|\.\.\.\.|[{}<>|\\=]{2}|__\w+__\(|^[-=~+*^]{4}")
MODULES = (
    "_collections_abc _pydecimal _pyio abc aifc argparse ast asyncio base64 bdb bisect calendar cmd code codecs codeop "
    "collections compileall concurrent configparser contextlib copy copyreg csv ctypes curses dataclasses datetime dbm "
    "difflib dis doctest email enum filecmp fileinput fnmatch fractions ftplib functools genericpath getopt "
    "getpass gettext glob graphlib gzip hashlib heapq hmac html http imaplib importlib inspect io ipaddress json "
    "keyword linecache locale logging lzma mailbox mimetypes modulefinder multiprocessing netrc ntpath numbers "
    "nturl2path opcode operator optparse os pathlib pdb pickle pickletools pkgutil platform plistlib poplib posixpath "
    "pprint profile pstats pty py_compile pyclbr pydoc queue quopri random re reprlib rlcompleter runpy sched secrets "
    "selectors shelve shlex shutil signal site smtplib socket socketserver sqlite3 ssl stat statistics string "
    "stringprep struct subprocess symtable sysconfig tabnanny tarfile tempfile textwrap this threading timeit tkinter "
    "token tokenize tomllib trace traceback tracemalloc tty turtle types typing unittest urllib uuid venv warnings "
    "wave weakref webbrowser wsgiref xml xmlrpc zipapp zipfile zipimport zoneinfo"
)


def english_documents() -> dict[str, list[str]]:
    """Prose paragraphs by document name, e.g. "topic/assert" or "email/message.py", in a fixed order.

    A paragraph that occurs in an earlier document is skipped, and so is a document without paragraphs. ValueError when
    this Python has no documentation.
    """
    raw = {f"topic/{name}": text for name, text in sorted(topics.items())} | docstring_documents()
    seen: set[str] = set()
    documents = {}
    for name, text in raw.items():
        paragraphs = [p for p in prose_paragraphs(text) if p not in seen]
        seen.update(paragraphs)
        if paragraphs:
            documents[name] = list(dict.fromkeys(paragraphs))
    if not documents:
        raise ValueError("this Python brings no documentation (pydoc_data.topics is empty): the lab needs its text")
    return documents


def docstring_documents() -> dict[str, str]:
    """The docstrings of each source file in ``MODULES``, by path below the library. Missing modules are skipped."""
    library = Path(sysconfig.get_paths()["stdlib"])
    documents = {}
    for module in MODULES.split():
        folder = library / module
        paths = sorted(folder.rglob("*.py")) if folder.is_dir() else [library / f"{module}.py"]
        for path in paths:
            if path.is_file() and not {"test", "tests"} & set(path.parts[len(library.parts) :]):
                documents[path.relative_to(library).as_posix()] = docstrings(path.read_text(encoding="utf-8"))
    return documents


def docstrings(source: str) -> str:
    """Every docstring of a module's source, in the order of the file, separated by blank lines."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, kinds)]
    nodes.sort(key=lambda node: getattr(node, "lineno", 0))
    return "\n\n".join(text for node in nodes if (text := ast.get_docstring(node)))


def prose_paragraphs(text: str) -> list[str]:
    """The paragraphs that are prose, each unwrapped to one line."""
    paragraphs = []
    for block in re.split(r"\n\s*\n", text):
        line = " ".join(block.split())
        is_long = len(line) >= _MIN_CHARACTERS and " " in line
        if is_long and not _CODE.search(block) and len(_NOT_PROSE.findall(line)) <= 0.05 * len(line):
            paragraphs.append(line)
    return paragraphs


def is_holdout(name: str) -> bool:
    """Whether a document is held out, by the SHA-256 of its name."""
    return int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) < HOLDOUT_SHARE * 2**32


@functools.cache
def retain_and_holdout() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(retain, holdout): documents as texts with one paragraph per line. They share no run of ``RUN_WORDS`` words.

    Reading and comparing takes seconds and always gives the same result, so it is done once per process.
    """
    documents = english_documents()
    retain = [paragraphs for name, paragraphs in documents.items() if not is_holdout(name)]
    known = {run for paragraphs in retain for paragraph in paragraphs for run in runs(paragraph)}
    holdout = []
    for name, paragraphs in documents.items():
        clean = [paragraph for paragraph in paragraphs if known.isdisjoint(runs(paragraph))] if is_holdout(name) else []
        if clean:
            holdout.append("\n".join(clean))
    return tuple("\n".join(paragraphs) for paragraphs in retain), tuple(holdout)


def runs(text: str) -> set[str]:
    """Every run of ``RUN_WORDS`` words, in lower case and without punctuation."""
    words = re.findall(r"\w+", text.lower())
    return {" ".join(words[start : start + RUN_WORDS]) for start in range(len(words) - RUN_WORDS + 1)}
