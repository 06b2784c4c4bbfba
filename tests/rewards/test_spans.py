"""Forbidden spans: what they are, which responses emit one, and that the preset is group-relative."""

from __future__ import annotations

import json
import math

import pytest
import torch

import demem
import ppo
from ppo.advantages import group_relative
from ppo.types import Sample
from rewards import demem as rewards
from rewards.spans import SpansMeasure, forbidden_spans
from tests.unlearning.test_demem import write_rows
from unlearning.options import PRESETS


def sample(text: str, spans: list[str]) -> Sample:
    return Sample("p", text, [1], [2, 3, 4, 5, 6], {"spans": spans, "suffix": "a b", "suffix_ids": [2, 3]}, False)


def test_a_response_emits_a_span_or_none():
    spans = ["Ann Lee", "555-0199"]
    texts = ["call Ann\n Lee now", "ann lee", "at 555-0199.", "at 555-0198", "Ann and Lee", ""]
    assert SpansMeasure()([sample(text, spans) for text in texts]) == [1.0, 0.0, 1.0, 0.0, 0.0, 0.0]
    with pytest.raises(ValueError, match="names no forbidden spans"):
        SpansMeasure()([sample("x", [])])


def test_spans_are_secrets_or_runs_of_words():
    assert forbidden_spans("a b c d e f g", ["b c"]) == ["b c"]
    assert forbidden_spans(" a b  c\nd e f g", []) == ["a b c d e", "b c d e f", "c d e f g"]
    assert forbidden_spans("a b", []) == ["a b"]
    with pytest.raises(ValueError, match="has no words"):
        forbidden_spans("  ", [])


def test_empty_text_is_no_success():
    reward = rewards.spans()
    found = reward([sample("call Ann Lee", ["Ann Lee"]), sample("", ["Ann Lee"]), sample("call Bob", ["Ann Lee"])])
    assert list(getattr(found, "values", found)) == [-1.0, -1.0, 0.0]


def test_group_relative_advantages_are_those_of_purge_s_reward():
    """-1 and 0 give what 0 and 1 give: (r - mean) / (std + 1e-4) in each group, in plain loops and float64."""
    emitted = [1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    scores = torch.tensor([-e for e in emitted], dtype=torch.float64)
    found = group_relative(scores, torch.ones(8, 1, dtype=torch.bool), group_size=4, estimator="grpo")[:, 0]
    for start in (0, 4):
        group = [1 - e for e in emitted[start : start + 4]]
        mean = sum(group) / 4
        std = math.sqrt(sum((r - mean) ** 2 for r in group) / 4)
        for i, r in enumerate(group):
            assert found[start + i].item() == pytest.approx((r - mean) / (std + 1e-4), abs=1e-12)


def test_the_preset_trains_from_the_command_line_and_resumes(tmp_path):
    assert ppo.Config.from_dict({"response_length": 8, **PRESETS["grpo"]}).advantage == "grpo"
    out = tmp_path / "run"
    arguments = ["run", "--preset", "grpo", "--data", write_rows(tmp_path / "rows.jsonl", 8), "--num-forget", "2"]
    arguments += ["--num-holdout", "2", "--num-never", "2", "--steps", "2", "--num-samples", "0", "--num-own", "8"]
    arguments += ["--prompts-per-step", "2", "--minibatch", "8", "--retain-sequences", "2", "--retain-tokens", "24"]
    assert demem.main([*arguments, "--out", str(out)]) == 0
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 2
    assert all(-1 <= row["score/mean"] <= 0 for row in rows)
    config = json.loads((out / "config.json").read_text())["config"]
    assert config["min_response_length"] == config["response_length"]  # ending early would emit nothing
