"""A pipe, a device, a socket, a folder or a broken link in the place of any file is one line, and is not waited for."""

from __future__ import annotations

import os
import shutil
import signal
import socket

import pytest
import torch

from data.passages import load_passages
from data.retain import load_retain
from eval.challenge import read_guesses, read_truths
from eval.results import read_settings
from eval.utility import read_cloze, read_questions
from models.lab.load import load_tokenizer
from models.load import load
from models.lora import load_adapter
from ppo import Config, Trainer, replay
from ppo.io.files import read_json
from ppo.io.plain_files import check_plain_files, open_plain
from ppo.lm.load import load_pretrained
from ppo.log import RunLog, read_jsonl
from tests.fakes import tiny_gpt2

PROMPTS = [[2, 3], [4]]
SECONDS = 20


def pipe(path):
    os.mkfifo(path)


def zeros(path):
    path.symlink_to("/dev/zero")


def unix_socket(path):
    short = f"/tmp/s{os.getpid()}"  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(short)
    shutil.move(short, path)


def folder(path):
    path.mkdir()


def dangling(path):
    path.symlink_to(path.with_name("nowhere"))


def looping(path):
    other = path.with_name(path.name + "2")
    path.symlink_to(other)
    other.symlink_to(path)


KINDS = [pipe, zeros, unix_socket, folder, dangling, looping]


@pytest.fixture(autouse=True)
def bell():
    """A test that waits for a pipe fails; it does not hang."""

    def ring(*_):
        raise TimeoutError(f"not done after {SECONDS} s")

    signal.signal(signal.SIGALRM, ring)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)


def one_line(action, path):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        action()
    text = str(caught.value)
    assert "\n" not in text
    assert path.parent.name in text
    return text


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("config.json", Config.load),
        ("config.json", lambda path: read_settings(path.parent)),
        ("state.json", read_json),
        ("rows.csv", lambda path: load_passages(path, load_tokenizer(), 2048)),
        ("rows.jsonl", lambda path: load_passages(path, load_tokenizer(), 2048)),
        ("val_prefix.npy", lambda path: load_passages(path.parent, load_tokenizer(), 2048)),
        ("keep.txt", lambda path: load_retain([path], load_tokenizer(), 16)),
        ("keep.jsonl", lambda path: load_retain([path], load_tokenizer(), 16)),
        ("metrics.jsonl", read_jsonl),
        ("guesses.csv", read_guesses),
        ("truths.npy", read_truths),
        ("cloze.jsonl", read_cloze),
        ("questions.jsonl", read_questions),
        ("model.gguf", load),
        ("adapter_config.json", lambda path: load_adapter(tiny_gpt2(), path.parent)),
        ("dump.json", lambda path: replay(path.parent)),
    ],
)
def test_in_the_place_of_a_file(tmp_path, make, name, read):
    make(tmp_path / name)
    one_line(lambda: read(tmp_path / name), tmp_path / name)


MODEL = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("name", [*MODEL, "special_tokens_map.json", "chat_template.jinja", "model-2.safetensors"])
def test_in_the_place_of_a_file_of_a_model(tmp_path, make, name):
    """Also a file that was not there, which transformers would look for."""
    tiny_gpt2(vocab=len(load_tokenizer())).save_pretrained(tmp_path)
    load_tokenizer().save_pretrained(tmp_path)
    (tmp_path / name).unlink(missing_ok=True)
    make(tmp_path / name)
    one_line(lambda: load_pretrained(tmp_path), tmp_path / name)


def reward(samples):
    return [1.0] * len(samples)


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize(
    "name", ["state.json", "value.safetensors", "rng.safetensors", "model/model.safetensors", "model/vocab.txt"]
)
def test_in_the_place_of_a_file_of_a_checkpoint(tmp_path, make, name):
    config = Config(prompts_per_step=2, minibatch=2, response_length=2)
    path = Trainer(tiny_gpt2(), PROMPTS, reward, config).save(tmp_path / "ckpt")
    (path / name).unlink(missing_ok=True)
    make(path / name)
    one_line(lambda: Trainer.resume(path, PROMPTS, reward), path)


@pytest.mark.parametrize("make", [pipe, zeros, folder])
@pytest.mark.parametrize("name", ["metrics.jsonl", "samples.jsonl"])
def test_in_the_place_of_a_log(tmp_path, make, name):
    make(tmp_path / name)
    with pytest.raises((ValueError, OSError)) as caught:
        RunLog(tmp_path).close()
    assert "\n" not in str(caught.value)


def test_links_of_the_hub_s_cache_are_followed(tmp_path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    tiny_gpt2(vocab=len(load_tokenizer())).save_pretrained(tmp_path / "blobs")
    load_tokenizer().save_pretrained(tmp_path / "blobs")
    for file in (tmp_path / "blobs").iterdir():
        (tmp_path / "snapshot" / file.name).symlink_to(f"../blobs/{file.name}")
    check_plain_files(tmp_path / "snapshot")
    model, _ = load_pretrained(tmp_path / "snapshot")
    assert next(model.parameters()).dtype == torch.float32
    with open_plain(tmp_path / "snapshot" / "config.json") as file:
        assert file.read(1) == b"{"
