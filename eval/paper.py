"""The numbers of the DeMem paper as its evaluation script really computed them, under names of their own.

The paper (Kassem, Mahmoud and Saad 2023) and its code differ, and the published numbers come from the code. No quantity
here is a good measure. Each has a sound counterpart in :mod:`eval.evaluate`, so that both can be compared.

    flaw of the published code                             where it is
    -----------------------------------------------------  ------------------------------------------------------
    an "epoch" is one batch, 1 to 4 of them in all         training: preset paper-as-run, ``--steps``
    the KL penalty is 0: rewards are computed once per     training: the same; in the first batch policy and
      batch, when policy and reference hardly differ         reference are one model
    the response is the last 55 tokens of prompt and       training: :mod:`unlearning.notebook`
      output together: prompt tokens after an early EOS
    empty, repeated and garbled text scores best           training: no guards in the reward of paper-as-run
    the text that is scored holds special tokens           training: unlearning.notebook; evaluation: all of ``paper/…``
    rows that generate at most one token are dropped       ``paper/dropped``; all other ``paper/…``
    outputs of OPT are cut 4 characters too early          ``paper/n_bleu_early_4``
    MA is over the first g tokens of prefix and suffix,    ``paper/ma``
      g = number of generated tokens: mostly the prefix
    generated perplexity counts the prefix, under the      ``paper/gen_ppl``; ``eval`` has ``output_nll``
      original model, and is a mean of perplexities
    BLEU of one text without effective order               ``paper/n_bleu``
    a leaked split, one seed, one prompt at a time         not reproduced: they are no part of the method
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from torch import nn

from ppo.config import Sampling
from ppo.generation import generate as ppo_generate
from rewards.bleu import Bleu

from .protocols import Decoder, Generate, Passage
from .teacher import TokenStatistics, teacher_force

EXTRA_TOKENS = 3  # the script generates up to 103 tokens after 50 of prefix, for a suffix of 50
EARLY_CHARACTERS = 4  # the length of OPT's "</s>", which the decoded text has and the prefix that is cut off has not

DEFINITIONS = {
    "paper/n_bleu": "100 - BLEU of the output. Prefix and output are decoded together, special tokens included, and as "
    "many characters as the prefix has are cut off. No effective order; rows with at most one generated token dropped.",
    "paper/n_bleu_early_4": "paper/n_bleu with the output cut off four characters earlier, as happens to OPT.",
    "paper/ma": "Share of correct argmaxes over tokens 2 … g of prefix and suffix, where g tokens were generated.",
    "paper/gen_ppl": "Mean over rows of the perplexity of prefix and output together under the original model.",
    "paper/true_ppl": "Mean over rows of the perplexity of prefix and true suffix together under the original model.",
    "paper/dropped": "Share of rows that generated at most one token. The other paper/… means exclude them.",
}


def as_published(
    model: nn.Module,
    original: nn.Module,
    tokenizer: Decoder,
    passages: Sequence[Passage],
    *,
    generate: Generate = ppo_generate,
    slots: int = 64,
) -> dict[str, float]:
    """The quantities of ``DEFINITIONS`` over ``passages``. If every row is dropped, all but ``paper/dropped`` are 0.

    Perplexities are of the token ids, whereas the script encodes the text again. ValueError for an empty list.
    """
    if not passages:
        raise ValueError("there are no passages to evaluate: give at least one")
    outputs = _outputs(model, passages, generate=generate, slots=slots)
    kept = [i for i, output in enumerate(outputs) if len(output) > 1]
    rows = [passages[i] for i in kept]
    written = [[*p.prefix, *outputs[i]] for i, p in zip(kept, rows, strict=True)]
    true = [[*p.prefix, *p.suffix] for p in rows]
    shares = [
        float(np.mean(s.is_right[1 : len(outputs[i])])) for i, s in zip(kept, teacher_force(model, true), strict=True)
    ]
    values = {
        "paper/n_bleu": _n_bleu(tokenizer, rows, written, early=0),
        "paper/n_bleu_early_4": _n_bleu(tokenizer, rows, written, early=EARLY_CHARACTERS),
        "paper/ma": shares,
        "paper/gen_ppl": [_perplexity(s) for s in teacher_force(original, written)],
        "paper/true_ppl": [_perplexity(s) for s in teacher_force(original, true)],
    }
    means = {name: float(np.mean(numbers)) if numbers else 0.0 for name, numbers in values.items()}
    return means | {"paper/dropped": 1 - len(kept) / len(passages)}


def _outputs(model: nn.Module, passages: Sequence[Passage], *, generate: Generate, slots: int) -> list[list[int]]:
    """Greedy continuations of the prefixes, each up to three tokens longer than its suffix, EOS included."""
    longest = max(len(p.suffix) for p in passages) + EXTRA_TOKENS
    sampling = Sampling(response_length=longest, temperature=0.0)
    found = generate(model, [list(p.prefix) for p in passages], sampling, slots=slots)
    return [
        ids[mask].tolist()[: len(p.suffix) + EXTRA_TOKENS]
        for p, ids, mask in zip(passages, found.tokens, found.mask, strict=True)
    ]


def _n_bleu(
    tokenizer: Decoder, passages: Sequence[Passage], written: Sequence[Sequence[int]], *, early: int
) -> list[float]:
    bleu = Bleu()
    scores = []
    for passage, ids in zip(passages, written, strict=True):
        start = max(0, len(tokenizer.decode(passage.prefix)) - early)
        scores.append(100 - bleu.corpus([tokenizer.decode(ids)[start:]], [tokenizer.decode(passage.suffix)]))
    return scores


def _perplexity(statistics: TokenStatistics) -> float:
    return math.exp(min(statistics.nll / (len(statistics) - 1), 700.0))
