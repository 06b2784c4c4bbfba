"""Hub ids, against a stand-in for the hub: revisions, private and gated repositories, the cache, and no network."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from ppo.lm.load import load_pretrained
from rewards.bertscore import BertScore
from tests.fakes import tiny_gpt2
from tests.ppo.lm.hub_server import TOKEN, Hub, Repository, served
from tests.ppo.lm.test_load import as_opt_of_the_hub, letters

WRONG = "hf_of_somebody_else"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The repositories, the norm of each one's output layer, and a place for the client's cache."""
    top = tmp_path_factory.mktemp("hub")
    norms = {}
    for seed, name in enumerate(["main", "step1", "opt", "secret", "gated"]):
        folder = top / name
        folder.mkdir()
        model = as_opt_of_the_hub(folder) if name == "opt" else tiny_gpt2(seed)
        if name != "opt":
            model.save_pretrained(folder)
            letters().save_pretrained(folder)
            (folder / "pytorch_model.bin").write_bytes(b"never asked for")
        norms[name] = float(model.lm_head.weight.detach().norm())
    hub = Hub(
        {
            "me/open": Repository({"main": top / "main", "step1": top / "step1"}),
            "me/opt": Repository({"main": top / "opt"}),
            "me/secret": Repository({"main": top / "secret"}, is_private=True),
            "me/gated": Repository({"main": top / "gated"}, is_gated=True),
        }
    )
    return hub, norms, top / "cache"


def loaded(hub: Hub, cache, asked, **environment):
    """What came of each of [[source, token], …] in another process, with the hub at ``hub.url``."""
    own = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGINGFACE"))}
    own |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1", **environment}
    command = [sys.executable, "-m", "tests.ppo.lm.hub_server", json.dumps(asked)]
    done = subprocess.run(command, env=own, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    assert all("\n" not in (said or "") for said, _, _ in results)
    return results


def test_the_hub(world):
    hub, norms, cache = world
    asked = {
        "open": ("me/open", None), "step1": ("me/open@step1", None), "opt": ("me/opt", None),
        "secret": ("me/secret", TOKEN), "gated": ("me/gated", TOKEN),
        "no token": ("me/secret", None), "wrong token": ("me/secret", WRONG), "nothing": ("me/nothing", None),
        "terms": ("me/gated", None), "revision": ("me/open@step9", None), "empty": ("me/open@", None),
        "path": ("./not/there/at/all", None),
    }  # fmt: skip
    with served(hub):
        # Without the token first: what is in the cache is not asked for again.
        order = sorted(asked, key=lambda name: asked[name][1] == TOKEN)
        found = dict(zip(order, loaded(hub, cache, [asked[name] for name in order]), strict=True))
    said = {name: result[0] for name, result in found.items()}
    for name in ("open", "step1", "opt", "secret", "gated"):
        assert said[name] is None, name
    assert found["open"][1] == pytest.approx(norms["main"])
    for name in ("step1", "secret", "gated"):
        assert found[name][1] == pytest.approx(norms[name]), name
    assert found["opt"][1] == pytest.approx(norms["opt"], rel=1e-3)  # float16 in the file
    assert {path.split("/")[2] for path in hub.asked if path.endswith("pytorch_model.bin")} == {"opt"}
    for name in ("no token", "wrong token", "nothing"):
        assert "no such repository on the hub that this token may see; check the name; for a private" in said[name], (
            name
        )
    assert "is gated; accept its terms on its page, then set HF_TOKEN or run `hf auth login`" in said["terms"]
    assert "it has no revision 'step9'; name a branch, a tag or a commit of it" in said["revision"]
    assert "no revision follows its @" in said["empty"]
    assert "there is no such folder, and it is no hub id (name or owner/name); give a folder" in said["path"]


def test_the_cache_without_a_hub(world):
    """What was downloaded is loaded; all else is one line, at once."""
    hub, norms, cache = world
    with served(hub):
        assert loaded(hub, cache, [("me/open@step1", None)])[0][0] is None
    hub.asked.clear()
    asked = [("me/open@step1", None), ("me/opt@v2", None)]
    for environment in ({}, {"HF_HUB_OFFLINE": "1"}):  # the first: nobody listens at the address any more
        (said, norm, _), (missing, _, seconds) = loaded(hub, cache, asked, **environment)
        assert said is None
        assert norm == pytest.approx(norms["step1"])
        expected = "HF_HUB_OFFLINE allows the cache only" if environment else "the hub cannot be asked ([Errno"
        assert expected in missing
        assert seconds < 5
    assert not hub.asked


def test_a_hub_that_does_not_answer(world):
    """The client's own limit holds, once: not once for every file, and not again and again."""
    hub, _, cache = world
    hub.is_silent = True
    try:
        with served(hub):
            ((said, _, seconds),) = loaded(
                hub, cache / "empty", [("me/open", None)], HF_HUB_DOWNLOAD_TIMEOUT="1", HF_HUB_ETAG_TIMEOUT="1"
            )
    finally:
        hub.is_silent = False
    assert "the hub cannot be asked (" in said
    assert seconds < 20


def test_an_encoder_of_the_hub_is_found_in_the_same_way(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ValueError, match=r"^encoder='a/b/c' cannot be loaded: there is no such folder, .*; give a folder"
    ):
        BertScore.load("a/b/c", device="cpu")


def test_a_folder_with_an_at_sign_is_a_folder(tmp_path):
    tiny_gpt2().save_pretrained(tmp_path / "run@2")
    letters().save_pretrained(tmp_path / "run@2")
    model, _ = load_pretrained(tmp_path / "run@2")
    assert torch.equal(model.lm_head.weight, tiny_gpt2().lm_head.weight)
