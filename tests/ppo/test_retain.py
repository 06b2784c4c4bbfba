"""The retain losses equal plain loops."""

import pytest
import torch

from ppo.lm.backbone import Backbone
from ppo.retain import RetainLoss, RetainTexts, count_predictions
from tests.fakes import tiny_gpt2

TEXTS = [[2, 3, 4, 5, 6, 7, 8], [9, 10], [11, 12, 13, 14, 15, 16, 17, 18, 19, 20]]


def make(kind, **changes):
    return RetainLoss(kind, **({"reference": tiny_gpt2(7).eval(), "chunk_tokens": 4} | changes))


def texts(**changes):
    return RetainTexts(TEXTS, num_sequences=3, length=6, generator=torch.Generator().manual_seed(0), **changes)


def draw():
    batch = texts().draw(torch.device("cpu"))
    return batch.ids, batch.mask


def naive(kind, policy, reference, ids, mask):
    total, count = 0.0, 0
    for row, real in zip(ids, mask, strict=True):
        tokens = row[real][None]
        new = torch.log_softmax(policy(input_ids=tokens).logits[0].double(), -1)
        ref = torch.log_softmax(reference(input_ids=tokens).logits[0].double(), -1)
        for t in range(tokens.shape[1] - 1):
            total += (
                float(-new[t, tokens[0, t + 1]]) if kind == "lm" else float((ref[t].exp() * (ref[t] - new[t])).sum())
            )
            count += 1
    return total / count, count


@pytest.mark.parametrize("kind", ["lm", "kl"])
@torch.no_grad()
def test_the_loss_is_its_definition(kind):
    policy, loss = tiny_gpt2(1).eval(), make(kind)
    ids, mask = draw()
    expected, count = naive(kind, policy, tiny_gpt2(7).eval(), ids, mask)
    assert count_predictions(mask) == count
    assert loss(Backbone(policy), ids, mask, num_tokens=count).item() == pytest.approx(expected, abs=1e-5)


def test_kl_to_itself_is_zero_and_has_no_gradient():
    policy = tiny_gpt2(7).eval()
    loss = make("kl")
    ids, mask = draw()
    value = loss(Backbone(policy), ids, mask, num_tokens=count_predictions(mask))
    value.backward()
    assert abs(value.item()) < 1e-6
    assert max(float(p.grad.abs().max()) for p in policy.parameters()) < 1e-6


def test_kl_where_an_output_bias_is_minus_infinity():
    """Ids that pad a vocabulary have no chance in either model, and count for nothing."""
    models = [tiny_gpt2(seed).eval() for seed in (1, 2)]
    for model in models:
        head = torch.nn.Linear(model.lm_head.in_features, model.lm_head.out_features)
        head.load_state_dict({"weight": model.lm_head.weight, "bias": torch.zeros(head.out_features)})
        head.bias.data[-3:] = -torch.inf
        model.lm_head = head
    ids, mask = draw()
    ids, (policy, reference) = ids.clamp(max=20), models
    loss = make("kl", reference=reference)(Backbone(policy), ids, mask, num_tokens=count_predictions(mask))
    loss.backward()
    total, kept = 0.0, slice(0, -3)
    for row, real in zip(ids, mask, strict=True):
        new, ref = (torch.log_softmax(m(input_ids=row[real][None]).logits[0, :-1, kept].double(), -1) for m in models)
        total += float((ref.exp() * (ref - new)).sum())
    assert loss.item() == pytest.approx(total / count_predictions(mask), rel=1e-4)
    assert all(p.grad is None or p.grad.isfinite().all() for p in policy.parameters())


def test_parts_add_up():
    policy, loss = Backbone(tiny_gpt2(1).eval()), make("kl")
    ids, mask = draw()
    n = count_predictions(mask)
    with torch.no_grad():
        whole = loss(policy, ids, mask, num_tokens=n).item()
        parts = sum(loss(policy, ids[i : i + 1], mask[i : i + 1], num_tokens=n).item() for i in range(3))
    assert parts == pytest.approx(whole, abs=1e-6)


def test_long_texts_are_cut_and_single_tokens_left_out():
    pieces = texts().pieces
    assert sorted(map(len, pieces)) == [2, 4, 6, 6]  # the 1-token rest of the first text is gone
    assert {tuple(p) for p in pieces} <= {tuple(t[i : i + 6]) for t in TEXTS for i in (0, 6)}


def test_draws_come_from_the_generator():
    assert torch.equal(draw()[0], draw()[0])


def test_kl_needs_a_reference():
    with pytest.raises(ValueError, match="needs a reference model"):
        make("kl", reference=None)
