"""Frozen leading blocks are found by measuring and run once, and they change no number."""

import pytest
import torch
from transformers import GPT2LMHeadModel
from transformers.models.gpt2.modeling_gpt2 import GPT2Block

from ppo import Config, Trainer
from ppo.actor_critic import ActorCritic
from ppo.config import Sampling
from ppo.generation import generate
from ppo.lm.adapters import copy_trained
from ppo.lm.backbone import blocks
from ppo.lm.frozen_blocks import FrozenBlocks, find_frozen_blocks, train_top
from tests.fakes import random_rollout, tiny_bloom, tiny_gpt2, tiny_llama
from tests.versions import since_transformers

PROMPTS = [[2, 3, 4], [5, 6], [7], [8, 9, 10, 11]]
SMALL = Config(prompts_per_step=4, minibatch=4, response_length=6, epochs=2, learning_rate=1e-2, train_top_layers=1)
MODELS = [tiny_gpt2, tiny_llama, tiny_bloom]


def id_mean(samples):
    return [sum(s.ids) / len(s.ids) for s in samples]


@pytest.mark.parametrize("make", MODELS)
def test_the_depth_is_where_gradients_begin(make):
    model = make()
    assert find_frozen_blocks(model) is None
    train_top(model, 1)
    assert find_frozen_blocks(model).depth == 1
    assert {name.split(".")[2] for name, p in model.named_parameters() if p.requires_grad} == {"1"}
    model.get_input_embeddings().weight.requires_grad_(True)  # the embedding lies below the blocks, tied or not
    assert find_frozen_blocks(model) is None
    model.requires_grad_(False)
    assert find_frozen_blocks(model).depth == 2


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("batch_tokens", [1, 25, 1000])
def test_a_forward_from_stored_states_equals_a_whole_forward(make, batch_tokens):
    model = make()
    train_top(model, 1)
    frozen = find_frozen_blocks(model)
    generation = random_rollout([4, 1, 6, 3], prompt_lengths=[2, 5, 3, 4]).generation
    actor = ActorCritic(model, frozen_blocks=frozen)
    plain = actor.evaluate(generation, Sampling(), chunk_tokens=9)
    hidden = frozen.record(actor.backbone, generation, batch_tokens=batch_tokens)
    object.__setattr__(generation, "frozen_hidden", hidden)
    calls = []
    blocks(model)[0].attn.register_forward_hook(lambda *_: calls.append(1)) if make is tiny_gpt2 else None
    again = actor.evaluate(generation, Sampling(), chunk_tokens=9)
    assert not calls
    assert torch.allclose(plain.logprobs, again.logprobs, atol=1e-5)
    assert not any("forward" in vars(block) for block in blocks(model))


def run(make, changes, *, is_shared, monkeypatch):
    with monkeypatch.context() as patch:
        if not is_shared:
            patch.setattr("ppo.policy.find_frozen_blocks", lambda model: None)
        trainer = Trainer(make(), PROMPTS, id_mean, SMALL.replace(**changes))
        rollouts = []
        for _ in range(2):
            rollouts.append(trainer.rollout())
            trainer.update(rollouts[-1])
    return trainer, rollouts


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize(
    "changes",
    [{}, {"value_head": "critic", "microbatch": 1}, {"gradient_checkpointing": True, "microbatch_tokens": 12}],
)
def test_training_with_shared_frozen_blocks_is_training(make, changes, monkeypatch):
    shared, first = run(make, changes, is_shared=True, monkeypatch=monkeypatch)
    plain, second = run(make, changes, is_shared=False, monkeypatch=monkeypatch)
    assert isinstance(shared.policy.actor.frozen_blocks, FrozenBlocks)
    assert plain.policy.actor.frozen_blocks is None
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a.generation.tokens, b.generation.tokens)
        assert torch.allclose(a.ref_logprobs, b.ref_logprobs, atol=1e-5)
        assert torch.allclose(a.kl, b.kl, atol=1e-5)
    assert first[1].kl.abs().max() > 1e-3
    for (name, p), q in zip(shared.policy.actor.named_parameters(), plain.policy.actor.parameters(), strict=True):
        assert torch.allclose(p, q, atol=2e-4), name


def test_frozen_blocks_run_once_a_step(monkeypatch):
    calls = []

    def sample(*arguments, **named):  # the hooks below send the sampler through the model's own forward
        generation = generate(*arguments, **named)
        calls.clear()
        return generation

    monkeypatch.setattr("ppo.sampler.generate", sample)
    model = tiny_gpt2()
    trainer = Trainer(model, PROMPTS, id_mean, SMALL.replace(epochs=3, value_head="critic"))
    for block in (blocks(model)[0], blocks(trainer.state.frozen)[0], blocks(trainer.policy.actor.critic)[0]):
        block.attn.register_forward_hook(lambda *_: calls.append(1))
    rollout = trainer.rollout()
    assert len(calls) == 1  # for the whole step
    calls.clear()
    trainer.update(rollout)
    assert not calls


def hidden_of(output):
    """What a block gives; before transformers 5.3 it is in a tuple."""
    return output[0] if isinstance(output, tuple) else output


class Looped(GPT2LMHeadModel):
    """The first block runs twice in a row, or the last one reads the first one's output too."""

    def __init__(self, config, kind):
        super().__init__(config)
        first, last = self.transformer.h[0], self.transformer.h[-1]
        if kind == "twice":
            first.register_forward_hook(self._again)
        else:
            first.register_forward_hook(lambda module, inputs, output: setattr(self, "kept", hidden_of(output)))
            last.register_forward_pre_hook(lambda module, inputs: (inputs[0] + self.kept, *inputs[1:]))
        self.is_again = False

    def _again(self, module, inputs, output):
        if self.is_again:
            return None
        self.is_again = True
        output = module(hidden_of(output))
        self.is_again = False
        return output


@pytest.mark.parametrize("kind", ["twice", "a later block reads an earlier output"])
def test_blocks_that_a_stack_runs_again_are_not_replayed(kind):
    torch.manual_seed(0)
    model = Looped(tiny_gpt2(layers=3).config, kind)
    model.requires_grad_(False)
    blocks(model)[-1].requires_grad_(True)
    assert find_frozen_blocks(model) is None
    trainer = Trainer(model, PROMPTS, id_mean, SMALL)
    trainer.update(trainer.rollout())


class PairBlock(GPT2Block):
    """Returns its hidden states and their mean; ``is_read``: the next block adds that mean."""

    is_read = False

    def forward(self, states, *arguments, **options):
        hidden, mean = states if isinstance(states, tuple) else (states, None)
        if self.is_read and mean is not None:
            hidden = hidden + mean
        elif self.is_read and isinstance(states, tuple):
            raise TypeError("the mean is missing")
        output = super().forward(hidden, *arguments, **options)
        return output, output.mean()


def pairs(*, is_read):
    torch.manual_seed(0)
    model = tiny_gpt2(layers=3)
    for block in model.transformer.h:
        block.__class__ = PairBlock
        block.is_read = is_read
    model.transformer.ln_f.register_forward_pre_hook(lambda module, inputs: (inputs[0][0],))
    return model


@since_transformers("5.3", "hands on no more than hidden states")
@pytest.mark.parametrize("is_read", [False, True])
def test_blocks_that_return_more_than_hidden_states(is_read):
    model, calls = pairs(is_read=is_read), []
    train_top(model, 1)
    model.transformer.h[0].attn.register_forward_hook(lambda *_: calls.append(1))
    frozen = find_frozen_blocks(model)
    assert frozen == (None if is_read else FrozenBlocks(2, width=2))
    trainer = Trainer(model, PROMPTS, id_mean, SMALL)
    rollout = trainer.rollout()
    calls.clear()
    trainer.update(rollout)
    assert bool(calls) == is_read


def test_copies_share_frozen_weights():
    model = tiny_gpt2()
    train_top(model, 1)
    copied = copy_trained(model)
    for (name, p), q in zip(model.named_parameters(), copied.parameters(), strict=True):
        assert (p is q) == (not p.requires_grad), name
    assert copied.lm_head.weight is copied.transformer.wte.weight
    trainer = Trainer(model, PROMPTS, id_mean, SMALL.replace(value_head="critic"))
    before = [p.clone() for p in trainer.state.frozen.parameters()]
    trainer.train(1, progress=False)
    assert all(torch.equal(p, q) for p, q in zip(before, trainer.state.frozen.parameters(), strict=True))


def test_resume_goes_on_bit_for_bit(tmp_path):
    """Also with parameters that were frozen by hand."""
    model = tiny_llama()
    model.model.embed_tokens.requires_grad_(False)
    trainers = [
        Trainer(tiny_llama(), PROMPTS, id_mean, SMALL),
        Trainer(model, PROMPTS, id_mean, SMALL.replace(train_top_layers=None)),
    ]
    for i, trainer in enumerate(trainers):
        trainer.train(1, progress=False)
        trainer.save(tmp_path / str(i))
        trainer.train(2, progress=False)
        resumed = Trainer.resume(tmp_path / str(i), PROMPTS, id_mean)
        assert resumed.policy.actor.frozen_blocks == trainer.policy.actor.frozen_blocks
        resumed.train(2, progress=False)
        for p, q in zip(trainer.policy.actor.parameters(), resumed.policy.actor.parameters(), strict=True):
            assert torch.equal(p, q)
            assert p.requires_grad == q.requires_grad


def test_training_more_layers_than_there_are_is_refused():
    with pytest.raises(ValueError, match="train_top_layers=3, but GPT2LMHeadModel has 2 layers"):
        Trainer(tiny_gpt2(), PROMPTS, id_mean, SMALL.replace(train_top_layers=3))
    with pytest.raises(ValueError, match="train_top_layers=0 must be at least 1"):
        SMALL.replace(train_top_layers=0)
