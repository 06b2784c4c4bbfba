"""The trainings that tests/ppo/distributed/test_processes.py runs in one process and, through this program, in several.

    torchrun --nproc-per-node 2 -m tests.processes_cases FOLDER

writes ``FOLDER/<case>-<rank>.pt`` for every case. Every process runs the same lines, as a user's program does. The file
has more than 300 lines, because all cases must be in this one program.
"""

from __future__ import annotations

import errno
import sys
import warnings
from pathlib import Path
from unittest import mock

import torch

import ppo
from models.lora import LoraConfig, adapters, add_lora
from ppo import Config, Trainer
from ppo import learner as gradients
from ppo.checks import dump
from ppo.distributed import OtherProcessError, Processes
from ppo.distributed.sharding import gathered
from ppo.given import given_responses
from ppo.lm.backbone import is_split
from tests.fakes import Letters, tiny_gpt2, tiny_llama

PROMPTS = [[2, 3, 4], [5, 6], [7], [8, 9, 10, 11], [12, 13], [3, 3, 3], [4], [6, 5, 4, 3, 2], [9], [10, 2]]
RETAIN = [[2, 4, 6, 8, 10, 12, 14, 16], [3, 5, 7], [20, 19, 18, 17, 16]]
SMALL = Config(
    prompts_per_step=8, minibatch=4, response_length=6, epochs=2, learning_rate=1e-3, adam_eps=1e-5, scale_scores=True
)
GRPO = {"advantage": "grpo", "samples_per_prompt": 2, "prompts_per_step": 4}
KEEP = {"retain_coef": 0.5, "retain_tokens": 6, "retain_sequences": 3, "max_grad_norm": 0.1}
UPDATES = {
    "gae": {"whiten_rewards": True},
    "grpo": GRPO,
    "retain_kl": KEEP | {"retain_loss": "kl"},
    "retain_lm": KEEP | {"microbatch": 1},
    "microbatches": {"microbatch_tokens": 12, "value_head": "mlp", "gradient_checkpointing": True},
    "critic": {"value_head": "critic", "old_logprobs": "recompute", "microbatch": 2},
    "kept_sets": {"top_k": 5, "kept_sets": "replay", "old_logprobs": "recompute", "microbatch": 2},
    "rare_retain": KEEP | {"retain_sequences": 1, "microbatch_tokens": 12},
}


# Cases that train only a part of the policy: (changes, the policy's adapter: new, tuned (it acts already) or None).
PARTLY_TRAINED = {
    "lora": ({}, "new"),
    "tuned_lora": ({"microbatch": 2, "gradient_checkpointing": True}, "tuned"),
    "top": ({"train_top_layers": 1}, None),
}


IN_STEP = {"sharding": "fsdp", "gather_for_rollouts": False}


# Responses that end early on one process and late on another, with frozen blocks below the trained ones.
UNEVEN = {
    "train_top_layers": 1,
    "old_logprobs": "recompute",
    "microbatch": 1,
    "response_length": 12,
    "rollout_slots": 2,
}


def eager_to_end():
    """tiny_gpt2 that often draws its EOS, id 1."""
    model = tiny_gpt2()
    with torch.no_grad():
        model.lm_head.weight[1] += 0.3 * model.lm_head.weight.abs().max()
    return model


def adapted(kind):
    """tiny_gpt2 with an adapter of this kind, or without one for None."""
    model = tiny_gpt2()
    if kind is not None:
        add_lora(model, LoraConfig(("c_attn", "c_fc"), rank=2), generator=torch.Generator().manual_seed(1))
    for i, layer in enumerate(adapters(model).values() if kind == "tuned" else []):
        layer.lora_B.data.normal_(std=0.5, generator=torch.Generator().manual_seed(i))
    return model


def count_fives(samples):
    return [sum(i % 5 for i in s.ids) / len(s.ids) for s in samples]


def dense(samples):
    return [[float(i % 3) for i in s.ids] for s in samples]


def noisy(samples):
    return [float(torch.rand(())) for _ in samples]


def make(config=SMALL, *, reward=count_fives, dtype=torch.float32, out=None, model=None):
    torch.manual_seed(100 + Processes.current().rank)  # a process's own random state must not matter
    return Trainer((model or tiny_gpt2()).to(dtype), PROMPTS, reward, config, retain=RETAIN, out=out)


def state(trainer, metrics=()):
    """Everything that training depends on, gathered, as flat float64 tensors, and metrics without times."""
    actor = gathered(dict(trainer.policy.actor.named_parameters()))
    adam = gathered(trainer.learner.optimizer.state_tensors())
    numbers = [trainer.kl.coef, float(trainer.step)]
    if trainer.scorer.moments is not None:
        numbers += [trainer.scorer.moments.mean, trainer.scorer.moments.squares, float(trainer.scorer.moments.count)]
    kept = {k: v for k, v in dict(metrics).items() if not k.startswith(("time/", "generate/"))}
    return {
        "weights": torch.cat([p.flatten().double() for p in actor.values()]),
        "adam": torch.cat([adam[name].flatten().double() for name in sorted(adam)]),
        "numbers": torch.tensor(numbers, dtype=torch.float64),
        "metrics": kept,
        "order": trainer.stream.order,
    }


def updates(changes, *, steps=2, dtype=torch.float32, reward=count_fives, model=None):
    """A few steps: the state after them, and what was sampled."""
    trainer = make(SMALL.replace(**changes), dtype=dtype, reward=reward, model=model)
    tokens = []
    for _ in range(steps):
        rollout = trainer.rollout()
        tokens.append(rollout.generation.tokens)
        metrics = {**rollout.metrics, **trainer.update(rollout)}
    return state(trainer, metrics) | {"tokens": tokens, "samples": [s.ids for s in rollout.samples]}


def stops(folder):
    """Steps that end early, minibatches that are skipped, and a stopping rule that only process 0 evaluates."""
    early = updates({"learning_rate": 0.05, "epochs": 8, "stop_kl_per_token": 0.01}, steps=1)
    skipped = updates({"learning_rate": 0.2, "max_mean_ratio": 1.01}, steps=1)
    trainer, asked = make(), []

    def rule(metrics):
        asked.append(metrics["probe/rank"])
        return trainer.step == 2

    trainer.train(5, probe=lambda t: {"probe/rank": float(Processes.current().rank)}, stop_when=rule, progress=False)
    return {"early": early, "skipped": skipped, "step": trainer.step, "asked": asked}


def interrupted(folder):
    """Only the last process gets Ctrl-C. All processes finish the step and save."""
    import os
    import signal

    processes, calls = Processes.current(), []

    def reward(samples):
        calls.append(1)
        if len(calls) == 2 and processes.rank == processes.count - 1:
            os.kill(os.getpid(), signal.SIGINT)
        return count_fives(samples)

    trainer = make(reward=reward, out=folder / "interrupted")
    try:
        trainer.train(5, progress=False)
    except KeyboardInterrupt:
        return {"step": trainer.step, "checkpoint": str(trainer.last_checkpoint.name)}
    return {}


def errors(folder):
    """The errors of each process when the reward or the probe fails on one of them, and for impossible settings."""
    processes, texts = Processes.current(), []

    def fail(*_):
        if processes.rank == processes.count - 1:
            raise KeyError("suffix")
        return count_fives(*_) if isinstance(_[0], list) else {}

    for reward, probe in ((fail, None), (count_fives, fail)):
        try:
            make(reward=reward).train(2, probe=probe, progress=False)
        except (KeyError, OtherProcessError) as error:
            texts.append(f"{type(error).__name__}: {error}")
    for changes in ({"prompts_per_step": 9, "minibatch": 3}, {"minibatch": 1}):
        try:
            make(SMALL.replace(**changes))
        except ValueError as error:
            texts.append(str(error))
    return {"texts": texts}


def checks(folder):
    """How each process reacts to a rollout that fails a check, and to a NaN gradient while the disk is full.

    Both faults are in the last process. The disk is full for the first process, the only one that writes.
    """
    processes, result = Processes.current(), {}

    def reference(generation, samples):
        logprobs = generation.logprobs.clone()
        logprobs[0, 0] = float("nan") if processes.rank == processes.count - 1 else logprobs[0, 0]
        return logprobs

    trainer = Trainer(tiny_gpt2(), PROMPTS, count_fives, SMALL, reference=reference, out=folder / "checks")
    try:
        trainer.train(1, progress=False)
    except ppo.CheckError as error:
        result["rollout"] = str(error)

    def full(path, tensors):
        raise OSError(errno.ENOSPC, "No space left on device")

    trainer, calls = make(out=folder / "full"), []

    def poison(gradient):
        calls.append(1)
        is_bad = len(calls) == 2 and processes.rank == processes.count - 1
        return gradient * float("nan") if is_bad else gradient

    trainer.model.transformer.ln_f.weight.register_hook(poison)
    with mock.patch.object(dump, "save_tensors", full), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        metrics = trainer.update(trainer.rollout())
    result["said"] = [str(warning.message) for warning in said if issubclass(warning.category, RuntimeWarning)]
    return result | {"not_finite": state(trainer, metrics), "dumps": [p.name for p in folder.glob("*/dumps/*")]}


def memory(folder):
    """Only the last process runs out of memory, in the update. A resumed run continues as the unbroken one does."""
    processes, loss = Processes.current(), gradients.ppo_loss

    def limited(new, *arguments, **named):
        if processes.rank == processes.count - 1 and len(new.logprobs) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return loss(new, *arguments, **named)

    trainer = make()
    with mock.patch.object(gradients, "ppo_loss", limited), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.train(1, progress=False)
    limits = vars(trainer.policy.limits).copy()
    trainer.save(folder / "memory")
    trainer.train(1, progress=False)
    again = Trainer.resume(folder / "memory", PROMPTS, count_fives, retain=RETAIN)
    again.train(1, progress=False)
    return {"limits": limits, "unbroken": state(trainer), "resumed": state(again)}


def resumed(folder):
    """Save after two steps and train two more; also train two more from the checkpoint."""
    config = SMALL.replace(**UPDATES["retain_kl"], value_head="mlp")
    trainer = make(config, reward=noisy)
    trainer.train(2, progress=False)
    trainer.save(folder / "noisy")
    trainer.train(2, progress=False)
    again = Trainer.resume(folder / "noisy", PROMPTS, noisy, retain=RETAIN)
    again.train(2, progress=False)
    plain = make(config)
    plain.train(2, progress=False)
    plain.save(folder / f"of-{Processes.current().count}")
    return {"unbroken": state(trainer), "resumed": state(again)}


def continued(folder):
    """Two more steps from the checkpoints of one process and of two processes."""
    result = {}
    for count in (1, 2):
        trainer = Trainer.resume(folder / f"of-{count}", PROMPTS, count_fives, retain=RETAIN)
        trainer.train(2, progress=False)
        result[f"of-{count}"] = state(trainer)
    return result


def files(folder):
    """A run that writes every kind of file, with prompts as text."""
    trainer = Trainer(
        tiny_gpt2(), ["ab", "cde", "f", "gh"], count_fives, SMALL.replace(prompts_per_step=4),
        tokenizer=Letters(), out=folder / f"run-{Processes.current().count}",
    )  # fmt: skip
    trainer.train(2, progress=True)
    return {}


def evaluated(folder):
    """Evaluations of five prompts and of one, of whole and split weights, and the best step of a training."""
    sampling, result = ppo.Sampling(response_length=7, temperature=0.8, num_samples=3), {}
    for name, changes in {"whole": {}, "gathered": {"sharding": "fsdp"}, "in_step": IN_STEP}.items():
        for num_prompts in (5, 1):
            given = {"eval_prompts": PROMPTS[-num_prompts:], "eval_sampling": sampling if num_prompts > 1 else None}
            trainer = Trainer(eager_to_end(), PROMPTS, count_fives, SMALL.replace(**changes), **given)
            trainer.update(trainer.rollout())
            found = trainer.evaluate()
            result[f"{name} {num_prompts}"] = {k: v for k, v in found.items() if not k.startswith("time/")}
    config = SMALL.replace(eval_every_steps=1, best_metric="eval/length_mean", best_is="min", sharding="fsdp")
    out = folder / f"best-{Processes.current().count}"
    given = {"eval_prompts": PROMPTS[:3], "eval_sampling": sampling}
    trainer = Trainer(eager_to_end(), PROMPTS, count_fives, config, out=out, **given)
    trainer.train(3, progress=False)
    again = Trainer.resume(out / "best", PROMPTS, count_fives, **given)
    return result | {"best": trainer.state.best.numbers(), "again": again.state.best.numbers(), "step": again.step}


def fsdp(folder):
    """Split weights: the same updates, a checkpoint, and a run resumed from it. The Llama has untied weights."""
    result = {name: updates(UPDATES[name] | {"sharding": "fsdp"}) for name in ("gae", "microbatches", "critic")}
    result["rare_retain"] = updates(UPDATES["rare_retain"] | {"retain_loss": "kl", "sharding": "fsdp"})
    for name, (changes, kind) in PARTLY_TRAINED.items():
        result[name] = updates(changes | {"sharding": "fsdp"}, model=adapted(kind))
    result["llama"] = updates({"sharding": "fsdp", "autocast": "bfloat16"}, model=tiny_llama())
    trainer = make(SMALL.replace(**KEEP, retain_loss="kl", sharding="fsdp"))
    trainer.train(2, progress=False, probe=lambda t: {"probe/length": float(greedy(t.model).shape[1])})
    trainer.save(folder / "fsdp")
    trainer.save_model(folder / "fsdp-model")
    trainer.train(2, progress=False)
    again = Trainer.resume(folder / "fsdp", PROMPTS, count_fives, retain=RETAIN)
    again.train(2, progress=False)
    return result | {"unbroken": state(trainer), "resumed": state(again), "local": local_share(trainer)}


def fsdp_in_step(folder):
    """Split weights that are never gathered, not even in rollouts, and a reward that fails on one process."""
    changes = {"sharding": "fsdp", "gather_for_rollouts": False}
    result = {name: updates(UPDATES[name] | changes) for name in ("gae", "grpo", "retain_kl", "critic")}
    for name, (more, kind) in PARTLY_TRAINED.items():
        result[name] = updates(more | changes, model=adapted(kind))
    result["llama"] = updates(changes, model=tiny_llama())
    result["uneven"] = updates(changes | UNEVEN, model=eager_to_end())
    was_split, text = [], ""

    def looking(samples):
        was_split.append(is_split(trainer.model))
        return count_fives(samples)

    trainer = make(SMALL.replace(**changes), reward=looking)
    trainer.train(1, progress=False, probe=lambda t: {"probe/length": float(greedy(t.model).shape[1])})

    def failing(samples):
        if Processes.current().rank == 1:
            raise KeyError("suffix")
        return count_fives(samples)

    try:
        make(SMALL.replace(**changes), reward=failing).train(1, progress=False)
    except (KeyError, OtherProcessError) as error:
        text = f"{type(error).__name__}: {error}"
    return result | {"was_split": was_split, "text": text}


def given(folder, **changes):
    """Responses of another engine: the rollout, the update, and what becomes of processes that pass different ones."""
    processes = Processes.current()
    is_last = processes.rank == processes.count - 1
    g = torch.Generator().manual_seed(7)
    responses = [torch.randint(2, 23, (n,), generator=g).tolist() for n in (3, 6, 1, 2, 5, 4, 6, 2)]
    said = [(-3 + torch.rand(len(r), generator=g)).tolist() for r in responses]
    rewards = [[float(i % 5) for i in r] for r in responses]
    actions = [[t != 1 for t in range(len(r))] for r in responses]
    rewards = [[x * a for x, a in zip(*pair, strict=True)] for pair in zip(rewards, actions, strict=True)]
    config = SMALL.replace(
        importance="sequence", old_logprobs="recompute", microbatch=2, top_k=9, kept_sets="replay", **changes
    )

    def ask(trainer, version=0, **more):
        known = {"logprobs": said, "action_mask": actions, "token_rewards": rewards}
        return given_responses(trainer, PROMPTS[:8], responses, policy_version=version, **known | more)

    trainer, result = make(config), {}
    for step in range(2):
        rollout = trainer.appraise(ask(trainer, version=4 * step, rows=[{"place": i} for i in range(8)]))
        metrics = {**rollout.metrics, **trainer.update(rollout)}
        for name in ("old_logprobs", "old_values", "ref_logprobs", "importance_weights", "token_rewards", "advantages"):
            result[f"{name}-{step}"] = getattr(rollout, name)
        result[f"logprobs-{step}"] = rollout.generation.logprobs
        result[f"kept_sets-{step}"] = rollout.generation.kept_sets
    texts = []
    for more in ({"logprobs": [[x - is_last for x in row] for row in said]}, {"logprobs": said[: 8 - is_last]}):
        try:
            ask(trainer, **more)
        except (ValueError, OtherProcessError) as error:
            texts.append(f"{type(error).__name__}: {error}")
    places = [sample.row["place"] for sample in rollout.samples]
    return result | {"state": state(trainer, metrics), "texts": texts, "places": places}


def given_fsdp(folder):
    """The same with split weights, gathered for the measurements and not."""
    return {
        name: given(folder, sharding="fsdp", gather_for_rollouts=is_gathered)
        for name, is_gathered in (("gathered", True), ("in_step", False))
    }


def greedy(model):
    return ppo.generate(model, [[2, 3]], ppo.Sampling(temperature=0.0, response_length=4, eos_ids=())).tokens


def local_share(trainer):
    """The share of the weights that this process holds."""
    parameters = list(trainer.policy.actor.parameters())
    return sum(p.to_local().numel() for p in parameters) / sum(p.numel() for p in parameters)


def cases():
    """All cases: name to a function of the folder."""
    found = {name: (lambda folder, c=changes: updates(c)) for name, changes in UPDATES.items()}
    found |= {
        f"{name}_float64": (lambda folder, c=changes: updates(c, dtype=torch.float64))
        for name, changes in UPDATES.items()
    }
    found["dense"] = lambda folder: updates(
        {"missing_eos_penalty": 0.5, "kl_as": "loss", "kl_estimator": "k3"}, reward=dense
    )
    for function in (stops, interrupted, errors, checks, memory, resumed, files, given):
        found[function.__name__] = function
    return found


def main(folder: Path, names: list[str]) -> None:
    torch.set_num_threads(1)
    with ppo.process_group() as processes:
        split = {"evaluated": evaluated, "fsdp": fsdp, "fsdp_in_step": fsdp_in_step, "given_fsdp": given_fsdp}
        every = cases() | split | {"continued": continued}
        for name in names or [*cases(), *split]:
            torch.save(every[name](folder), folder / f"{name}-{processes.rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
