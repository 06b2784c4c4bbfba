"""Responses of another engine: a copy of the model in bfloat16 that hands back ids, log-probs and text.

It stands for vLLM or any other server. It gets new weights every ``sync_every`` steps, and lags behind in between. Its
distribution is not quite the policy's, so each token's loss is weighted by the probability of the training forward over
the engine's own, truncated at 2. Run: python -m examples.foreign_engine
"""

import copy
from typing import Any

import torch

import ppo
from models.load import load
from ppo.given import given_responses

PROMPTS = ["The statement", "A class", "If the argument", "The function"]


def ask_engine(model: Any, tokenizer: Any, prompts: list[list[int]], seed: int) -> list[dict[str, Any]]:
    """One response to each prompt, as a server would send it."""
    drawn, answers = ppo.generate(model, prompts, ppo.Sampling(response_length=16), seed=seed), []
    for tokens, logprobs, mask in zip(drawn.tokens, drawn.logprobs, drawn.mask, strict=True):
        ids = tokens[mask].tolist()
        answers.append({"ids": ids, "logprobs": logprobs[mask].tolist(), "text": tokenizer.decode(ids)})
    return answers


def main(steps: int = 10, prompts_per_step: int = 64, sync_every: int = 2) -> list[dict[str, float]]:
    """The rollout's metrics of every step."""
    lab, history = load("lab"), []
    engine = copy.deepcopy(lab.model).to(torch.bfloat16)
    config = ppo.Config(
        prompts_per_step=prompts_per_step, minibatch=prompts_per_step, response_length=16, learning_rate=3e-4,
        kl_coef=0.0, old_logprobs="recompute", importance="token", importance_cap=2.0,
    )  # fmt: skip
    trainer = ppo.Trainer(lab.model, config=config, tokenizer=lab.tokenizer)
    prompts = [lab.tokenizer(PROMPTS[i % len(PROMPTS)])["input_ids"] for i in range(prompts_per_step)]
    for step in range(steps):
        if step % sync_every == 0:
            engine.load_state_dict(trainer.model.state_dict())
            version = trainer.policy_version
        answers = ask_engine(engine, lab.tokenizer, prompts, seed=step)
        ids, logprobs = ([answer[name] for answer in answers] for name in ("ids", "logprobs"))
        scores = [answer["text"].count("e") / 16 for answer in answers]
        given = given_responses(trainer, prompts, ids, scores, logprobs=logprobs, policy_version=version)
        rollout = trainer.appraise(given)
        trainer.update(rollout)
        history.append(dict(rollout.metrics))
    return history


if __name__ == "__main__":
    for metrics in main():
        shown = ("score/mean", "sampler/staleness", "sampler/k3", "sampler/ratio_max", "importance/cut_share")
        print(*(f"{name} {metrics[name]:.3g}" for name in shown), sep=", ")
