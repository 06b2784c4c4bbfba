"""Actions at forced states: a given text stands in the context, and several actions are drawn at each of its states."""

import math
from dataclasses import replace

import pytest
import torch

from ppo import Config, Generation, Trainer
from ppo.actor_critic import ActorCritic
from ppo.buffer import join, microbatches, rows, trim
from ppo.config import Sampling
from ppo.reference import FrozenReference
from ppo.sampler import collate
from tests.fakes import VOCAB, tiny_gpt2, tiny_llama

PROMPTS = [[3, 4], [5], [6, 7, 8]]
TEXTS = [[9, 10, 11, 12, 13], [14, 15], [16, 17, 18]]
K = 3
ACTIONS = torch.arange(3 * 5 * K).view(3, 5 * K).remainder(VOCAB)
HEAT = torch.tensor([[1.0, 2.0, 1.5, 1.0, 3.0], [1.2, 1.0, 0.0, 0.0, 0.0], [2.0, 2.5, 1.0, 0.0, 0.0]])
PLAIN = Sampling(response_length=5, temperature=0.7)


def forced(dtype=torch.float32):
    """Three rows of 5, 2 and 3 states with three actions each."""
    given = collate(PROMPTS, TEXTS)
    mask = given.mask.repeat_interleave(K, dim=1)
    zeros = torch.zeros(mask.shape, dtype=dtype)
    return replace(
        given, tokens=ACTIONS * mask, mask=mask, action_mask=mask, logprobs=zeros, entropy=zeros,
        context=given.tokens, state_temperatures=HEAT.to(dtype), is_ended=torch.zeros(3, dtype=torch.bool),
    )  # fmt: skip


def by_hand(model, sampling):
    """Log-probs and entropy [B][T] by one plain forward for each state."""
    found = []
    for b, (prompt, text) in enumerate(zip(PROMPTS, TEXTS, strict=True)):
        row = []
        for s in range(len(text)):
            logits = model(torch.tensor([prompt + text[:s]])).logits[0, -1] / sampling.temperature / HEAT[b, s]
            if s < sampling.min_response_length:
                logits[1] = -torch.inf
            logprobs = torch.log_softmax(logits, dim=-1)
            spread = -sum(float(x.exp() * x) for x in logprobs if x > -torch.inf)
            row += [(logprobs[a], spread) for a in ACTIONS[b, s * K : (s + 1) * K]]
        found.append(row)
    return found


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_llama])
@pytest.mark.parametrize("length", [0, 2])
def test_an_action_has_the_probability_of_its_state(make, length):
    model = make().double().eval()
    sampling = replace(PLAIN, min_response_length=length, eos_ids=(1,))
    actor = ActorCritic(model, value_head="linear")
    with torch.no_grad():
        actor.value_head.layers[0].weight.normal_(generator=torch.Generator().manual_seed(1))
    generation = forced(torch.float64)
    found = actor.evaluate(generation, sampling, chunk_tokens=4)
    with torch.no_grad():
        wanted = by_hand(model, sampling)
    for b, row in enumerate(wanted):
        logprobs, spread = zip(*row, strict=True)
        is_possible = torch.stack(logprobs) > -torch.inf
        assert torch.allclose(found.logprobs[b, : len(row)][is_possible], torch.stack(logprobs)[is_possible], atol=1e-9)
        assert torch.allclose(found.entropy[b, : len(row)], torch.tensor(spread).double(), atol=1e-9)
        assert not found.logprobs[b, len(row) :].any()
        assert torch.equal(found.values[b].view(-1, K)[:, :1].expand(-1, K), found.values[b].view(-1, K))
    assert found.values.abs().sum() > 0


@pytest.mark.parametrize("kind", ["linear", "critic"])
def test_one_action_a_state_that_is_the_text_is_an_ordinary_response(kind):
    actor = ActorCritic(tiny_gpt2(), value_head=kind)
    plain = collate(PROMPTS, TEXTS)
    ordinary = actor.evaluate(plain, PLAIN, chunk_tokens=64)
    asked = actor.evaluate(replace(plain, context=plain.tokens), PLAIN, chunk_tokens=64)
    for name in ("logprobs", "entropy", "values"):
        assert torch.allclose(getattr(ordinary, name), getattr(asked, name), atol=1e-6), name


def test_gradients_do_not_depend_on_the_cut_into_microbatches():
    def gradient(size):
        model = tiny_gpt2().double()
        actor = ActorCritic(model, value_head=None)
        generation = forced(torch.float64)
        for part in microbatches(generation.layout.attention_mask, size=size):
            cut = trim(generation.rows(part))
            assert cut.tokens.shape[1] == K * cut.context.shape[1]
            actor.evaluate(cut, PLAIN, chunk_tokens=4).logprobs.sum().backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    assert torch.allclose(gradient(1), gradient(3), atol=1e-10)


def test_the_frozen_reference_reads_the_context():
    model = tiny_gpt2().double()
    with torch.no_grad():
        wanted = by_hand(model.eval(), PLAIN)
    found = FrozenReference(model, PLAIN).logprobs(forced(torch.float64), [])
    assert torch.allclose(found[0], torch.stack([x for x, _ in wanted[0]]), atol=1e-9)


class Forced:
    """A sampler: K actions of the policy at every state of the row's text, drawn hot."""

    def __init__(self, change=None):
        self.change = change or (lambda generation: generation)

    def __call__(self, policy, prompts, *, seed, request_ids):
        given = collate([p.ids for p in prompts], [p.row["text"] for p in prompts], device=policy.device)
        mask = given.mask.repeat_interleave(K, dim=1)
        zeros = torch.zeros(mask.shape)
        heat = torch.full(given.tokens.shape, 1.5)
        generator = torch.Generator().manual_seed(seed + request_ids[0])
        tokens = torch.randint(2, VOCAB, mask.shape, generator=generator) * mask
        made = replace(
            given, tokens=tokens, mask=mask, action_mask=mask, logprobs=zeros, entropy=zeros, context=given.tokens,
            state_temperatures=heat,
        )  # fmt: skip
        found = policy.measure(made)
        return self.change(replace(made, logprobs=found.logprobs, entropy=found.entropy))


def likes_even(rewards, values, mask, samples):
    """+1 for an even token, -1 for an odd one."""
    worth = torch.zeros_like(rewards)
    for b, sample in enumerate(samples):
        worth[b, : len(sample.ids)] = torch.tensor([1.0 - 2 * (a % 2) for a in sample.ids])
    return worth * mask, worth * mask


ROWS = [{"prompt": p, "text": t} for p, t in zip(PROMPTS + PROMPTS[:1], TEXTS + TEXTS[1:2], strict=True)]
CONFIG = Config(
    prompts_per_step=4, minibatch=2, epochs=2, learning_rate=3e-3, kl_coef=0.0, value_head="none", response_length=4,
)  # fmt: skip


def trainer(change=None, config=CONFIG, model=None, **more):
    more = {"advantage": likes_even} | more
    return Trainer(model or tiny_gpt2(), ROWS, lambda s: [0.0] * len(s), config, sampler=Forced(change), **more)


def test_a_trainer_learns_at_forced_states(tmp_path):
    one = trainer(out=tmp_path, config=CONFIG.replace(save_every_steps=2))
    first = one.rollout()
    assert first.generation.tokens.shape == (4, 15)
    assert math.isclose(first.metrics["response/length_mean"], (5 + 2 + 3 + 2) / 4)
    even = torch.arange(VOCAB) % 2 == 0

    def share(model):
        with torch.no_grad():
            return torch.softmax(model(torch.tensor([[3, 4, 9, 10]])).logits[0, -1], -1)[even].sum()

    before = share(one.model)
    one.train(8)
    assert share(one.model) > before + 0.1
    assert one.learner.num_updates == 32
    resumed = Trainer.resume(
        tmp_path / "checkpoints" / "step-000006", ROWS, lambda s: [0.0] * len(s), sampler=Forced(), advantage=likes_even
    )
    resumed.train(2)
    for a, b in zip(one.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_frozen_blocks_are_replayed_under_a_context():
    found = []
    for top in (None, 1):
        one = trainer(config=CONFIG.replace(train_top_layers=top), model=tiny_gpt2())
        rollout = one.rollout()
        assert (rollout.generation.frozen_hidden is None) == (top is None)
        found.append(one.policy.measure(rollout.generation).logprobs)
    assert torch.allclose(*found, atol=1e-5)


def test_rollouts_join_and_are_cut():
    one, other = trainer().rollout(), trainer().rollout()
    both = join([rows(one, torch.tensor([0, 1])), other])
    assert both.generation.context.shape == (6, 5)
    assert both.generation.tokens.shape == (6, 15)
    with pytest.raises(ValueError, match="some rollouts have context and others have not"):
        join([one, replace(other, generation=replace(other.generation, context=None))])
    halved = replace(other.generation, context=torch.zeros(4, 3, dtype=torch.long))
    with pytest.raises(ValueError, match="other numbers of actions a state"):
        join([one, replace(other, generation=halved)])


WRONG = {
    "the same number of actions": lambda g: replace(g, tokens=g.tokens[:, :-1], mask=g.mask[:, :-1]),
    "wanted int64": lambda g: replace(g, context=g.context.float()),
    "a context that is": lambda g: replace(g, context=[1, 2]),
    "state_temperatures that are": lambda g: replace(g, state_temperatures=g.state_temperatures[:, :-1]),
    "not finite and above 0": lambda g: replace(g, state_temperatures=g.state_temperatures * 0),
    "without a context": lambda g: replace(g, context=None),
    "outside the vocabulary": lambda g: replace(g, context=g.context + VOCAB),
    "some actions of a state": lambda g: replace(
        g, action_mask=g.mask & (torch.arange(15) != 1), logprobs=g.logprobs * (torch.arange(15) != 1),
        entropy=g.entropy * (torch.arange(15) != 1),
    ),
}  # fmt: skip


@pytest.mark.parametrize("message", WRONG)
def test_a_wrong_context_is_told(message):
    with pytest.raises(ValueError, match=message):
        trainer(WRONG[message]).rollout()


def test_what_does_not_go_with_forced_states_is_refused():
    with pytest.raises(ValueError, match="drawn from the whole distribution"):
        trainer(config=CONFIG.replace(top_k=3)).rollout()
    with pytest.raises(ValueError, match="follows a response from token to token"):
        trainer(config=CONFIG.replace(value_head="linear"), advantage=None).rollout()


def test_an_ordinary_generation_has_a_state_for_each_token():
    plain: Generation = collate(PROMPTS, TEXTS)
    assert plain.actions_per_state == 1
    assert plain.num_states == 5
