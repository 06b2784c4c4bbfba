"""References: a frozen copy, an adapter switched off, a callable."""

from contextlib import contextmanager

import pytest
import torch

from ppo.actor_critic import ActorCritic
from ppo.config import Config, Sampling
from ppo.reference import FrozenReference, adapter_off, freeze, make_reference, resolve_adapter
from tests.fakes import random_rollout, tiny_gpt2

GENERATION = random_rollout([4, 1, 6, 3], prompt_lengths=[2, 5, 3, 4]).generation


def direct(model, sampling=Sampling()):
    return ActorCritic(model, value_head=None).evaluate(GENERATION, sampling, chunk_tokens=100).logprobs.detach()


def test_it_gives_the_training_forward_s_numbers_in_any_batching():
    model = tiny_gpt2()
    for tokens in (1, 12, 10_000):
        reference = FrozenReference(model, Sampling(temperature=0.7), batch_tokens=tokens)
        found = reference.logprobs(GENERATION, [])
        assert torch.allclose(found, direct(model, Sampling(temperature=0.7)), atol=1e-5)
        assert not found.requires_grad
        assert not found[~GENERATION.mask].any()


def test_freezing_copies_only_when_something_asks_for_it():
    model = tiny_gpt2()
    assert freeze(model, Config(kl_coef=0.0), has_own_reference=False) is None
    assert freeze(model, Config(), has_own_reference=True) is None
    copied = freeze(model, Config(), has_own_reference=False)
    assert copied is not model
    assert not any(p.requires_grad for p in copied.parameters())
    kept = Config(kl_coef=0.0, retain_coef=1.0, retain_loss="kl")
    assert freeze(model, kept, has_own_reference=True) is not None
    assert make_reference(None, copied, Sampling(), kept) is None


class WithAdapter(torch.nn.Module):
    """A model that looks like PEFT's: a base model, and a context that switches the adapter off."""

    def __init__(self):
        super().__init__()
        self.base = tiny_gpt2().requires_grad_(False)
        self.delta = torch.nn.Parameter(torch.zeros_like(self.base.transformer.wpe.weight))
        self.base.transformer.wpe.register_forward_hook(self._add)
        self.is_on = True

    def _add(self, module, inputs, output):
        return output + self.delta[inputs[0]] if self.is_on else output

    def get_base_model(self):
        return self.base

    @contextmanager
    def disable_adapter(self):
        self.is_on = False
        try:
            yield
        finally:
            self.is_on = True


@pytest.mark.parametrize(
    "name", ["transformer.h.0.attn.c_attn.bias", "transformer.ln_f.weight", "transformer.wte.weight"]
)
def test_a_reference_does_not_move_with_weights_outside_its_adapter(name):
    model = WithAdapter()
    outside = model.base.get_parameter(name).requires_grad_(True)
    assert resolve_adapter(model, Config()).reference_adapter == "snapshot"
    frozen = freeze(model, Config(), has_own_reference=False)
    base = direct(model)
    with torch.no_grad():
        outside += torch.randn(outside.shape, generator=torch.Generator().manual_seed(0))
        model.delta += 1.0
    assert not torch.allclose(direct(model), base, atol=1e-2)
    config = Config(reference_adapter="snapshot")
    reference = make_reference(None, frozen, Sampling(), config)
    assert torch.allclose(reference.logprobs(GENERATION, []), base, atol=1e-5)
    with pytest.raises(ValueError, match="reference_adapter='off', but weights outside the adapter are trained"):
        freeze(model, Config(reference_adapter="off"), has_own_reference=False)


def test_what_is_frozen_stays_frozen_when_the_adapter_is_switched_on_again():
    model = WithAdapter()
    model.delta.requires_grad_(False)
    with adapter_off(model):
        model.delta.requires_grad_(True)  # as PEFT does
    assert not model.delta.requires_grad


def test_a_model_with_an_adapter_is_its_own_reference():
    model = WithAdapter()
    base = direct(tiny_gpt2())
    assert freeze(model, Config(), has_own_reference=False) is model
    with torch.no_grad():
        model.delta += torch.randn(model.delta.shape, generator=torch.Generator().manual_seed(0))
    assert not torch.allclose(direct(model), base, atol=1e-2)
    assert torch.allclose(FrozenReference(model, Sampling()).logprobs(GENERATION, []), base, atol=1e-5)
    assert not torch.allclose(direct(model), base, atol=1e-2)  # the adapter is on again
    with adapter_off(tiny_gpt2()):
        pass


def test_a_reference_that_lacks_tokens_of_the_policy_is_refused_at_once():
    policy, config = tiny_gpt2(vocab=40), Config()
    smaller, larger = (FrozenReference(tiny_gpt2(vocab=size), config.sampling()) for size in (39, 41))
    with pytest.raises(ValueError, match="vocabulary of 39 tokens, the policy one of 40"):
        make_reference(smaller, None, config.sampling(), config, policy=policy)
    assert make_reference(larger, None, config.sampling(), config, policy=policy) is larger
