"""How well formed generated text is: length, emptiness, variety, loops, garbled characters, copying, likelihood.

Every forgetting figure needs these numbers beside it, because broken text forgets best. Variety is over token ids and
is compared with that of the true text, since tables and logs repeat themselves. This module knows token ids and texts,
not passages.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from rewards.fluency import continuation_nll
from rewards.guards import garbled_share
from rewards.repetition import distinct_n, loop_share, ngrams
from rewards.samples import is_visible


def output_statistics(output: Sequence[int], text: str, prompt: Sequence[int]) -> dict[str, float]:
    """Numbers of one output, from its token ids without EOS, its text, and the prompt that it continues.

    length       number of tokens
    empty        1 if there is no token or no character that a reader sees, else 0
    distinct_2   distinct bigrams / bigrams (0 below two tokens)
    loop         share of tokens in the longest loop (period at most 12, at least three rounds)
    garbled      share of characters that are U+FFFD, control, private, surrogate, unassigned or invisible
    copied       share of the output's 5-grams that occur in the prompt
    """
    return {
        "length": float(len(output)),
        "empty": float(not output or not is_visible(text)),
        "distinct_2": distinct_n(output, 2),
        "loop": loop_share(output),
        "garbled": garbled_share(text),
        "copied": copied_share(output, prompt),
    }


def copied_share(output: Sequence[int], prompt: Sequence[int], *, n: int = 5) -> float:
    """Share of the output's n-grams that occur in the prompt, in [0, 1]. It is 0 for an output without n-grams."""
    grams = ngrams(output, n)
    known = set(ngrams(prompt, n))
    return sum(gram in known for gram in grams) / len(grams) if grams else 0.0


def output_nll(
    original: nn.Module, prompts: Sequence[Sequence[int]], outputs: Sequence[Sequence[int]], *, batch_tokens: int = 8192
) -> list[float | None]:
    """Mean NLL of every output given its prompt under the original model, nats per token; None for empty outputs.

    A low NLL is not good by itself: memorised text is the most likely of all under the original model.
    """
    kept = [i for i, output in enumerate(outputs) if output]
    values = continuation_nll(
        original, [prompts[i] for i in kept], [outputs[i] for i in kept], batch_tokens=batch_tokens
    )
    found = dict(zip(kept, values, strict=True))
    return [found.get(i) for i in range(len(outputs))]
