"""The corpus of a scan as it is read, what reading it through a model will cost, and how far it is."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data.corpus.files import Corpus, Skipped, corpus_files
from data.corpus.formats import read_file
from data.corpus.reading import Reading, readings
from eval.scan.measure import metered
from eval.scan.passes import Layout
from eval.scan.results import SCAN
from eval.scan.run import Settings, Subject
from ppo.lm.backbone import vocabulary_size
from unlearning.run import say

TRIAL_TOKENS = 2048  # of the first forward pass, which says how fast the model is
SAMPLE_CHARACTERS = 2**16  # of the corpus's first texts, which say how many bytes a token has


@dataclass(frozen=True)
class Source:
    """A corpus as it is read: its files and how.

    ``at``: bytes that were read of it, [now]. ``reasons``: what could not be read within a file, by the file's name.
    """

    corpus: Corpus
    fields: tuple[str, ...]
    folded: bool
    tokenizer: Any
    at: list[int]
    reasons: dict[str, list[str]] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        return sum(file.num_bytes for file in self.corpus.files)

    def readings(self) -> Iterator[Reading]:
        """All readings of all documents, in order."""
        done = 0
        for file in self.corpus.files:
            inside, reasons = 0, self.reasons.setdefault(file.name, [])
            reasons.clear()
            for document in read_file(file, text_fields=self.fields, skip=reasons.append):
                yield from readings(document, self.tokenizer, with_folded=self.folded)
                inside += len(document.text)
                self.at[0] = done + min(inside, file.num_bytes)
            done += file.num_bytes
            self.at[0] = done

    def bytes_a_token(self) -> float:
        """Bytes of the files for each token, by the first texts of the corpus; 1 where they hold none."""
        num_bytes = num_tokens = 0
        for file in self.corpus.files:
            for document in read_file(file, text_fields=self.fields, skip=lambda reason: None):
                text = document.text[: SAMPLE_CHARACTERS - num_bytes]
                num_bytes += len(text.encode(file.encoding or "utf-8", "replace"))
                num_tokens += len(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
                if num_bytes >= SAMPLE_CHARACTERS:
                    return num_bytes / max(1, num_tokens)
        return num_bytes / num_tokens if num_tokens else 1.0

    def broken(self) -> list[Skipped]:
        """What could not be read within files, once all was read: one for each file, with the first reason."""
        return [
            Skipped(name, found[0] + (f"; and {len(found) - 1} more" if len(found) > 1 else ""))
            for name, found in self.reasons.items()
            if found
        ]

    def skipped(self) -> Iterator[Skipped]:
        """All that was left out, files and parts of files; to be asked for its items once all was read."""
        yield from self.corpus.skipped
        yield from self.broken()


def open_corpus(given: tuple[str, ...], fields: tuple[str, ...], tokenizer: Any, *, folded: bool, out: Path) -> Source:
    """The files of the corpus, but for those of the scan itself. What is skipped is told, with the reason."""
    whole, own = corpus_files(given), out.resolve()
    inside = [file.name for file in whole.files if file.path.resolve().is_relative_to(own)]
    corpus = Corpus(
        tuple(file for file in whole.files if file.name not in inside),
        (*whole.skipped, *(Skipped(name, "in the folder of this scan") for name in inside)),
    )
    tell_skipped(corpus.skipped)
    return Source(corpus, fields, folded, tokenizer, [0])


def tell_skipped(found: Sequence[Skipped]) -> None:
    """Name what is left out, the first ten."""
    for skipped in found[:10]:
        say(f"skipped: {skipped.name} ({skipped.reason})")
    if len(found) > 10:
        say(f"skipped: {len(found) - 10} more, see {SCAN}")


def estimate(
    subject: Subject, shape: Layout, source: Source, settings: Settings, *, has_reference: bool = False
) -> str:
    """What the scan will cost, in words: from the size of the files, the tokens of their beginning, and the time of
    one forward pass. ``has_reference``: whether another model is asked about what is recited."""
    length = min(shape.length, TRIAL_TOKENS)
    count = max(1, min(TRIAL_TOKENS, settings.batch_tokens) // length)
    ids = np.arange(length) % vocabulary_size(subject.model)
    with metered(
        subject.model, bos=subject.bos, length=shape.length, top_k=settings.top_k, batch_tokens=settings.batch_tokens
    ) as meter:
        started = time.perf_counter()
        list(meter.columns([ids.tolist()] * count, [int(subject.bos is None)] * count))
        rate = count * length / (time.perf_counter() - started)
    tokens = source.num_bytes / source.bytes_a_token()
    fed = tokens * shape.cost
    controls = 2 * settings.controls * shape.length
    most = fed * (2 if source.folded else 1) + controls
    own = 2 * shape.length if settings.controls else 0
    files = len(source.corpus.files)
    ends = [_duration(cost / rate) for cost in (fed + controls, most)]
    takes = " to ".join(dict.fromkeys(ends)) + (", the more of it is wrapped by lines" if ends[0] != ends[1] else "")
    return (
        f"{files} file{'s' * (files != 1)}, {source.num_bytes / 1e6:,.2f} MB: about {tokens:,.0f} tokens, "
        f"{shape.cost:.2f} fed for each in passes of {shape.length}; {rate:,.0f} tokens a second here: {takes}"
        + (f"; controls of its own cost each recited text up to {own:,} tokens more" if own else "")
        + (f", the other model up to {shape.length:,}" if has_reference else "")
    )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class Progress:
    """A bar over the bytes of the corpus, then over the controls. What was measured before does not count as speed."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._bar: Any = None
        self._stage = ""

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, stage: str, tokens: int, is_new: bool) -> None:
        """A portion is done."""
        if stage != self._stage:
            self.__exit__()
            self._stage, is_corpus = stage, stage == "corpus"
            total = self._source.num_bytes if is_corpus else None
            self._bar = tqdm(total=total, desc=stage, unit="B" if is_corpus else "token", unit_scale=True)
        at = self._source.at[0] if stage == "corpus" else self._bar.n + tokens
        self._bar.update(at - self._bar.n)
        if not is_new:
            self._bar.initial, self._bar.start_t = self._bar.n, self._bar._time()
