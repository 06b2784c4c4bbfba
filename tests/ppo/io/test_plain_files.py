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
from ppo.io.files import read_json, write_json
from ppo.io.plain_files import append_text, check_plain_files, new_text, open_plain
from ppo.lm.load import load_pretrained
from ppo.log import RunLog, read_jsonl
from tests.fakes import tiny_gpt2

PROMPTS = [[2, 3], [4]]
SECONDS = 20
SMALL = Config(prompts_per_step=2, minibatch=2, response_length=2, save_every_steps=1)


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


# ---------------------------------------------------------------------- what is written


def elsewhere(path):
    """A link to somebody's file, which must stay as it is."""
    path.symlink_to(precious(path))


def precious(path):
    kept = path.parents[1] / "precious"
    kept.write_text("precious")
    return kept


def made_elsewhere(path):
    """What a link in this place would have made or changed outside the run's folder."""
    kept = path.parents[1] / "precious"
    return [p for p in (path.with_name("nowhere"),) if p.exists()] + [
        p for p in (kept,) if p.exists() and p.read_text() != "precious"
    ]


WRITTEN = [zeros, dangling, looping, elsewhere]
FOLDERS = ["checkpoints", "best", "dumps", "tensorboard"]


@pytest.mark.parametrize("make", [*WRITTEN, pipe, unix_socket, folder])
@pytest.mark.parametrize("name", ["metrics.jsonl", "samples.jsonl"])
def test_a_log_goes_into_plain_files_alone(tmp_path, make, name):
    path = tmp_path / "run" / name
    path.parent.mkdir()
    make(path)
    with pytest.raises(ValueError, match=rf"run/{name} is ") as caught:
        RunLog(path.parent)
    assert "\n" not in str(caught.value)
    assert made_elsewhere(path) == []


@pytest.mark.parametrize("make", WRITTEN)
@pytest.mark.parametrize("name", FOLDERS)
def test_no_folder_of_a_run_is_a_link(tmp_path, make, name):
    path = tmp_path / "run" / name
    path.parent.mkdir()
    make(path)
    with pytest.raises(ValueError, match=rf"run/{name} is a link, and nothing is written where it leads: delete it"):
        Trainer(tiny_gpt2(), PROMPTS, lambda s: [0.0] * len(s), SMALL, out=path.parent).train(1, progress=False)
    assert made_elsewhere(path) == []


def test_the_folder_of_a_run_may_be_a_link(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "run").symlink_to("there")
    Trainer(tiny_gpt2(), PROMPTS, lambda s: [0.0] * len(s), SMALL, out=tmp_path / "run").train(1, progress=False)
    assert (tmp_path / "there" / "checkpoints" / "step-000001" / "state.json").is_file()


@pytest.mark.parametrize("make", WRITTEN)
@pytest.mark.parametrize("name", ["evaluation.json", "evaluation.json.tmp", "metrics.csv", "metrics.csv.tmp"])
def test_what_is_written_whole_takes_the_place_of_a_link(tmp_path, make, name):
    path = tmp_path / "run" / name
    path.parent.mkdir()
    make(path)
    if name.startswith("metrics"):
        log = RunLog(path.parent)
        log.metrics(0, {"a/b": 1.0})
        log.metrics(1, {"c/d": 1.0})
        log.close()
        assert (path.parent / "metrics.csv").read_text() == "step,a/b,c/d\n0,1.0,\n1,,1.0\n"
    else:
        write_json(path.parent / "evaluation.json", {"a": 1})
        assert read_json(path.parent / "evaluation.json") == {"a": 1}
    assert not (path.parent / name.removesuffix(".tmp")).is_symlink()
    assert made_elsewhere(path) == []


@pytest.mark.parametrize("make", WRITTEN)
@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "model.safetensors"])
def test_a_model_is_written_into_its_folder(tmp_path, make, name):
    path = tmp_path / "model" / name
    path.parent.mkdir()
    make(path)
    Trainer(tiny_gpt2(), PROMPTS, lambda s: [0.0] * len(s), SMALL).save_model(path.parent)
    assert path.is_file()
    assert not path.is_symlink()
    assert made_elsewhere(path) == []


@pytest.mark.parametrize("make", [*WRITTEN, folder])
def test_a_path_that_cannot_be_appended_to_or_made_is_named(tmp_path, make):
    path = tmp_path / "run" / "x"
    path.parent.mkdir()
    make(path)
    with pytest.raises(ValueError, match="run/x is "):
        append_text(path)
    if make is folder:
        with pytest.raises(OSError, match="run/x"):
            new_text(path)
    else:
        with new_text(path, newline="") as file:
            file.write("a\n")
        with append_text(path, newline="") as file:
            file.write("é\r\n")
        assert path.read_bytes() == "a\né\r\n".encode()
    assert made_elsewhere(path) == []
