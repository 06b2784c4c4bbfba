"""What the library finds out about a causal LM: its context length, its causality, and whether it is one."""

from __future__ import annotations

import pytest
import torch
import transformers as hf
from torch import nn

from eval.teacher import teacher_force
from ppo import Config, Sampling, Trainer, generate
from ppo.lm.backbone import Backbone, causal_lm, context_length, is_causal
from tests.fakes import VOCAB, tiny_gpt2, tiny_llama
from tests.versions import since_transformers

SMALL = {"vocab_size": 23, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
WIDE = {**SMALL, "intermediate_size": 32}
LIMIT = 12
MODELS = {
    "gpt2": hf.GPT2Config(vocab_size=23, n_embd=16, n_layer=1, n_head=2, n_positions=LIMIT),
    "opt": hf.OPTConfig(
        **SMALL, ffn_dim=16, word_embed_proj_dim=16, max_position_embeddings=LIMIT, pad_token_id=1, eos_token_id=2
    ),
    "ctrl": hf.CTRLConfig(vocab_size=23, n_positions=LIMIT, n_embd=16, dff=16, n_layer=1, n_head=2),
    "mpt": hf.MptConfig(vocab_size=23, d_model=16, n_heads=2, n_layers=2, max_seq_len=LIMIT),
    "llama": hf.LlamaConfig(**WIDE, max_position_embeddings=LIMIT),
    "falcon": hf.FalconConfig(**SMALL, max_position_embeddings=LIMIT),
    "falcon-alibi": hf.FalconConfig(**SMALL, max_position_embeddings=LIMIT, alibi=True),
    "bloom": hf.BloomConfig(vocab_size=23, hidden_size=16, n_layer=2, n_head=2),
    "mamba": hf.MambaConfig(vocab_size=23, hidden_size=16, num_hidden_layers=2, state_size=4),
}
WITHOUT_LIMIT = ("falcon-alibi", "bloom", "mamba")
WITH_TABLE = ("gpt2", "opt", "ctrl", "mpt")


def build(config: hf.PretrainedConfig, *, seed: int = 0) -> hf.PreTrainedModel:
    torch.manual_seed(seed)
    return hf.AutoModelForCausalLM.from_config(config)


def forward(model: nn.Module, length: int) -> torch.Tensor:
    return Backbone(model)(torch.arange(length)[None] % 23, torch.ones(1, length, dtype=torch.bool)).hidden


@pytest.mark.parametrize("name", MODELS)
def test_context_length(name):
    assert context_length(build(MODELS[name])) == (None if name in WITHOUT_LIMIT else LIMIT)


@pytest.mark.parametrize("name", [*WITHOUT_LIMIT, *WITH_TABLE])
def test_context_length_is_where_the_models_own_forward_breaks(name):
    model = build(MODELS[name]).eval()
    assert forward(model, LIMIT).isfinite().all()
    if name in WITHOUT_LIMIT:
        assert forward(model, 3 * LIMIT).isfinite().all()
    else:
        with pytest.raises((IndexError, RuntimeError)):
            forward(model, LIMIT + 1)


@pytest.mark.parametrize("name", ["mpt", "falcon-alibi"])
def test_sampling_and_scoring_have_the_same_context_limit(name):
    """MPT's bias is a table of ``max_seq_len`` positions. Both used to fail on it with a RuntimeError."""
    model, sampling = build(MODELS[name]).eval(), Sampling(response_length=4, eos_ids=())
    assert generate(model, [[2] * (LIMIT - 4)], sampling, engine="hf").mask.all()
    assert len(teacher_force(model, [[2] * LIMIT])[0]) == LIMIT
    if name in WITHOUT_LIMIT:
        assert generate(model, [[2] * LIMIT], sampling, engine="hf").mask.all()
        assert len(teacher_force(model, [[2] * (LIMIT + 1)])[0]) == LIMIT + 1
    else:
        with pytest.raises(ValueError, match=f"context of {LIMIT}"):
            generate(model, [[2] * LIMIT], sampling, engine="hf")
        with pytest.raises(ValueError, match=f"context only {LIMIT}"):
            teacher_force(model, [[2] * (LIMIT + 1)])


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_decoders_are_causal(name, dtype):
    assert is_causal(build(MODELS[name]).to(dtype))


@pytest.mark.parametrize(
    "config",
    [
        hf.GPTNeoXConfig(**WIDE),  # says is_decoder=False, as BERT does
        hf.MixtralConfig(**WIDE, num_key_value_heads=2, num_local_experts=4),
        hf.BertConfig(**WIDE, is_decoder=True),
        hf.BartConfig(vocab_size=23, d_model=16, decoder_layers=2, decoder_attention_heads=2, decoder_ffn_dim=16),
    ],
    ids=lambda config: config.model_type,
)
def test_unlikely_decoders_are_causal_too(config):
    assert is_causal(build(config))


BIDIRECTIONAL = since_transformers("5.4", "lets no Llama see later tokens")


@pytest.mark.parametrize(
    "config",
    [
        hf.BertConfig(**WIDE),
        hf.RobertaConfig(**WIDE),
        hf.ElectraConfig(**WIDE, embedding_size=16),
        hf.XLNetConfig(vocab_size=23, d_model=16, n_layer=2, n_head=2, d_inner=32),
        pytest.param(hf.LlamaConfig(**WIDE, is_causal=False), marks=BIDIRECTIONAL),
    ],
    ids=lambda config: config.model_type,
)
def test_a_model_that_sees_later_tokens_is_not_causal(config):
    assert not is_causal(build(config))


def test_the_causality_check_lets_a_broken_model_pass():
    model = tiny_gpt2()
    with torch.no_grad():
        model.transformer.ln_f.weight.fill_(float("nan"))
    assert is_causal(model)


def test_the_checks_keep_a_models_training_flags():
    model = tiny_gpt2().train()
    model.transformer.drop.eval()  # a dropout that somebody switched off on purpose
    flags = [module.training for module in model.modules()]
    is_causal(model)
    Backbone(model)
    assert [module.training for module in model.modules()] == flags


def test_a_model_that_is_no_causal_lm_gets_an_error_that_says_so():
    with pytest.raises(ValueError, match="GPT2Model is no causal LM: it has no output embeddings"):
        causal_lm(tiny_gpt2().transformer)
    config = hf.T5Config(vocab_size=23, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    translator = hf.T5ForConditionalGeneration(config)
    for use in (causal_lm, Backbone, is_causal, lambda model: generate(model, [[1]])):
        with pytest.raises(ValueError, match="T5ForConditionalGeneration is no causal LM but an encoder-decoder"):
            use(translator)


def test_hidden_states_in_float32_before_an_output_layer_in_bfloat16():
    """Mamba's trunk gives float32 in any precision, and its head casts."""
    model = build(MODELS["mamba"]).to(torch.bfloat16).eval()
    ids = torch.tensor([[5, 7, 9]])
    backbone = Backbone(model)
    assert backbone.is_cut_before_logits
    features = backbone(ids, torch.ones_like(ids, dtype=torch.bool))
    assert torch.equal(backbone.output_layer(features.before_logits).float(), model(input_ids=ids).logits)
    sampling = Sampling(response_length=3, temperature=0.0)
    tokens = generate(model, [[5, 7, 9]], sampling).tokens
    assert tokens[0, 0] == model(input_ids=ids).logits[0, -1].argmax()


@pytest.mark.parametrize("width", [7, 9])
def test_an_output_layer_that_does_not_tell_its_sizes_is_measured(width):
    """A layer of the user's own; 9 logits are more than the embedding has rows for."""
    model = tiny_llama(vocab=7)
    own = model.lm_head = nn.Sequential(nn.Linear(model.config.hidden_size, 5), nn.Tanh(), nn.Linear(5, width))
    backbone, ids = Backbone(model), torch.tensor([[2, 3, 4]])
    features = backbone(ids, torch.ones_like(ids, dtype=torch.bool))
    assert backbone.hidden_size == model.config.hidden_size
    torch.testing.assert_close(backbone.output_layer(features.before_logits), own(features.hidden)[..., :7])


@pytest.mark.parametrize("kind", [hf.LlamaConfig, hf.Phi3Config])
def test_longrope_rates_a_token_as_its_sequence_was_when_it_was_sampled(kind):
    """Before its original length the short factors hold, after it the long ones; the oracle takes each prefix alone."""
    rope = {
        "rope_type": "longrope", "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2.0, 3.0, 4.0, 6.0],
        "factor": 8.0, "rope_theta": 1e4, "original_max_position_embeddings": 5,
    }  # fmt: skip
    config = kind(
        **WIDE, max_position_embeddings=40, original_max_position_embeddings=5, rope_parameters=rope, pad_token_id=0
    )
    model = build(config).eval()
    ids = torch.tensor([[5, 7, 9, 3, 2, 8, 11, 4], [6, 1, 2, 0, 0, 0, 0, 0]])
    mask = torch.tensor([[True] * 8, [True] * 3 + [False] * 5])
    backbone = Backbone(model)
    features = backbone(ids, mask)
    logits = backbone.output_layer(features.before_logits)
    for row, length in ((0, 8), (1, 3)):
        for end in range(1, length + 1):
            alone = model(input_ids=ids[row : row + 1, :end], use_cache=False).logits[0, -1]
            torch.testing.assert_close(logits[row, end - 1], alone, rtol=1e-4, atol=1e-5)


class Prompted(nn.Module):
    """A wrapper as PEFT's prompt tuning: its own forward puts vectors before the tokens."""

    def __init__(self, size: int = 2):
        super().__init__()
        self.base = tiny_gpt2()
        self.prompt = nn.Parameter(torch.randn(size, 32, generator=torch.Generator().manual_seed(0)))

    def get_base_model(self):
        return self.base

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)

    def forward(self, input_ids, **_):
        tokens = self.base.transformer.wte(input_ids)
        before = self.prompt.expand(len(input_ids), *self.prompt.shape).to(tokens)[..., : tokens.shape[-1]]
        output = self.base(inputs_embeds=torch.cat([before, tokens], dim=1))
        output.logits = output.logits[:, len(self.prompt) :]
        return output


@pytest.mark.parametrize("engine", ["auto", "hf"])
def test_what_acts_in_a_wrappers_forward_is_refused(engine):
    model, sampling = Prompted(), Sampling(response_length=3)
    for is_trained, found in ((True, "weights such as prompt"), (False, "parts")):
        model.prompt.requires_grad_(is_trained)
        with pytest.raises(ValueError, match=f"Prompted has {found} acting outside the GPT2LMHeadModel"):
            generate(model, [[1, 2]], sampling, engine=engine)
        with pytest.raises(ValueError, match="LoRA"):
            Backbone(model)
    empty = Prompted(0).requires_grad_(False)
    generate(empty, [[1, 2]], sampling, engine=engine)  # its forward does nothing more than the model's
    empty.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match="Prompted has a forward hook acting outside"):
        generate(empty, [[1, 2]], sampling, engine=engine)


def test_a_hook_on_the_model_acts():
    """It may act on tokens that no probe holds, so the model is called as a whole."""
    model = tiny_gpt2().eval()

    def no_seven(module, args, kwargs, output):
        output.logits = output.logits - 5.0 * (kwargs["input_ids"] == 7).unsqueeze(-1) * torch.arange(VOCAB)
        return output

    assert Backbone(model).is_cut_before_logits
    model.register_forward_hook(no_seven, with_kwargs=True)
    ids = torch.tensor([[5, 7, 9]])
    features = Backbone(model)(ids, torch.ones_like(ids, dtype=torch.bool))
    assert torch.equal(features.before_logits, model(input_ids=ids).logits)


@pytest.mark.parametrize("kind", [hf.RobertaConfig, hf.CamembertConfig, hf.XLMRobertaConfig])
def test_positions_start_where_the_model_counts_from(kind):
    config = kind(
        **WIDE, max_position_embeddings=LIMIT + 2, is_decoder=True, pad_token_id=1, attn_implementation="eager"
    )
    model = build(config).eval()
    ids = torch.arange(5, 11)[None]
    own = model(input_ids=ids).logits
    backbone = Backbone(model)
    padded = torch.cat([torch.full((1, 2), 1), ids], dim=1)
    mask = torch.tensor([[False, False, True, True, True, True, True, True]])
    assert torch.allclose(backbone.output_layer(backbone(padded, mask).before_logits)[:, 2:], own, atol=1e-5)
    assert context_length(model) == LIMIT
    prompts = [[5, 6, 7], [8, 9, 10, 11, 12]]
    generation = generate(model, prompts, Sampling(response_length=3, temperature=0, eos_ids=(0, 1)))
    for prompt, mask, tokens in zip(prompts, generation.mask, generation.tokens, strict=True):
        for token in tokens[mask].tolist():  # model.generate itself counts from 0
            assert token == model(input_ids=torch.tensor([prompt])).logits[0, -1].argmax()
            prompt.append(token)


def wide(kind):
    """A model whose output layer knows 40 tokens that its embedding has no rows for."""
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    size |= {"num_key_value_heads": 2, "vocab_size": VOCAB, "tie_word_embeddings": False}
    config = hf.LlamaConfig(**size) if kind == "cut before logits" else hf.Gemma2Config(**size, head_dim=8)
    model = hf.AutoModelForCausalLM.from_config(config)
    model.lm_head = nn.Linear(16, VOCAB + 40, bias=False)
    model.generation_config.eos_token_id = None
    return model.eval()


@pytest.mark.parametrize("kind", ["cut before logits", "cut after logits"])
@pytest.mark.parametrize("options", [{}, {"top_p": 0.9}, {"retain_coef": 1.0, "retain_tokens": 4}])
@pytest.mark.filterwarnings("ignore:.*sampled through its own forward")
def test_tokens_without_an_embedding_have_no_chance(kind, options):
    model = wide(kind)
    generation = generate(model, [[1, 2, 3]] * 8, Sampling(response_length=8, eos_ids=()))
    assert generation.tokens.max() < VOCAB
    ids = torch.cat([generation.prompt_ids, generation.tokens], dim=1)
    logits = model(input_ids=ids).logits[:, 2:-1, :VOCAB].log_softmax(-1)
    own = logits.gather(-1, generation.tokens.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(generation.logprobs, own, rtol=1e-4, atol=1e-4)
    config = Config(prompts_per_step=4, minibatch=2, response_length=6, **options)
    retain = [[1, 2, 3, 4]] * 4 if "retain_coef" in options else None
    trainer = Trainer(model, [[1, 2], [3]], lambda samples: [float(len(s.ids)) for s in samples], config, retain=retain)
    for _ in range(2):
        trainer.update(trainer.rollout())  # its checks compare the sampler with the training forward
    trainer.trace(trainer.rollout())


def test_hidden_states_are_what_the_output_layer_takes():
    """Also where transformers lists other states last: of another width here, and in a stack in Gemma 3n."""
    config = hf.RemBertConfig(
        vocab_size=VOCAB, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
        input_embedding_size=8, output_embedding_size=12, is_decoder=True, max_position_embeddings=32,
    )  # fmt: skip
    torch.manual_seed(0)
    model = hf.RemBertForCausalLM(config).eval()
    backbone, ids = Backbone(model), torch.tensor([[3, 4, 5]])
    features = backbone(ids, torch.ones_like(ids, dtype=torch.bool))
    assert features.hidden.shape == (1, 3, 12)
    assert backbone.hidden_size == 12
    torch.testing.assert_close(model.get_output_embeddings()(features.hidden), model(input_ids=ids).logits)
