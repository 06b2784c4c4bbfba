"""What each detail of PPO does: the same task with one detail switched at a time, three seeds each.

    python -m benchmarks.ablations                        # all variants, 3 seeds; goes on where it was stopped
    python -m benchmarks.ablations --variants no-kl,base  # some of them
    python -m benchmarks.ablations --quick                # try whether it runs: 3 steps, 1 seed, no page
    python -m benchmarks.ablations --render               # the table of what is there, into docs/algorithm.md

The task: the lab's model continues general English and is paid for the letter e, ten times its share of the letters.
So nearly every token counts, the score is easy to raise without writing well, and held-out perplexity shows the damage.
Every point
(variant, seed) is a JSON file in ``points/`` until ``python -m benchmarks.points`` packs it; one that is there is not
measured again, unless its config has changed since.
The table goes into the page only when every point of it was measured with the same settings, three seeds each.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ppo
from benchmarks.ablations.variants import STEPS, VARIANTS
from data.lab import lab_holdout, lab_retain
from eval.perplexity import perplexity
from eval.points import find_point, store_point, stored_points
from eval.provenance import provenance
from models.load import LoadedModel, load
from ppo.lm.backbone import evaluation_mode

PAGE = Path(__file__).resolve().parents[2] / "docs" / "algorithm.md"
BEGIN, END = "<!-- ablations: begin -->", "<!-- ablations: end -->"
PROMPT_TOKENS = 8
COLUMNS = {
    "score": "score",
    "kl_per_sequence": "KL, nats a response",
    "perplexity_ratio": "held-out perplexity after / before",
    "distinct_share": "distinct responses",
    "largest_step_kl": "largest step: KL to the policy before it, nats a token",
}


@dataclass(frozen=True)
class Settings:
    """What all points of a table have in common. ``end_prompts``: prompts of the measurement after training."""

    steps: int = STEPS
    end_prompts: int = 64
    holdout: int = 24


QUICK = Settings(steps=3, end_prompts=8, holdout=2)


def letter_e(samples: list[ppo.Sample]) -> list[float]:
    """Ten times the share of e among the letters; 0 where there are none."""
    letters = [[c for c in sample.text.lower() if c.isalpha()] for sample in samples]
    return [10 * some.count("e") / len(some) if some else 0.0 for some in letters]


def run_point(name: str, seed: int, settings: Settings) -> dict[str, Any]:
    """Train one variant with one seed, and measure the result."""
    lab = load("lab")
    texts = lab_retain(lab.tokenizer, 64)
    prompts = [ids[:PROMPT_TOKENS] for ids in texts]
    variant = VARIANTS[name]
    config = variant.config(seed=seed)
    retain = texts if config.retain_coef > 0 else None
    start = copy.deepcopy(lab.model)
    trainer = ppo.Trainer(lab.model, prompts, letter_e, config, tokenizer=lab.tokenizer, retain=retain)
    variant.prepare(trainer)
    started, history = time.perf_counter(), []
    error = None
    for _ in range(settings.steps):
        rollout = trainer.rollout()
        try:
            metrics = trainer.update(rollout)
        except (FloatingPointError, ppo.CheckError) as broken:  # a result, not a failure: this training diverges
            error = str(broken)
            break
        history.append({**rollout.metrics, **metrics, "step_kl": step_kl(trainer, rollout)})
    return {
        "variant": name,
        "seed": seed,
        "settings": asdict(settings),
        "config": config.to_dict(),
        "found": measure_end(lab, start, prompts, config, settings) | summarise(history),
        "scores": [row["score/mean"] for row in history],
        "error": error,
        "seconds": time.perf_counter() - started,
        "machine": provenance(),
    }


def step_kl(trainer: ppo.Trainer, rollout: ppo.Rollout) -> float:
    """How far one step moved the policy: KL(before || after) on the step's own responses, nats a token."""
    generation = rollout.generation
    with evaluation_mode(trainer.policy.actor):  # whatever a variant has switched on
        after = ppo.FrozenReference(trainer.policy.actor.policy, trainer.policy.sampling).logprobs(
            generation, rollout.samples
        )
    return float((generation.logprobs - after).sum() / generation.mask.sum())


def measure_end(
    lab: LoadedModel, start: Any, prompts: Sequence[list[int]], config: ppo.Config, settings: Settings
) -> dict[str, float]:
    """Measure new responses at temperature 1 to the last prompts, and perplexity on text that was never trained on."""
    sampling = ppo.Sampling(response_length=config.response_length)
    asked = list(prompts[-settings.end_prompts :])
    generation = ppo.generate(lab.model, asked, sampling, seed=1000 + config.seed)
    ids = [tokens[mask].tolist() for tokens, mask in zip(generation.tokens, generation.mask, strict=True)]
    samples = [ppo.Sample("", lab.decode(r), p, r, {}, False) for p, r in zip(asked, ids, strict=True)]
    ref_logprobs = ppo.FrozenReference(start, sampling).logprobs(generation, samples)
    holdout = lab_holdout(lab.tokenizer, 128)[: settings.holdout]
    return {
        "score": statistics.fmean(letter_e(samples)),
        "kl_per_sequence": float((generation.logprobs - ref_logprobs).sum(dim=1).mean()),
        "perplexity_ratio": perplexity(lab.model, holdout).value / perplexity(start, holdout).value,
        "distinct_share": len({tuple(r) for r in ids}) / len(ids),
    }


def summarise(history: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The largest step, the clip fraction and the log-prob gap of a training. NaN where no step was finished."""
    nan = float("nan")
    return {
        "largest_step_kl": max((row["step_kl"] for row in history), default=nan),
        "clip_fraction": statistics.fmean([row.get("policy/clip_fraction", nan) for row in history] or [nan]),
        "logprob_gap": max((row["rollout/logprob_gap"] for row in history), default=nan),
    }


def main(arguments: Sequence[str]) -> int:
    options = read_options(arguments)
    settings = QUICK if options.quick else Settings()
    points = [(name, seed) for seed in range(options.seeds) for name in options.variants]
    if not options.render:
        for number, (name, seed) in enumerate(points):
            measure_point(options.out, name, seed, settings, label=f"{number + 1}/{len(points)}")
    results = read_points(options.out, settings)
    table, missing = render(results, seeds=options.seeds)
    print(table)
    if options.quick or missing or options.seeds < 3:
        reason = f"{missing} points are missing" if missing else "--quick" if options.quick else "it shows three seeds"
        print(f"docs/algorithm.md is left as it is: {reason}")
        return 0
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), table), encoding="utf-8")
    print(f"{PAGE} shows the table")
    return 0


def read_options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--variants", default=",".join(VARIANTS), help="names, separated by commas (default: all)")
    parser.add_argument("--seeds", type=int, default=None, help="seeds 0, 1, … (default 3)")
    parser.add_argument("--out", type=Path, default=None, help="folder of the points (default results/ablations)")
    parser.add_argument("--quick", action="store_true", help="3 steps, 1 seed, into runs/ablations-quick")
    parser.add_argument("--render", action="store_true", help="measure nothing: write the table of what is there")
    options = parser.parse_args(arguments)
    options.variants = options.variants.split(",")
    if unknown := [name for name in options.variants if name not in VARIANTS]:
        parser.error(f"unknown variant {unknown[0]!r}; choose from {', '.join(VARIANTS)}")
    options.seeds = options.seeds or (1 if options.quick else 3)
    options.out = options.out or Path("runs/ablations-quick" if options.quick else "results/ablations")
    return options


def measure_point(out: Path, name: str, seed: int, settings: Settings, *, label: str) -> None:
    """Measure a point unless it is there and was measured with today's settings. Its file is whole or not there."""
    key = f"{name}-seed{seed}"
    known = find_point(out, key)
    if known is not None and is_current(known, settings):
        return
    result = run_point(name, seed, settings)
    store_point(out, key, result)
    found = result["found"]
    print(
        f"{label} {name}, seed {seed}: score {found['score']:.2f}, KL {found['kl_per_sequence']:.1f}, "
        f"{result['seconds']:.0f} s" + (f"; {result['error']}" if result["error"] else ""),
        flush=True,
    )


def is_current(point: Mapping[str, Any], settings: Settings) -> bool:
    """Whether a point was measured with these settings, and with the config that its variant has now.

    A config field that is newer than the point counts as having its default.
    """
    variant = VARIANTS.get(point["variant"])
    if variant is None or point["settings"] != asdict(settings):
        return False
    defaults, today = ppo.Config().to_dict(), variant.config(seed=point["seed"]).to_dict()
    return bool({**json.loads(json.dumps(defaults)), **point["config"]} == json.loads(json.dumps(today)))


def read_points(out: Path, settings: Settings) -> list[dict[str, Any]]:
    """The points of a folder that were measured with the settings and configs of now."""
    return [point for point in stored_points(out) if is_current(point, settings)]


def render(points: Sequence[Mapping[str, Any]], *, seeds: int) -> tuple[str, int]:
    """The table of all variants, and the number of missing points. A cell is the mean and the range over the seeds."""
    lines = ["| variant | what is switched | " + " | ".join(COLUMNS.values()) + " |", "|---" * (2 + len(COLUMNS)) + "|"]
    missing = 0
    for name, variant in VARIANTS.items():
        mine = [point for point in points if point["variant"] == name and point["seed"] < seeds]
        missing += seeds - len(mine)
        if mine:
            cells = [cell([point["found"][column] for point in mine]) for column in COLUMNS]
            broken = sum(point["error"] is not None for point in mine)
            label = variant.label + (f" (**{broken} of {len(mine)} runs broke**)" if broken else "")
            lines.append(f"| `{name}` | {label} | " + " | ".join(cells) + " |")
    if points:
        machine, settings = points[0]["machine"], points[0]["settings"]
        versions = f"Python {machine['python']}, torch {machine['torch']}"
        commits = ", ".join(sorted({str(point["machine"]["commit"]) for point in points}))
        lines.append(
            f"\n{settings['steps']} steps, mean over {seeds} seeds [lowest, highest]; commit {commits}, "
            f"{versions}, {machine['processor']}, {machine['threads']} thread(s)."
        )
    return "\n".join(lines), missing


def cell(values: Sequence[float]) -> str:
    """Mean, and the range where there is more than one value."""
    mean = f"{statistics.fmean(values):.3g}"
    return mean if len(values) == 1 else f"{mean} [{min(values):.3g}, {max(values):.3g}]"


def with_table(page: str, table: str) -> str:
    """The page with the table between its marks. ValueError for a page without them."""
    if page.count(BEGIN) != 1 or page.count(END) != 1:
        raise ValueError(f"{PAGE} must hold {BEGIN} and {END} once each")
    before, _, rest = page.partition(BEGIN)
    return before + BEGIN + "\n" + table + "\n" + END + rest.partition(END)[2]
