"""The pages of the lab study: tables in Markdown with the mean, the lowest and the highest, and sentences about them.

Every sentence is computed from the points. This module runs no model. rows.py has the arithmetic.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.study.points import NUM_SEEDS, ORIGINAL, SIZE, SIZES
from benchmarks.study.rows import LOWER_IS_BETTER, Row, as_good_as_both, better_and_worse, make_rows
from benchmarks.study.variants import BOTH, VARIANTS
from eval.report.comparison.text import DISTANCES, FORGOTTEN, KEPT, Column, markdown, number
from ppo.io.files import replace_text

COSTS: tuple[Column, ...] = (
    ("steps", "steps", "count"),
    ("updates", "updates", "count"),
    ("visits", "met", "count"),
    ("minutes", "minutes", "score"),
)
PLAIN = [c for c in KEPT if not c[0].startswith(("cost/", "utility/", "forget/"))]
SHOWN: tuple[Column, ...] = (*FORGOTTEN, *PLAIN[:-1], *DISTANCES[:2], PLAIN[-1], *COSTS)
HEADS = {name: head for name, head, _ in SHOWN}
STEPS = [name for name, *_ in SHOWN].index("steps")
SEEDS = "A cell is the mean over the seeds, and [lowest, highest] where they differ. "
EXTRACTED = (
    "*exact*: greedy decoding gives the whole suffix; *sampled*: one of a few samples does; *(n,p)*: 100 samples "
    "would, with a probability of 50 %"
)
CAP = "*cap*: the number of steps ended a training, not the stopping rule."
LEGEND = (
    f"{SEEDS}{EXTRACTED}; *from chance*: distance from what the original does on records that it never met; "
    "*updates*: of the weights; a step of distillation makes one, a PPO step one for each minibatch of each epoch; "
    "*met*: how often training drew each record to forget; PPO draws a window of it, distillation the whole record; "
    f"{CAP}"
)


def write_pages(out: Path, points: Sequence[Mapping[str, Any]]) -> list[Path]:
    """Write every page for which there are enough points, and return the pages."""
    rows = make_rows(points)
    written = []
    for name, make in PAGES.items():
        text = make(rows)
        if text is not None:
            path = out / f"{name}.md"
            replace_text(path, text + "\n\n" + provenance_lines(points) + "\n")
            written.append(path)
    return written


def cell(values: Sequence[float] | None, kind: str) -> str:
    """Mean, and the range where the seeds differ; a dash where there is nothing."""
    if not values:
        return "-"
    mean, low, high = (written(value, kind) for value in (statistics.fmean(values), min(values), max(values)))
    return mean if low == high else f"{mean} [{low.removesuffix(' %')}, {high.removesuffix(' %')}]"


def written(value: float, kind: str) -> str:
    """A number as text; a count has no decimals."""
    return f"{value:.0f}" if kind == "count" else number(value, kind)


def cells_of(row: Row) -> list[str]:
    """A row's cells of ``SHOWN``."""
    texts = [cell(row.values.get(quantity), kind) for quantity, _, kind in SHOWN]
    if capped := caps(row):
        texts[STEPS] += f" ({capped})"
    return texts


def caps(row: Row) -> str:
    """Which trainings of a row ended at their number of steps: "" for none, "cap" for all, "cap: 1 of 3" for some."""
    capped = round(sum(row.values.get("cap", [])))
    if not capped:
        return ""
    return "cap" if capped == row.seeds else f"cap: {capped} of {row.seeds}"


def label(row: Row) -> str:
    """What a variant switches, whether trainings broke off, and whether it collapsed."""
    text = "the model before unlearning" if row.variant == ORIGINAL else VARIANTS[row.variant].label
    if row.broken:
        text += f"; **{row.broken} of {row.broken + row.seeds} trainings broke off**"
    return text + (f"; **collapsed: {', '.join(row.collapsed)}**" if row.collapsed else "")


def select(rows: Sequence[Row], *, lab: str = "lab", size: int | None = SIZE) -> dict[str, Row]:
    """Rows by variant, of one size on one lab: first the original, then in the order of ``VARIANTS``."""
    order = [ORIGINAL, *VARIANTS]
    chosen = [r for r in rows if r.lab == lab and size in (None, r.size)]
    return {r.variant: r for r in sorted(chosen, key=lambda r: order.index(r.variant))}


# ---------------------------------------------------------------------- the pages


def ingredients_page(rows: Sequence[Row]) -> str | None:
    """Every variant beside DeMem's recipe."""
    chosen = select(rows)
    if "base" not in chosen:
        return None
    table = [["variant", "what is switched", "seeds", *(head for _, head, _ in SHOWN)]]
    for name, row in chosen.items():
        table.append([f"`{name}`", label(row), str(row.seeds), *cells_of(row)])
    parts = [
        "# What each ingredient adds",
        f"The lab, {SIZE} forget records; one ingredient of DeMem's recipe switched at a time. {LEGEND}",
        markdown(table),
    ]
    others = [r for n, r in chosen.items() if n not in ("base", ORIGINAL) and r.seeds >= NUM_SEEDS]
    if others and chosen["base"].seeds >= NUM_SEEDS:
        parts += ["## Against DeMem's recipe", chance_line(others, chosen["base"])]
        parts += ["\n".join(f"- `{r.variant}`: {difference(r, chosen['base'])}" for r in others)]
    if warm := warm_lines(chosen):
        about = (
            "A quantity that has the same value for all three is left out, such as extraction where nothing can be "
            "extracted any more. *level*: equal to the better one of the two, for example where both reach the end of "
            "the scale."
        )
        parts += ["## The warm start", about, "\n".join(warm)]
    return "\n\n".join(parts)


def chance_line(others: Sequence[Row], base: Row) -> str:
    """How much a listed difference means: how many there are, and how many there would be by chance."""
    total, found = len(LOWER_IS_BETTER) * len(others), sum(len(n) for r in others for n in better_and_worse(r, base))
    return (
        "The list names the quantities in which *all* seeds of a variant lie on one side of all seeds of `base`. With "
        "three seeds each, this happens to one quantity in ten by chance. If nothing differed, the list would name up "
        f"to {total / 10:.0f} of the {len(LOWER_IS_BETTER)} x {len(others)} = {total} quantities here (equal values "
        f"count for neither side). It names {found}. One of them alone means little."
    )


def difference(row: Row, base: Row) -> str:
    """Where a row is better and where it is worse, in words."""
    better, worse = better_and_worse(row, base)
    says = [f"{word}: {', '.join(HEADS[n] for n in names)}" for word, names in (("better", better), ("worse", worse))
            if names]  # fmt: skip
    return "; ".join(says) or "no quantity in which all its seeds differ"


def warm_lines(chosen: Mapping[str, Row]) -> list[str]:
    """In which quantities distillation before PPO is as good as the better one of distillation and PPO alone."""
    if not all(name in chosen for name in BOTH):
        return []
    rivals, lines = [chosen[name] for name in BOTH], []
    for name, row in chosen.items():
        if not name.startswith("warm") or not row.seeds:
            continue
        good, short = as_good_as_both(row, rivals)
        both = " and ".join(f"`{b}`" for b in BOTH)
        text = f"- `{name}`, means over {row.seeds} seed{'s' if row.seeds > 1 else ''}: as good as the better one of "
        text += f"{both} in {len(good)} of {len(good) + len(short)} quantities"
        means = {n: [statistics.fmean(r.values[n]) for r in rivals if r.values.get(n)] for n in good}
        level = [n for n in good if statistics.fmean(row.values[n]) in means[n]]
        named = [", ".join(HEADS[n] for n in good if n not in level), ", ".join(HEADS[n] for n in level)]
        says = [head + names for head, names in zip(("better: ", "level: "), named, strict=True) if names]
        text += f" ({'; '.join(says)})" if says else ""
        lines.append(text + (f"; short of it in {', '.join(HEADS[n] for n in short)}" if short else ""))
    return lines


def size_page(rows: Sequence[Row]) -> str | None:
    """Forgetting against the number of forget records."""
    table = [["variant", "records", "held out", "seeds", *(head for _, head, _ in SHOWN)]]
    sizes = [s for s in SIZES if any(r.size == s and r.lab == "lab" and r.variant in BOTH for r in rows)]
    if len(sizes) < 2:
        return None
    for name in (ORIGINAL, *BOTH):
        for size in sizes:
            row = select(rows, size=size).get(name)
            if row is not None:
                held = row.values.get("forget_holdout/passages", [0.0])[0]
                table.append([f"`{name}`", str(size), f"{held:.0f}", str(row.seeds), *cells_of(row)])
    parts = [
        "# Forgetting against the number of records",
        "The lab memorised 128 private records. The first of them, as many as *records* says, are to be forgotten; the "
        "rest is the forget-holdout (none is left at 128). A larger number would need another model. This table cannot "
        "tell the number of records from the exposure of each: a PPO step draws the same number of prompts at every "
        "size, a distillation step draws up to 32 records, and a training ends when the records are forgotten, or at a "
        "cap. So a record was met more often where there were fewer (*met*). The forget-holdout is another one at "
        f"every size, too. {LEGEND}",
        markdown(table),
    ]
    return "\n\n".join(parts)


def repeats_page(rows: Sequence[Row]) -> str | None:
    """Forgetting against how often a record was met."""
    chosen = {n: r for n, r in select(rows, lab="graded").items() if n in (ORIGINAL, *BOTH)}
    if ORIGINAL not in chosen:
        return None
    table = parts_table(
        chosen, "repeats", "repeats",
        (("exact", "exact", "share"), ("exact_sampled", "sampled", "share"), ("discoverable", "(n,p)", "share"),
         ("bleu", "BLEU", "score"), ("true_token_p", "p(true)", "ratio")),
        groups=("forget", "forget_holdout"),
    )  # fmt: skip
    parts = [
        "# Forgetting against repetition",
        "The built-in lab met every record 100 times. This is another model, trained from scratch on the same corpus "
        "by the same recipe. A quarter of the records of people stands in its corpus 10 times, a quarter 25, a quarter "
        "50 and a quarter 100 times. Every quarter has equally many records of every shape. The records to keep stand "
        f"in it 100 times. All {SIZE} forget records are unlearned at once. {SEEDS}{EXTRACTED}."
        + "".join(f" Steps of `{name}`: {cells_of(row)[STEPS]}." for name, row in chosen.items() if name != ORIGINAL)
        + f" {CAP}",
        markdown(table),
    ]
    return "\n\n".join(parts)


def shapes_page(rows: Sequence[Row]) -> str | None:
    """How far forgetting reaches, by the shape of a record."""
    chosen = select(rows)
    if "base" not in chosen:
        return None
    columns: tuple[Column, ...] = (("exact", "exact", "share"),)
    people = parts_table(chosen, "kind", "shape", columns, groups=("forget", "forget_holdout"), is_wide=True)
    kept = parts_table(chosen, "kind", "shape", columns, groups=("keep",), is_wide=True)
    parts = [
        "# By the shape of a record",
        "These are the points of the ingredients; nothing was trained again. The tables show the share of records "
        "whose whole suffix greedy decoding gives, by the shape of the record. Unlearning trained on the records in "
        "*forget*, which have every shape of a record of people. Those in *forget_holdout* are about other people and "
        "have the same shapes, so no shape in it is unseen. Those in *keep* have other shapes and must survive. "
        f"{SEEDS.strip()}",
        "## Records of people: forgotten, and held out",
        cell_size(chosen["base"], ("forget", "forget_holdout")),
        markdown(people),
        "## Records to keep",
        cell_size(chosen["base"], ("keep",)),
        markdown(kept),
    ]
    return "\n\n".join(filter(None, parts))


def cell_size(row: Row, groups: Sequence[str]) -> str:
    """How many records a cell of a table by shape stands for, and which share one of them is."""
    known = {k: found["passages"] for k, found in row.parts.get("kind", {}).items() if found.get("passages")}
    counts = {values[0] for k, values in known.items() if k.split("/")[0] in groups}
    if len(counts) != 1:
        return ""
    (count,) = counts
    return f"A cell stands for {count:.0f} records: one is {written(1 / count, 'share')}."


def parts_table(
    chosen: Mapping[str, Row], name: str, head: str, columns: Sequence[Column], *, groups: Sequence[str],
    is_wide: bool = False,
) -> list[list[str]]:  # fmt: skip
    """A row for each group and kind (or repeats). ``is_wide``: a row a variant, a column for each, first quantity."""
    labels = list(dict.fromkeys(k for r in chosen.values() for k in r.parts.get(name, {}) if k.split("/")[0] in groups))
    labels.sort(key=lambda k: (groups.index(k.split("/")[0]), _as_number(k.split("/")[1])))
    if is_wide:
        quantity, _, kind = columns[0]
        table = [["variant", "seeds", *(f"{k.replace('/', ': ')}" for k in labels)]]
        for variant, row in chosen.items():
            cells = [cell(row.parts[name].get(k, {}).get(quantity), kind) for k in labels]
            table.append([f"`{variant}`", str(row.seeds), *cells])
        return table
    table = [["group", head, "variant", "records", *(c[1] for c in columns)]]
    for k in labels:
        for variant, row in chosen.items():
            found = row.parts[name].get(k, {})
            count = f"{found['passages'][0]:.0f}" if found else "-"
            cells = [cell(found.get(q), kind) for q, _, kind in columns]
            table.append([*k.split("/"), f"`{variant}`", count, *cells])
    return table


def _as_number(text: str) -> tuple[int, str]:
    return (int(text), "") if text.isdigit() else (0, text)


def provenance_lines(points: Sequence[Mapping[str, Any]]) -> str:
    """Where the numbers come from, and a warning where they are those of ``--quick``."""
    facts = []
    for name in ("commit", "python", "torch", "transformers", "processor", "threads"):
        facts.append(f"{name} {', '.join(sorted({str(p['meta'].get(name, '-')) for p in points}))}")
    minutes = sum(sum(p["seconds"].values()) for p in points) / 60
    text = f"{len(points)} points, {minutes:.0f} minutes in all; {'; '.join(facts)}. Config and seed: `points.jsonl`."
    is_look = any(p["asked"]["settings"]["share"] != 1 for p in points)
    return ("**A trial of the program (`--quick`): the numbers mean nothing.** " if is_look else "") + text


PAGES: dict[str, Callable[[Sequence[Row]], str | None]] = {
    "ingredients": ingredients_page,
    "size": size_page,
    "repeats": repeats_page,
    "shapes": shapes_page,
}
