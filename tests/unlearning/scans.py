"""Scans of the lab's records, for tests: the command, and what it leaves in its folder."""

import json
from pathlib import Path

import demem
from tests.eval.scan.corpora import records

FEW = [r for group in ("forget", "never", "forget_holdout") for r in records(group, 3)]


def scan(out: Path, *arguments: str) -> int:
    return demem.main(["scan", "--out", str(out), "--text-field", "text", *arguments])


def rows_of(out: Path, kind: str = "finding") -> list[dict]:
    rows = [json.loads(line) for line in (out / "scan.jsonl").read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if row["type"] == kind]


def summary_of(out: Path) -> dict:
    return json.loads((out / "summary.json").read_text(encoding="utf-8"))
