"""The seams in several processes: what tests/ppo/distributed/test_seams.py runs in one process and, through this
program, in two.

    torchrun --nproc-per-node 2 -m tests.processes_seams FOLDER

writes ``FOLDER/<case>-<rank>.pt`` for every case. Every process runs the same lines, as a user's program does.
"""

from __future__ import annotations

import sys
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import nn
from transformers import GPT2Config, GPT2Model

import ppo
from ppo import EnvironmentSampler, Trainer, turn_rewards
from ppo.distributed import OtherProcessError, Processes
from ppo.sampler import collate, sample_policy
from tests.fakes import VOCAB, tiny_gpt2
from tests.processes_cases import GRPO, PROMPTS, RETAIN, SMALL, count_fives, state

TOOL = [20, 21]  # what the tool writes; the policy never may


def with_a_tool(policy, prompts, *, seed, request_ids):
    """The policy's own draw, with a tool's two tokens after the second one and, in odd requests, after the last."""
    room = replace(policy.sampling, response_length=policy.sampling.response_length - 2 * len(TOOL))
    drawn = sample_policy(policy.drawing(room), prompts, seed=seed, request_ids=request_ids)
    responses, actions = [], []
    for place, (tokens, mask) in enumerate(zip(drawn.tokens, drawn.mask, strict=True)):
        ids, tail = tokens[mask].tolist(), TOOL * (request_ids[place] % 2)
        responses.append(ids[:2] + TOOL + ids[2:] + tail)
        actions.append([True] * len(ids[:2]) + [False] * 2 + [True] * len(ids[2:]) + [False] * len(tail))
    joined = collate([p.ids for p in prompts], responses, eos_ids=policy.sampling.eos_ids)
    width = joined.tokens.shape[1]
    action_mask = torch.tensor([row + [False] * (width - len(row)) for row in actions])
    joined = replace(joined, action_mask=action_mask, info=[{"written": row.count(False)} for row in actions])
    found = policy.measure(joined)
    return replace(joined, logprobs=found.logprobs, entropy=found.entropy, values=found.values)


def at_forced_states(policy, prompts, *, seed, request_ids):
    """Two actions at each state of a given text, of three to five tokens, drawn hot in every other row."""
    texts = [[7 + place % 3, 9, 11, 13, 15][: 3 + place % 3] for place in request_ids]
    given = collate([p.ids for p in prompts], texts)
    mask, drawn = given.mask.repeat_interleave(2, dim=1), []
    for place in request_ids:
        generator = torch.Generator().manual_seed(seed % 2**32 + place)
        drawn.append(torch.randint(2, VOCAB, (mask.shape[1],), generator=generator))
    forced = replace(
        given, tokens=torch.stack(drawn) * mask, mask=mask, action_mask=mask, context=given.tokens,
        logprobs=torch.zeros(mask.shape), entropy=torch.zeros(mask.shape),
        state_temperatures=torch.tensor([[1.0 + place % 2] for place in request_ids]).expand(given.tokens.shape),
    )  # fmt: skip
    found = policy.measure(forced)
    return replace(forced, logprobs=found.logprobs, entropy=found.entropy, values=found.values)


def above_the_mean(rewards, values, mask, samples):
    """Each action's reward to go above the step's mean total; the critic learns the total."""
    totals = rewards.sum(dim=1, keepdim=True)
    noted = torch.tensor([[float(s.info["written"]) if s.info else 0.0] for s in samples], device=mask.device)
    return ppo.whiten((totals - totals.mean() + noted) * mask, mask), totals * mask


def squared(new, part, *, num_tokens, num_sequences):
    """A REINFORCE with a pull back to the old policy. It notes the long rows only where it sees one."""
    mask = part.generation.action_mask
    pull = (new.logprobs - part.old_logprobs) ** 2
    loss = ((-part.advantages * new.logprobs + pull) * mask).sum() / num_tokens
    found = {"pull": (pull.detach() * mask).sum() / num_tokens}
    if num_long := int((part.generation.lengths > 8).sum()):
        found["long"] = num_long / num_sequences
    return loss, found


class Table(nn.Module):
    """A critic without blocks: a table of tokens and a running mean."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(VOCAB, width), nn.Linear(width, 1)
        for i, parameter in enumerate(self.parameters()):
            nn.init.normal_(parameter, generator=torch.Generator().manual_seed(i))

    def forward(self, input_ids, attention_mask):
        hidden = self.table(input_ids) * attention_mask.unsqueeze(-1)
        return self.out(hidden.cumsum(dim=1) / attention_mask.cumsum(dim=1).clamp(min=1).unsqueeze(-1)).squeeze(-1)


class Blocks(nn.Module):
    """A critic with transformer blocks, of another size than the policy and without an output layer."""

    def __init__(self) -> None:
        super().__init__()
        config = GPT2Config(
            vocab_size=VOCAB, n_embd=12, n_layer=3, n_head=2, n_positions=64, bos_token_id=0, eos_token_id=1
        )
        self.body, self.out = GPT2Model(config), nn.Linear(12, 1)
        for i, parameter in enumerate(self.parameters()):
            nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(i))

    def forward(self, input_ids, attention_mask):
        hidden = self.body(input_ids=input_ids, attention_mask=attention_mask.long()).last_hidden_state
        return self.out(hidden).squeeze(-1)


class Secret:
    """Two tokens, then a hint, then two more; paid for fives, and for the hint."""

    def __init__(self):
        self.is_told = False

    def reset(self, row):
        self.hint = row["prompt"][0]
        return [*row["prompt"], 22]

    def step(self, ids):
        if self.is_told:
            return None, float(ids.count(self.hint))
        self.is_told = True
        return [self.hint], float(ids.count(5))


def is_odd(samples):
    """Half of the prompts score the same whatever is answered."""
    return [float(s.prompt_ids[0] % 2 and sum(s.ids)) for s in samples]


PLAIN = SMALL.replace(microbatch=1)
WARMUP = {"critic_warmup_steps": 1, "value_head": "critic"}
ROOM = {"response_length": 10}  # six tokens, and four of the tool's
UPDATES = {
    "sampler": (ROOM, lambda: {"sampler": with_a_tool}),
    "forced": ({}, lambda: {"sampler": at_forced_states, "advantage": above_the_mean}),
    "advantage": ({}, lambda: {"advantage": above_the_mean}),
    "loss": ({}, lambda: {"policy_loss": squared}),
    "table": ({}, lambda: {"value": Table()}),
    "blocks": ({"old_logprobs": "recompute"}, lambda: {"value": Blocks()}),
    "environment": ({}, lambda: {"sampler": EnvironmentSampler(Secret, turn_length=2), "reward": turn_rewards}),
    "redraw": (GRPO | {"redraw_rounds": 2, "mask_overlong": True, "positive_coef": 0.3}, lambda: {"reward": is_odd}),
    "warmup": (WARMUP | {"retain_coef": 0.5, "retain_tokens": 6}, dict),
    "warmup_linear": ({"critic_warmup_steps": 1, "detach_value_head": True}, dict),
    "warmup_kl": (WARMUP | {"retain_coef": 0.5, "retain_tokens": 6, "retain_loss": "kl"}, dict),
    "all": ({"critic_warmup_steps": 1} | ROOM, lambda: everything(Table())),
    "all_blocks": ({"critic_warmup_steps": 1} | ROOM, lambda: everything(Blocks())),
}  # changes of the config, and the arguments


def everything(critic):
    return {"sampler": with_a_tool, "advantage": above_the_mean, "policy_loss": squared, "value": critic}


def make(changes, arguments):
    torch.manual_seed(100 + Processes.current().rank)  # a process's own random state must not matter
    # Where groups have equal scores, advantages are rounding alone, which Adam makes large: float64 has less of it.
    model = tiny_gpt2().to(torch.float64 if "redraw_rounds" in changes else torch.float32)
    arguments = {"reward": count_fives} | arguments
    return Trainer(model, PROMPTS, config=PLAIN.replace(**changes), retain=RETAIN, **arguments)


def updates(name, **more):
    """Two steps of a case: the state after them, and what was sampled in the second."""
    changes, arguments = UPDATES[name]
    trainer = make(changes | more, arguments())
    for _ in range(2):
        rollout = trainer.rollout()
        metrics = {**rollout.metrics, **trainer.update(rollout)}
    noted = [[vars(turn) for turn in s.info] if isinstance(s.info, list) else s.info for s in rollout.samples]
    samples = [(s.ids, info) for s, info in zip(rollout.samples, noted, strict=True)]
    return state(trainer, metrics) | {"samples": samples, "actions": int(rollout.generation.action_mask.sum())}


def shown(folder):
    """Where on_step is called, with what, and what becomes of an error in it."""
    seen, rank = [], Processes.current().rank

    def look(step):
        is_same = step.metrics["score/mean"] == step.rollout.metrics["score/mean"]
        seen.append((rank, step.number, len(step.rollout), is_same))

    make({}, {}).train(2, on_step=look, progress=False)

    def failing(step):
        raise KeyError("tracker")

    return {"seen": seen, "text": caught(lambda: make({}, {}).train(1, on_step=failing, progress=False))}


def caught(function):
    """The error of this process, as text; "" if there was none."""
    try:
        function()
    except (ValueError, KeyError, OtherProcessError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def is_last():
    processes = Processes.current()
    return processes.count == 1 or processes.rank == processes.count - 1


def two_few(policy, prompts, *, seed, request_ids):
    drawn = sample_policy(policy, prompts, seed=seed, request_ids=request_ids)
    return drawn.rows([0, 1]) if is_last() else drawn


def forgets_values(policy, prompts, *, seed, request_ids):
    drawn = sample_policy(policy, prompts, seed=seed, request_ids=request_ids)
    return replace(drawn, values=None) if is_last() else drawn


def not_finite(rewards, values, mask, samples):
    return (rewards * torch.nan if is_last() else rewards), rewards


def without_gradient(new, part, *, num_tokens, num_sequences):
    loss, found = squared(new, part, num_tokens=num_tokens, num_sequences=num_sequences)
    return (loss.detach() if is_last() else loss), found


class Moody(Table):
    """Right in the rollout, which has no gradients, and of the wrong shape in the update."""

    def forward(self, input_ids, attention_mask):
        values = super().forward(input_ids, attention_mask)
        return values[:, 1:] if torch.is_grad_enabled() and is_last() else values


WRONG = {
    "sampler": (ROOM, lambda: {"sampler": two_few}),
    "values": ({}, lambda: {"sampler": forgets_values}),
    "advantage": ({}, lambda: {"advantage": not_finite}),
    "policy_loss": ({}, lambda: {"policy_loss": without_gradient}),
    "value": ({}, lambda: {"value": Moody()}),
}


def wrong(folder, **more):
    """The error of each process where a seam gives a wrong answer on the last one; each run goes on after the other."""
    names = [name for name in WRONG if not (more and name == "value")]
    return {name: caught(partial(start, name, more)) for name in names}


def start(name, more):
    """One step with a wrong part."""
    changes, arguments = WRONG[name]
    make(changes | more, arguments()).train(1, progress=False)


def drawn(folder):
    """An estimator that draws from the process's own generator: the first one's answer counts for all."""

    def lottery(rewards, values, mask, samples):
        return torch.randn(mask.shape) * mask, torch.zeros_like(rewards)

    rollout = make({"value_head": "none"}, {"advantage": lottery}).rollout()
    return {"advantages": rollout.advantages}


def resumed(folder, kind=Table, **more):
    """A run of an own critic, its checkpoint, and the run that goes on from it."""
    name = "-".join([kind.__name__, *map(str, more.values())])
    trainer = make({"critic_warmup_steps": 1} | ROOM | more, everything(kind()))
    trainer.train(2, progress=False)
    trainer.save(folder / name)
    again = Trainer.resume(folder / name, PROMPTS, count_fives, retain=RETAIN, **everything(kind()))
    for run in (trainer, again):
        run.train(1, progress=False)
    return {"unbroken": state(trainer), "resumed": state(again)}


def cases():
    """All cases: name to a function of the folder."""
    split = {"gathered": {"sharding": "fsdp"}, "in_step": {"sharding": "fsdp", "gather_for_rollouts": False}}
    found = {name: (lambda folder, n=name: updates(n)) for name in UPDATES}
    for kind, more in split.items():
        found |= {f"{name}_{kind}": (lambda folder, n=name, m=more: updates(n, **m)) for name in UPDATES}
        found[f"wrong_{kind}"] = lambda folder, m=more: wrong(folder, **m)
        found[f"resumed_{kind}"] = lambda folder, m=more: resumed(folder, Blocks, **m)
    return found | {"shown": shown, "wrong": wrong, "drawn": drawn, "resumed": resumed}


def main(folder: Path, names: list[str]) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with ppo.process_group() as processes:
        for name in names or list(cases()):
            torch.save(cases()[name](folder), folder / f"{name}-{processes.rank}.pt")


if __name__ == "__main__":
    from tests import processes_seams  # so that functions have the names that a test gives them

    processes_seams.main(Path(sys.argv[1]), sys.argv[2:])
