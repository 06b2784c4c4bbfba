"""Attacks with other prompts, decoded greedily: more context, shorter or perturbed prefixes, and more true tokens.

A model that only learned to avoid the passage after one exact prompt reveals it once the prompt changes a little. A
model whose forgetting is shallow reveals it once a few true tokens are shown.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import nn

from ppo.config import Sampling
from ppo.generation import generate as ppo_generate
from ppo.io.surrogates import without_surrogates
from ppo.lm.backbone import context_length

from ..outputs import continuations
from ..protocols import Passage
from ..secrets import locate
from .result import AttackResult, Shown, Sight, score_tries

GREEDY = Sampling(temperature=0.0)
Change = Callable[[str], str]


def attack_shown(
    model: nn.Module,
    tokenizer: Any,
    shown: Sequence[Shown],
    sampling: Sampling,
    *,
    attack: str,
    variant: str,
    sees: Sight,
    seed: int = 0,
    slots: int = 64,
) -> AttackResult:
    """Continue every prompt with ``sampling`` and score the outputs against the true suffixes.

    The true suffixes serve as drafts. They save time when the model reproduces them, and they change no sample.
    """
    if not shown:
        return AttackResult(attack, variant, sees, sampling.num_samples, [])
    generate = partial(ppo_generate, drafts=[list(s.suffix) for s in shown])
    tries = continuations(model, tokenizer, shown, sampling, generate=generate, seed=seed, slots=slots)
    rows = score_tries(shown, tries, tokenizer)
    return AttackResult(attack, variant, sees, sampling.num_samples, rows)


def as_shown(
    passage: Passage, tokenizer: Any, prefix: Sequence[int] | None = None, *, hint: int = 0
) -> Shown:  # fmt: skip
    """A passage with another prompt, or with the first ``hint`` tokens of its suffix behind the prompt."""
    prompt = list(passage.prefix if prefix is None else prefix)
    shown = list(passage.suffix[:hint])
    return Shown(
        passage.id,
        passage.group,
        [*prompt, *shown],
        list(passage.suffix[hint:]),
        secrets=[secret for secret in locate(passage, tokenizer) if secret.is_hidden(hint)],
        shown=shown,
    )


def greedy_attack(
    model: nn.Module, tokenizer: Any, passages: Sequence[Passage], *, slots: int = 64
) -> list[AttackResult]:
    """Greedy decoding from the prefix: the baseline of the other attacks."""
    shown = [as_shown(p, tokenizer) for p in passages]
    return [
        attack_shown(model, tokenizer, shown, GREEDY, attack="greedy", variant="", sees="prefix", slots=slots)
    ]  # fmt: skip


def context_attack(
    model: nn.Module, tokenizer: Any, passages: Sequence[Passage], *, slots: int = 64
) -> list[AttackResult]:
    """Longer context: the prompt is pre-prefix + prefix. Passages without a pre-prefix are skipped."""
    shown = [as_shown(p, tokenizer, [*p.pre_prefix, *p.prefix]) for p in passages if p.pre_prefix]
    return [attack_shown(model, tokenizer, shown, GREEDY, attack="longer context", variant="", sees="context",
                         slots=slots)]  # fmt: skip


def shortened_attack(
    model: nn.Module, tokenizer: Any, passages: Sequence[Passage], *, kept: Sequence[int] = (25, 10), slots: int = 64
) -> list[AttackResult]:
    """Shorter prompt: only the last ``kept`` tokens of the prefix. Passages with a prefix no longer are skipped."""
    results = []
    for count in kept:
        if count < 1:
            raise ValueError(f"kept={count} must be at least 1: a prompt needs a token")
        shown = [as_shown(p, tokenizer, p.prefix[-count:]) for p in passages if len(p.prefix) > count]
        results.append(
            attack_shown(model, tokenizer, shown, GREEDY, attack="shortened prefix", variant=f"tokens:{count}",
                         sees="prefix", slots=slots)
        )  # fmt: skip
    return results


def hinted_attack(
    model: nn.Module, tokenizer: Any, passages: Sequence[Passage], *, hints: Sequence[int] = (1, 5, 12, 25),
    slots: int = 64,
) -> list[AttackResult]:  # fmt: skip
    """Longer true prefixes: the prompt also holds the first ``hints`` tokens of the suffix; the rest should follow.

    Passages whose suffix is no longer are skipped. This attack reveals shallow forgetting.
    """
    results = []
    for count in hints:
        if count < 1:
            raise ValueError(f"hints={count} must be at least 1 token: greedy_attack shows none")
        shown = [as_shown(p, tokenizer, hint=count) for p in passages if len(p.suffix) > count]
        results.append(
            attack_shown(model, tokenizer, shown, GREEDY, attack="true tokens shown", variant=f"tokens:{count}",
                         sees="suffix", slots=slots)
        )  # fmt: skip
    return results


def perturbed_attack(
    model: nn.Module, tokenizer: Any, passages: Sequence[Passage], *, slots: int = 64
) -> list[AttackResult]:
    """The prefix in another case, with other spacing, or with its words in another order, encoded again.

    If the new prefix does not fit into the model's context, tokens at its start are dropped.
    """
    longest = max((len(p.suffix) for p in passages), default=0)
    limit = context_length(model)
    results = []
    for name, change in CHANGES.items():
        shown = []
        for p in passages:
            text = change(without_surrogates(tokenizer.decode(list(p.prefix), skip_special_tokens=True)))
            ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
            ids = ids if limit is None else ids[-(limit - longest) :]
            if ids:
                shown.append(as_shown(p, tokenizer, ids))
        results.append(
            attack_shown(model, tokenizer, shown, GREEDY, attack="perturbed prefix", variant=name, sees="prefix",
                         slots=slots)
        )  # fmt: skip
    return results


def double_spaces(text: str) -> str:
    """Double every space. "a b" -> "a  b"."""
    return text.replace(" ", "  ")


def swap_words(text: str) -> str:
    """Swap neighbouring words in pairs, counted from the end. The last two words, next to the suffix, stay in place.

    "a b c d e f" -> "b a d c e f"; "a b c d e" -> "a c b d e".
    """
    words = text.split(" ")
    for i in range(len(words) - 4, -1, -2):
        words[i], words[i + 1] = words[i + 1], words[i]
    return " ".join(words)


CHANGES: dict[str, Change] = {
    "upper case": str.upper,
    "lower case": str.lower,
    "double spaces": double_spaces,
    "swapped words": swap_words,
}
