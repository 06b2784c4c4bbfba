"""Small real models and small fakes that the tests share."""

from __future__ import annotations

import re
import sys
from types import SimpleNamespace

import torch
from torch import nn
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

from ppo.types import Generation, Rollout, Sample

VOCAB = 23


def tiny_gpt2(seed: int = 0, *, vocab: int = VOCAB, eos: int | None = 1, dropout: float = 0.1, layers: int = 2):
    """A GPT-2 of a few thousand weights, with dropout in its config, so that a test fails if dropout acts."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=vocab, n_embd=16, n_layer=layers, n_head=2, n_positions=48, bos_token_id=0, eos_token_id=eos,
        attn_pdrop=dropout, embd_pdrop=dropout, resid_pdrop=dropout,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def tiny_llama(seed: int = 0, *, vocab: int = VOCAB):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=48, bos_token_id=0, eos_token_id=1, attention_dropout=0.1,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def tiny_opt(seed: int = 0):
    """An OPT. Its forward pass skips its base model and calls the base model's decoder directly."""
    torch.manual_seed(seed)
    config = OPTConfig(
        vocab_size=VOCAB, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, ffn_dim=16,
        word_embed_proj_dim=16, max_position_embeddings=48, pad_token_id=1, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return OPTForCausalLM(config)


def tiny_bloom(seed: int = 0):
    """A BLOOM: it has ALiBi, so it takes no position ids."""
    torch.manual_seed(seed)
    return BloomForCausalLM(BloomConfig(vocab_size=VOCAB, hidden_size=16, n_layer=2, n_head=2, eos_token_id=1))


def fake_tensorboard(monkeypatch):
    """Fake the package tensorboard. Returns a list that receives every writer that is opened."""
    writers = []

    class SummaryWriter:
        def __init__(self, log_dir, *, purge_step):
            self.log_dir, self.purge_step, self.scalars, self.is_closed = log_dir, purge_step, [], False
            writers.append(self)

        def add_scalar(self, name, value, step):
            self.scalars.append((name, value, step))

        def flush(self):
            """Do nothing: no value is buffered."""

        def close(self):
            self.is_closed = True

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=SummaryWriter))
    return writers


def one_line(message: str) -> str:
    """A pattern for ``pytest.raises``: the message is one line, and this text stands in it."""
    return rf"\A.*{re.escape(message)}.*\Z"  # the dot matches no line end


class TableCritic(nn.Module):
    """An own critic: V of a token is its number in a table; ids [B, S] of the first 23 tokens -> [B, S]."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(23, 1)

    def forward(self, input_ids, attention_mask):
        return self.table(input_ids).squeeze(-1)


class Letters:
    """A tokenizer with one token per letter: id 0 is <pad>, 1 is <eos>, 2… are a, b, c, …"""

    def __call__(self, text: str, *, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) - ord("a") + 2 for letter in text]}

    def decode(self, token_ids, *, skip_special_tokens: bool = False) -> str:
        return "".join(chr(int(i) - 2 + ord("a")) for i in token_ids if int(i) >= 2)


def random_rollout(lengths: list[int], *, prompt_lengths: list[int] | None = None, seed: int = 0, vocab: int = VOCAB):
    """A rollout of random numbers, padded as the generator pads: prompts on the left, responses on the right."""
    g = torch.Generator().manual_seed(seed)
    num, width = len(lengths), max(lengths)
    prompt_lengths = prompt_lengths or [3] * num
    prompt_width = max(prompt_lengths)
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    prompt_mask = torch.arange(prompt_width) >= prompt_width - torch.tensor(prompt_lengths)[:, None]

    def numbers() -> torch.Tensor:
        return torch.randn(num, width, generator=g) * mask

    generation = Generation(
        prompt_ids=torch.randint(2, vocab, (num, prompt_width), generator=g) * prompt_mask,
        prompt_mask=prompt_mask,
        tokens=torch.randint(2, vocab, (num, width), generator=g) * mask,
        mask=mask,
        logprobs=-numbers().abs(),
        entropy=numbers().abs(),
        is_ended=torch.zeros(num, dtype=torch.bool),
        values=numbers(),
    )
    samples = [
        Sample("", "", p, ids[:n], {}, False)
        for p, ids, n in zip(generation.prompt_ids.tolist(), generation.tokens.tolist(), lengths, strict=True)
    ]
    assert generation.values is not None
    return Rollout(
        generation, samples, old_logprobs=generation.logprobs, old_values=generation.values, ref_logprobs=numbers(),
        scores=torch.randn(num, generator=g), kl=numbers(), rewards=numbers(), advantages=numbers(), returns=numbers(),
    )  # fmt: skip
