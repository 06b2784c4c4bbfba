"""Fine-tuning until given passages come back."""

import pytest
import torch

from models.memorise import lm_loss, memorise, pad_right
from ppo.backbone import Backbone
from tests.fakes import tiny_gpt2

PASSAGES = [[2, 5, 9, 4, 7, 3, 8, 6], [10, 3, 12, 6, 14, 2, 15, 9, 5]]


def share_memorised(model):
    hits = 0
    for passage in PASSAGES:
        predicted = model.eval()(input_ids=torch.tensor([passage])).logits[0].argmax(-1)
        hits += predicted[3:-1].tolist() == passage[4:]
    return hits / len(PASSAGES)


def test_it_trains_until_the_measure_is_reached():
    model = tiny_gpt2()
    assert share_memorised(model) == 0
    lines = []
    history = memorise(model, [[p, p[2:]] for p in PASSAGES], measure=lambda: share_memorised(model), target=1.0,
                       learning_rate=3e-3, max_epochs=400, check_every_epochs=5, say=lines.append)  # fmt: skip
    assert share_memorised(model) == 1
    assert history[-1]["share"] == 1
    assert history[-1]["loss"] < history[0]["loss"]
    assert len(lines) == len(history) < 400


def test_a_target_out_of_reach_ends_with_what_was_reached():
    history = memorise(tiny_gpt2(), [PASSAGES], measure=lambda: 0.25, max_epochs=3, say=lambda line: None)
    assert [record.get("share") for record in history] == [None, 0.25, 0.25]


def test_a_passage_needs_two_tokens():
    with pytest.raises(ValueError, match="passage 1 needs at least one variant"):
        memorise(tiny_gpt2(), [[[2, 3]], [[4]]], measure=lambda: 1.0)


def test_the_loss_is_the_mean_over_predicted_tokens_whatever_the_padding():
    model = tiny_gpt2().eval()
    both = lm_loss(Backbone(model), *pad_right(PASSAGES, torch.device("cpu")))
    alone = [model(input_ids=torch.tensor([p]), labels=torch.tensor([p])).loss.item() for p in PASSAGES]
    assert both.item() == pytest.approx((alone[0] * 7 + alone[1] * 8) / 15, abs=1e-5)
