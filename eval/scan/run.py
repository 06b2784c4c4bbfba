"""A whole scan: measure a corpus, look at what is recited, hold controls against it, write it down.

The corpus, the tokenizer's way with text, the recognisers of personal data and the way near-duplicates are grouped come
from the caller. Everything that takes time is kept in the folder as it is done, so that the same call goes on after a
kill and ends with the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from ppo.lm.backbone import context_length

from .controls import Controls, Encode, reference_runs
from .findings import Finding, Found, counted, look, scores
from .judge import is_form, reasons, status, verdict
from .measure import metered
from .passes import Layout, layout
from .predictable import Runs
from .protocols import Mark, Reading
from .results import (
    SCAN,
    SUMMARY,
    WINDOWS,
    Row,
    WindowCounts,
    line,
    private_text,
    summarise,
    write_private_json,
    write_rows,
)
from .store import Store
from .sweep import Sweep, sweep

Readings = Callable[[], Iterable[Reading]]
Show = Callable[[str, int, bool], None]


MORE_TEXTS = 4  # for each text of controls, as many are looked at: copies of another one are left out


@dataclass(frozen=True)
class Settings:
    """Lengths in tokens; see :func:`.passes.layout`.

    top_k         of the second probability
    controls      texts of each kind of control from all of the corpus; 0: none, and no verdict
    own_controls  findings, of different text, that get controls of their own
    batch_tokens  most tokens in one forward pass
    """

    prefixes: tuple[int, ...] = (50,)
    suffix: int = 50
    stride: int | None = None
    length: int | None = None
    top_k: int = 40
    controls: int = 64
    own_controls: int = 200
    batch_tokens: int = 4096


@dataclass(frozen=True)
class Subject:
    """A model and how it reads: ``encode`` gives ids and where their characters end; ``bos``: in front of a text."""

    model: nn.Module
    encode: Encode
    bos: int | None

    def layout(self, settings: Settings) -> Layout:
        """The layout of passes that fits the model's context. ValueError where nothing fits."""
        limit = context_length(self.model)
        room = None if limit is None else limit - int(self.bos is not None)
        return layout(settings.prefixes, settings.suffix, room=room, stride=settings.stride, length=settings.length)


@dataclass(frozen=True)
class Scan:
    """The result: rows of scan.jsonl, the summary, and the sweep, for who compares it with another one."""

    rows: list[Row]
    summary: Row
    measured: Sweep
    found: Found

    @property
    def findings(self) -> list[Row]:
        """The rows of the findings, in the order of the corpus."""
        return [row for row in self.rows if row["type"] == "finding"]


def scan(
    subject: Subject,
    readings: Readings,
    out: Path,
    settings: Settings = Settings(),
    *,
    group: Callable[[Sequence[Sequence[int]]], Sequence[int]],
    marks: Callable[[str], Sequence[Mark]] = lambda text: (),
    only_marked: bool = False,
    reference: Subject | None = None,
    show: Show = lambda stage, tokens, is_new: None,
    facts: dict[str, Any] | None = None,
    more_rows: Iterable[Row] = (),
) -> Scan:
    """Scan the corpus that ``readings`` gives, each time it is called, and write the files into ``out``.

    group        texts as token ids -> a label each, the same for near-duplicates
    marks        what of a text is personal
    only_marked  count only findings that hold something personal
    reference    another model: what it recites, too, is no memory of this one
    show         called after each portion with its stage, its tokens and whether it was measured now
    facts        more entries of the summary
    more_rows    more rows of scan.jsonl, asked for once all is read: of what was skipped

    ValueError where the lengths do not fit the model's context, and for a folder that was measured on another text.
    """
    shape, has_bos = subject.layout(settings), subject.bos is not None
    with ExitStack() as stack:
        meter = stack.enter_context(_meter(subject, shape, settings))
        store = Store(out / "passes", meter, show=lambda tokens, is_new: show("corpus", tokens, is_new))
        measured = sweep(readings(), shape, store, has_bos=has_bos)
        chosen = store.sample(settings.controls, least=2 * shape.suffix)
        more = store.sample(MORE_TEXTS * settings.controls, least=2 * shape.suffix)
        wanted = list(dict.fromkeys([*chosen, *more]))
        counts = WindowCounts()
        with private_text(out / WINDOWS) as file:

            def window(row: Row) -> None:
                counts.add(row)
                file.write(line(row))

            found = look(readings(), measured, wanted=frozenset(wanted), window=window)
        controls = Controls(
            shape, Store(out / "controls", meter, show=lambda tokens, is_new: show("controls", tokens, is_new)),
            subject.encode, has_bos,
        )  # fmt: skip
        if settings.controls:
            texts = [found.passes[number] for number in wanted]
            controls.plan(texts, found.findings, count=settings.controls, most_own=settings.own_controls)
        controls.store.finish()
    others = _asked(reference, found.findings, shape, settings, out, show) if reference is not None else None
    runs = counted(readings(), found.findings)
    rows = _rows(found, runs, controls, others, settings, group=group, marks=marks, only_marked=only_marked)
    rates = controls.rates() if settings.controls else {}
    findings = [row for row in rows if row["type"] == "finding"]
    summary = summarise(
        rows, counts, verdict=verdict(findings, rates, passes=len(store)), controls=rates,
        facts={"passes": len(store), "without_own_controls": controls.without_own, "layout": asdict(shape),
               **(facts or {})},
    )  # fmt: skip
    write_rows(out / SCAN, [*rows, *more_rows])
    write_private_json(out / SUMMARY, summary)
    return Scan(rows, summary, measured, found)


def _meter(subject: Subject, shape: Layout, settings: Settings) -> Any:
    return metered(
        subject.model, bos=subject.bos, length=shape.length, top_k=settings.top_k, batch_tokens=settings.batch_tokens
    )


def _asked(
    reference: Subject, findings: Sequence[Finding], shape: Layout, settings: Settings, out: Path, show: Show
) -> list[int]:
    """The longest run of another model on each finding, behind the finding's prompt, by its own tokens."""
    limit = context_length(reference.model)
    length = shape.length if limit is None else min(shape.length, limit - int(reference.bos is not None))
    numbers: list[tuple[int, int]] = []
    with metered(
        reference.model, bos=reference.bos, length=length, top_k=0, batch_tokens=settings.batch_tokens
    ) as meter:
        store = Store(out / "reference", meter, show=lambda tokens, is_new: show("reference", tokens, is_new))
        first = int(reference.bos is None)
        for finding in findings:
            ids, ends = reference.encode(finding.prompt + finding.text)
            begin = int(np.searchsorted(np.asarray(ends), len(finding.prompt), side="right"))
            numbers.append((store.add(list(ids)[:length], first), max(0, begin - first)))
        store.finish()
    return reference_runs(store, numbers)


def _rows(
    found: Found,
    runs: Runs,
    controls: Controls,
    others: list[int] | None,
    settings: Settings,
    *,
    group: Callable[[Sequence[Sequence[int]]], Sequence[int]],
    marks: Callable[[str], Sequence[Mark]],
    only_marked: bool,
) -> list[Row]:
    """The rows of scan.jsonl: each document, then its findings."""
    labels = [int(label) for label in group([f.ids.tolist() for f in found.findings])] if found.findings else []
    places = {seen.document: place for place, seen in enumerate(found.documents)}
    of_document: dict[str, list[Row]] = {}
    first_of: dict[int, str] = {}
    for number, finding in enumerate(found.findings):
        measured, own = scores(finding, runs), controls.of(number)
        other = others[number] if others is not None else None
        alone = controls.alone_run(number)
        personal = [{"kind": m.kind, "start": m.start, "end": m.end} for m in marks(finding.text)]
        against = reasons(measured, own, other, alone, suffix=settings.suffix)
        is_wanted = bool(personal) or not only_marked
        name = f"s{number + 1:05d}"
        of_document.setdefault(finding.document, []).append(
            {
                "type": "finding", "id": name, "path": finding.path, "document": finding.document,
                "place": places[finding.document], "lines": list(finding.lines), "start": finding.start,
                "stop": finding.stop,
                "status": status(against, is_wanted=is_wanted, has_controls=settings.controls > 0),
                "against": against, "is_form": is_form(measured), "group": labels[number],
                "first_of_group": first_of.setdefault(labels[number], name), "reading": finding.reading,
                "layer": finding.layer, "tokens": list(finding.tokens), "prompt_tokens": finding.prompt_tokens,
                **{key: value for key, value in finding.numbers.items() if key != "tokens"}, **measured,
                "own_controls": own, "reference_run": other, "alone_run": alone, "personal": personal,
                "prompt": finding.prompt, "text": finding.text,
            }
        )  # fmt: skip
    rows: list[Row] = []
    for place, seen in enumerate(found.documents):
        rows.append({"type": "document", "place": place, **asdict(seen)})
        rows += of_document.get(seen.document, [])
    return rows
