"""Files cannot make the library run their code: no source reads a pickle or allows code of a repository."""

import ast
import json
from contextlib import nullcontext

import pytest

from ppo.lm.load import load_pretrained
from tests import fuzz
from tests.processes import ROOT

ROOMS = ("ppo", "rewards", "models", "data", "eval", "unlearning", "benchmarks")


PICKLES = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def sources():
    return [*ROOT.glob("*.py"), *(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))]


def unpickling(tree: ast.AST):
    """Line numbers of imports and calls that read pickles."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            is_error_alone = names == [
                "UnpicklingError",
                "pickle",
            ]  # what torch raises for a file with more than tensors
            if any(name.split(".")[0] in PICKLES for name in names) and not is_error_alone:
                yield node.lineno
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner, name = ast.unparse(node.func.value), node.func.attr
            named = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if (owner, name) in {("torch", "save"), ("torch.hub", "load"), ("pd", "read_pickle")}:
                yield node.lineno
            if (owner, name) == ("torch", "load") and named.get("weights_only") != "True":
                yield node.lineno
            if owner in ("np", "numpy") and name == "load" and named.get("allow_pickle") != "False":
                yield node.lineno
            # Without the argument, transformers asks at the terminal, and "y" runs the code.
            is_loader = owner.startswith("Auto") and name in ("from_pretrained", "from_config")
            if named.get("trust_remote_code", "None" if is_loader else "False") != "False":
                yield node.lineno
            if named.get("use_safetensors") == "False":
                yield node.lineno


def test_no_source_reads_a_pickle_or_runs_code_of_a_repository():
    found = {path.name: list(unpickling(ast.parse(path.read_text(encoding="utf-8")))) for path in sources()}
    assert len(found) > 60
    assert {name: lines for name, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    "line", ["import pickle", "from pickle import loads", "torch.load(p)", "np.load(p)",
             "torch.load(p, weights_only=False)", "torch.load(p, weights_only=x)",
             "from pickle import UnpicklingError, loads",
             "np.load(p, allow_pickle=True)", "AutoModel.from_pretrained(p, trust_remote_code=True)",
             "AutoConfig.from_pretrained(p)", "AutoModelForCausalLM.from_config(c, trust_remote_code=None)",
             "import joblib.numpy_pickle"],
)  # fmt: skip
def test_the_search_finds_every_kind_of_unsafe_line(line):
    assert list(unpickling(ast.parse(line))) == [1]
    harmless = "torch.load(p, weights_only=True); from pickle import UnpicklingError"
    assert list(unpickling(ast.parse(harmless))) == []
    harmless = "np.load(p, allow_pickle=False); AutoConfig.from_pretrained(p, trust_remote_code=False)"
    assert list(unpickling(ast.parse(harmless))) == []


@pytest.mark.parametrize("part", ["config.json", "tokenizer_config.json"])
def test_nobody_is_asked_whether_code_of_a_repository_may_run(tmp_path, monkeypatch, part):
    """The config names a class in a file beside it, and somebody at the terminal would answer yes."""
    asked = []
    monkeypatch.setattr("builtins.input", lambda question: asked.append(question) or "y")
    fuzz.tiny_gpt2(vocab=2048).save_pretrained(tmp_path)
    fuzz.load_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "theirs.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass Theirs: pass\n")
    whole = json.loads((tmp_path / part).read_text())
    classes = {"AutoConfig": "theirs.Theirs", "AutoTokenizer": ["theirs.Theirs", None]}
    changes = {"auto_map": classes, "model_type": "theirs", "tokenizer_class": "Theirs"}
    (tmp_path / part).write_text(json.dumps(whole | changes))
    with pytest.raises(ValueError, match="cannot be loaded") if part == "config.json" else nullcontext():
        load_pretrained(tmp_path)  # the tokenizer loads: tokenizer.json alone is enough for it
    assert not asked
    assert not (tmp_path / "ran").exists()
