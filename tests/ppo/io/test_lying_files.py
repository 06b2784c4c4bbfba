"""Small files whose headers or configs promise huge sizes get a clear ValueError, in little memory."""

import json
import struct
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from transformers import GPTNeoConfig, GPTNeoForCausalLM

from models.gguf_header import check_gguf, read_gguf_header
from ppo.checkpoint import load_tensors
from ppo.lm.safetensors_header import check_sizes
from tests import fuzz
from tests.processes import ENVIRONMENT, ROOT

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


BILLION, POSITIONS = 10**9, 40_000  # a mask has positions² bytes
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
    """Save a tiny model of this kind, and change its config so that it no longer fits the weights."""
    model = fuzz.tiny_gpt2() if kind.startswith("gpt2") else tiny_gpt_neo()
    model.save_pretrained(folder)
    tensors = load_tensors(folder / "model.safetensors")
    if kind == "gpt2 bare":  # as GPT2Model saves it, whose weights load all the same
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
    """Each file would cost gigabytes if its promise were believed. The process may use half a gigabyte."""
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
    assert "none_prefix.npy has the shape" in lines[1]
    assert "it declares more rows than the file has bytes" in lines[1]
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


def test_sizes_that_weights_allow_pass():
    config = fuzz.tiny_gpt2().config
    shapes = {f"w{i}": (23, 16) for i in range(9)}
    check_sizes(config, shapes, name="x")
    with pytest.raises(ValueError, match="vocab_size is 23, at most 22"):
        check_sizes(config, dict.fromkeys(shapes, (22, 16)), name="x")
