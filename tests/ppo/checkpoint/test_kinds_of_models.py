"""Models of every kind resume to the same bits: sampled slowly, pruned, changed in place, of one's own class."""

from __future__ import annotations

import warnings

import pytest
import torch
import transformers as hf
from torch import nn
from torch.nn.utils import prune

from ppo import Config, Trainer
from ppo.checkpoint.weights import is_plain, load_exactly, policy_tensors
from tests.fakes import tiny_gpt2, tiny_llama

PROMPTS = [[2, 3, 4], [5, 6], [7], [8, 9, 10]]
CONFIG = Config(prompts_per_step=4, minibatch=4, response_length=4, learning_rate=1e-2)
SMALL = {"vocab_size": 31, "hidden_size": 40, "num_hidden_layers": 2, "bos_token_id": None, "eos_token_id": None}


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*sampled through its own forward.*")
        yield


def odd(samples):
    return [float(sum(i % 2 for i in s.ids)) for s in samples]


def filled(model: nn.Module, std: float = 0.3) -> nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=std)
    return model.eval()


def dynamic(tmp_path):
    """It has no fast decoder, so rows of one token pass the weights as they lie in memory."""
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    config = hf.LlamaConfig(**SMALL, intermediate_size=52, num_attention_heads=4, rope_parameters=rope)
    return filled(hf.LlamaForCausalLM(config))


def from_files(tmp_path):
    dynamic(tmp_path).save_pretrained(tmp_path / "files")
    model = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "files")
    assert any(parameter.data_ptr() % 64 for parameter in model.parameters())
    return model


def pruned(tmp_path):
    model = filled(tiny_llama())
    prune.l1_unstructured(model.model.layers[1].mlp.up_proj, "weight", amount=0.5)
    return model


def rescaled(tmp_path):
    """RWKV divides weights in place in its first forward."""
    return filled(hf.RwkvForCausalLM(hf.RwkvConfig(**SMALL | {"num_hidden_layers": 3}, rescale_every=1)))


@pytest.mark.parametrize("make", [dynamic, from_files, pruned, rescaled])
def test_it_resumes_by_itself(tmp_path, make):
    trainer = Trainer(make(tmp_path), PROMPTS, odd, CONFIG)
    trainer.train(1, progress=False)
    trainer.save(tmp_path / "c")
    same(trainer, Trainer.resume(tmp_path / "c", PROMPTS, odd))


def same(trainer, resumed):
    assert not any(parameter.data_ptr() % 64 for parameter in resumed.model.parameters())
    for _ in range(2):
        first, second = trainer.rollout(), resumed.rollout()
        assert torch.equal(first.generation.tokens, second.generation.tokens)
        assert torch.equal(first.old_logprobs, second.old_logprobs)
        trainer.update(first), resumed.update(second)
    for (name, p), q in zip(trainer.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(p, q), name


class Louder(hf.GPT2LMHeadModel):
    """A class of one's own: transformers would build a plain GPT-2 from its config."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = output.logits * 1.5
        return output


class Counting(nn.Module):
    """An MLP with a part more, and a buffer that each forward changes."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.seen += 1
        return self.inner(x)


def louder():
    return filled(Louder(tiny_gpt2().config))


def counting():
    model = filled(tiny_llama())
    model.model.layers[0].mlp = Counting(model.model.layers[0].mlp)
    return model


def tanh():
    model = filled(tiny_llama())
    model.model.layers[0].mlp.act_fn = nn.Tanh()
    return model


def hooked():
    model = filled(tiny_llama())
    model.model.layers[0].register_forward_hook(lambda module, inputs, output: output * 0.9)
    return model


def own_forward():
    model = filled(tiny_llama())
    layer = model.model.layers[0].mlp
    own = layer.forward
    layer.forward = lambda x: 0.5 * own(x)
    return model


def pruned_and_hooked():
    model = hooked()
    prune.l1_unstructured(model.model.layers[1].mlp.up_proj, "weight", amount=0.5)
    return model


@pytest.mark.parametrize("make", [louder, tanh, hooked, own_forward, pruned_and_hooked])
def test_a_model_that_transformers_would_not_build_is_asked_for(tmp_path, make):
    trainer = Trainer(make(), PROMPTS, odd, CONFIG)
    trainer.train(1, progress=False)
    trainer.save(tmp_path / "c")
    with pytest.raises(ValueError, match=r"holds no plain Hugging Face model .* pass model="):
        Trainer.resume(tmp_path / "c", PROMPTS, odd)
    same(trainer, Trainer.resume(tmp_path / "c", PROMPTS, odd, model=make()))


@pytest.mark.parametrize(("make", "other"), [(louder, "GPT2LMHeadModel"), (hooked, "LlamaForCausalLM")])
def test_another_kind_of_model_is_warned_of(tmp_path, make, other):
    """Its weights have the same names and shapes, so nothing else would tell."""
    Trainer(make(), PROMPTS, odd, CONFIG).save(tmp_path / "c")
    plain = getattr(hf, other)(make().config)
    with pytest.warns(RuntimeWarning, match=f"was saved from a .*, model=… is a {other}: the run goes on otherwise"):
        Trainer.resume(tmp_path / "c", PROMPTS, odd, model=plain)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*was saved from a")
        Trainer.resume(tmp_path / "c", PROMPTS, odd, model=make())


def test_hooks_that_only_look_on_leave_a_model_plain(tmp_path):
    model = filled(tiny_llama())
    model.enable_input_require_grads()
    model(torch.tensor([[2, 3]]), output_hidden_states=True)
    assert is_plain(model)


def test_buffers_come_back(tmp_path):
    trainer = Trainer(counting(), PROMPTS, odd, CONFIG)
    trainer.save(tmp_path / "c")
    seen = float(trainer.model.model.layers[0].mlp.seen)
    other = counting()
    load_exactly(other, policy_tensors(tmp_path / "c" / "model"))
    assert float(other.model.layers[0].mlp.seen) == seen > 0


def test_the_model_alone_is_a_folder_for_its_own_class(tmp_path):
    trainer = Trainer(louder(), PROMPTS, odd, CONFIG)
    trainer.save_model(tmp_path / "m")
    loaded, ids = Louder.from_pretrained(tmp_path / "m"), torch.tensor([[2, 3, 4]])
    assert torch.equal(loaded.eval()(ids).logits, trainer.model(ids).logits)


def test_which_models_are_plain():
    assert all(is_plain(make()) for make in (tiny_gpt2, tiny_llama))
    assert not any(is_plain(make()) for make in (louder, counting, tanh))


def test_asking_whether_a_model_is_plain_draws_no_number():
    model, before = tiny_gpt2(), torch.get_rng_state()
    is_plain(model)
    assert torch.equal(before, torch.get_rng_state())


def test_a_generation_config_that_transformers_refuses_to_write_is_written(tmp_path):
    model = tiny_gpt2()
    model.generation_config.temperature = 0.7  # and do_sample is off
    trainer = Trainer(model, PROMPTS, odd, CONFIG)
    trainer.save_model(tmp_path / "m")
    assert model.generation_config.temperature == 0.7
    assert hf.AutoModelForCausalLM.from_pretrained(tmp_path / "m").generation_config.temperature == 0.7
    trainer.save(tmp_path / "c")
    assert Trainer.resume(tmp_path / "c", PROMPTS, odd).policy.sampling.eos_ids == (1,)


def test_a_compiled_model_is_saved_as_the_model_in_it(tmp_path):
    trainer = Trainer(torch.compile(tiny_gpt2(), backend="eager"), PROMPTS, odd, CONFIG)
    trainer.save_model(tmp_path / "m")
    loaded = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    for p, q in zip(loaded.parameters(), trainer.model.parameters(), strict=True):
        assert torch.equal(p, q)


def test_an_adapter_that_transformers_added(tmp_path):
    peft = pytest.importorskip("peft")

    def adapted():
        model = filled(tiny_llama())
        torch.manual_seed(1)
        model.add_adapter(peft.LoraConfig(r=2, target_modules=["q_proj"]))
        return model

    trainer = Trainer(adapted(), PROMPTS, odd, CONFIG)
    trainer.train(1, progress=False)
    trainer.save(tmp_path / "c")
    same(trainer, Trainer.resume(tmp_path / "c", PROMPTS, odd, model=adapted()))
