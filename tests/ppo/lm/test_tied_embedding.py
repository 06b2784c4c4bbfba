"""The gradient of a tied embedding: it equals autograd's, and no second matrix of its size is made."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM

import ppo.lm.tied_embedding
from models.lora import LoraConfig, add_lora
from ppo import Config, Trainer
from ppo.actor_critic import ActorCritic
from ppo.config import Sampling
from ppo.lm.tied_embedding import lean_tied_gradient
from tests.fakes import random_rollout, tiny_gpt2

VOCAB = 5000  # most rows of the embedding belong to no token of the batch
PROMPTS = [[2, 3, 4], [5, 6], [7, 0, 7], [8, 4999, 10, 11]]
CONFIG = Config(prompts_per_step=4, minibatch=4, response_length=6, epochs=1, learning_rate=1e-3)


def gpt2():
    return tiny_gpt2(vocab=VOCAB)


def llama(*, is_tied=True):
    """A model with a padding index: as an embedding, its row gets no gradient."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=48, bos_token_id=None, eos_token_id=1, pad_token_id=0,
        tie_word_embeddings=is_tied,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def gradients(make, monkeypatch, *, worthwhile, **changes):
    """The gradients of all parameters, for one minibatch of a trainer."""
    monkeypatch.setattr(ppo.lm.tied_embedding, "_WORTHWHILE", worthwhile)
    retain = [[2, 4, 6, 8, 10], [3, 5, 7]] if "retain_coef" in changes else None
    config = CONFIG.replace(**changes)
    trainer = Trainer(make(), PROMPTS, lambda samples: [float(sum(s.ids) % 7) for s in samples], config, retain=retain)
    rollout = trainer.rollout()
    trainer.learner.gradient(rollout, trainer.learner.draw_retain())
    return {name: p.grad for name, p in trainer.policy.actor.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("make", [gpt2, llama])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"microbatch": 1, "gradient_checkpointing": True},
        {"value_head": "critic"},
        {"retain_coef": 0.5, "retain_tokens": 6, "retain_sequences": 2, "autocast": "bfloat16"},
    ],
)
def test_gradients_are_those_of_autograd(make, changes, monkeypatch):
    plain = gradients(make, monkeypatch, worthwhile=10**9, **changes)
    lean = gradients(make, monkeypatch, worthwhile=0, **changes)
    assert plain.keys() == lean.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(lean[name], gradient, atol=1e-6, rtol=1e-5, msg=name)


@pytest.mark.parametrize("make", [gpt2, llama])
def test_only_one_matrix_of_the_embeddings_size_is_made(make, monkeypatch):
    made = []

    class Made(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            returns = func._schema.returns
            if returns and returns[0].alias_info is None and isinstance(result, torch.Tensor):
                made.extend([func.__name__] if result.numel() == VOCAB * 16 else [])
            return result

    actor, generation = ActorCritic(make()), random_rollout([4, 2, 5], vocab=VOCAB).generation
    for worthwhile, most in ((VOCAB * 16, 1), (VOCAB * 16 + 1, 3)):
        monkeypatch.setattr(ppo.lm.tied_embedding, "_WORTHWHILE", worthwhile)
        actor.zero_grad()
        with lean_tied_gradient(actor.policy):
            logprobs = actor.evaluate(generation, Sampling(), chunk_tokens=4).logprobs.sum()
            made.clear()
            with Made():
                logprobs.backward()
        assert 1 <= len(made) <= most, made
    assert len(made) > 1  # without it


def test_only_a_tied_trained_plain_embedding_is_changed(monkeypatch):
    monkeypatch.setattr(ppo.lm.tied_embedding, "_WORTHWHILE", 0)
    adapted, hooked, normed = gpt2(), gpt2(), gpt2()
    add_lora(adapted, LoraConfig(("c_attn",)))
    hooked.transformer.wte.register_forward_hook(lambda module, inputs, output: 2 * output)
    normed.transformer.wte.max_norm = 1.0
    cases = [(gpt2(), True), (llama(is_tied=False), False), (adapted, False), (hooked, False), (normed, False)]
    for model, is_touched in cases:
        with lean_tied_gradient(model):
            assert ("forward" in vars(model.get_input_embeddings())) == is_touched
        assert "forward" not in vars(model.get_input_embeddings())


def test_a_loss_on_values_alone_has_its_gradient(monkeypatch):
    """It reaches the embedding but not the output layer."""
    actor, generation = ActorCritic(gpt2()), random_rollout([4, 2, 5], vocab=VOCAB).generation
    torch.nn.init.normal_(actor.value_head.layers[0].weight)
    weight, found = actor.policy.transformer.wte.weight, []
    for worthwhile in (0, 10**9):
        monkeypatch.setattr(ppo.lm.tied_embedding, "_WORTHWHILE", worthwhile)
        with lean_tied_gradient(actor.policy):
            actor.evaluate(generation, Sampling(), chunk_tokens=4).values.sum().backward()
            actor.evaluate(generation, Sampling(), chunk_tokens=4).values.sum().backward()
        found.append(weight.grad)
        actor.zero_grad()
    assert found[0].abs().max() > 0
    torch.testing.assert_close(*found, atol=1e-6, rtol=1e-5)
