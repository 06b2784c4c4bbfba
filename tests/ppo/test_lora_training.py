"""A policy with an adapter: its reference, its training, and how it is resumed from a checkpoint."""

import pytest
import torch

from models.lora import LoraConfig, LoraLinear, adapters, add_lora, load_adapter, save_adapter
from ppo import Config, FrozenReference, Sampling, Trainer
from ppo.actor_critic import ActorCritic, checkpointed_layers
from ppo.reference import freeze, resolve_adapter
from tests.fakes import random_rollout, tiny_gpt2, tiny_llama

PROMPTS = [[2, 3, 4], [5, 6], [7], [8, 9, 10, 11]]
SMALL = Config(prompts_per_step=4, minibatch=4, response_length=6, epochs=2, learning_rate=1e-2)
TARGETS = {tiny_gpt2: ("c_attn", "c_fc"), tiny_llama: ("q_proj", "v_proj", "up_proj")}
GENERATION = random_rollout([4, 1, 6, 3], prompt_lengths=[2, 5, 3, 4]).generation


def id_mean(samples):
    return [sum(s.ids) / len(s.ids) for s in samples]


def adapted(make=tiny_gpt2, *, is_tuned=False, targets=None):
    """``is_tuned``: the adapter changes the model's outputs, as after supervised fine-tuning."""
    model = make()
    add_lora(model, LoraConfig(targets or TARGETS[make], rank=2), generator=torch.Generator().manual_seed(1))
    if is_tuned:
        for i, layer in enumerate(adapters(model).values()):
            layer.lora_B.data.normal_(std=0.5, generator=torch.Generator().manual_seed(i))
    return model


def logprobs(model):
    return ActorCritic(model, value_head=None).evaluate(GENERATION, Sampling(), chunk_tokens=99).logprobs.detach()


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_llama])
def test_a_new_adapter_is_switched_off_for_the_reference(make):
    trainer = Trainer(adapted(make), PROMPTS, id_mean, SMALL)
    assert trainer.state.frozen is trainer.model
    assert trainer.config.reference_adapter == "off"
    assert trainer.rollout().kl.abs().max() < 1e-5
    trainer.train(2, progress=False)
    assert torch.allclose(trainer.collector.reference.logprobs(GENERATION, []), logprobs(make()), atol=1e-5)
    assert not torch.allclose(logprobs(trainer.model), logprobs(make()), atol=1e-3)


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_llama])
def test_a_fine_tuned_adapter_is_the_reference_and_not_its_base(make):
    """TRL got this case wrong: KL to the model before fine-tuning is not 0 before the first step."""
    before = logprobs(adapted(make, is_tuned=True))
    trainer = Trainer(adapted(make, is_tuned=True), PROMPTS, id_mean, SMALL)
    assert trainer.config.reference_adapter == "snapshot"
    assert trainer.rollout().kl.abs().max() < 1e-5
    trainer.train(2, progress=False)
    assert torch.allclose(trainer.collector.reference.logprobs(GENERATION, []), before, atol=1e-5)
    assert not torch.allclose(before, logprobs(make()), atol=1e-2)
    own = {id(p) for p in trainer.model.parameters()}
    copied = [name for name, p in trainer.state.frozen.named_parameters() if id(p) not in own]
    assert copied
    assert all("lora_" in name for name in copied)


def test_the_base_of_a_fine_tuned_adapter_can_be_asked_for():
    trainer = Trainer(adapted(is_tuned=True), PROMPTS, id_mean, SMALL.replace(reference_adapter="off"))
    assert torch.allclose(trainer.collector.reference.logprobs(GENERATION, []), logprobs(tiny_gpt2()), atol=1e-5)
    assert trainer.rollout().kl.abs().max() > 1e-2


def test_a_reference_may_keep_its_adapter():
    model = adapted(is_tuned=True)
    on = FrozenReference(model, Sampling(), is_adapter_off=False).logprobs(GENERATION, [])
    assert torch.allclose(on, logprobs(model), atol=1e-5)
    assert torch.allclose(FrozenReference(model, Sampling()).logprobs(GENERATION, []), logprobs(tiny_gpt2()), atol=1e-5)


def test_retain_kl_uses_the_same_reference():
    config = SMALL.replace(retain_coef=1.0, retain_loss="kl", retain_tokens=8, retain_sequences=2, epochs=1)
    for is_tuned in (False, True):
        trainer = Trainer(adapted(is_tuned=is_tuned), PROMPTS, id_mean, config, retain=[[2, 3, 4, 5, 6, 7]])
        assert trainer.update(trainer.rollout())["retain/loss"] == pytest.approx(0, abs=1e-6)
        assert trainer.update(trainer.rollout())["retain/loss"] > 1e-4


def test_only_the_adapter_is_trained_and_nothing_else_has_a_gradient_or_a_moment():
    model = adapted()
    trainer = Trainer(model, PROMPTS, id_mean, SMALL)
    before = {name: p.clone() for name, p in model.named_parameters()}
    trainer.train(1, progress=False)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if "lora_" in name}
    assert all("lora_" in name or "value_head" in name for name in trainer.learner.optimizer.state_tensors())


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_llama])
def test_gradient_checkpointing_changes_no_gradient(make):
    def gradient(is_checkpointed):
        actor = ActorCritic(adapted(make, is_tuned=True))
        if is_checkpointed:
            with checkpointed_layers(actor):
                actor.evaluate(GENERATION, Sampling(), chunk_tokens=9).logprobs.sum().backward()
        else:
            actor.evaluate(GENERATION, Sampling(), chunk_tokens=9).logprobs.sum().backward()
        return torch.cat([p.grad.flatten() for p in actor.policy.parameters() if p.requires_grad])

    plain = gradient(False)
    assert plain.abs().max() > 0
    torch.testing.assert_close(gradient(True), plain, atol=1e-6, rtol=1e-4)


def test_an_adapter_in_the_top_layers_leaves_frozen_blocks():
    trainer = Trainer(adapted(targets=r".*h\.1\..*c_attn"), PROMPTS, id_mean, SMALL)
    assert trainer.policy.actor.frozen_blocks.depth == 1
    rollout = trainer.rollout()
    assert rollout.kl.abs().max() < 1e-5
    trainer.update(rollout)
    assert torch.allclose(trainer.collector.reference.logprobs(GENERATION, []), logprobs(tiny_gpt2()), atol=1e-5)
    with pytest.raises(ValueError, match="adapt the top layers only"):
        Trainer(adapted(), PROMPTS, id_mean, SMALL.replace(train_top_layers=1))


@pytest.mark.parametrize("is_tuned", [False, True])
@pytest.mark.parametrize("make", [tiny_gpt2, tiny_llama])
def test_resume_goes_on_bit_for_bit_with_a_model_of_the_same_shape(tmp_path, make, is_tuned):
    trainer = Trainer(adapted(make, is_tuned=is_tuned), PROMPTS, id_mean, SMALL)
    trainer.train(1, progress=False)
    trainer.save(tmp_path / "a")
    trainer.train(1, progress=False)
    trainer.save(tmp_path / "b")
    frozen = [(tmp_path / name / "model" / "frozen.safetensors").stat() for name in "ab"]
    assert frozen[0].st_ino == frozen[1].st_ino  # frozen weights are written once
    trainer.train(2, progress=False)
    resumed = Trainer.resume(tmp_path / "b", PROMPTS, id_mean, model=adapted(make))
    assert resumed.config == trainer.config
    resumed.train(2, progress=False)
    for (name, p), q in zip(trainer.policy.actor.named_parameters(), resumed.policy.actor.parameters(), strict=True):
        assert torch.equal(p, q), name
    with pytest.raises(ValueError, match=r"but a \w+LMHeadModel with an adapter|but a \w+ForCausalLM with an adapter"):
        Trainer.resume(tmp_path / "b", PROMPTS, id_mean)
    with pytest.raises(ValueError, match="do not fit"):
        Trainer.resume(tmp_path / "b", PROMPTS, id_mean, model=make())


def test_a_trained_adapter_is_saved_and_loaded_in_pefts_format(tmp_path):
    trainer = Trainer(adapted(), PROMPTS, id_mean, SMALL)
    trainer.train(1, progress=False)
    save_adapter(trainer.model, tmp_path, LoraConfig(TARGETS[tiny_gpt2], rank=2))
    fresh = tiny_gpt2()
    load_adapter(fresh, tmp_path)
    assert torch.equal(logprobs(fresh), logprobs(trainer.model))


def test_a_model_with_a_peft_adapter_is_trained_as_it_is(tmp_path):
    """Runs only if PEFT is installed. PEFT is no dependency."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["c_attn"], task_type="CAUSAL_LM", fan_in_fan_out=True)
    trainer = Trainer(peft.get_peft_model(tiny_gpt2(), config), PROMPTS, id_mean, SMALL)
    assert trainer.state.frozen is trainer.model
    assert trainer.rollout().kl.abs().max() < 1e-5
    trainer.train(1, progress=False)
    assert trainer.rollout().kl.abs().max() > 1e-4
    assert torch.allclose(trainer.collector.reference.logprobs(GENERATION, []), logprobs(tiny_gpt2()), atol=1e-5)
    trainer.save(tmp_path / "ckpt")
    resumed = Trainer.resume(tmp_path / "ckpt", PROMPTS, id_mean, model=peft.get_peft_model(tiny_gpt2(), config))
    for t in (trainer, resumed):
        t.train(1, progress=False)
    assert torch.equal(logprobs(resumed.model), logprobs(trainer.model))
    trainer.model.save_pretrained(tmp_path / "adapter")
    fresh = tiny_gpt2()
    load_adapter(fresh, tmp_path / "adapter")
    assert torch.allclose(logprobs(fresh), logprobs(trainer.model), atol=1e-5)


@pytest.mark.parametrize(
    "narrowing", [{}, {"layers_to_transform": [1]}, {"exclude_modules": ["transformer.h.0.mlp.c_fc"]}]
)
def test_peft_loads_our_adapters_and_we_load_pefts(tmp_path, narrowing):
    """Runs only if PEFT is installed. The logits agree in both directions."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(
        r=2, lora_alpha=6, target_modules=["c_attn", "c_fc"], task_type="CAUSAL_LM", fan_in_fan_out=True,
        init_lora_weights=False, **narrowing,
    )  # fmt: skip
    theirs = peft.get_peft_model(tiny_gpt2(), config).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    ours = tiny_gpt2().eval()
    read = load_adapter(ours, tmp_path / "theirs")
    ids = GENERATION.tokens
    assert torch.allclose(ours(ids).logits, theirs(ids).logits, atol=1e-5)
    assert not torch.allclose(ours(ids).logits, tiny_gpt2().eval()(ids).logits, atol=1e-3)
    save_adapter(ours, tmp_path / "ours", read)
    back = peft.PeftModel.from_pretrained(tiny_gpt2(), tmp_path / "ours").eval()
    assert torch.allclose(back(ids).logits, ours(ids).logits, atol=1e-5)


def test_a_bfloat16_copy_differs_a_little_from_the_float32_model():
    model = tiny_gpt2()
    frozen = freeze(model, Config(reference_dtype="bfloat16"), has_own_reference=False)
    assert all(p.dtype == torch.bfloat16 for p in frozen.parameters())
    assert all(p.dtype == torch.float32 for p in model.parameters())
    trainer = Trainer(model, PROMPTS, id_mean, SMALL.replace(reference_dtype="bfloat16"))
    kl = trainer.rollout().kl.abs().max()
    assert 0 < kl < 0.05
    trainer.train(1, progress=False)


def test_without_an_adapter_resolving_auto_changes_nothing():
    assert resolve_adapter(tiny_gpt2(), SMALL) == SMALL
    assert isinstance(next(iter(adapters(adapted()).values())), LoraLinear)
