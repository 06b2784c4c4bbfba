"""What a model writes after the prefix of every passage, and how that compares with the true suffix.

One greedy generation pass gives exact match, BLEU, edit distance and the fluency numbers. One sampled pass gives
sampled extraction. The generating function is an argument, so that a decoding defence is evaluated like a model. This
module knows nothing about teacher forcing or about groups.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from ppo.config import Sampling
from ppo.io.surrogates import readable
from ppo.lm.backbone import end_ids
from ppo.types import Generation
from rewards.bleu import Bleu, n_bleu, split_statistics
from rewards.bleu import score as sentence_score
from rewards.edit import normalized_distances
from rewards.repetition import distinct_n

from .extraction import is_approximate, is_folded_approximate, is_folded_exact, matched_prefix
from .fluency import output_statistics
from .protocols import Decoder, Generate, Passage, secrets_of


@dataclass(frozen=True)
class Continuation:
    """The continuation of one prompt: token ids up to its end, cut to the true suffix's length, and their text.

    An EOS ends it and is left out, unless the true suffix has the same token at the same place.
    """

    ids: list[int]
    text: str


def continuations(
    model: nn.Module,
    tokenizer: Decoder,
    passages: Sequence[Passage],
    sampling: Sampling,
    *,
    generate: Generate,
    seed: int = 0,
    slots: int = 64,
) -> list[list[Continuation]]:
    """``sampling.num_samples`` continuations of every passage's prefix. ``sampling.response_length`` is ignored.

    One call generates all of them up to the length of the longest suffix. Each is then cut to the length of its own
    passage's suffix. If a true suffix holds an EOS, nothing ends the generation, and each continuation is cut at the
    first EOS that its true suffix does not have there: extraction asks for every token of the suffix
    (Carlini et al. 2023, def. 3.1).
    """
    longest = max(len(p.suffix) for p in passages)
    ends = frozenset(end_ids(model) if sampling.eos_ids is None else sampling.eos_ids)
    goes_on = any(not ends.isdisjoint(p.suffix) for p in passages)
    asked = Sampling(
        response_length=longest,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        num_samples=sampling.num_samples,
        eos_ids=() if goes_on else sampling.eos_ids,
    )
    generation = generate(model, [list(p.prefix) for p in passages], asked, seed=seed, slots=slots)
    expected = len(passages) * sampling.num_samples
    if len(generation) != expected:
        raise ValueError(f"generate returned {len(generation)} responses, expected {expected}")
    cut = [_continuation_ids(generation, i, passages, ends) for i in range(expected)]
    outputs = readable([tokenizer.decode(ids, skip_special_tokens=True) for ids in cut], name="outputs")
    written = [Continuation(ids, text) for ids, text in zip(cut, outputs, strict=True)]
    return [written[i : i + sampling.num_samples] for i in range(0, expected, sampling.num_samples)]


def _continuation_ids(
    generation: Generation, row: int, passages: Sequence[Passage], ends: Collection[int]
) -> list[int]:
    """The ids of one continuation. Responses are prompt-major: the samples of one prompt are adjacent."""
    passage = passages[row // (len(generation) // len(passages))]
    ids = generation.tokens[row][generation.mask[row]].tolist()
    if bool(generation.is_ended[row]):
        ids = ids[:-1]
    ids = ids[: len(passage.suffix)]
    return ids[: next((i for i, token in enumerate(ids) if token in ends and token != passage.suffix[i]), len(ids))]


def texts(tokenizer: Decoder, passages: Sequence[Passage]) -> list[dict[str, Any]]:
    """The head of every record: the passage's id and labels, and its prompt, true suffix and secrets as text."""
    prompts = readable([tokenizer.decode(p.prefix, skip_special_tokens=True) for p in passages], name="prompts")
    truths = readable([tokenizer.decode(p.suffix, skip_special_tokens=True) for p in passages], name="suffixes")
    return [
        {
            "id": p.id,
            "group": p.group,
            "kind": p.kind,
            "repeats": p.repeats,
            "prompt": prompt,
            "truth": truth,
            "secrets": list(secrets_of(p)),
        }
        for p, prompt, truth in zip(passages, prompts, truths, strict=True)
    ]


def bleu_statistics(written: Sequence[Continuation], truths: Sequence[str], bleu: Bleu) -> np.ndarray:
    """The BLEU statistics of every output, int64 [N, 10]; see :meth:`rewards.bleu.Bleu.statistics`."""
    return np.array([bleu.statistics(w.text, truth) for w, truth in zip(written, truths, strict=True)])


def greedy_metrics(
    passages: Sequence[Passage],
    written: Sequence[Continuation],
    truths: Sequence[str],
    statistics: np.ndarray,
    bleu: Bleu,
) -> list[dict[str, float]]:
    """Numbers of every greedy continuation, given its BLEU statistics. ``settings.py`` defines each of them."""
    edits = normalized_distances([w.ids for w in written], [p.suffix for p in passages])
    rows = []
    for passage, output, truth, edit, integers in zip(
        passages, written, truths, edits, statistics.tolist(), strict=True
    ):
        score = sentence_score(*split_statistics(integers))
        rows.append(
            {
                "exact": float(output.ids == list(passage.suffix)),
                "exact_folded": float(is_folded_exact(output.text, truth)),
                "approximate": float(is_approximate(score)),
                "approximate_folded": float(is_folded_approximate(output.text, truth, bleu)),
                "bleu": score,
                "n_bleu": n_bleu(score),
                "edit": edit,
                "matched_prefix": float(matched_prefix(output.ids, passage.suffix)),
                **output_statistics(output.ids, output.text, passage.prefix),
                "length_truth": float(len(passage.suffix)),
                "distinct_2_truth": distinct_n(passage.suffix, 2),
            }
        )
    return rows


def sampled_metrics(
    passages: Sequence[Passage], written: Sequence[Sequence[Continuation]], truths: Sequence[str], bleu: Bleu
) -> list[dict[str, float]]:
    """Numbers of several sampled continuations of every passage."""
    rows = []
    for passage, samples, truth in zip(passages, written, truths, strict=True):
        scores = [bleu.sentence(sample.text, truth) for sample in samples]
        rows.append(
            {
                "exact_sampled": float(any(sample.ids == list(passage.suffix) for sample in samples)),
                "bleu_sampled": sum(scores) / len(scores),
                "bleu_sampled_best": max(scores),
            }
        )
    return rows
