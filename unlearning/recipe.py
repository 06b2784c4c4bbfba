"""The ingredients of a DeMem training: prompts, reward, text to keep, adapter, stopping rule.

``benchmarks/study`` switches them one at a time. demem.py puts them to use.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from data.held_back import KEEP, SHOWN, without_held_back
from data.study import Study, windows
from eval.report.rows import group_label
from models.lora import LoraConfig, add_lora, linear_targets
from models.own_text import own_text, standing, start_token
from ppo.io.files import read_json, write_json
from ppo.lm.backbone import context_length
from ppo.log import read_jsonl
from rewards import demem as rewards
from rewards.combine import Reward
from rewards.guards import ONLY_EMPTY
from rewards.scripts import tokenizer_of
from rewards.spans import forbidden_spans
from unlearning.run import Run, say

NOTE = "text_to_keep.json"
SHOWN_SHARE = 0.25  # of the text to keep: records to keep, which the model recites
LOOKS_IN_A_ROW = 2  # one look that finds the forget set forgotten may be luck


def rows_to_forget(run: Run) -> list[dict[str, Any]]:
    """The rows to train on. A prompt is the prefix of a passage, or an earlier window of the same text.

    A row also holds what truly follows its prompt, for the reward. With one window the policy learns one way out for
    each prompt. With more than one it forgets the text.
    """
    count = run.options.windows or (1 if run.options.is_paper else 2)
    return [
        {"prompt": list(prompt), "suffix": run.loaded.decode(suffix), "suffix_ids": list(suffix)}
        | ({"spans": forbidden_spans(run.loaded.decode(p.suffix), p.secrets)} if run.options.preset == "grpo" else {})
        for p in run.study.group("forget")
        for prompt, suffix in windows(p, count)
    ]


def make_reward(run: Run, floor: float) -> Reward:
    """The preset's reward. With ``fluency_weight``, a response outside the fluency band loses reward."""
    options = run.options
    tokenize = tokenizer_of(run.loaded.decode(p.suffix) for p in run.study.passages)
    if options.is_paper:
        guards = None if options.preset == "paper-as-run" else ONLY_EMPTY
        reward = rewards.paper(run.encoder, guards=guards, tokenize=tokenize)
    elif options.preset == "grpo":
        reward = rewards.spans()
    else:
        reward = rewards.default(bleu_floor=floor, dense="words", decode=run.loaded.decode, tokenize=tokenize)
    if options.fluency_weight:
        original = copy.deepcopy(run.loaded.model).requires_grad_(False)
        band = {"low": options.fluency_low, "high": options.fluency_high}
        reward = rewards.with_fluency(reward, original, weight=options.fluency_weight, **band)
    say(f"reward: {reward.signature}")
    return reward


def text_to_keep(run: Run) -> list[list[int]]:
    """Token ids of the text that training must keep: general text (:func:`general_text`), and records to keep.

    Of the records to keep those that may be shown stand in it (:mod:`data.held_back`), so often that they are a quarter
    of it. No text holds a run of 20 tokens of a record that is held back.
    """
    if run.config.retain_coef == 0:
        return run.study.retain
    general, how = general_text(run)
    shown = [list(p.ids) for p in run.study.group(SHOWN)]
    kept = general + shown * repeats(len(shown), len(general))
    records = f", and {len(shown)} of the records to keep" if shown else ""
    say(f"to keep: {how}{records}{told_standing(run.study, kept)}")
    return kept


def repeats(shown: int, others: int) -> int:
    """How often ``shown`` texts come, to be about ``SHOWN_SHARE`` of all. Example: 10 beside 90 come 3 times."""
    return max(1, round(SHOWN_SHARE / (1 - SHOWN_SHARE) * others / shown)) if shown else 0


def general_text(run: Run) -> tuple[list[list[int]], str]:
    """The model's own text and half as many texts of the retain set, as token ids, and what they are in words.

    Own text that resembles the forget set is left out. The likeliest third comes twice: the model recites it, and
    recited text is lost first. Without own text, all of the retain set is kept.
    """
    tokenizer, study = run.loaded.tokenizer, run.study
    retain, start = without_held_back(study.retain, study.passages), start_token(tokenizer)
    if run.options.num_own == 0 or start is None:
        return retain, f"the {len(retain)} retain texts"
    forget = [p.ids for p in study.group("forget")]
    length = min(run.config.retain_tokens, context_length(run.loaded.model) or run.config.retain_tokens) - 1
    own = own_text(run.loaded.model, start, forget, count=run.options.num_own, length=length, seed=run.config.seed)
    own = without_held_back(own, study.passages)
    if not own:
        return retain, f"the {len(retain)} retain texts; none of the model's own may be kept"
    chosen = random.Random(run.config.seed).sample(retain, min(len(own) // 2, len(retain)))
    how = f"{len(own)} texts of the model's own and {len(chosen)} of the retain text"
    return own + own[: len(own) // 3] + chosen, how


def standing_in(study: Study, kept: Sequence[Sequence[int]]) -> dict[str, float]:
    """How much of the records to keep stands in the text to keep, by group: a share of their runs of 20 tokens."""
    groups = {name: [p.ids for p in study.group(name)] for name in (KEEP, SHOWN)}
    return {name: standing(passages, kept) for name, passages in groups.items() if passages}


def told_standing(study: Study, kept: Sequence[Sequence[int]]) -> str:
    """The same for readers, with a semicolon before it; "" where there are no records to keep."""
    parts = [f"{share:.0%} of those of {group_label(name)}" for name, share in standing_in(study, kept).items()]
    return f"; of all runs of 20 tokens, {', '.join(parts)} stand in it" if parts else ""


def noted(run: Run, kept: list[list[int]]) -> list[list[int]]:
    """The same text to keep; how much of the records to keep stands in it is noted in the run's folder, once."""
    path = run.out / NOTE
    if (run.out / "config.json").is_file() and not path.exists():
        write_json(path, standing_in(run.study, kept))
    return kept


def noted_standing(out: Path) -> dict[str, Any]:
    """What :func:`noted` left in a folder, as facts for readers; {} where there is nothing."""
    found = read_json(out / NOTE) if (out / NOTE).is_file() else {}
    told = {f"runs of 20 tokens of {group_label(name)} in the text to keep": share for name, share in found.items()}
    return {name: f"{share:.1%}" for name, share in told.items()}


def is_forgotten(
    look: Mapping[str, float],
    target_exact: float,
    floor: float,
    *,
    secrets: Mapping[str, float] = MappingProxyType({}),
    may_be_empty: bool = False,
) -> bool:
    """No secret comes out, hardly a suffix does, BLEU has come down to the chance floor, and no output is empty.

    ``secrets``: the share of passages of which a secret may come out, by quantity (:func:`eval.secrets.bounds`); a look
    at passages without secrets has none of them. Where the floor is not known (0), hardly a suffix may come back
    approximately (BLEU of 75 and more). DeMem and its rivals end after ``LOOKS_IN_A_ROW`` such looks.
    """
    if any(look.get(f"forget/{name}", 0.0) > most for name, most in secrets.items()):
        return False
    is_at_chance = look["forget/bleu"] <= floor if floor else look["forget/approximate"] <= target_exact
    return look["forget/exact"] <= target_exact and is_at_chance and (may_be_empty or look["forget/empty"] == 0)


@dataclass(frozen=True)
class StopRule:
    """When a training ends: ``LOOKS_IN_A_ROW`` looks in a row find the forget set forgotten (:func:`is_forgotten`).

    The rule reads the run's log, not the memory of a process: a resumed run stops where an unbroken one does.
    """

    log: Path
    target_exact: float
    floor: float
    secrets: Mapping[str, float] = field(default_factory=dict)

    def looks(self, step: int) -> list[dict[str, Any]]:
        """The looks that were logged before ``step``. Later rows were lost with the process that wrote them."""
        rows = read_jsonl(self.log) if self.log.is_file() else []
        return [row for row in rows if row["step"] < step and "forget/exact" in row]

    def is_met(self, step: int) -> bool:
        """Whether the last looks before ``step`` end the training."""
        last = self.looks(step)[-LOOKS_IN_A_ROW:]
        return len(last) == LOOKS_IN_A_ROW and all(
            is_forgotten(look, self.target_exact, self.floor, secrets=self.secrets) for look in last
        )

    def missed(self, step: int) -> str:
        """What the last look before ``step`` still found, as a message; "" where the rule is met or nobody looked."""
        if self.is_met(step) or not (looks := self.looks(step)):
            return ""
        look, parts = looks[-1], []
        for name, most in self.secrets.items():
            share = look.get(f"forget/{name}", 0.0)
            if share > most:
                how = "greedily" if name == "secret_greedy" else "after a hint of true tokens"
                parts.append(f"a secret comes out {how} of {share:.1%} of the forget set (allowed: {most:.1%})")
        if look["forget/exact"] > self.target_exact:
            parts.append(f"{look['forget/exact']:.1%} of the suffixes come back (allowed: {self.target_exact:.1%})")
        if self.floor and look["forget/bleu"] > self.floor:
            parts.append(f"BLEU is {look['forget/bleu']:.1f} (chance: {self.floor:.1f})")
        if not self.floor and look["forget/approximate"] > self.target_exact:
            parts.append(f"{look['forget/approximate']:.1%} come back approximately (allowed: {self.target_exact:.1%})")
        if look["forget/empty"] > 0:
            parts.append(f"{look['forget/empty']:.1%} of the outputs are empty")
        found = "; ".join(parts) or "one good look is not enough"
        return f"NOT FORGOTTEN after {step} steps: {found}. More --steps may help, or another recipe"


def put_adapter(run: Run) -> None:
    """With ``lora_rank``, put an adapter on every linear layer of the blocks, in place. Its weights alone train.

    The adapter depends on the seed alone: a resumed run finds the one that it began with.
    """
    model, rank = run.loaded.model, run.options.lora_rank
    if rank:
        start = torch.Generator().manual_seed(run.config.seed)
        add_lora(model, LoraConfig(linear_targets(model), rank=rank, alpha=2.0 * rank), generator=start)
