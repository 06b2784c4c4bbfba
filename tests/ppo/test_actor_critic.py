"""The training forward: log-probs, values, padding, dropout, checkpointing, separate critics."""

import pytest
import torch
from torch import nn

from ppo.actor_critic import ActorCritic, checkpointed_layers
from ppo.buffer import trim
from ppo.config import Sampling
from ppo.generation import generate
from ppo.lm.backbone import Backbone
from tests.fakes import random_rollout, tiny_bloom, tiny_gpt2, tiny_llama

PLAIN = Sampling()


def naive_logprobs(model, generation, temperature=1.0):
    """Row by row, without padding, through the model's own full logits, in float64."""
    model = model.double().eval()
    result = torch.zeros(generation.mask.shape, dtype=torch.float64)
    entropy = torch.zeros_like(result)
    for b in range(len(generation)):
        prompt = generation.prompt_ids[b][generation.prompt_mask[b]]
        response = generation.tokens[b][generation.mask[b]]
        logits = model(input_ids=torch.cat([prompt, response])[None]).logits[0].double() / temperature
        for t in range(len(response)):
            row = torch.log_softmax(logits[len(prompt) - 1 + t], dim=-1)
            result[b, t] = row[response[t]]
            entropy[b, t] = -(row.exp() * row).sum()
    model.float()
    return result, entropy


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_llama, tiny_bloom])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_logprobs_and_entropy_match_rows_without_padding(make, temperature):
    model = make()
    generation = random_rollout([4, 1, 6], prompt_lengths=[2, 5, 3]).generation
    new = ActorCritic(model).evaluate(generation, Sampling(temperature=temperature), chunk_tokens=3)
    expected, entropy = naive_logprobs(model, generation, temperature)
    assert torch.allclose(new.logprobs.double(), expected, atol=1e-5)
    assert torch.allclose(new.entropy.double(), entropy, atol=1e-5)


def test_left_padding_changes_nothing():
    actor = ActorCritic(tiny_gpt2(), value_head="mlp")
    nn.init.normal_(actor.value_head.layers[-1].weight)
    wide = random_rollout([4, 3], prompt_lengths=[9, 2]).generation
    alone = trim(wide.rows([1]))
    assert alone.prompt_length == 2
    a = actor.evaluate(wide, PLAIN, chunk_tokens=100)
    b = actor.evaluate(alone, PLAIN, chunk_tokens=100)
    assert torch.allclose(a.logprobs[1, :3], b.logprobs[0], atol=1e-5)
    assert torch.allclose(a.values[1, :3], b.values[0], atol=1e-5)


def test_chunks_change_neither_values_nor_gradients():
    generation = random_rollout([4, 2, 5]).generation
    gradients = []
    for chunk in (1, 4, 1000):
        actor = ActorCritic(tiny_llama())
        new = actor.evaluate(generation, PLAIN, chunk_tokens=chunk)
        (new.logprobs.sum() + 0.3 * new.entropy.sum()).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in actor.policy.parameters()]))
    assert torch.allclose(gradients[0], gradients[2], atol=1e-5)
    assert torch.allclose(gradients[1], gradients[2], atol=1e-5)


def test_filters_apply_to_training_as_to_sampling():
    model = tiny_gpt2()
    sampling = Sampling(response_length=6, temperature=0.8, top_k=5, top_p=0.9, min_response_length=2, eos_ids=(1,))
    generation = generate(model, [[2, 3], [4, 5, 6]], sampling, seed=3)
    new = ActorCritic(model).evaluate(generation, sampling, chunk_tokens=100)
    assert torch.allclose(new.logprobs, generation.logprobs, atol=1e-4)
    assert torch.allclose(new.entropy, generation.entropy, atol=1e-4)
    assert (new.entropy >= 0).all()


def test_values_come_from_the_state_before_the_token():
    model = tiny_gpt2()
    actor = ActorCritic(model)
    nn.init.normal_(actor.value_head.layers[0].weight, generator=torch.Generator().manual_seed(1))
    generation = generate(model, [[2, 3], [4, 5, 6]], Sampling(response_length=5), seed=3, value_fn=actor.value_fn)
    trained = actor.evaluate(generation, PLAIN, chunk_tokens=100).values
    assert torch.allclose(trained, generation.values, atol=1e-5)
    hidden = model.transformer(input_ids=torch.tensor([[2, 3]])).last_hidden_state[0, -1]
    assert trained[0, 0].item() == pytest.approx(actor.value_head(hidden).item(), abs=1e-5)


def test_value_heads_start_at_zero():
    generation = random_rollout([4, 2]).generation
    for kind in ("linear", "mlp", "critic"):
        assert not ActorCritic(tiny_gpt2(), value_head=kind).evaluate(generation, PLAIN, chunk_tokens=9).values.any()


@pytest.mark.parametrize(("kind", "detached", "reaches"), [("linear", False, True), ("linear", True, False),
                                                           ("mlp", True, False), ("critic", False, False)])  # fmt: skip
def test_the_value_loss_reaches_the_policy_only_where_it_should(kind, detached, reaches):
    actor = ActorCritic(tiny_gpt2(), value_head=kind, is_head_detached=detached)
    nn.init.ones_(actor.value_head.layers[-1].weight)
    actor.evaluate(random_rollout([4, 2]).generation, PLAIN, chunk_tokens=9).values.sum().backward()
    assert actor.value_head.layers[-1].weight.grad.abs().sum() > 0
    trunk = actor.policy.transformer.h[0].mlp.c_fc.weight.grad
    assert (trunk is not None and bool(trunk.abs().sum() > 0)) == reaches
    if kind == "critic":
        assert actor.critic.transformer.h[0].mlp.c_fc.weight.grad.abs().sum() > 0
        assert all(name.startswith(("critic.", "value_head.")) for name in actor.value_parameter_names())


def test_dropout_never_acts():
    actor = ActorCritic(tiny_gpt2(dropout=0.5))
    generation = random_rollout([4, 2]).generation
    a, b = (actor.evaluate(generation, PLAIN, chunk_tokens=9).logprobs for _ in range(2))
    assert torch.equal(a, b)


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_llama, tiny_bloom])
def test_gradient_checkpointing_acts_and_changes_no_gradient(make):
    generation = random_rollout([4, 2, 5]).generation

    def run(is_checkpointed):
        actor = ActorCritic(make())
        calls = []
        blocks = actor.policy.transformer.h if hasattr(actor.policy, "transformer") else actor.policy.model.layers
        blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
            if is_checkpointed:
                with checkpointed_layers(actor) as count:
                    assert count == 2
                    actor.evaluate(generation, PLAIN, chunk_tokens=9).logprobs.sum().backward()
            else:
                actor.evaluate(generation, PLAIN, chunk_tokens=9).logprobs.sum().backward()
        assert "forward" not in vars(blocks[0])
        return torch.cat([p.grad.flatten() for p in actor.policy.parameters()]), sum(saved)

    plain, plain_saved = run(False)
    lean, lean_saved = run(True)
    assert torch.allclose(plain, lean, atol=1e-6)
    assert lean_saved < 0.8 * plain_saved


def test_logits_that_the_model_caps_are_capped_in_training_too():
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=23, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, final_logit_softcapping=0.5, max_position_embeddings=48,
    )  # fmt: skip
    model = Gemma2ForCausalLM(config)
    assert not Backbone(model).is_cut_before_logits
    assert Backbone(tiny_gpt2()).is_cut_before_logits
    generation = random_rollout([4, 2], prompt_lengths=[2, 4]).generation
    new = ActorCritic(model).evaluate(generation, PLAIN, chunk_tokens=3)
    assert torch.allclose(new.logprobs.double(), naive_logprobs(model, generation)[0], atol=1e-5)


def test_a_model_without_an_output_layer_is_refused():
    with pytest.raises(ValueError, match="GPT2Model is no causal LM"):
        Backbone(tiny_gpt2().transformer)
    with pytest.raises(ValueError, match="Linear is no causal LM"):
        Backbone(nn.Linear(2, 2))


def test_the_value_head_comes_from_its_own_seed():
    def first_layer(seed):
        torch.rand(seed + 3)  # the global generator must not matter
        return ActorCritic(tiny_gpt2(), value_head="mlp", seed=seed).value_head.layers[0].weight

    assert torch.equal(first_layer(1), first_layer(1))
    assert not torch.equal(first_layer(1), first_layer(2))
