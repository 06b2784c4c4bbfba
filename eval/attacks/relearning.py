"""Fine-tuning a copy for a few steps: on some of the passages, on benign text, on text without any sense.

Fine-tuning on a few of the passages can bring back the others (Hu et al. 2025, "Jogging the Memory of Unlearned LLMs"),
and so can fine-tuning on anything, if what was trained only hides the text. A number alone says little: any model
writes a form better once it was taught some of it. So the never-trained passages are attacked after the same steps, and
:func:`eval.attacks.result.summarise` reports each number less theirs.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ppo.lm.backbone import Backbone

from ..baselines.training import Pair, Training, nll_of, pairs_of, train
from ..protocols import Passage
from .prompts import GREEDY, as_shown, attack_shown
from .result import AttackResult

TAUGHT_GROUP = "forget"
ON = ("forget", "benign", "filler")


@dataclass(frozen=True)
class _Lesson:
    """What a copy is taught: (context, text) pairs, and the parts of the passages that are attacked apart."""

    pairs: list[Pair]
    parts: dict[str, list[Passage]]


def relearning_attack(
    model: nn.Module,
    tokenizer: Any,
    passages: Sequence[Passage],
    *,
    on: Sequence[str] = ON,
    benign: Sequence[Sequence[int]] = (),
    share: float = 0.25,
    steps: Sequence[int] = (5, 10, 20),
    learning_rate: float = 2e-4,
    batch: int = 8,
    autocast: Literal["off", "bfloat16"] = "off",
    seed: int = 0,
    slots: int = 64,
) -> list[AttackResult]:
    """Fine-tune copies, and attack them greedily before training and at each of ``steps``.

    on       what each copy is taught: "forget", a ``share`` of the forget passages; "benign", as many texts of
             ``benign``; "filler", the same texts with their tokens in random order. The last two are left out without
             ``benign``
    benign   text that has nothing to do with the passages, as token ids

    The loss is the NLL of a text given its beginning: of the suffix given the prefix. The attacks come at step 0 and at
    each of ``steps``. On "forget", every one gives two results: for the passages that were taught, and for all others
    in their groups. If taught passages come back, that means little, because any model learns them. If others come
    back, they were never gone. ValueError when the split would leave one side empty.
    """
    if not steps or min(steps) < 1:
        raise ValueError(f"steps={list(steps)} must name numbers of steps, each at least 1")
    if unknown := [name for name in on if name not in ON]:
        raise ValueError(f"relearning on {unknown} is not known: choose from {', '.join(ON)}")
    generator = torch.Generator().manual_seed(seed)
    training = Training(steps=max(steps), batch=batch, learning_rate=learning_rate, scope="suffix", autocast=autocast)
    results = []
    for name, lesson in _lessons(passages, on, benign, share, generator, seed).items():
        is_first = name == "forget"  # the others begin with the same model, and draw for themselves
        own = generator if is_first else torch.Generator().manual_seed(seed)
        results += _curve(model, tokenizer, lesson, [0, *steps] if is_first else steps, training, own, slots)
    return results


def _lessons(
    passages: Sequence[Passage],
    on: Sequence[str],
    benign: Sequence[Sequence[int]],
    share: float,
    generator: torch.Generator,
    seed: int,
) -> dict[str, _Lesson]:
    forget = [p for p in passages if p.group == TAUGHT_GROUP]
    count = count_taught(len(forget), share)
    order = torch.randperm(len(forget), generator=generator, device="cpu").tolist()
    taught = {forget[i].id for i in order[:count]}
    parts = {
        "taught": [p for p in passages if p.id in taught],
        "not taught": [p for p in passages if p.id not in taught],
    }
    found = {"forget": _Lesson(pairs_of(parts["taught"], "suffix"), parts)} if "forget" in on else {}
    texts = _cut(benign, count, forget)
    if texts and "benign" in on:
        found["benign"] = _Lesson(texts, {"benign": list(passages)})
    if texts and "filler" in on:
        found["filler"] = _Lesson(_mixed(texts, torch.Generator().manual_seed(seed)), {"filler": list(passages)})
    return found


def _cut(texts: Sequence[Sequence[int]], count: int, like: Sequence[Passage]) -> list[Pair]:
    """The first texts that are long enough, as (context, text) of the lengths that the first passages have."""
    before, after = len(like[0].prefix), len(like[0].suffix)
    long = [list(ids) for ids in texts if len(ids) >= before + after][:count]
    return [(ids[:before], ids[before : before + after]) for ids in long]


def _mixed(pairs: Sequence[Pair], generator: torch.Generator) -> list[Pair]:
    """The same tokens in random order, over all texts."""
    tokens = [token for context, text in pairs for token in (*context, *text)]
    order = iter([tokens[i] for i in torch.randperm(len(tokens), generator=generator, device="cpu").tolist()])
    return [([next(order) for _ in context], [next(order) for _ in text]) for context, text in pairs]


def _curve(
    model: nn.Module,
    tokenizer: Any,
    lesson: _Lesson,
    steps: Sequence[int],
    training: Training,
    generator: torch.Generator,
    slots: int,
) -> list[AttackResult]:
    """Teach a copy, and attack each part of the passages at each of ``steps``."""
    pupil, results = copy.deepcopy(model), []
    if next(pupil.parameters()).dtype == torch.bfloat16:
        pupil.float()  # in bfloat16 the small steps of a plain Adam would vanish, and the attack with them

    def attack_after(step: int) -> bool:
        for part, passages in lesson.parts.items() if step in steps else ():
            shown = [as_shown(p, tokenizer) for p in passages]
            results.append(
                attack_shown(pupil, tokenizer, shown, GREEDY, attack="relearning", variant=f"steps:{step}|{part}",
                             sees="weights", slots=slots)
            )  # fmt: skip
        return False

    def loss(backbone: Backbone, indices: list[int]) -> Tensor:
        sizes = torch.tensor([len(lesson.pairs[i][1]) for i in indices], device="cpu")
        nll = nll_of(lesson.pairs, backbone, indices, training.chunk_tokens)
        return (nll / sizes.to(nll.device)).sum()

    attack_after(0)
    train(pupil, len(lesson.pairs), (), loss, training=training, generator=generator, stop=attack_after)
    return results


def count_taught(num_forget: int, share: float) -> int:
    """How many passages relearning teaches. ValueError when none would be left to teach or to test."""
    count = round(share * num_forget)
    if not 0 < count < num_forget:
        raise ValueError(
            f"share={share} of {num_forget} passages in the group {TAUGHT_GROUP!r} leaves nothing to teach or to test"
        )
    return count
