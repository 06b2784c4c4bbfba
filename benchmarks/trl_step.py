"""The same PPO step with TRL 1.12's experimental trainer, the last that has PPO. ``benchmarks.update`` starts it.

TRL has a separate critic of the policy's size and needs a reward *model*; a one-layer network of width 8 costs next to
nothing. This program needs the extra ``bench`` (trl 1.12; 1.13 and later have no PPO).
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaForSequenceClassification, PreTrainedTokenizerFast, TrainerCallback

from benchmarks.machine import peak_memory_bytes
from benchmarks.models import llama_config, make_model


class Clock(TrainerCallback):
    """Notes when a step ends."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append(time.perf_counter())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", required=True)
    for name in ("prompts", "prompt-length", "response-length", "epochs", "repeats"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--json", required=True)
    options = parser.parse_args()
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        make_trainer(options, clock, folder).train()
    steps = [end - start for start, end in zip(clock.ends, clock.ends[1:], strict=False)]
    median = statistics.median(steps)
    result = {
        "seconds": {"step": steps},
        "median_seconds": {"step": median},
        "tokens_per_second": options.prompts * options.response_length / median,
        "peak_memory_bytes": peak_memory_bytes(),
    }
    Path(options.json).write_text(json.dumps(result), encoding="utf-8")


def make_trainer(options: argparse.Namespace, clock: Clock, folder: str) -> Any:
    try:
        from trl.experimental.ppo import PPOConfig, PPOTrainer
    except ImportError as error:
        raise SystemExit(
            f"TRL's PPO cannot be imported ({error}): pip install -e '.[bench]', which is trl 1.12"
        ) from None
    policy = make_model(options.model)
    vocab = policy.config.vocab_size
    critic, reward = (
        LlamaForSequenceClassification(config)
        for config in (
            llama_config(options.model),
            llama_config(options.model, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                         num_attention_heads=1, num_key_value_heads=1),
        )
    )  # fmt: skip
    for model in (critic, reward):
        model.score = torch.nn.Linear(model.config.hidden_size, 1, bias=False)  # one number, not one per label
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(1, vocab, (options.prompts, options.prompt_length), generator=generator).tolist()
    rows = [{"input_ids": ids} for ids in prompts]  # all that its DataLoader wants
    config = PPOConfig(
        output_dir=folder, per_device_train_batch_size=options.prompts, gradient_accumulation_steps=1,
        num_mini_batches=1, num_ppo_epochs=options.epochs, total_episodes=options.prompts * (options.repeats + 1),
        response_length=options.response_length, temperature=1.0, local_rollout_forward_batch_size=options.prompts,
        num_sample_generations=0, report_to="none", bf16=False, gradient_checkpointing=False, save_strategy="no",
        use_cpu=True, learning_rate=1.41e-5, kl_coef=0.2, vf_coef=0.1, disable_tqdm=True,
    )  # fmt: skip
    return PPOTrainer(
        args=config, processing_class=word_tokenizer(vocab), model=policy, ref_model=None, reward_model=reward,
        value_model=critic, train_dataset=rows, eval_dataset=rows, callbacks=[clock],
    )  # fmt: skip


def word_tokenizer(vocab: int) -> PreTrainedTokenizerFast:
    """Token i is the word "i"; 0 is padding and 1 is EOS. TRL asks for one though nothing is ever encoded."""
    words = Tokenizer(WordLevel({str(i): i for i in range(vocab)}, unk_token="0"))
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="0", eos_token="1", unk_token="0", padding_side="left"
    )


if __name__ == "__main__":
    main()
