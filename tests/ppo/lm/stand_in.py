"""Tried with the package ``kernels`` in place: ways in which a model's files ask for foreign code.

    python -m tests.ppo.lm.stand_in FOLDER

It writes a stand-in for the package to the folder, starts itself again with the stand-in importable, and prints a JSON
object: for each way, what came of it ("loaded" or the error), and whether foreign code would have been fetched.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers.utils import import_utils

from tests.processes import ROOT

STAND_IN = '''
"""Stands for the package kernels. Whoever asks it for code leaves a trace."""
import os
from pathlib import Path


def get_kernel(name, *args, **kwargs):
    with open(os.environ["CANARY"], "a") as file:
        file.write(f"{name}\\n")
    raise RuntimeError("the hub was asked for " + name)


def _nothing(*args, **kwargs):
    def same(thing):
        return thing
    return same


class _Thing:
    def __init__(self, *args, **kwargs):
        pass
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return _Thing()
    def __call__(self, *args, **kwargs):
        return _Thing()
    def __or__(self, other):
        return self


use_kernel_forward_from_hub = use_kernel_func_from_hub = use_kernelized_func = _nothing


def register_kernel_mapping(*args, **kwargs):
    pass


def replace_kernel_forward_from_hub(*args, **kwargs):
    pass


def kernelize(model, *args, **kwargs):
    return model


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return _Thing if name[0].isupper() else _Thing()
'''


def write_stand_in(folder: Path) -> None:
    """The package, with the metadata by which transformers finds out its version."""
    (folder / "kernels").mkdir(parents=True)
    (folder / "kernels" / "__init__.py").write_text(STAND_IN)
    for name in ("layer", "utils"):
        (folder / "kernels" / f"{name}.py").write_text("from kernels import __getattr__\n")
    version = str(getattr(import_utils, "KERNELS_MIN_VERSION", "0.10.0"))
    info = folder / f"kernels-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: kernels\nVersion: {version}\n")


def outcomes(folder: Path, ways: dict[str, Callable[[], Any]]) -> dict[str, dict[str, Any]]:
    """What came of each way. ``folder`` holds the trace that foreign code would leave."""
    canary = folder / "canary"
    os.environ["CANARY"] = str(canary)
    found = {}
    for name, way in ways.items():
        canary.unlink(missing_ok=True)
        try:
            way()
            text = "loaded"
        except ValueError as error:
            text = f"ValueError: {error}"
        except Exception:
            text = traceback.format_exc()
        found[name] = {"outcome": text, "asked": canary.read_text().split() if canary.exists() else []}
    return found


def main(folder: Path) -> None:
    """In the second process: try every way."""
    from tests.ppo.lm import foreign_ways

    print(json.dumps(outcomes(folder, foreign_ways.ways(folder))))


def run(folder: Path) -> dict[str, dict[str, Any]]:
    """Write the stand-in and try every way in a process that can import it."""
    write_stand_in(folder / "packages")
    environment = os.environ | {"PYTHONPATH": f"{folder / 'packages'}{os.pathsep}{ROOT}", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "tests.ppo.lm.stand_in", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(done.stderr[-2000:])
    result: dict[str, dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return result


if __name__ == "__main__":
    main(Path(sys.argv[1]))
