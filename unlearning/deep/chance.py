"""The chance level of every token of a memorised passage: how likely it would be in a stranger's passage of that form.

Nothing but the model and the passages themselves is needed. Three estimates are at hand:

    n-gram   what the *other* passages say (:mod:`unlearning.deep.ngram`): it knows their common template
    splice   the original's own log-prob of the token behind the last three or four true tokens, with a piece of another
             passage before them: it knows the language, and does not recognise the passage
    noise    what the original says with noise on its weights (:mod:`unlearning.deep.noise`), raised to a power that
             gives the NLL of a stranger's passage

A passage of a common form, of which the others know half of the contexts, has the first two: where the other passages
have the two tokens before it, they are asked; elsewhere the splice is. Any other passage, such as text of the web, has
the third. None may say more than a bound that the caller knows, as of a token at which a private word begins
(:func:`private_bounds`): three tokens of a passage can be enough for the original to recognise it.

With never-trained passages all levels are raised to one power, so that their mean NLL is that of a stranger's passage
under the original. A power leaves alone what is nearly certain, such as the words of a form. It moves what is unlikely
the most, and there a model that is confidently wrong about strangers differs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from data.secrets import private_masks
from data.types import Passage
from eval.teacher import teacher_force
from rewards.bounded import LEAST_CHANCE, MOST_CHANCE
from unlearning.deep.ngram import leave_one_out_logprobs
from unlearning.deep.noise import mean_nll, noisy_logprobs

HEAD_TOKENS = 16  # of another passage, before the true tokens
TAIL_TOKENS = (3, 4)  # true tokens before the one that is measured
NUM_HEADS = 2
CONTEXT_TOKENS = 2  # that other passages must have, for the n-gram to be asked
FORM_SHARE = 0.5  # of the contexts: the lab 0.77, ten records of one form 0.78, passages of the web 0.22
MOST_PRIVATE = 0.1  # the chance level of a token at which a private word begins
_MOST_POWER = 16.0

Ids = Sequence[int]


@dataclass(frozen=True)
class ChanceLevels:
    """``levels``: one probability for each token of each passage; the first token of a passage has no state before it.

    ``power``: what never-trained passages raised all of them to, 1 without such passages. ``nll``: their mean NLL,
    nats per token. ``shared``: the share of tokens whose context the other passages know. Both without those of
    ``more``.
    """

    levels: list[list[float]]
    power: float
    nll: float
    shared: float


def chance_levels(
    model: nn.Module,
    passages: Sequence[Ids],
    *,
    vocab_size: int,
    others: Sequence[Ids] = (),
    never: Sequence[Ids] = (),
    more: Sequence[Ids] = (),
    most: Sequence[np.ndarray] | None = None,
    most_in_form: Sequence[np.ndarray] | None = None,
    usual_nll: Callable[[], float | None] = lambda: None,
    seed: int = 0,
) -> ChanceLevels:
    """The chance levels of memorised passages, from the original ``model``.

    ``others``: texts whose pieces stand before a passage's tokens where there is only one passage. ``never``: passages
    of the same form that the model never saw. ``more``: other memorised passages, whose levels follow those of
    ``passages``; they do not set the power. ``most``: for every passage, an upper bound of each token's level; None:
    ``MOST_CHANCE`` for all. ``most_in_form`` takes its place in a passage of a common form, of which the others know
    ``FORM_SHARE`` of the contexts: what is private can be told from a form alone. ``usual_nll``: what is asked for the
    NLL of a stranger's passage where there is no ``never``; if it does not know, the mean of the splices is taken.
    ValueError for a single passage without ``others``.
    """
    count, passages = len(passages), [*passages, *more]
    heads = passages if len(passages) > 1 else [*passages, *others]
    if len(heads) < 2:
        raise ValueError(
            "the chance level of a single passage needs other texts, to stand before its tokens: give some"
        )
    grams = leave_one_out_logprobs(passages, vocab_size=vocab_size, least_context=CONTEXT_TOKENS)
    in_form = [np.mean(~np.isnan(g)) >= FORM_SHARE for g in grams]
    stranger = _nll(model, never) if never else None
    free = [i for i, is_so in enumerate(in_form) if not is_so]
    aim, joined = stranger if stranger is not None else usual_nll() if free else None, list(grams)
    if any(in_form) or aim is None:  # nobody else asks the splices, and they are the slowest part
        spliced = splice_logprobs(model, passages, heads, seed=seed)
        joined = [np.where(np.isnan(g), s, g) for s, g in zip(spliced, grams, strict=True)]
        aim = mean_nll(spliced) if aim is None else aim
    if free:
        for i, found in zip(free, calibrated(model, [passages[i] for i in free], nll=aim, seed=seed), strict=True):
            joined[i] = found
    tops = [np.full(len(x), MOST_CHANCE) for x in joined] if most is None else list(most)
    if most_in_form is not None:
        tops = [form if is_so else top for top, form, is_so in zip(tops, most_in_form, in_form, strict=True)]
    ceilings = [np.log(top) for top in tops]
    capped = [np.minimum(x, top) for x, top in zip(joined, ceilings, strict=True)]
    power = _power(capped[:count], ceilings[:count], stranger) if stranger is not None else 1.0
    bounded = [_bounded(power * x, top) for x, top in zip(capped, ceilings, strict=True)]
    shared = np.concatenate([~np.isnan(g)[1:] for g in grams[:count]])
    nll = -np.concatenate([x[1:] for x in bounded[:count]]).mean()
    return ChanceLevels([np.exp(x).tolist() for x in bounded], power, float(nll), float(shared.mean()))


def calibrated(model: nn.Module, passages: Sequence[Ids], *, nll: float, seed: int) -> list[np.ndarray]:
    """The noisy model's log-probs (:mod:`unlearning.deep.noise`), raised to a power that gives their mean ``nll``."""
    found = noisy_logprobs(model, passages, nll=nll, seed=seed)
    ceilings = [np.full(len(x), np.log(MOST_CHANCE)) for x in found]
    capped = [np.minimum(x, top) for x, top in zip(found, ceilings, strict=True)]
    power = _power(capped, ceilings, nll)
    return [power * x for x in capped]


def splice_logprobs(model: nn.Module, passages: Sequence[Ids], heads: Sequence[Ids], *, seed: int) -> list[np.ndarray]:
    """log p of every token behind a piece of another passage and the last few true tokens, one float64 array a passage.

    It is the mean over ``NUM_HEADS`` pieces. The first token of a passage stands behind the piece alone.
    """
    random = np.random.default_rng(seed)
    least, most = TAIL_TOKENS
    rows, starts, places = [], [], []
    for i, passage in enumerate(passages):
        for begin in range(0, max(1, len(passage) - least), most - least + 1):
            piece = list(passage[begin : begin + most + 1])
            first = 0 if begin == 0 else least  # the tokens before have their own piece
            for _ in range(NUM_HEADS):
                head = _head(heads, passage, i, random)
                rows.append([*head, *piece])
                starts.append(len(head) + first)
                places.append((i, begin + first))
    sums = [np.zeros(len(passage)) for passage in passages]
    counts = [np.zeros(len(passage)) for passage in passages]
    for (i, place), start, found in zip(
        places, starts, teacher_force(model, rows, starts=starts, has_moments=False), strict=True
    ):
        measured = found.logprobs[start:].astype(np.float64)
        sums[i][place : place + len(measured)] += measured
        counts[i][place : place + len(measured)] += 1
    return [total / count for total, count in zip(sums, counts, strict=True)]


def _head(heads: Sequence[Ids], passage: Ids, index: int, random: np.random.Generator) -> list[int]:
    """A piece of another text than passage ``index``, of at least one token."""
    chosen = int(random.integers(len(heads) - 1))
    text = heads[chosen + (chosen >= index)]
    begin = int(random.integers(max(1, len(text) - HEAD_TOKENS)))
    return list(text[begin : begin + HEAD_TOKENS])


def _nll(model: nn.Module, passages: Sequence[Ids]) -> float:
    """Mean NLL of all tokens but the first, nats per token."""
    found = teacher_force(model, [list(p) for p in passages], has_moments=False)
    return mean_nll([x.logprobs.astype(np.float64) for x in found])


def private_bounds(passages: Sequence[Passage], decode: Callable[..., str], *, has_estimates: bool) -> list[np.ndarray]:
    """Of every token of each passage, the most that its chance level may be, float64 [passage length].

    ``MOST_PRIVATE`` for a token of the suffix at which a private word begins, or that holds a digit of one: a name or
    number of a stranger is one of many. The rest of a word follows from its beginning, so the other tokens have the
    bound ``MOST_CHANCE``. Private words are the passages' secrets and, with ``has_estimates``, what
    :mod:`data.private_words` estimates.
    """
    bounds = []
    for passage, mask in zip(passages, private_masks(passages, decode, has_estimates=has_estimates), strict=True):
        pieces = [decode([token]) for token in passage.suffix]
        before = decode(list(passage.prefix[-1:]))[-1:]
        top = np.full(len(passage.ids), MOST_CHANCE)
        for place, (piece, is_private) in enumerate(zip(pieces, mask, strict=True), len(passage.ids) - len(pieces)):
            begins = not (before[-1:].isalnum() and piece[:1].isalnum())
            if is_private and (begins or any(c.isdigit() for c in piece)):
                top[place] = MOST_PRIVATE
            before = piece or before
        bounds.append(top)
    return bounds


def _bounded(logprobs: np.ndarray, most: np.ndarray) -> np.ndarray:
    return np.clip(logprobs, np.log(LEAST_CHANCE), most)


def _power(capped: Sequence[np.ndarray], ceilings: Sequence[np.ndarray], nll: float) -> float:
    """What multiplies all log-probs, so that their mean NLL within the bounds is ``nll``. Found by bisection."""
    flat, most = (np.concatenate([x[1:] for x in rows]) for rows in (capped, ceilings))
    low, high = 1 / _MOST_POWER, _MOST_POWER
    for _ in range(50):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if -_bounded(middle * flat, most).mean() > nll else (middle, high)
    return (low * high) ** 0.5
