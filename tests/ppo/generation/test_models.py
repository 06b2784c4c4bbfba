"""Greedy responses of many architectures equal ``model.generate``, one unpadded prompt at a time."""

from __future__ import annotations

import pytest
import torch
import transformers as hf
from packaging.version import Version

from ppo import Sampling, generate
from ppo.generation.hf.abilities import measure_abilities
from ppo.generation.hf.model import LastPosition
from ppo.lm.backbone import Backbone
from tests.versions import TRANSFORMERS
from tests.zoo.configs import small_model

VOCAB = 61
PROMPTS = [[5, 9, 13], [7], [3, 8, 22, 41, 17, 60, 2, 33, 19], [11, 12, 30, 9]]
SMALL = {
    "vocab_size": VOCAB, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None,
}  # fmt: skip
GPT = {"vocab_size": VOCAB, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "eos_token_id": None}

# Turns every position otherwise once one is beyond the twelfth.
LONGROPE = {"rope_type": "longrope", "short_factor": [1.0, 1.0], "long_factor": [3.0, 6.0], "factor": 5.3,
            "original_max_position_embeddings": 12, "rope_theta": 1e4}  # fmt: skip

ARCHITECTURES = {
    "bloom": lambda: hf.BloomConfig(vocab_size=VOCAB, hidden_size=16, n_layer=2, n_head=2, eos_token_id=None),
    "gemma": lambda: hf.GemmaConfig(**SMALL, head_dim=8),
    "gemma2": lambda: hf.Gemma2Config(**SMALL, head_dim=8, sliding_window=4, final_logit_softcapping=2.0),
    "phi3-longrope": lambda: hf.Phi3Config(**SMALL | {"num_key_value_heads": 4}, rope_parameters=LONGROPE),
    "llama-longrope": lambda: hf.LlamaConfig(**SMALL, rope_parameters=LONGROPE),
    "phi": lambda: hf.PhiConfig(**SMALL),
    "falcon": lambda: hf.FalconConfig(**SMALL, multi_query=True),
    "falcon-alibi": lambda: hf.FalconConfig(**SMALL, multi_query=False, alibi=True),
    "starcoder2": lambda: hf.Starcoder2Config(**SMALL),
    "mixtral": lambda: hf.MixtralConfig(**SMALL, num_local_experts=4, num_experts_per_tok=2),
    "mamba": lambda: hf.MambaConfig(vocab_size=VOCAB, hidden_size=16, num_hidden_layers=2, state_size=4),
    "recurrent-gemma": lambda: hf.RecurrentGemmaConfig(**SMALL, lru_width=16, attention_window_size=8, head_dim=4),
    "cohere": lambda: hf.CohereConfig(**SMALL, logit_scale=0.5),
    "mpt": lambda: hf.MptConfig(vocab_size=VOCAB, d_model=16, n_heads=2, n_layers=2, max_seq_len=64),
    "gptj": lambda: hf.GPTJConfig(**GPT, rotary_dim=4),
    "codegen": lambda: hf.CodeGenConfig(**GPT | {"n_head": 4}, rotary_dim=4),
    "gpt-bigcode": lambda: hf.GPTBigCodeConfig(**GPT),
    "stablelm": lambda: hf.StableLmConfig(**SMALL),
    "olmo2": lambda: hf.Olmo2Config(**SMALL),
    "granite": lambda: hf.GraniteConfig(**SMALL, logits_scaling=3.0, embedding_multiplier=2.0),
}  # fmt: skip

# Models in which a prompt cannot join rows that are being decoded: windows and states have no columns that could be
# cut, or padding is ruled out already.
WITH_STATES = {"mamba", "recurrent_gemma"}
WITHOUT_JOINING = {"gemma2", "mamba", "recurrent-gemma", "phi3-longrope", "llama-longrope"}


def build(config) -> torch.nn.Module:
    """A random model whose attention matters: weights large enough that greedy responses are not one repeated token."""
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.normal_(std=0.4)
            else:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    model.generation_config.eos_token_id = None
    return model.eval()


def greedy_with_transformers(model, prompt: list[int], length: int, eos_ids: tuple[int, ...]) -> list[int]:
    ids = torch.tensor([prompt])
    if model.config.model_type in WITH_STATES and (len(prompt) == 1 or Version("5.4") > TRANSFORMERS):
        # RecurrentGemma takes the state that the last call left on the module for a short prompt's past. Before
        # transformers 5.4 both are wrong for a prompt that is shorter or longer than their window.
        return greedy_without_cache(model, prompt, length, eos_ids)
    output = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=length, do_sample=False, pad_token_id=0,
        eos_token_id=list(eos_ids) or None,
    )  # fmt: skip
    return output[0, len(prompt) :].tolist()


def greedy_without_cache(model, prompt: list[int], length: int, eos_ids: tuple[int, ...]) -> list[int]:
    ids = list(prompt)
    while len(ids) < len(prompt) + length and not (len(ids) > len(prompt) and ids[-1] in eos_ids):
        ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def responses(generation) -> list[list[int]]:
    return [row[mask].tolist() for row, mask in zip(generation.tokens, generation.mask, strict=True)]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_greedy_equals_transformers(name: str):
    model = build(ARCHITECTURES[name]())
    endless = [greedy_with_transformers(model, prompt, 12, ()) for prompt in PROMPTS]
    generation = generate(model, PROMPTS, Sampling(response_length=12, temperature=0.0))
    assert responses(generation) == endless
    assert not generation.is_ended.any()

    eos = endless[2][3]  # as EOS it ends one response early, and others where it happens to occur
    generation = generate(model, PROMPTS, Sampling(response_length=12, temperature=0.0, eos_ids=(eos,)), slots=3)
    assert responses(generation) == [greedy_with_transformers(model, prompt, 12, (eos,)) for prompt in PROMPTS]
    assert generation.is_ended[2]


@pytest.mark.parametrize("name", ["gemma2", "cohere", "mamba", "granite", "mpt"])
def test_logprobs_and_values_equal_a_teacher_forced_forward(name: str):
    model = build(ARCHITECTURES[name]())
    generation = generate(model, PROMPTS, Sampling(response_length=8), seed=3, value_fn=lambda hidden: hidden.sum(-1))
    for row, prompt in enumerate(PROMPTS):
        response = generation.tokens[row].tolist()
        ids = torch.tensor([prompt + response])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            hidden = Backbone(model)(ids, torch.ones_like(ids, dtype=torch.bool)).hidden[0, len(prompt) - 1 : -1]
        picked = logits.gather(-1, generation.tokens[row].unsqueeze(-1)).squeeze(-1)
        torch.testing.assert_close(generation.logprobs[row], picked, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(generation.values[row], hidden.sum(-1), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(generation.entropy[row], -(logits.exp() * logits).sum(-1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_samples_do_not_depend_on_the_rows_beside_them(name: str):
    """Prompts and responses have many lengths, so with few slots rows join and leave all the time."""
    model = build(ARCHITECTURES[name]())
    prompts = [list(range(2, 3 + (7 * n) % 11)) for n in range(9)]
    sampling = Sampling(response_length=14, eos_ids=tuple(range(6)), temperature=2.0, num_samples=2)
    alone = generate(model, prompts, sampling, seed=5, slots=1, engine="hf")
    assert len({len(response) for response in responses(alone)}) > 4
    for slots in (3, 64):
        together = generate(model, prompts, sampling, seed=5, slots=slots, engine="hf")
        assert responses(together) == responses(alone)
        torch.testing.assert_close(together.logprobs, alone.logprobs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_which_models_let_prompts_join_running_rows(name: str):
    with torch.no_grad():
        abilities = measure_abilities(LastPosition(build(ARCHITECTURES[name]())), torch.device("cpu"))
    assert abilities.joins == (name not in WITHOUT_JOINING)


def test_a_free_slot_is_filled_while_the_others_run():
    """There are one long response and many short ones. With two slots the short ones run beside it, one by one."""
    model = build(ARCHITECTURES["starcoder2"]())
    sampling = Sampling(response_length=24, eos_ids=tuple(range(12)), temperature=2.0)
    prompts = [[5 + n] for n in range(12)]
    lengths = [len(response) for response in responses(generate(model, prompts, sampling, slots=1, engine="hf"))]
    metrics = generate(model, prompts, sampling, slots=2, engine="hf").metrics
    # Each response has its first token from the prefill. Two slots that are never idle need half of the other steps.
    assert metrics["generate/decode_steps"] <= sum(length - 1 for length in lengths) / 2 + max(lengths) / 2
    groups = sum(max(lengths[n : n + 2]) - 1 for n in range(0, 12, 2))
    assert metrics["generate/decode_steps"] < groups


def test_abilities_follow_the_config():
    model = build(hf.MistralConfig(**SMALL, sliding_window=None))
    sampling = Sampling(response_length=12, temperature=0.0)
    generate(model, PROMPTS, sampling, engine="hf")
    model.config.sliding_window = 4
    generation = generate(model, PROMPTS, sampling, engine="hf", slots=3)
    assert responses(generation) == [greedy_without_cache(model, prompt, 12, ()) for prompt in PROMPTS]


def test_abilities_are_those_of_the_weights_of_now():
    """With layers that add 0, or logits that are all 0, a window that padding breaks is not seen; later it is."""
    model = build(hf.Llama4TextConfig(
        **SMALL | {"num_hidden_layers": 4}, head_dim=8, intermediate_size_mlp=24, num_local_experts=4,
        attention_chunk_size=5, layer_types=["chunked_attention", "full_attention"] * 2, no_rope_layers=[1, 0, 1, 0],
    ))  # fmt: skip
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    sampling = Sampling(response_length=12, temperature=0.0)
    for parameters in ([model.lm_head.weight], list(model.model.layers.parameters())):
        with torch.no_grad():
            for parameter in parameters:
                parameter.zero_()
        generate(model, PROMPTS, sampling)
        model.load_state_dict(weights)
        assert responses(generate(model, PROMPTS, sampling)) == [
            greedy_without_cache(model, prompt, 12, ()) for prompt in PROMPTS
        ]


@pytest.mark.parametrize("context", [2, 4, 6])
def test_a_model_whose_context_is_too_short_for_the_probe(context: int):
    model = build(hf.GPTJConfig(**GPT | {"n_positions": context}, rotary_dim=4))
    generation = generate(model, [[5], [7]], Sampling(response_length=context - 1, temperature=0.0))
    expected = [greedy_without_cache(model, prompt, context - 1, ()) for prompt in ([5], [7])]
    assert responses(generation) == expected


def test_positions_that_are_computed_again_count_as_padding_waste():
    model = build(ARCHITECTURES["recurrent-gemma"]())
    metrics = generate(model, [[5, 6, 7]], Sampling(response_length=4, temperature=0.0)).metrics
    assert metrics["generate/padding_waste"] == pytest.approx(1 - 6 / (3 + 4 + 5 + 6))


def test_what_ends_in_an_error_is_no_ability():
    """MiniMax keeps states that no row can be dropped from; such a trial ends in an error of its own."""
    model = small_model("minimax")
    with torch.no_grad():
        abilities = measure_abilities(LastPosition(model), torch.device("cpu"))
    assert abilities.steps
    assert not abilities.selects
    generation = generate(model, PROMPTS, Sampling(response_length=6, temperature=0.0))
    assert responses(generation) == [greedy_without_cache(model, prompt, 6, ()) for prompt in PROMPTS]
