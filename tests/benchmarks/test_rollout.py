"""The benchmarks of rollouts: they count correctly, and run from the command line to the result file."""

from __future__ import annotations

import json
import math

import pytest
import torch
from transformers.pytorch_utils import Conv1D

from benchmarks import drafts, rollout
from benchmarks.products import linears, needed_bytes, products
from ppo.generation.decoders import bind
from ppo.generation.linear import Linear
from tests.ppo.generation.test_decoders import FAMILIES
from tests.ppo.generation.test_models import build


@pytest.mark.parametrize("eos_ids", [(), (0,), (1, 2)])
def test_real_tokens_end_with_the_first_eos(eos_ids):
    responses = torch.randint(5, (40, 7), generator=torch.Generator().manual_seed(0))
    expected = 0
    for row in responses.tolist():
        for token in row:
            expected += 1
            if token in eos_ids:
                break
    assert rollout.real_tokens(responses, eos_ids) == expected


@pytest.mark.parametrize("name", FAMILIES)
def test_the_products_are_those_of_all_linear_layers(name: str, monkeypatch):
    """The sum includes OPT-350m's projections."""
    model = build(FAMILIES[name]())
    network = bind(model, rows=2, length=12)
    assert network is not None
    layers = [module for module in model.modules() if isinstance(module, torch.nn.Linear | Conv1D)]
    size = sum(layer.in_features * layer.out_features for layer in linears(network))
    assert size == sum(layer.weight.numel() for layer in layers)
    rows, call = {}, Linear.__call__
    monkeypatch.setattr(Linear, "__call__", lambda layer, x: rows.setdefault(layer, len(x)) and call(layer, x))
    products(network, 6, last=3)
    assert rows == {layer: 3 if layer in (network.output, network.project_out) else 6 for layer in linears(network)}


def test_needed_memory_counts_what_is_put_together_even_where_nothing_is_packed():
    network = bind(build(FAMILIES["llama"]()), rows=1, length=12)
    assert network is not None
    assert not any(layer.is_packed for layer in linears(network))
    joined = sum(b.qkv.in_features * b.qkv.out_features + b.up.in_features * b.up.out_features for b in network.blocks)
    vocab = network.output.out_features
    assert needed_bytes(network, 3, 1000.0) == 1000 + 4 * 3 * vocab + 4 * joined


def test_rollout_from_the_command_line_to_the_file(tmp_path, monkeypatch, capsys):
    path = tmp_path / "result.json"
    arguments = (
        "rollout --model random:lab --batch 2,1 --requests 3 --prompt-length 5 --response-length 6 --mean-length 3 "
        f"--against ppo-padded,hf --repeats 1 --json {path}"
    )
    monkeypatch.setattr("sys.argv", arguments.split())
    rollout.main()
    first, second = json.loads(path.read_text())["results"]
    assert (first["batch"], second["batch"]) == (2, 1)
    for result in (first, second):
        speeds = result["tokens_per_second"]
        assert set(speeds) == {"ppo", "ppo-padded", "hf"}
        assert all(speed > 0 and math.isfinite(speed) for speed in speeds.values())
        assert result["metrics"]["generate/is_fast"] == 1
        assert 0 < result["share_of_limit"] < math.inf
    assert "times_needed_memory" in first
    assert "times_needed_memory" not in second
    assert capsys.readouterr().out.count("weights beside the model's") == 1


def test_drafts_from_the_command_line_to_the_file(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    monkeypatch.setattr("sys.argv", f"drafts --passages 3 --slots 2 --temperatures 0 --repeats 1 --json {path}".split())
    drafts.main()
    (result,) = json.loads(path.read_text())["results"]
    assert result["same_tokens"]
    assert result["acceptance"]["true"] > 0.8  # the lab has memorised its passages
    assert result["acceptance"]["wrong"] == 0
