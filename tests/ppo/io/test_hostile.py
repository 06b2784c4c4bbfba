"""Damaged and hostile files are read correctly, or get a ValueError that names the file, in little memory."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from ppo import Config
from ppo.checkpoint import read_state
from ppo.io.files import read_json
from ppo.lm.backbone import end_ids
from ppo.lm.load import explained
from ppo.log import read_jsonl
from tests import fuzz, fuzz_damage
from tests.processes import ENVIRONMENT, ROOT


@pytest.fixture(scope="module")
def loaders(tmp_path_factory):
    return fuzz.Loaders(tmp_path_factory.mktemp("fuzz"))


@pytest.fixture(scope="module")
def kinds(loaders):
    return loaders.kinds()


KINDS = [
    "config", "config nodes", "points", "settings", "csv", "jsonl", "jsonl ids", "retain", "metrics", "guesses",
    "cloze", "questions", "npy", "truths", "gguf", "safetensors", "adapter", "dump", "replay", "state.json",
    "checkpoint", "model", "tokenizer", "gguf model",
]  # fmt: skip


def test_every_kind_of_file_is_fuzzed(kinds):
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
def test_running_out_of_memory_does_not_count_as_a_refusal(kind):
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
    assert done.returncode == 0, done.stdout  # stderr holds progress bars


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


def test_a_log_is_read_if_only_its_last_line_was_cut_even_inside_a_character(tmp_path):
    path = tmp_path / "samples.jsonl"
    path.write_bytes('{"step": 0, "text": "Zoë"}\n{"step": 1, "text": "Zoë'.encode()[:-1])
    assert [row["step"] for row in read_jsonl(path)] == [0]
    path.write_bytes(b'{"step": 0}\n\xff\n{"step": 2}\n')
    with pytest.raises(ValueError, match=r"samples.jsonl, line 2 is not JSON"):
        read_jsonl(path)


def test_damage_is_the_same_for_the_same_seed():
    good = Path(fuzz.__file__).read_bytes()
    assert fuzz.damaged(good, random.Random(3)) == fuzz.damaged(good, random.Random(3)) != good


def test_damage_does_not_change_the_values_that_later_inputs_use():
    """What one input changes must not reach the next one."""
    before, record = json.dumps(fuzz_damage.VALUES), {"a": [[1], [2]], "b": {"c": [3]}}
    for seed in range(500):
        json.dumps(fuzz.changed_nodes(record, random.Random(seed)))
    assert json.dumps(fuzz_damage.VALUES) == before


def test_an_eos_that_is_no_token_is_refused():
    model = fuzz.tiny_gpt2()
    model.generation_config.eos_token_id = {"a": []}
    with pytest.raises(ValueError, match=r"names eos_token_id=\{'a': \[\]\}"):
        end_ids(model)
