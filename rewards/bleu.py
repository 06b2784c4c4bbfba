"""SacreBLEU for sentences, for corpora, and as a dense reward.

Sentence BLEU uses effective order: it skips an order that has no n-grams, so identical short texts score 100. Corpus
BLEU does not, as usual. Tokens are sacrebleu's 13a words, or those of its tokeniser for the script. The statistics are
integers. One pure function of sacrebleu turns them into a score.

A reward for low BLEU is easily gamed: empty text and "the the the …" score 0, and a random text scores little more.
Never use N-BLEU without guards and fluency measures. This module knows nothing about guards.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import sacrebleu
from sacrebleu.metrics import BLEU

from ppo.io.token_ends import token_ends as ends_in_text
from ppo.types import Sample

from .samples import content_ids, truth_ids, truth_text
from .scripts import tokenizer_of

ORDER = 4
Accrual = Literal["brevity", "linear"]
Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True)
class Counts:
    """All n-grams (n = 1 … 4) of one token sequence, and its length."""

    ngrams: Counter[tuple[Hashable, ...]]
    length: int


def count_ngrams(tokens: Sequence[Hashable]) -> Counts:
    """Count the n-grams of a reference or a candidate."""
    grams = (tuple(tokens[i : i + n]) for n in range(1, ORDER + 1) for i in range(len(tokens) - n + 1))
    return Counts(Counter(grams), len(tokens))


def score(correct: Sequence[int], total: Sequence[int], length: int, reference_length: int) -> float:
    """Sentence BLEU 0 … 100 from n-gram statistics: sacrebleu's exponential smoothing, effective order."""
    return BLEU.compute_bleu(
        list(correct), list(total), length, reference_length, smooth_method="exp", effective_order=True
    ).score


def split_statistics(statistics: Sequence[int]) -> tuple[Sequence[int], Sequence[int], int, int]:
    """Split a row of :meth:`Bleu.statistics` into (correct, total, length, reference length)."""
    return statistics[:ORDER], statistics[ORDER : 2 * ORDER], statistics[-2], statistics[-1]


def corpus_score(statistics: Sequence[int]) -> float:
    """Corpus BLEU 0 … 100 of summed statistics: exponential smoothing, no effective order."""
    correct, total, length, reference_length = split_statistics([int(value) for value in statistics])
    return BLEU.compute_bleu(list(correct), list(total), length, reference_length, smooth_method="exp").score


def prefix_scores(
    tokens: Sequence[Hashable], reference: Counts, *, accrual: Accrual = "brevity", floor: float = 0.0
) -> list[float]:
    """BLEU of every prefix of N ``tokens``: N+1 scores. The first is for no tokens, the last is the sentence's BLEU.

    Each token updates the statistics, so the cost is linear in N. "brevity" is plain BLEU: the brevity penalty keeps
    the score near 0 until the prefix nears the reference's length. "linear" replaces the prefix's penalty by the share
    of tokens, so prefix i scores precision(i) * penalty(N) * i/N. Its last entry is the same. Scores below ``floor``
    are raised to ``floor``.
    """
    correct, total = [0] * ORDER, [0] * ORDER
    seen: Counter[tuple[Hashable, ...]] = Counter()
    scores = [floor]
    penalty = _brevity_penalty(len(tokens), reference.length)
    for i in range(1, len(tokens) + 1):
        for n in range(1, min(ORDER, i) + 1):
            gram = tuple(tokens[i - n : i])
            total[n - 1] += 1
            correct[n - 1] += seen[gram] < reference.ngrams[gram]  # clipped: no more matches than the reference has
            seen[gram] += 1
        if accrual == "linear":
            value = score(correct, total, reference.length, reference.length) * penalty * i / len(tokens)
        else:
            value = score(correct, total, i, reference.length)
        scores.append(max(value, floor))
    return scores


def _brevity_penalty(length: int, reference_length: int) -> float:
    return BLEU.compute_bleu([0], [0], length, reference_length, max_ngram_order=1).bp


class Bleu:
    """Sentence and corpus BLEU over text. It keeps the n-grams of every reference that it has seen.

    ``tokenize``: the name of sacrebleu's tokeniser, which the signature tells; :func:`rewards.scripts.tokenizer_of`
    chooses it by the script of the references. Raises ValueError for one that sacrebleu has not, or whose packages are
    missing.
    """

    def __init__(self, *, is_lowercased: bool = False, tokenize: str = "13a") -> None:
        if tokenize not in BLEU.TOKENIZERS:
            raise ValueError(f"tokenize={tokenize!r} must be one of sacrebleu's: {', '.join(BLEU.TOKENIZERS)}")
        try:
            self._sentence = BLEU(effective_order=True, lowercase=is_lowercased, tokenize=tokenize)
            self._corpus = BLEU(lowercase=is_lowercased, tokenize=tokenize)
        except RuntimeError as error:  # its message has several lines
            raise ValueError(f"tokenize={tokenize!r}: {' '.join(str(error).split())}; or use 'char'") from error
        self._references: dict[str, Counts] = {}
        case = "lc" if is_lowercased else "mixed"
        self.signature = f"BLEU|nrefs:1|case:{case}|eff:yes|tok:{tokenize}|smooth:exp|version:{sacrebleu.__version__}"
        self.corpus_signature = self.signature.replace("eff:yes", "eff:no")

    @classmethod
    def of(cls, references: Iterable[str]) -> Bleu:
        """BLEU with the tokeniser that the script of the references needs: 13a where words stand apart."""
        return cls(tokenize=tokenizer_of(references))

    def words(self, text: str) -> list[str]:
        """The words of a text, as sacrebleu's tokeniser makes them."""
        text = text.lower() if self._sentence.lowercase else text
        return self._sentence.tokenizer(text.rstrip()).split()

    def reference(self, text: str) -> Counts:
        """The n-grams of a reference. Each reference is counted once."""
        if text not in self._references:
            self._references[text] = count_ngrams(self.words(text))
        return self._references[text]

    def sentence(self, candidate: str, reference: str) -> float:
        """BLEU of one text, 0 … 100. Empty text scores 0; identical non-empty text scores 100 at any length."""
        return score(*split_statistics(self.statistics(candidate, reference)))

    def statistics(self, candidate: str, reference: str) -> list[int]:
        """The integers behind BLEU: correct n-grams (n = 1 … 4), total n-grams (n = 1 … 4), length, reference length.

        They add up over texts: sentence BLEU is :func:`score` of one text's statistics, and corpus BLEU is
        :func:`corpus_score` of their sum.
        """
        counts, truth = count_ngrams(self.words(candidate)), self.reference(reference)
        correct, total = [0] * ORDER, [0] * ORDER
        for gram, count in counts.ngrams.items():
            total[len(gram) - 1] += count
            correct[len(gram) - 1] += min(count, truth.ngrams[gram])
        return [*correct, *total, counts.length, truth.length]

    def corpus(self, candidates: Sequence[str], references: Sequence[str]) -> float:
        """BLEU of all texts together, 0 … 100 (no effective order). ValueError for no texts or unlike lengths."""
        if len(candidates) != len(references) or not candidates:
            raise ValueError(
                f"{len(candidates)} candidates and {len(references)} references: both lists need the same length, "
                "at least 1"
            )
        return self._corpus.corpus_score(list(candidates), [list(references)]).score


def n_bleu(bleu: float) -> float:
    """Negative BLEU, 100 - BLEU. A random text scores about 97.6; more means degenerate text, not better forgetting."""
    return max(0.0, 100.0 - bleu)  # an exact copy may round up


@dataclass(frozen=True)
class BleuMeasure:
    """Samples to BLEU / 100 against the true suffix, in [0, 1].

    ``floor`` (0 … 100) is the BLEU that a model reaches by chance. Only BLEU above it counts, so a policy gains nothing
    by going below it.
    """

    bleu: Bleu = field(default_factory=Bleu)
    floor: float = 0.0

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        scores = [min(self.bleu.sentence(s.text, truth_text(s)), 100.0) for s in samples]  # an exact copy may round up
        return [max(0.0, score - self.floor) / 100 for score in scores]


@dataclass(frozen=True)
class DenseBleuMeasure:
    """Samples to token rewards: how much each token raises the BLEU / 100 of the response so far.

    The token rewards sum to the sequence's BLEU / 100 (above ``floor``). With ``decode`` (ids to text without special
    tokens, as the trainer made ``sample.text``), BLEU is taken over words, and a word counts at the token that ends it.
    Without ``decode``, BLEU is taken over token ids, EOS excluded.
    """

    decode: Decode | None = None
    bleu: Bleu = field(default_factory=Bleu)
    accrual: Accrual = "linear"
    floor: float = 0.0

    def __call__(self, samples: Sequence[Sample]) -> list[list[float]]:
        return [self._one(sample) for sample in samples]

    def _one(self, sample: Sample) -> list[float]:
        rewards = [0.0] * len(sample.ids)
        if self.decode is None:
            tokens: Sequence[Hashable] = content_ids(sample)
            reference, places = count_ngrams(truth_ids(sample)), list(range(len(tokens)))
        else:
            words = self.bleu.words(sample.text)
            reference = self.bleu.reference(truth_text(sample))
            tokens, places = words, word_places(words, sample.text, token_ends(sample, self.decode))
        scores = prefix_scores(tokens, reference, accrual=self.accrual, floor=self.floor)
        for place, before, after in zip(places, scores, scores[1:], strict=False):
            rewards[place] += (after - before) / 100
        return rewards


def token_ends(sample: Sample, decode: Decode) -> list[int]:
    """Where each response token ends in ``sample.text``, in characters. Ends never fall; the last is its length."""
    return ends_in_text(sample.ids, sample.text, decode)


def word_places(words: Sequence[str], text: str, ends: Sequence[int]) -> list[int]:
    """For every word, the index of the token in which it ends.

    Words and text are matched by counting the characters that are not white space. 13a changes that count only in texts
    with HTML entities or hyphens at line ends. In such a text the places are scaled, so a word may be credited one
    token off.
    """
    filled = [0]
    for character in text:
        filled.append(filled[-1] + (not character.isspace()))
    at_token = [filled[end] for end in ends]
    total = sum(map(len, words))
    places, done = [], 0
    for word in words:
        done += len(word)
        places.append(bisect_left(at_token, -(-done * filled[-1] // total)))
    return places
