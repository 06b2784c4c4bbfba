"""``demem.py scan``: which passages of a corpus a model recites, with controls, and what is left of them afterwards.

Its findings are the forget set of ``demem.py run``. This module knows the command's options and what its reader is
told; ``eval/scan`` measures, ``data/corpus`` reads.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from data.corpus.personal import personal_data
from data.splits import ngram_groups
from eval.provenance import provenance
from eval.report.scan import write_scan_page
from eval.results import check_folder, check_same, read_settings
from eval.scan.against import compare, sentences
from eval.scan.forget import write_forget_set
from eval.scan.judge import MEMORISED
from eval.scan.passes import Layout
from eval.scan.results import SCAN, SUMMARY, read_scan, write_private_json, write_rows
from eval.scan.run import Scan, Settings, Subject, scan
from eval.scan.store import Store
from eval.scan.sweep import sweep
from models.load import LoadedModel
from ppo.io.fields import check_types, require
from ppo.io.options import given_values, parse_value
from ppo.lm.backbone import vocabulary_size
from unlearning.canaries import run_canaries
from unlearning.options import Options
from unlearning.run import load_model, say
from unlearning.scan_corpus import Progress, Source, estimate, open_corpus, tell_skipped
from unlearning.scan_text import told

OUT = "runs/scan"
OF_CORPUS = ("corpus", "text_field", "folded", "prefix_tokens", "suffix_tokens", "stride", "pass_tokens", "top_k",
             "only", "region")  # fmt: skip
FREE = ("fail_above", "write_forget_set", "batch_tokens")  # may change when a scan goes on
NEAR_TOKENS = 20  # in a row, that two findings share if they are one text


@dataclass(frozen=True)
class ScanOptions:
    """What to read, what to ask, what to write."""

    # Corpus
    corpus: tuple[str, ...] = ()  # folders, files or globs to read
    text_field: tuple[str, ...] = ()  # fields of .jsonl, .csv and .parquet records to read; none: all that hold text
    folded: bool = (
        True  # read texts a second time with white space and quotes folded, so that re-wrapped ones are found
    )
    # Windows
    prefix_tokens: tuple[str, ...] = ("50",)  # lengths of prefixes; the shortest is in front of every pass
    suffix_tokens: int = 50  # tokens in a row that count as recited
    stride: int | None = None  # tokens between two forward passes; none: each token is scored once
    pass_tokens: int | None = None  # tokens of a pass; none: a prefix and 8 suffixes, or what the context has room for
    top_k: int = 40  # of the second probability, beside the one at temperature 1
    batch_tokens: int = 4096  # most tokens of one forward pass
    # Judgement
    controls: int = 64  # control texts of each kind, shuffled and swapped; 0: none, and no verdict
    against_model: str | None = None  # a second model: what it recites, too, is no memory of the first
    only: Literal["all", "pii"] = "all"  # pii: only texts with e-mail addresses, telephone or card numbers, keys, …
    region: str | None = None  # such as GB: telephone numbers without a country are judged as numbers of it
    # Afterwards
    against: str | None = None  # the folder of an earlier scan of the corpus: what of it is gone, what is left
    write_forget_set: str | None = None  # a .jsonl file for --data of demem.py run
    fail_above: int | None = None  # exit with status 1 if more texts than that are memorised
    # Canaries
    canaries: int = 0  # write so many canary texts, and say how exposed they are in the model; no corpus is needed

    def __post_init__(self) -> None:
        check_types(self)
        require(bool(self.corpus) or bool(self.against) or self.canaries > 0, self, "corpus", "must name something")
        for name in ("suffix_tokens", "batch_tokens"):
            require(getattr(self, name) >= 1, self, name, "must be at least 1")
        for name in ("controls", "canaries", "top_k"):
            require(getattr(self, name) >= 0, self, name, "must be at least 0")
        require(self.fail_above is None or self.fail_above >= 0, self, "fail_above", "must be at least 0")
        is_region = self.region is None or (len(self.region) == 2 and self.region.isascii() and self.region.isupper())
        require(is_region, self, "region", "must be two capital letters, such as GB")
        is_jsonl = self.write_forget_set is None or self.write_forget_set.endswith(".jsonl")
        require(is_jsonl, self, "write_forget_set", "must end in .jsonl")
        for name in ("fail_above", "write_forget_set"):
            if getattr(self, name) is not None:
                require(bool(self.corpus) or bool(self.against), self, name, "needs a --corpus to scan")
                require(self.controls > 0, self, name, "needs --controls: without them nothing is called memorised")

    def settings(self) -> Settings:
        """The settings of the scan. ValueError names the option whose value is no number."""
        prefixes = tuple(parse_value("prefix_tokens", text, int) for text in self.prefix_tokens)
        return Settings(
            prefixes, self.suffix_tokens, self.stride, self.pass_tokens, self.top_k, self.controls,
            batch_tokens=self.batch_tokens,
        )  # fmt: skip


def run_scan(parsed: argparse.Namespace) -> int:
    """Scan, write and tell. Returns 1 if more is memorised than ``--fail-above`` allows, else 0."""
    options, scanned, seed = read_scan_options(parsed)
    out = Path(options.out)
    loaded = load_model(options, options.model)
    if scanned.canaries:
        run_canaries(subject_of(loaded), out, count=scanned.canaries, seed=seed, meta=meta(options, loaded))
        if not scanned.corpus:
            return 0
    source = open_corpus(scanned.corpus, scanned.text_field, loaded.tokenizer, folded=scanned.folded, out=out)
    subject, settings = subject_of(loaded), scanned.settings()
    shape = subject.layout(settings)
    say(estimate(subject, shape, source, settings, has_reference=scanned.against_model is not None))
    reference = subject_of(load_model(options, scanned.against_model)) if scanned.against_model else None
    with Progress(source) as progress:
        found = scan(
            subject, source.readings, out, settings, group=partial(ngram_groups, ngram=NEAR_TOKENS),
            marks=partial(personal_data, region=scanned.region), only_marked=scanned.only == "pii",
            reference=reference, show=progress.show,
            facts={"meta": meta(options, loaded)},
            more_rows=({"type": "skipped", **asdict(skipped)} for skipped in source.skipped()),
        )  # fmt: skip
    tell_skipped(source.broken())
    compared = compared_with(Path(scanned.against), source, found) if scanned.against else None
    if compared is not None:
        write_rows(out / "against.jsonl", compared[0])
        found.summary["against_scan"] = compared[1]
        write_private_json(out / SUMMARY, found.summary)
    write_scan_page(out, before=Path(scanned.against) if scanned.against else None)
    say(told(found.summary, found.findings))
    if compared is not None:
        say("\n" + "\n".join(sentences(compared[1])))
    say(f"\npage: {out / 'scan.html'} (private)   rows: {out / SCAN} (private)   numbers: {out / SUMMARY}")
    memorised = sum(row["status"] == MEMORISED for row in found.findings)
    if scanned.write_forget_set:
        write_forget(Path(scanned.write_forget_set), source, found, shape, loaded, options)
    return int(scanned.fail_above is not None and memorised > scanned.fail_above)


def read_scan_options(parsed: argparse.Namespace) -> tuple[Options, ScanOptions, int]:
    """The options of the command, and its seed. One that goes on, or is held against another, takes over its own."""
    given, own = given_values(parsed, Options), given_values(parsed, ScanOptions)
    seeded: dict[str, Any] = {"seed": int(parse_value("seed", parsed.seed, int))} if "seed" in parsed else {}
    out, is_resumed = Path(given.get("out", OUT)), given.get("resume", False)
    saved: dict[str, Any] = {}
    if is_resumed:
        saved = read_settings(out)["options"]
        check_same({"options": saved}, {k: v for k, v in {**given, **own, **seeded}.items() if k not in FREE}, {})
    elif "against" in own:
        saved = earlier_options(Path(own["against"]), own)
        if Path(own["against"]).resolve() == out.resolve():
            raise ValueError(f"--against {out} is this scan's own folder: name another --out")
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in saved.items()}
    of_run = {k: v for k, v in values.items() if k in Options.__dataclass_fields__}
    of_scan = {k: v for k, v in values.items() if k in ScanOptions.__dataclass_fields__}
    options = Options(**{"out": OUT, **of_run, "resume": False, **given})
    scanned = ScanOptions(**{**of_scan, **own})
    seed = int(seeded.get("seed", values.get("seed", 0)))
    if scanned.write_forget_set and not Path(scanned.write_forget_set).parent.is_dir():
        raise ValueError(f"--write-forget-set {scanned.write_forget_set} cannot be written: there is no such folder")
    check_folder(out, is_new=not is_resumed)
    with suppress(OSError):  # of somebody else's folder, whose files are private all the same
        out.chmod(0o700)
    kept = {"model": options.model, "out": options.out, "dtype": options.dtype, "device": options.device, "seed": seed}
    write_private_json(out / "config.json", {"options": kept | asdict(scanned), "config": {}})
    return options, scanned, seed


def earlier_options(folder: Path, own: Mapping[str, Any]) -> dict[str, Any]:
    """What a comparison takes over of an earlier scan. ValueError where that read no corpus, or another one."""
    found = {k: v for k, v in read_settings(folder)["options"].items() if k in OF_CORPUS}
    if not found.get("corpus"):
        raise ValueError(f"--against {folder} holds no scan of a corpus")
    for name, known in found.items():
        before = tuple(known) if isinstance(known, list) else known
        if own.get(name, before) != before:
            raise ValueError(
                f"--{name.replace('_', '-')} {own[name]!r} is not the earlier scan's {before!r}: leave it out, for "
                "--against measures the same corpus in the same way"
            )
    return found


def subject_of(loaded: LoadedModel) -> Subject:
    """A model, how it reads text, and the BOS that it knows."""
    tokenizer = loaded.tokenizer
    bos = tokenizer.bos_token_id
    if bos is None:
        bos = getattr(loaded.model.config, "bos_token_id", None)
    usable = isinstance(bos, int) and 0 <= bos < vocabulary_size(loaded.model)

    def encode(text: str) -> tuple[Sequence[int], Sequence[int]]:
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return encoded["input_ids"], [end for _, end in encoded["offset_mapping"]]

    return Subject(loaded.model, encode, bos if usable else None)


def meta(options: Options, loaded: LoadedModel) -> dict[str, Any]:
    """Where the numbers come from, but for the command: it names files, and is another one when a scan goes on."""
    facts = provenance(next(loaded.model.parameters()).device)
    return {"model": options.model, "dtype": options.dtype} | {k: v for k, v in facts.items() if k != "command"}


def compared_with(folder: Path, source: Source, found: Scan) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The earlier scan's findings after, and the comparison."""
    _, findings = read_scan(folder)
    store = Store(folder / "passes", None)
    before = sweep(source.readings(), found.measured.layout, store, has_bos=found.measured.has_bos)
    return compare(source.readings(), before, found.measured, findings, later=found.findings)


def write_forget(path: Path, source: Source, found: Scan, shape: Layout, loaded: LoadedModel, options: Options) -> None:
    """Write the forget set, if there is something to forget, and say how to use it."""
    if not any(row["status"] == MEMORISED for row in found.findings):
        say(f"forget set: {path} is not written, nothing is memorised")
        return
    counts = write_forget_set(
        path, source.readings(), found.findings, prefix=shape.prefixes[0], suffix=shape.suffix, decode=loaded.decode
    )
    say(
        f"forget set: {path} (private): {counts['forget']} passages to forget, {counts['recited']} recited ones and "
        f"{counts['neighbour']} neighbours to keep"
    )
    say("next: " + " ".join(["python", "demem.py", "run", "--model", options.model, "--data", str(path)]))
