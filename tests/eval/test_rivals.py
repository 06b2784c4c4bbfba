"""The rivals of the field: each loss against plain loops in float64, and that each forgets, keeps and resumes."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from functools import partial

import pytest
import torch

from eval.baselines import dpo, jensun, reweighted, rmu, undial, undo
from eval.baselines.training import Training
from eval.evaluate import probe
from ppo.lm.backbone import Backbone
from tests.eval.test_evaluate import make_passages, memorised  # noqa: F401 (a fixture)
from tests.fakes import Letters, tiny_gpt2

PASSAGES = make_passages()
FORGET = [p for p in PASSAGES if p.group == "forget"]
RETAIN = [[*p.prefix, *p.suffix] for p in PASSAGES if p.group == "keep"]
REFUSAL = [3, 5]


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def some_logits(seed: int = 0, rows: int = 5, size: int = 7) -> torch.Tensor:
    return 2 * torch.randn(rows, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def softmax(row: list[float]) -> list[float]:
    total = sum(math.exp(x) for x in row)
    return [math.exp(x) / total for x in row]


def js(one: list[float], other: list[float]) -> float:
    """The Jensen-Shannon divergence of two distributions, term by term."""
    total = 0.0
    for a, b in zip(one, other, strict=True):
        middle = (a + b) / 2
        total += (a * math.log(a / middle) if a else 0.0) / 2 + (b * math.log(b / middle) if b else 0.0) / 2
    return total


TRUTHS = torch.tensor([0, 3, 6, 2, 2])


# Losses against loops


@pytest.mark.parametrize(("saturation", "importance"), [(1.0, 0.0), (0.5, 0.0), (0.0, 0.0), (5.0, 1.0), (2.0, 0.5)])
def test_weighted_ascent_against_a_loop(saturation, importance) -> None:
    logits = some_logits().requires_grad_()
    found = reweighted.weighted_ascent(logits, TRUTHS, saturation=saturation, importance=importance)
    found.sum().backward()
    for i, truth in enumerate(TRUTHS.tolist()):
        p = softmax(logits[i].tolist())
        weight = p[truth] ** saturation * (1 - p[truth]) ** importance
        assert found[i].item() == pytest.approx(weight * math.log(p[truth]), abs=1e-12)
        for v in range(7):  # the weight is a constant of the gradient: weight * d log p / d logit
            assert logits.grad[i, v].item() == pytest.approx(weight * ((v == truth) - p[v]), abs=1e-12)


def test_undial_against_a_loop() -> None:
    logits, original = some_logits(), some_logits(1)
    found = undial.undial_loss(logits, original, TRUTHS, beta=3.0)
    for i, truth in enumerate(TRUTHS.tolist()):
        target = softmax([x - 3.0 * (v == truth) for v, x in enumerate(original[i].tolist())])
        p = softmax(logits[i].tolist())
        expected = -sum(t * math.log(q) for t, q in zip(target, p, strict=True))
        assert found[i].item() == pytest.approx(expected, abs=1e-12)


def test_jensun_against_a_loop() -> None:
    logits, original = some_logits(), some_logits(1)
    to_token, apart = jensun.js_to_token(logits, TRUTHS), jensun.js_divergence(logits, original, TRUTHS)
    for i, token in enumerate(TRUTHS.tolist()):
        p, q = softmax(logits[i].tolist()), softmax(original[i].tolist())
        assert to_token[i].item() == pytest.approx(js(p, [float(v == token) for v in range(7)]), abs=1e-12)
        assert apart[i].item() == pytest.approx(js(p, q), abs=1e-12)
        assert 0 <= to_token[i].item() <= math.log(2)
    far = torch.tensor([[0.0, -2000.0]], dtype=torch.float64, requires_grad=True)
    loss = jensun.js_to_token(far, torch.tensor([1]))
    loss.sum().backward()
    assert loss.item() == pytest.approx(math.log(2))
    assert torch.isfinite(far.grad).all()


def plain_logits(model, context, tokens) -> torch.Tensor:
    return model(torch.tensor([[*context, *tokens]])).logits[0, len(context) - 1 : -1]


def test_the_loss_of_a_step_is_the_mean_over_each_passage_s_tokens(memorised) -> None:  # noqa: F811
    """The first step's logged losses, from the model's own logits without chunks or padding."""
    passages = [FORGET[0], replace(FORGET[1], suffix=FORGET[1].suffix[:2])]
    training = Training(steps=1, retain_weight=1.0, retain_sequences=1, retain_tokens=64, chunk_tokens=3)
    more = {"generator": generator(), "training": training}
    log = jensun.unlearn(copy.deepcopy(memorised), passages, RETAIN[:1], refusal=REFUSAL, **more)
    expected = 0.0
    for p in passages:
        logits = plain_logits(memorised, p.prefix, p.suffix).double()
        labels = torch.tensor([REFUSAL[t % 2] for t in range(len(p.suffix))])
        expected += jensun.js_to_token(logits, labels).mean().item() / 2
    assert log[0]["forget_loss"] == pytest.approx(expected, rel=1e-5)
    assert log[0]["retain_loss"] == pytest.approx(0.0, abs=1e-6)  # it is still the original
    log = reweighted.unlearn_wga(copy.deepcopy(memorised), passages, RETAIN[:1], beta=2.0, **more)
    expected = 0.0
    for p in passages:
        logits = plain_logits(memorised, p.prefix, p.suffix).double()
        truths = torch.tensor(p.suffix)
        expected += reweighted.weighted_ascent(logits, truths, saturation=2.0, importance=0.0).mean().item() / 2
    assert log[0]["forget_loss"] == pytest.approx(expected, rel=1e-4)


def test_misdirection_against_a_loop() -> None:
    states, kept = some_logits(0, 6, 4).view(2, 3, 4), some_logits(1, 6, 4).view(2, 3, 4)
    direction, mask = torch.tensor([1.0, 0.0, 2.0, -1.0]), torch.tensor([[True, True, True], [True, True, False]])
    for target in (direction, kept):
        found = rmu.misdirection(states, target, mask)
        for b, length in enumerate((3, 2)):
            total = 0.0
            for s in range(length):
                goal = target[b, s] if target.ndim == 3 else target
                total += sum((states[b, s, h].item() - goal[h].item()) ** 2 for h in range(4)) / 4
            assert found[b].item() == pytest.approx(total / length, rel=1e-6)


def test_rmu_moves_the_states_of_one_block_and_trains_three_matrices(memorised) -> None:  # noqa: F811
    model = copy.deepcopy(memorised)
    training = replace(rmu.DEFAULT, steps=60, learning_rate=3e-3, retain_weight=1.0, retain_sequences=6)
    log = rmu.unlearn(model, FORGET, RETAIN, generator=generator(), training=training, strength=2.0, layer=1)
    changed = {
        name for name, p in model.named_parameters() if not torch.equal(p, dict(memorised.named_parameters())[name])
    }
    assert changed == {"transformer.h.0.mlp.c_proj.weight", "transformer.h.1.mlp.c_proj.weight"}
    assert log[-1]["forget_loss"] < log[0]["forget_loss"] / 2
    ids, mask = rmu.padded([[*p.pre_prefix, *p.prefix, *p.suffix] for p in FORGET], torch.device("cpu"))
    with torch.no_grad():
        before = memorised(ids, output_hidden_states=True).hidden_states
        # u is one vector for all tokens, in the direction that the generator draws first
        direction = torch.rand(before[1].shape[-1], generator=generator())
        state = rmu.states_after(Backbone(memorised), 0, ids, mask)
        torch.testing.assert_close(state, before[1])
        last = rmu.states_after(Backbone(model), 1, ids, mask)
    cosine = torch.cosine_similarity(last, direction.expand_as(last), dim=-1)
    old = torch.cosine_similarity(
        rmu.states_after(Backbone(memorised), 1, ids, mask), direction.expand_as(last), dim=-1
    )
    assert cosine.mean() > old.mean() + 0.2


def test_dpo_against_a_loop() -> None:
    won, ref_won, lost, ref_lost = (some_logits(seed, 1, 4)[0].abs() for seed in range(4))
    found = dpo.dpo_loss(won, ref_won, lost, ref_lost, beta=0.3)
    for i in range(4):
        ratio_won, ratio_lost = -(won[i] - ref_won[i]).item(), -(lost[i] - ref_lost[i]).item()
        expected = -2 / 0.3 * math.log(1 / (1 + math.exp(-0.3 * (ratio_won - ratio_lost))))
        assert found[i].item() == pytest.approx(expected, abs=1e-12)


def test_dpo_learns_the_alternatives(memorised) -> None:  # noqa: F811
    model = copy.deepcopy(memorised)
    other = [[REFUSAL * 3] for _ in FORGET]
    training = Training(steps=60, learning_rate=1e-3, retain_weight=1.0, retain_loss="kl", retain_sequences=6)
    log = dpo.unlearn(model, FORGET, RETAIN, alternatives=other, generator=generator(), training=training)
    assert log[0]["forget_loss"] == pytest.approx(20 * math.log(2))  # at the reference
    with torch.no_grad():
        for p in FORGET:
            before, after = (
                -torch.nn.functional.cross_entropy(plain_logits(m, p.prefix, REFUSAL * 3), torch.tensor(REFUSAL * 3))
                for m in (memorised, model)
            )
            assert after > before


def test_noise_against_a_loop() -> None:
    model, plain = tiny_gpt2(), tiny_gpt2()
    undo.add_noise(model, alpha=0.3, beta=0.1, generator=generator())
    draws = generator()
    for (name, found), w in zip(model.named_parameters(), plain.parameters(), strict=True):
        noise = torch.zeros(w.shape)
        if w.ndim == 2:
            bound = math.sqrt(6 / (w.shape[0] + w.shape[1]))
            noise = torch.empty(w.shape).uniform_(-bound, bound, generator=draws)
        torch.testing.assert_close(found.data, 0.7 * w.data + 0.3 * 0.1 * noise, msg=name)


def test_kl_to_the_student_against_a_loop() -> None:
    logits, teacher = some_logits(), some_logits(1)
    found = undo.kl_to_student(logits, teacher, TRUTHS)
    for i in range(5):
        p, q = softmax(teacher[i].tolist()), softmax(logits[i].tolist())
        expected = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        assert found[i].item() == pytest.approx(expected, abs=1e-12)


def test_undo_has_three_phases(memorised) -> None:  # noqa: F811
    model = copy.deepcopy(memorised)
    training = Training(steps=40, learning_rate=1e-3, retain_weight=1.0, retain_loss="kl", retain_sequences=6)
    more = {"alpha": 0.2, "distil_steps": 60, "stop": lambda steps: steps == 30}
    log = undo.unlearn(model, FORGET, RETAIN, generator=generator(), training=training, **more)
    assert [row["phase"] for row in log] == [1.0] * 30 + [3.0] * 60
    assert [row["step"] for row in log] == list(range(90))
    assert log[30]["retain_loss"] > 3 * log[-1]["retain_loss"]  # the noise, and what is left of it
    found = probe(model, Letters(), PASSAGES)
    assert found["forget/exact"] == 0.0
    assert found["keep/exact"] >= 2 / 3


# That they forget


METHODS = {
    "wga": partial(reweighted.unlearn_wga, beta=1.0),
    "satimp": partial(reweighted.unlearn_satimp, beta1=5.0, beta2=1.0),
    "undial": partial(undial.unlearn, beta=10.0),
    "jensun": partial(jensun.unlearn, refusal=REFUSAL),
    "dpo": partial(dpo.unlearn, alternatives=[[REFUSAL, [4, 7, 2]]] * len(FORGET), beta=0.1),
}
IN_PHASES = {"rmu": partial(rmu.unlearn, strength=2.0, layer=1), "undo": partial(undo.unlearn, distil_steps=3)}


@pytest.mark.parametrize("name", METHODS)
def test_every_rival_forgets_and_keeps(memorised, name) -> None:  # noqa: F811
    model = copy.deepcopy(memorised)
    training = Training(steps=60, learning_rate=1e-3, retain_weight=1.0, retain_loss="kl", retain_sequences=6)
    log = METHODS[name](model, FORGET, RETAIN, generator=generator(), training=training)
    assert len(log) == 60
    assert not model.training
    assert all(p.requires_grad for p in model.parameters())
    found = probe(model, Letters(), PASSAGES)
    assert found["forget/exact"] == 0.0
    assert found["keep/exact"] >= 2 / 3


@pytest.mark.parametrize("name", METHODS | IN_PHASES)
def test_a_killed_rival_goes_on_to_the_same_bits_in_any_microbatch(tmp_path, name) -> None:
    plain = Training(steps=5, batch=2, learning_rate=1e-3, retain_weight=1.0, retain_loss="kl", retain_sequences=2)
    saved = replace(plain, checkpoint=tmp_path / "c", save_every_steps=2)

    def run(training, stop=None):
        model = tiny_gpt2()
        return model, (METHODS | IN_PHASES)[name](
            model, FORGET, RETAIN, generator=generator(), training=training, stop=stop
        )

    def kill(steps):
        if steps == 3:
            raise KeyboardInterrupt
        return False

    whole, expected = run(plain)
    with pytest.raises(KeyboardInterrupt):
        run(saved, kill)
    again, log = run(saved)
    assert [{**row, "seconds": 0} for row in log] == [{**row, "seconds": 0} for row in expected]
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))
    _, single = run(replace(plain, microbatch=1))
    for a, b in zip(single, expected, strict=True):
        assert a["forget_loss"] == pytest.approx(b["forget_loss"], rel=1e-4, abs=1e-7)


def test_bad_settings_of_rivals_are_named() -> None:
    def call(method, **settings):
        method(tiny_gpt2(), FORGET, RETAIN, generator=generator(), **settings)

    with pytest.raises(ValueError, match="beta=-1"):
        call(reweighted.unlearn_wga, beta=-1)
    with pytest.raises(ValueError, match="beta2=-1"):
        call(reweighted.unlearn_satimp, beta2=-1)
    with pytest.raises(ValueError, match="beta=0"):
        call(undial.unlearn, beta=0)
    with pytest.raises(ValueError, match="the refusal has no tokens"):
        call(jensun.unlearn, refusal=[])
    with pytest.raises(ValueError, match="strength=0"):
        call(rmu.unlearn, strength=0)
    with pytest.raises(ValueError, match="layer=2 must be one of the 2 blocks"):
        call(rmu.unlearn, layer=2)
    with pytest.raises(ValueError, match="need one alternative or more each"):
        call(dpo.unlearn, alternatives=[[[1]], [[]], [[1]]])
    with pytest.raises(ValueError, match="scope='whole' must be 'suffix'"):
        call(dpo.unlearn, alternatives=[[[1]]] * 3, training=Training(scope="whole"))
    with pytest.raises(ValueError, match=r"alpha=1\.5"):
        call(undo.unlearn, alpha=1.5)
    with pytest.raises(ValueError, match="UNDO needs retain_weight"):
        call(undo.unlearn, training=Training())


def test_undo_that_is_killed_in_its_third_phase_goes_on(tmp_path, monkeypatch) -> None:
    training = Training(steps=3, batch=2, learning_rate=1e-3, retain_weight=1.0, retain_loss="kl", retain_sequences=2)
    saved = replace(training, checkpoint=tmp_path / "c", save_every_steps=2)

    def run(training):
        model = tiny_gpt2()
        more = {"distil_steps": 5, "stop": lambda steps: steps == 3}
        return model, undo.unlearn(model, FORGET, RETAIN, generator=generator(), training=training, **more)

    whole, expected = run(training)
    calls, distil = [], undo.kl_to_student

    def killed(*arguments):
        calls.append(arguments)
        if len(calls) == 20:
            raise KeyboardInterrupt
        return distil(*arguments)

    monkeypatch.setattr(undo, "kl_to_student", killed)
    with pytest.raises(KeyboardInterrupt):
        run(saved)
    assert (tmp_path / "c").is_dir()
    monkeypatch.setattr(undo, "kl_to_student", distil)
    again, log = run(saved)
    assert [{**row, "seconds": 0} for row in log] == [{**row, "seconds": 0} for row in expected]
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))
