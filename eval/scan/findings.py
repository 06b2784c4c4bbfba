"""What is recited of a corpus: spans with their files, lines and characters, and the numbers of each.

The corpus is read a second time, beside what was measured of it. A span that several readings of a document show is one
finding; its numbers are those of its longest span. This module knows documents and columns; whether a finding is a
memory is for :mod:`.judge`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np

from ..extraction import extraction_strength, sequence_logprob, smallest_n
from .copied import copied, earlier
from .measure import Columns
from .passes import Pass
from .predictable import Runs, added_bits
from .protocols import Document, Reading, tokens_at
from .spans import Span, longest, recited, runs, trimmed
from .sweep import Layer, Sweep

BINS, BIN_CHARACTERS = 240, 20  # of the heat map along a document, at most; characters of a bin, at least
Row = dict[str, Any]


@dataclass
class Finding:
    """A text that the model recites. ``start``, ``stop``: its characters; ``lines``: its first and last, from 1.

    reading  the reading that shows it at its longest: 0 as it stands, 1 folded; ``tokens``: its tokens there
    layer    the layer of passes that does
    prompt_tokens  how many tokens the prompt has there
    numbers  see :func:`numbers_of`
    prompt   the text before it, as long as the shortest prefix, but no further than to where the model sees a text end
    again    its tokens behind its prompt's, where its passes show it before, so that a copy is no memory; else empty
    """

    path: str
    document: str
    start: int
    stop: int
    lines: tuple[int, int]
    reading: int
    layer: int
    tokens: tuple[int, int]
    prompt_tokens: int
    numbers: Row
    prompt: str
    text: str
    ids: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int32))  # of its folded text, for counting
    again: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int32))


@dataclass
class Seen:
    """What a document is for the report: its tokens, the characters that are recited, the heat along it.

    ``nll``: summed over the scored tokens of the text as it stands. ``heat``: a digit for each part of the text, the
    longest run of first choices that a token in it is part of; 9 is a suffix or more.
    """

    path: str
    document: str
    characters: int
    tokens: int
    scored: int
    recited: int
    nll: float
    heat: str


@dataclass
class Found:
    """All that was found. ``passes``: texts of the passes that were asked for, by number."""

    findings: list[Finding] = field(default_factory=list)
    documents: list[Seen] = field(default_factory=list)
    passes: dict[int, str] = field(default_factory=dict)


def look(
    readings: Iterable[Reading],
    measured: Sweep,
    *,
    wanted: frozenset[int] = frozenset(),
    window: Callable[[Row], None] = lambda row: None,
) -> Found:
    """Look at all that was measured. ``readings``: the same ones again, in the same order.

    ``wanted``: passes whose texts are kept, by number. ``window`` gets the row of each window that was measured.
    """
    found, place, keys = Found(), 0, set[int]()
    for _, group in groupby(readings, key=lambda reading: id(reading.document)):
        together, spans = list(group), []
        before = [earlier(reading.ids) for reading in together]
        heat = np.zeros(max(1, min(BINS, len(together[0].document.text) // BIN_CHARACTERS)))
        for kind, reading in enumerate(together):
            for number, layer in enumerate(measured.layers(place + kind, reading)):
                warm(heat, reading, layer, measured.layout.suffix)
                new = layer.right & ~copied(before[kind], layer.starts)
                for span in recited(layer.right, layer.ends, least=measured.layout.suffix):
                    is_new = longest(new[span.start : span.stop]) >= measured.layout.suffix
                    spans.append((kind, number, span, layer, is_new))
            for (one, columns), key in zip(
                measured.passes(place + kind, reading), measured.numbers[place + kind].tolist(), strict=True
            ):
                is_again = key in keys
                keys.add(key)
                for row in window_rows(reading, one, columns, measured, before[kind]):
                    window({**row, "is_again": is_again})
                if key in wanted and key not in found.passes:
                    start, stop = reading.span(one.start, one.stop)
                    found.passes[key] = reading.document.text[start:stop]
        mine = merged(together, spans, measured)
        found.findings += mine
        layer = next(measured.layers(place, together[0]), None)
        found.documents.append(seen(together[0], layer, mine, heat))
        place += len(together)
    return found


def merged(together: list[Reading], spans: list[tuple[int, int, Span, Layer, bool]], measured: Sweep) -> list[Finding]:
    """The findings of a document from the spans of all its readings and layers, in order."""
    document, claims = together[0].document, []
    for kind, number, span, layer, is_new in spans:
        start, stop = trimmed(document.text, *together[kind].span(span.start, span.stop))
        if start < stop:
            claims.append((start, stop, kind, number, span, layer, is_new))
    found = []
    for cluster in _clusters(claims):
        start, stop = min(c[0] for c in cluster), max(c[1] for c in cluster)
        _, _, kind, number, span, layer, _ = max(cluster, key=lambda c: (c[1] - c[0], -c[2], -c[3]))
        reading = together[kind]
        opening = prompt_start(span.start, layer, measured.layout.prefixes[0])
        before = reading.span(opening, span.start) if opening < span.start else (start, start)
        found.append(
            Finding(
                document.path, document.name, start, stop, lines_of(document, start, stop), kind, number,
                (span.start, span.stop), span.start - opening, numbers_of(span, layer, measured.layout.suffix),
                document.text[before[0] : start], document.text[start:stop],
                together[-1].ids[tokens_at(together[-1], start, stop)],
                reading.ids[opening : 0 if any(c[6] for c in cluster) else span.stop],
            )
        )  # fmt: skip
    return found


def _clusters(claims: list[Any]) -> Iterator[list[Any]]:
    """Claims (start, stop, …) that overlap, directly or through others, together."""
    cluster: list[Any] = []
    last = -1
    for claim in sorted(claims, key=lambda c: (c[0], c[1], c[2], c[3])):
        if cluster and claim[0] >= last:
            yield cluster
            cluster = []
        cluster.append(claim)
        last = max(last, claim[1]) if len(cluster) > 1 else claim[1]
    if cluster:
        yield cluster


def lines_of(document: Document, start: int, stop: int) -> tuple[int, int]:
    """The first and the last line of a span of characters."""
    return document.line_of(start), document.line_of(max(start, stop - 1))


def prompt_start(first: int, layer: Layer, length: int) -> int:
    """Where the prompt of a span begins, in tokens: ``length`` before it, or where the model sees the text before end.

    At a token in whose place the model would end the text, another text begins.
    """
    low = max(0, first - length)
    ends = np.flatnonzero(layer.ends[low : first + 1])
    return low + int(ends[-1]) if len(ends) else low


def numbers_of(span: Span, layer: Layer, suffix: int) -> Row:
    """The numbers of a span.

    tokens, longest_run           its length and its longest run of first choices, in tokens
    right                         the share of its tokens that are first choices
    logprob                       mean log p of a token, nats
    log_pz, log_pz_top_k          of its likeliest window of ``suffix`` tokens, at temperature 1 and under top-k
    samples, samples_top_k        draws that hold such a window with probability 1/2, one window each; None: no draw can
    """
    part = slice(span.start, span.stop)
    best = {name: likeliest(getattr(layer, name)[part], suffix) for name in ("logprobs", "top_k")}
    return {
        "tokens": span.stop - span.start, "longest_run": span.run, "right": float(layer.right[part].mean()),
        "logprob": float(np.nanmean(layer.logprobs[part].astype(np.float64))),
        **probabilities(best["logprobs"], best["top_k"]),
    }  # fmt: skip


def probabilities(log_pz: float, log_pz_top_k: float) -> Row:
    """log p_z and the draws for a probability of 1/2, at temperature 1 and under top-k. What is infinite is None."""
    samples = [smallest_n(value, 0.5) for value in (log_pz, log_pz_top_k)]
    return {
        "log_pz": _finite(log_pz), "log_pz_top_k": _finite(log_pz_top_k),
        "samples": _finite(samples[0]), "samples_top_k": _finite(samples[1]),
    }  # fmt: skip


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def likeliest(logprobs: np.ndarray, size: int) -> float:
    """The highest log-probability of ``size`` tokens in a row, of all where there are fewer; -inf where none can be."""
    values = np.nan_to_num(logprobs.astype(np.float64), nan=-np.inf, neginf=-np.inf)
    if len(values) <= size:
        return float(values.sum())
    is_out = np.concatenate([[0], np.cumsum(values == -np.inf)])
    sums = np.concatenate([[0.0], np.cumsum(np.where(values == -np.inf, 0.0, values))])
    windows = np.where(is_out[size:] == is_out[:-size], sums[size:] - sums[:-size], -np.inf)
    return float(windows.max())


def window_rows(reading: Reading, one: Pass, columns: Columns, measured: Sweep, before: np.ndarray) -> Iterator[Row]:
    """The row of each window of a pass: where its suffix stands, and its numbers. It holds no text.

    "is_copied": at least half of its tokens stand earlier in the pass. ``before``: of :func:`.copied.earlier`.
    """
    size = measured.layout.suffix
    own = before[one.start : one.stop] - one.start
    is_copied = copied(own, np.zeros(len(own), dtype=np.int64))[one.first - one.start :]
    for length, begin in measured.layout.windows(one):
        if begin < one.first:
            continue
        part = slice(begin - one.first, begin - one.first + size)
        right = columns.right[part]
        start, stop = reading.span(begin, begin + size)
        document = reading.document
        sums = [sequence_logprob(values[part]) for values in (columns.logprobs, columns.top_k)]
        yield {
            "document": document.name, "line": document.line_of(start), "start": start, "stop": stop,
            "reading": "folded" if reading.is_folded else "as it stands", "prefix": length,
            "is_start": one.start == 0 and document.is_start, "exact": bool(right.all()),
            "strength": round(extraction_strength(right), 4),
            "longest_run": longest(right), "is_copied": bool(is_copied[part].mean() >= 0.5),
            **probabilities(*sums),
        }  # fmt: skip


def warm(heat: np.ndarray, reading: Reading, layer: Layer, suffix: int) -> None:
    """Raise the bins of a document to the longest run that a token in them is part of, in suffixes, at most 1."""
    length = max(1, len(reading.document.text))
    for first, last in runs(layer.right):
        start, stop = reading.span(first, last)
        bins = slice(start * len(heat) // length, max(start, stop - 1) * len(heat) // length + 1)
        heat[bins] = np.maximum(heat[bins], min(1.0, (last - first) / suffix))


def seen(reading: Reading, layer: Layer | None, findings: list[Finding], heat: np.ndarray) -> Seen:
    """What the report says of a document. ``reading``: as it stands."""
    document = reading.document
    scored = np.isfinite(layer.logprobs) if layer is not None else np.zeros(0, dtype=bool)
    return Seen(
        document.path, document.name, len(document.text), len(reading.ids), int(scored.sum()),
        sum(f.stop - f.start for f in findings),
        float(-layer.logprobs[scored].astype(np.float64).sum()) if layer is not None else 0.0,
        "".join(str(int(9 * value)) for value in heat),
    )  # fmt: skip


def counted(readings: Iterable[Reading], findings: Sequence[Finding]) -> Runs:
    """How often the runs of findings stand in the corpus. ``readings``: as in :func:`look`; each text counts once."""
    found = Runs([finding.ids for finding in findings])
    if findings:
        for _, group in groupby(readings, key=lambda reading: id(reading.document)):
            *_, last = group
            found.add(last.ids)
    return found


def scores(finding: Finding, counts: Runs) -> Row:
    """What a finding's text is without any model: see :mod:`.predictable`."""
    return {
        "added_bits": round(added_bits(finding.prompt, finding.text), 3),
        "ngram": round(counts.predictability(finding.ids, 0), 4),
        "copies": counts.copies(finding.ids),
    }
