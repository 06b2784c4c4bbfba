"""PPO at forced states: the sampler's numbers, the trainer's rewards, and that a memorised text is forgotten."""

import copy
from dataclasses import replace

import pytest
import torch

from data.types import Passage
from ppo import Config, Trainer
from ppo.types import Sample
from rewards.bounded import bounded_logprobs
from tests.fakes import VOCAB, tiny_gpt2
from unlearning.deep.forced import (
    LEAST_DEVIATION,
    MOST_REWARD,
    ForcedStates,
    bounded_reference,
    forced_rows,
    no_score,
    state_advantages,
    supervised_loss,
)

PASSAGES = [
    Passage("a", (2, 3, 4), (5, 6, 7, 8), (9, 10, 11, 12, 13), "forget"),
    Passage("b", (), (14, 15, 16), (17, 18, 19, 20), "forget"),
]
CHANCES = [[0.1] * 12, [0.2] * 7]
CONFIG = Config(
    prompts_per_step=4, minibatch=2, epochs=2, learning_rate=3e-3, kl_coef=1.0, kl_controller="fixed",
    value_head="none", policy_clip=0.3, response_length=12,
)  # fmt: skip

SUPERVISED = CONFIG.replace(policy_clip=Config().policy_clip)  # there is nothing to clip


def memorised(steps=150):
    """A tiny model that knows both passages by heart."""
    model = tiny_gpt2(dropout=0.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(steps):
        loss = sum(model(ids, labels=ids).loss for p in PASSAGES if (ids := torch.tensor([p.ids])) is not None)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def true_p(model):
    """Mean probability of the true tokens."""
    found = []
    with torch.no_grad():
        for p in PASSAGES:
            logprobs = torch.log_softmax(model(torch.tensor([p.ids])).logits[0, :-1], dim=-1)
            found.append(logprobs.gather(-1, torch.tensor(p.ids[1:]).unsqueeze(-1)).exp().mean())
    return float(sum(found) / len(found))


def make(model, original, config=CONFIG, **more):
    rows = forced_rows(PASSAGES, CHANCES, seed=0)
    return Trainer(
        model, rows, no_score, config, sampler=ForcedStates(original, actions=5, chunk_tokens=3),
        reference=bounded_reference, advantage=state_advantages, **more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def rollout():
    model = memorised(60)
    trainer = make(model, copy.deepcopy(model))
    return trainer, trainer.rollout()


def test_log_probs_are_those_of_the_training_forward(rollout):
    trainer, found = rollout
    asked = trainer.policy.measure(found.generation)
    assert torch.allclose(asked.logprobs, found.old_logprobs, atol=1e-5)
    assert torch.allclose(asked.entropy, found.generation.entropy, atol=1e-5)


def test_rewards_and_advantages_are_the_exact_ones(rollout):
    """Once more by plain loops over the whole vocabulary, in float64."""
    trainer, found = rollout
    original = trainer.model
    for b, sample in enumerate(found.samples):
        prompt, text, chance = sample.prompt_ids, sample.row["text_ids"], sample.row["chance"]
        with torch.no_grad():
            logits = original(torch.tensor([prompt + text])).logits[0].double()
        for s in range(len(text)):
            z = logits[len(prompt) - 1 + s]
            q = bounded_logprobs(z[None], torch.tensor([text[s]]), torch.tensor([chance[s]]), end_ids=(1,))[0].double()
            p_true = float(torch.softmax(z, -1)[text[s]])
            heat = 1 + max(0.0, (p_true - 0.6) / 0.4) ** 1.5
            assert heat == pytest.approx(float(found.generation.state_temperatures[b, s]), abs=1e-4)
            ours, theirs = torch.log_softmax(z / heat, -1), torch.log_softmax(q / heat, -1)
            worth = (theirs - ours).clamp(-MOST_REWARD, MOST_REWARD)
            mean = float((ours.exp() * worth).sum())
            deviation = float((ours.exp() * (worth - mean) ** 2).sum().sqrt())
            for t in range(5 * s, 5 * s + 5):
                action = int(found.generation.tokens[b, t])
                assert float(found.rewards[b, t]) == pytest.approx(float(worth[action]), abs=2e-4)
                wanted = (float(worth[action]) - mean) / max(deviation, LEAST_DEVIATION)
                assert float(found.advantages[b, t]) == pytest.approx(wanted, abs=2e-3)


def test_a_row_is_drawn_by_its_own_request_alone(rollout):
    trainer, _ = rollout
    sampler, prompts = ForcedStates(trainer.model, actions=4), trainer.prompts[:3]
    together = sampler(trainer.policy, prompts, seed=7, request_ids=[0, 1, 2])
    alone = sampler(trainer.policy, prompts[2:], seed=7, request_ids=[2])
    width = alone.tokens.shape[1]
    assert torch.equal(together.tokens[2, :width], alone.tokens[0])
    again = sampler(trainer.policy, prompts, seed=8, request_ids=[0, 1, 2])
    assert not torch.equal(together.tokens, again.tokens)


def test_supervision_sees_the_same_states_and_learns_the_reference():
    """The mean of its loss over draws is the cross-entropy of reference and policy, by plain loops."""
    model, original = memorised(60), memorised()
    sampler = ForcedStates(original, actions=2000, heat=1.0, of_reference=True)
    rows = forced_rows(PASSAGES, CHANCES, seed=0)
    trainer = Trainer(
        model, rows, no_score, SUPERVISED, sampler=sampler, reference=bounded_reference, advantage=state_advantages,
        policy_loss=supervised_loss,
    )  # fmt: skip
    found = trainer.rollout()
    assert set(found.generation.state_temperatures.flatten().tolist()) == {0.0, 1.0}  # 0 on padding
    states, total = 0, 0.0
    for sample in found.samples:
        prompt, text, chance = sample.prompt_ids, sample.row["text_ids"], sample.row["chance"]
        with torch.no_grad():
            ours, theirs = (m(torch.tensor([prompt + text])).logits[0].double() for m in (model, original))
        for s in range(len(text)):
            at = len(prompt) - 1 + s
            q = bounded_logprobs(theirs[at][None], torch.tensor([text[s]]), torch.tensor([chance[s]]), end_ids=(1,))[0]
            total -= float((q.double().exp() * torch.log_softmax(ours[at], -1)).sum())
            states += 1
    part = replace(found, generation=found.generation)
    new = trainer.policy.measure(found.generation)
    loss, more = supervised_loss(new, part, num_tokens=int(found.generation.action_mask.sum()), num_sequences=4)
    assert more == {}
    assert float(loss) == pytest.approx(total / states, rel=0.01)


def test_supervision_forgets_as_well():
    model = memorised()
    rows, original = forced_rows(PASSAGES, CHANCES, seed=0), copy.deepcopy(model)
    Trainer(
        model, rows, no_score, SUPERVISED.replace(learning_rate=5e-3), reference=bounded_reference,
        sampler=ForcedStates(original, actions=5, heat=1.0, of_reference=True), advantage=state_advantages,
        policy_loss=supervised_loss,
    ).train(60)  # fmt: skip
    assert 0.05 < true_p(model) < 0.35


def test_nothing_is_gained_at_the_reference():
    """A policy that is the reference already: every reward is 0, and so is every advantage."""
    model = tiny_gpt2(dropout=0.0).eval()
    rows = forced_rows(PASSAGES, [[1.0] * 12, [1.0] * 7], seed=0)  # no token has to become less likely
    trainer = Trainer(
        model, rows, no_score, CONFIG, sampler=ForcedStates(copy.deepcopy(model), actions=3),
        reference=bounded_reference, advantage=state_advantages,
    )  # fmt: skip
    found = trainer.rollout()
    assert found.rewards.abs().max() < 1e-5
    assert found.advantages.abs().max() < 1e-4


def test_a_memorised_text_is_forgotten_down_to_its_chance_level():
    model = memorised()
    original = copy.deepcopy(model)
    assert true_p(model) > 0.9
    make(model, original, CONFIG.replace(learning_rate=5e-3)).train(60)
    assert 0.05 < true_p(model) < 0.35  # chance levels are 0.1 and 0.2


def test_a_run_goes_on_to_the_same_bits(tmp_path):
    model = memorised(60)
    original = copy.deepcopy(model)
    one = make(model, original, CONFIG.replace(save_every_steps=2), out=tmp_path)
    one.train(4)
    rows = forced_rows(PASSAGES, CHANCES, seed=0)
    other = Trainer.resume(
        tmp_path / "checkpoints" / "step-000002", rows, no_score, reference=bounded_reference,
        sampler=ForcedStates(original, actions=5, chunk_tokens=3), advantage=state_advantages,
    )  # fmt: skip
    other.train(2)
    for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_windows_of_a_passage():
    rows = forced_rows(PASSAGES, CHANCES, seed=3)
    assert len(rows) == 20
    for row in rows:
        ids = next(p.ids for p in PASSAGES if p.id == row["id"])
        whole = row["prompt"] + row["text_ids"]
        assert tuple(whole) == ids[len(ids) - len(whole) :]
        assert len(row["chance"]) == len(row["text_ids"]) >= 1
    starts = [12 - len(row["text_ids"]) - 1 for row in rows[:10]]
    assert starts[:8] == [0] * 4 + [3] * 4


def test_the_seams_take_rows_of_different_lengths():
    info = [replace_info(2, 3), replace_info(1, 3)]
    samples = [Sample("", "", [1], [2] * len(i.ref_logprobs), {}, False, i) for i in info]
    mask = torch.tensor([[True] * 6, [True] * 3 + [False] * 3])
    rewards = torch.ones(2, 6) * mask
    advantages, returns = state_advantages(rewards, torch.zeros(2, 6), mask, samples)
    assert torch.allclose(advantages[0], torch.tensor([1.0, 1.0, 1.0, 0.5, 0.5, 0.5]) / 1.0)
    assert advantages[1].tolist() == [1.0, 1.0, 1.0, 0.0, 0.0, 0.0]
    assert torch.equal(returns, rewards)


def replace_info(states, count):
    from unlearning.deep.forced import Judged

    means = torch.tensor([0.0, 0.5])[:states]
    return replace(Judged(torch.zeros(states * count), means, torch.ones(states)))


def test_actions_stay_in_the_vocabulary(rollout):
    _, found = rollout
    assert int(found.generation.tokens.max()) < VOCAB
