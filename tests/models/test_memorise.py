"""Fine-tuning until the model reproduces given passages."""

import pytest
import torch

from models.memorise import lm_loss, memorise, pad_right
from ppo.lm.backbone import Backbone
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


def test_with_an_unreachable_target_the_last_record_holds_the_share_reached():
    history = memorise(tiny_gpt2(), [PASSAGES], measure=lambda: 0.25, max_epochs=3, say=lambda line: None)
    assert [record.get("share") for record in history] == [None, 0.25, 0.25]


class Killed(Exception):
    pass


def test_a_killed_run_goes_on_to_the_same_bits(tmp_path):
    variants = [[p, p[2:]] for p in PASSAGES]
    settings = {"batch": 1, "max_epochs": 6, "learning_rate": 1e-3, "say": lambda line: None}
    whole, broken = tiny_gpt2(), tiny_gpt2()
    expected = memorise(whole, variants, measure=lambda: 0.0, **settings)
    shares = iter([0.0, 0.0])

    def killed_at_the_third_measurement():
        try:
            return next(shares)
        except StopIteration:
            raise Killed from None

    with pytest.raises(Killed):
        memorise(broken, variants, measure=killed_at_the_third_measurement, checkpoint=tmp_path / "c", **settings)
    fresh = tiny_gpt2()
    history = memorise(fresh, variants, measure=lambda: 0.0, checkpoint=tmp_path / "c", **settings)
    assert history == expected
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), fresh.parameters(), strict=True))
    again = memorise(fresh, variants, measure=lambda: 0.0, checkpoint=tmp_path / "c", **settings)
    assert again == expected  # the run was already complete


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    settings = {"measure": lambda: 0.0, "max_epochs": 1, "checkpoint": tmp_path / "c", "say": lambda line: None}
    memorise(tiny_gpt2(), [PASSAGES], **settings)
    with pytest.raises(ValueError, match="belongs to another model"):
        memorise(tiny_gpt2(layers=1), [PASSAGES], **settings)


def test_a_passage_needs_two_tokens():
    with pytest.raises(ValueError, match="passage 1 needs at least one variant"):
        memorise(tiny_gpt2(), [[[2, 3]], [[4]]], measure=lambda: 1.0)


def test_the_loss_is_the_mean_over_predicted_tokens_whatever_the_padding():
    model = tiny_gpt2().eval()
    both = lm_loss(Backbone(model), *pad_right(PASSAGES, torch.device("cpu")))
    alone = [model(input_ids=torch.tensor([p]), labels=torch.tensor([p])).loss.item() for p in PASSAGES]
    assert both.item() == pytest.approx((alone[0] * 7 + alone[1] * 8) / 15, abs=1e-5)


def test_texts_trained_beside_the_passages_keep_their_probability():
    beside = [[3, 3, 7, 7, 3, 3, 7, 7], [11, 4, 11, 4, 11, 4]]

    def loss_beside(**more):
        model = tiny_gpt2()
        memorise(model, [[p] for p in PASSAGES], measure=lambda: 0.0, max_epochs=200, learning_rate=3e-3,
                 say=lambda line: None, **more)  # fmt: skip
        return lm_loss(Backbone(model.eval()), *pad_right(beside, torch.device("cpu"))).item()

    assert loss_beside() > 2 * loss_beside(beside=beside, num_beside=1)


def test_num_beside_above_the_number_of_texts_is_refused():
    with pytest.raises(ValueError, match="num_beside=3 is more than the 2 texts"):
        memorise(tiny_gpt2(), [PASSAGES], measure=lambda: 1.0, beside=PASSAGES, num_beside=3)
