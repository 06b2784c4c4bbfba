"""Files that somebody damaged, or made to do harm: a clear ValueError, in little memory; nothing is ever unpickled."""

import ast
import json
import random
import struct
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import GPTNeoConfig, GPTNeoForCausalLM

from models.gguf_header import check_gguf, read_gguf_header
from ppo import Config
from ppo.checkpoint import load_tensors, read_state
from ppo.io.files import read_json
from ppo.lm.backbone import end_ids
from ppo.lm.load import explained, load_pretrained
from ppo.lm.safetensors_header import check_sizes
from ppo.log import read_jsonl
from tests import fuzz, fuzz_damage
from tests.processes import ENVIRONMENT, ROOT

ROOMS = ("ppo", "rewards", "models", "data", "eval", "benchmarks")
PICKLES = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def sources():
    return [*ROOT.glob("*.py"), *(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))]


def unpickling(tree: ast.AST):
    """Line numbers of imports and calls that read pickles."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            if any(name.split(".")[0] in PICKLES for name in names):
                yield node.lineno
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner, name = ast.unparse(node.func.value), node.func.attr
            named = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if (owner, name) in {("torch", "load"), ("torch", "save"), ("torch.hub", "load"), ("pd", "read_pickle")}:
                yield node.lineno
            if owner in ("np", "numpy") and name == "load" and named.get("allow_pickle") != "False":
                yield node.lineno
            # Left out, it is a question at the terminal, and "y" runs the code.
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
             "np.load(p, allow_pickle=True)", "AutoModel.from_pretrained(p, trust_remote_code=True)",
             "AutoConfig.from_pretrained(p)", "AutoModelForCausalLM.from_config(c, trust_remote_code=None)",
             "import joblib.numpy_pickle"],
)  # fmt: skip
def test_the_ban_sees_what_it_bans(line):
    assert list(unpickling(ast.parse(line))) == [1]
    harmless = "np.load(p, allow_pickle=False); AutoConfig.from_pretrained(p, trust_remote_code=False)"
    assert list(unpickling(ast.parse(harmless))) == []


@pytest.mark.parametrize("part", ["config.json", "tokenizer_config.json"])
def test_code_of_a_repository_is_not_even_asked_about(tmp_path, monkeypatch, part):
    """A config that names a class in a file beside it, and somebody at the terminal who says yes."""
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
        load_pretrained(tmp_path)  # a tokenizer has a file of its own that says all
    assert not asked
    assert not (tmp_path / "ran").exists()


@pytest.fixture(scope="module")
def loaders(tmp_path_factory):
    return fuzz.Loaders(tmp_path_factory.mktemp("fuzz"))


@pytest.fixture(scope="module")
def kinds(loaders):
    return loaders.kinds()


KINDS = [
    "config", "config nodes", "settings", "csv", "jsonl", "jsonl ids", "retain", "metrics", "guesses", "cloze",
    "questions", "npy", "truths", "gguf", "safetensors", "adapter", "dump", "replay", "state.json", "checkpoint",
    "model", "tokenizer", "gguf model",
]  # fmt: skip


def test_no_kind_is_left_out(kinds):
    assert sorted(KINDS) == sorted([*kinds] if fuzz.has_gguf() else [*kinds, "gguf model"])


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("npy", "truths")])
def test_a_good_file_is_taken(kinds, kind, monkeypatch):
    if kind == "gguf model":
        pytest.importorskip("gguf")
        pytest.importorskip("accelerate")
    for damage in ("damaged", "changed_nodes", "changed_tensors"):
        monkeypatch.setattr(fuzz, damage, lambda good, rng: good)
    assert dict(fuzz.outcomes(kinds[kind], iter(range(3)))) == dict.fromkeys(range(3), "taken")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore")
def test_a_damaged_file_is_taken_or_refused(loaders, kinds, kind):
    seeds = iter(range(10 if kind in fuzz.SLOW else 60))
    if kind == "gguf model":
        pytest.importorskip("gguf")
        pytest.importorskip("accelerate")
    found = dict(fuzz.outcomes(kinds[kind], seeds, folder=str(loaders.folder)))
    assert {seed: text for seed, text in found.items() if text not in ("taken", "refused")} == {}
    assert "refused" in found.values()


@pytest.mark.parametrize("kind", [MemoryError, lambda: RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_running_out_of_memory_is_no_refusal(kind):
    def load():
        explained(lambda: fail(kind()), failure="it cannot be loaded", remedy="download it again")

    def fail(error):
        raise error

    ((_, outcome),) = fuzz.outcomes(lambda _: load, iter([0]))
    assert "it cannot be loaded" in outcome

    def refuse():
        explained(lambda: fail(KeyError()), failure="no", remedy="x")

    ((_, outcome),) = fuzz.outcomes(lambda _: refuse, iter([0]))
    assert outcome == "refused"
    ((_, outcome),) = fuzz.outcomes(lambda _: refuse, iter([0]), folder="/a/folder")
    assert outcome.startswith("a ValueError that names no file")


@pytest.mark.slow
def test_a_hundred_thousand_damaged_files_in_little_memory():
    command = [sys.executable, "-m", "tests.fuzz", "--inputs", "5600", "--memory-mib", "1024", "--seed", "1000"]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=1400)
    assert done.returncode == 0, done.stdout  # what stands in stderr are progress bars


# ---------------------------------------------------------------------- small files with large promises

PROMISES = """
import sys
from pathlib import Path
from tests.fuzz import gguf, limit_memory, npy
from data.challenge import read_challenge
from models.load import load
import torch, transformers
limit_memory(512)
folder = Path(sys.argv[1])
models = sorted(path.name for path in (folder / "models").iterdir())
for name, action in {
    "npy": lambda: read_challenge(folder, "val"), "empty npy": lambda: read_challenge(folder, "none"),
    "gguf": lambda: load(folder / "model.gguf"),
    **{name: lambda name=name: load(folder / "models" / name) for name in models},
}.items():
    try:
        action()
        print(name, "was taken")
    except ValueError as error:
        cause, kind = error, ""
        while cause := cause.__cause__:
            kind = type(cause).__name__
        print(f"{name}: {kind}: {error}")
"""


BILLION, POSITIONS = 10**9, 40_000  # a mask of positions² bytes
MODELS = {
    "heads": ("gpt2", {"n_head": BILLION}, "cannot be loaded"),
    "kinds of layers": (
        "gpt_neo",
        {"attention_types": [[["global"], BILLION]]},
        "attention_types is 1000000000, at most",
    ),
    "labels": ("gpt2", {"num_labels": BILLION}, "num_labels is 1000000000, at most"),
    "layers": ("gpt2", {"n_layer": BILLION}, "n_layer is 1000000000, at most"),
    "mask": ("gpt_neo", {"max_position_embeddings": 200_000}, "wpe.weight is (48, 16) in the file, (200000, 16)"),
    "mask alone": ("gpt_neo long", {"max_position_embeddings": POSITIONS}, "bytes of masks and tables, more than"),
    "positions": ("gpt2", {"n_positions": BILLION}, "wpe.weight is (48, 16) in the file, (1000000000, 16)"),
    "under another name": ("gpt2 bare", {"n_inner": BILLION}, "weights, its files hold"),
    "vocabulary": ("gpt2", {"vocab_size": BILLION}, "vocab_size is 1000000000, at most"),
    "width": ("gpt2", {"n_inner": BILLION}, "mlp.c_fc.weight is (16, 64) in the file, (16, 1000000000)"),
}


def save_lying(folder, kind, changes):
    """A tiny model of a kind whose config promises something else."""
    model = fuzz.tiny_gpt2() if kind.startswith("gpt2") else tiny_gpt_neo()
    model.save_pretrained(folder)
    tensors = load_tensors(folder / "model.safetensors")
    if kind == "gpt2 bare":  # as of GPT2Model, which is loaded all the same
        tensors = {name.removeprefix("transformer."): x for name, x in tensors.items()}
    if kind == "gpt_neo long":
        tensors["transformer.wpe.weight"] = torch.zeros(POSITIONS, 16)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def tiny_gpt_neo():
    return GPTNeoForCausalLM(
        GPTNeoConfig(
            vocab_size=23, hidden_size=16, num_layers=1, num_heads=2, attention_types=[[["global"], 1]],
            max_position_embeddings=48, bos_token_id=0, eos_token_id=1,
        )
    )  # fmt: skip


def test_a_billion_rows_layers_or_words_in_a_small_file(tmp_path):
    """Each would take gigabytes if it were believed; the process may take half of one."""
    for split, shape in (("val", "(1000000000, 50)"), ("none", "(1000000000, 0)")):
        for part in ("prefix", "suffix"):
            header = f"{{'descr': '<i8', 'fortran_order': False, 'shape': {shape}, }}"
            (tmp_path / f"{split}_{part}.npy").write_bytes(fuzz.npy(header))
    whole = fuzz.gguf()
    place = whole.index(b"tokenizer.ggml.tokens") + len(b"tokenizer.ggml.tokens") + 8
    (tmp_path / "model.gguf").write_bytes(whole[:place] + struct.pack("<Q", 10**9) + whole[place + 8 :])
    for name, (kind, changes, _) in MODELS.items():
        save_lying(tmp_path / "models" / name, kind, changes)
    command = [sys.executable, "-c", PROMISES, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == ["npy", "empty npy", "gguf", *MODELS]
    assert "MemoryError" not in done.stdout
    assert "allocate" not in done.stdout
    assert "val_prefix.npy is not a readable .npy array" in lines[0]
    assert "none_prefix.npy" in lines[1]
    assert "promises an array of 1000000000 elements" in lines[2]
    for line, (_, _, message) in zip(lines[3:], MODELS.values(), strict=True):
        assert message in line


def test_a_good_gguf_header_is_read(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(fuzz.gguf())
    header = read_gguf_header(path)
    assert header.numbers == {"llama.block_count": 1}
    assert header.shapes == {"token_embd.weight": (4, 3)}
    check_gguf(path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"GGUF", b"GGML", "does not begin with the letters GGUF"),
        (struct.pack("<II", 4, 1), struct.pack("<II", 4, 10**6), "llama.block_count is 1000000, its weights allow 1"),
        (struct.pack("<IIQ", 9, 8, 3), struct.pack("<IIQ", 9, 6, 10**12), "an array of 1000000000000 elements"),
        (struct.pack("<IIQ", 9, 8, 3), struct.pack("<IIQ", 9, 77, 3), "a value of type 77"),
        (struct.pack("<IQQ", 3, 1, 4), struct.pack("<IQQ", 3, 2**60, 4), "1152921504606846976 tensors and 4 keys"),
        (struct.pack("<IQQ", 2, 4, 3), struct.pack("<IQQ", 2, 4, 10**12), "beyond the end of the file"),
        (struct.pack("<IQQ", 2, 4, 3), struct.pack("<IQQ", 99, 4, 3), "has 99 dimensions"),
    ],
)
def test_a_lying_gguf_header_is_named(tmp_path, old, new, message):
    whole = fuzz.gguf()
    assert whole.count(old) == 1
    path = tmp_path / "model.gguf"
    path.write_bytes(whole.replace(old, new))
    with pytest.raises(ValueError, match=message) as caught:
        check_gguf(path)
    assert str(path) in str(caught.value)


def test_every_cut_of_a_gguf_header_is_refused(tmp_path):
    whole, path = fuzz.gguf()[:-64], tmp_path / "model.gguf"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="is damaged"):
            check_gguf(path)


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/hostname", "a\0b"])
def test_a_checkpoint_names_no_file_outside_itself(tmp_path, name):
    (tmp_path / "outside.safetensors").write_bytes(b"x")
    folder = tmp_path / "ckpt"
    folder.mkdir()
    (folder / "state.json").write_text(json.dumps({"format": 1, "sha256": {name: "0"}}))
    with pytest.raises(ValueError, match="lies outside the checkpoint"):
        read_state(folder)


def test_a_file_that_has_no_checksum_is_refused(tmp_path):
    (tmp_path / "state.json").write_text(json.dumps({"format": 1, "sha256": {}}))
    (tmp_path / "value.safetensors").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"value.safetensors is not a file of this checkpoint"):
        read_state(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe{}", "config.json is damaged"),
        (b"9" * 6000, "config.json is damaged"),
        (b"[" * 100_000, "config.json is damaged"),
        (b'{"a": 1', "config.json is damaged"),
        (b'"' + b"x" * 200 + b'"', "config.json is damaged: it is longer than 100 bytes"),
    ],
)
def test_json_is_read_within_bounds(tmp_path, content, message):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_json(path, max_bytes=100 if b"x" in content else 10**6)
    with pytest.raises(ValueError, match=r"config.json"):
        Config.load(path)


def test_a_log_that_was_cut_inside_a_character_is_read_and_one_damaged_before_is_not(tmp_path):
    path = tmp_path / "samples.jsonl"
    path.write_bytes('{"step": 0, "text": "Zoë"}\n{"step": 1, "text": "Zoë'.encode()[:-1])
    assert [row["step"] for row in read_jsonl(path)] == [0]
    path.write_bytes(b'{"step": 0}\n\xff\n{"step": 2}\n')
    with pytest.raises(ValueError, match=r"samples.jsonl, line 2 is not JSON"):
        read_jsonl(path)


def test_sizes_that_weights_allow_pass():
    config = fuzz.tiny_gpt2().config
    shapes = {f"w{i}": (23, 16) for i in range(9)}
    check_sizes(config, shapes, name="x")
    with pytest.raises(ValueError, match="vocab_size is 23, at most 22"):
        check_sizes(config, dict.fromkeys(shapes, (22, 16)), name="x")


def test_damage_is_the_same_for_the_same_seed():
    good = Path(fuzz.__file__).read_bytes()
    assert fuzz.damaged(good, random.Random(3)) == fuzz.damaged(good, random.Random(3)) != good


def test_what_is_put_into_a_file_stays_what_it_is():
    """What one input changes must not come back in the next one."""
    before, record = json.dumps(fuzz_damage.VALUES), {"a": [[1], [2]], "b": {"c": [3]}}
    for seed in range(500):
        json.dumps(fuzz.changed_nodes(record, random.Random(seed)))
    assert json.dumps(fuzz_damage.VALUES) == before


def test_an_eos_that_is_no_token_is_refused():
    model = fuzz.tiny_gpt2()
    model.generation_config.eos_token_id = {"a": []}
    with pytest.raises(ValueError, match=r"names eos_token_id=\{'a': \[\]\}"):
        end_ids(model)
