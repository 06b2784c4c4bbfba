"""report.html of a run's folder, made from the files in it: static, or reloading itself while the run trains.

This module knows where the files are; page.py knows what the page looks like.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ppo.config import Config
from ppo.io.options import field_comments
from ppo.io.plain import finite
from ppo.io.plain_files import open_plain
from ppo.io.visible import as_html
from ppo.log import read_jsonl

from ..results import read_settings, replace_text
from ..stored import read_attacks, read_passages, read_results
from .bounds import MOST_SAMPLES, cut_front_html, cut_html
from .curves import is_forced
from .page import render_page

RELOAD_S = 5
_STATES_NOTE = (
    '<p class="soft small">The passage itself stands in the context, and several actions are drawn at each of its '
    "states. Shown is the first one of each state, side by side: a picture of what is drawn, and no text that the "
    "model wrote. Nothing scores it; the reward is the log-ratio to the bounded reference.</p>"
)
_OF_RESPONSES = (
    ("score", "score/mean", 1, 3, ""),
    ("KL to the reference", "kl/per_sequence", 1, 2, " nats per sequence"),
)  # label, metric, factor, decimals, unit
_OF_STATES = (
    ("probability of the true token", "forced/true_token_p", 1, 2, " at the step's states"),
    ("KL to the bounded reference", "forced/kl", 1, 2, " nats per state"),
)


def write_page(out: Path) -> None:
    """Write ``out/report.html`` from evaluation.json, config.json, and passages and metrics if there are any.

    ValueError when the folder holds no evaluation, or a damaged one.
    """
    replace_text(out / "report.html", _render(out, has_passages=True))


class LivePage:
    """report.html of a run that trains. ``show`` rewrites it, browsers reload it, and ``rest`` makes it static.

    It shows the newest samples in place of the passages, because the passages' outputs are still those before training.
    ``steps``: the last step of the training at the latest. ``clock``: a function that gives seconds, for tests.
    """

    def __init__(self, out: Path, *, steps: int, clock: Any = time.monotonic) -> None:
        self._out, self._steps, self._clock = out, steps, clock
        self._began: tuple[int, float] | None = None

    def show(self, step: int) -> None:
        """Write the page with the state of the run after ``step`` steps."""
        now = self._clock()
        self._began = self._began or (step, now)
        first, start = self._began
        left = (now - start) / (step - first) * (self._steps - step) if step > first else None
        metrics = _rows(self._out / "metrics.jsonl")
        page = _render(
            self._out,
            news=_news(metrics, step, self._steps, left),
            samples=_samples(_rows(self._out / "samples.jsonl")),
            reload_s=RELOAD_S,
        )
        replace_text(self._out / "report.html", page)

    def rest(self) -> None:
        """Write the static page, unless another page has replaced the reloading one."""
        path = self._out / "report.html"
        if path.is_file():
            with open_plain(path) as file:
                head = file.read(4000)
            if b'http-equiv="refresh"' in head:
                write_page(self._out)


def _render(
    out: Path,
    *,
    has_passages: bool = False,
    news: str = "",
    samples: str = "",
    reload_s: int | None = None,
) -> str:
    settings, results = read_settings(out), read_results(out)
    after, path = results.get("after"), out / "passages.jsonl"
    title = "DeMem: before and after unlearning" if after else "DeMem: what the model gives away"
    return render_page(
        title="DeMem: unlearning now" if reload_s is not None else title,
        before=results["before"],
        after=after,
        passages=read_passages(path) if has_passages and path.is_file() else [],
        metrics=_rows(out / "metrics.jsonl"),
        config=settings["config"],
        config_notes=field_comments(Config),
        meta=results["meta"],
        attacks=read_attacks(out).get("after" if after else "before", ()),
        news=news,
        samples=samples,
        reload_s=reload_s,
    )


def _rows(path: Path) -> list[dict[str, Any]]:
    return read_jsonl(path) if path.is_file() else []


def _news(metrics: Sequence[Mapping[str, float]], step: int, steps: int, left: float | None) -> str:
    """The progress of the run in one line, and the time at which the page was written."""
    known: dict[str, float] = {}
    for row in metrics:
        known |= row
    parts = [f"Step {step} of at most {steps}"]
    parts += [
        f"{label} {factor * known[name]:.{digits}f}{unit}"
        for label, name, factor, digits, unit in (
            ("forget set extracted", "forget/exact", 100, 1, " %"),
            ("secrets out greedily", "forget/secret_greedy", 100, 1, " %"),
            ("after a hint", "forget/secret_hinted", 100, 1, " %"),
            *_OF_STATES,
            *(() if is_forced(metrics) else _OF_RESPONSES),
            ("KL of the update", "policy/approx_kl", 1, 4, " nats per token"),
        )
        if name in known and (name != "kl/per_sequence" or known.get("kl/coef"))  # without a penalty it is not measured
    ]
    if left is not None:
        minutes, seconds = divmod(round(left), 60)
        parts.append(f"{minutes} min {seconds:02d} s left at most")
    written = time.strftime("%H:%M:%S")
    return (
        f'<div class="news"><p><b>{as_html("; ".join(parts))}.</b></p><p class="soft small">Written at {written}; '
        f"the page loads itself again every {RELOAD_S} s until the run ends.</p></div>"
    )


def _samples(samples: Sequence[Mapping[str, Any]]) -> str:
    """The samples of the newest step, the first of very many. A line that another program wrote is left out.

    At forced states a sample is the first action of each state. Side by side they are no text that anybody wrote, so
    they are told apart, and no score is shown: none was given.
    """
    known = [s for s in samples if finite(s.get("score")) is not None and isinstance(s.get("step"), int)]
    known = [s for s in known if isinstance(s.get("prompt"), str) and isinstance(_written(s), str)]
    newest = [s for s in known if s["step"] == known[-1]["step"]][:MOST_SAMPLES]
    articles = [
        f'<article class="passage"><header><b>{_title(sample)}</b></header>'
        f'<div class="text prompt">{cut_front_html(sample["prompt"])}</div>'
        f'<div class="text">{cut_html(_written(sample))}</div></article>'
        for sample in newest
    ]
    note = _STATES_NOTE if any("first_actions" in sample for sample in newest) else ""
    return note + "".join(articles)


def _written(sample: Mapping[str, Any]) -> Any:
    return sample.get("first_actions", sample.get("response"))


def _title(sample: Mapping[str, Any]) -> str:
    return "first action of each state" if "first_actions" in sample else f"score {sample['score']:.3f}"
