"""The chance floor: the BLEU that a model reaches on passages it never saw, and whether secrets would fit below it.

Below the floor lies damage, not privacy, so the reward ends there, and training stops there. But records of one form
share so many words that a stranger's record reaches a BLEU of 38, and below it there is room for every number and name.
Such a floor is not used. It is found from the truths alone: a text that has the private words of a passage right, and
nothing else (:mod:`data.private_words`), has a BLEU; where that lies below the floor, all of them could come out there.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from data.private_words import Word, mark_private
from data.secrets import texts_of
from data.study import Study
from rewards.bleu import Bleu
from unlearning.run import Run

_FILLER = "\N{WHITE SQUARE}"


def chance_floor(run: Run, before: Mapping[str, float]) -> float:
    """BLEU that a model reaches on passages it never saw: given, or measured on the never-trained ones.

    ``before``: the summary of the original model. 0: the floor is not known, or, with a RuntimeWarning, not used. A
    floor that was given is used, with the same warning.
    """
    given = run.options.bleu_floor
    floor = before.get("never/bleu", 0.0) if given is None else given
    room = private_bleu(run.study, run.loaded.tokenizer.decode) if floor else floor
    if floor <= room:
        return floor
    used = "not used: training goes on until no secret comes out" if given is None else "used all the same"
    warnings.warn(
        f"a BLEU of {floor:.1f}, the chance floor, leaves room for secrets: a text with the private words of a passage "
        f"and nothing else reaches {room:.1f}. It is {used}; --bleu-floor sets another",
        RuntimeWarning,
        stacklevel=1,  # here, whoever asks: it is told once
    )
    return 0.0 if given is None else floor


def told_floor(run: Run, before: Mapping[str, float]) -> str:
    """What became of the chance floor, for readers."""
    measured = before.get("never/bleu", 0.0) if run.options.bleu_floor is None else run.options.bleu_floor
    if not measured:
        return "not known"
    if run.options.is_deep:
        return f"BLEU {measured:.1f}, which no reward knows: training goes towards chance levels of single tokens"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it was told before the training
        floor = chance_floor(run, before)
    return f"BLEU {measured:.1f}" + ("" if floor else ", not used: secrets fit below it")


def private_bleu(study: Study, decode: Callable[..., str]) -> float:
    """BLEU, mean over the forget set, of a text that has a suffix's private words right and nothing else."""
    texts = texts_of(study.passages, decode)
    words = mark_private(texts)
    forget = [(suffix, own) for p, (_, suffix), own in zip(study.passages, texts, words, strict=True)
              if p.group == "forget"]  # fmt: skip
    bleu = Bleu.of([suffix for suffix, _ in forget])
    return float(np.mean([bleu.sentence(without_shared(*one), one[0]) for one in forget])) if forget else 0.0


def without_shared(suffix: str, words: Sequence[Word]) -> str:
    """The suffix with a filler in the place of all that is not private, in as many words.

    Example: " signed by Ann, 5512" with "Ann" and "5512" private -> " □□□□□□ □□ Ann □  5512".
    """
    text, done = "", 0
    for word in words:
        text += suffix[done : word.start]
        filler = f" {_FILLER} " if word.is_sign else _FILLER * len(word.text)
        text, done = text + (word.text if word.is_private else filler), word.end
    return text + suffix[done:]
