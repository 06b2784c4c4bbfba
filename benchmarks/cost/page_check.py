"""The part of docs/scale.md that compares the model with every committed measurement."""

from __future__ import annotations

from collections.abc import Sequence

from .check import LEAST_OF_ROLLOUT, LIMIT, Check, Comparison, cell
from .device import H100
from .misses import BUSY, MISSES, RETURNED

_FSDP = "0.94 to 1.17"
_QUANTITIES = ("rollout", "step", "peak")


def beside_measurements(checks: Sequence[Check]) -> str:
    """The measurements, the rollout, step and peak of every variant, and where the model is good and where not."""
    if not checks:
        return "## The same model beside measurements\n\nNot in this copy: the page was written without `--check`."
    return f"""## The same model beside measurements

The same arithmetic can be checked on a CPU. `python -m benchmarks.cost_model --check results/speed/update*.json` does
so, part by part, for all results of `benchmarks.update` that hold their machine's rates. From a measurement the model
takes the rates of the three matrix products of one linear layer, of fused attention, of reading memory and of writing
to new memory, and the memory that the process held before it had a model. Nothing is fitted to a result. The model
counts what the library does now, even where it did something else when it was measured.

{_sources(checks)}

A cell is predicted / measured = ratio. A star marks an error beyond its limit: {LIMIT:.0%} for a step and for the
peak; the prediction of a rollout may be as low as {LEAST_OF_ROLLOUT:g} of the measurement.

{_rows(checks)}

{_verdict(checks)}"""


def _sources(checks: Sequence[Check]) -> str:
    lines = []
    for check in checks:
        machine, options = check.result["machine"], check.result["options"]
        threads = "one thread" if machine["threads"] == 1 else f"{machine['threads']} threads"
        rows = f"microbatches of {options['microbatch']}" if options["microbatch"] else "all rows at once"
        steps = "one step" if options["repeats"] == 1 else f"{options['repeats']} steps"
        epochs = "one epoch" if options["epochs"] == 1 else f"{options['epochs']} epochs"
        lines.append(
            f"- `{check.name}`: {options['model']}, {options['prompts']} prompts, {options['prompt_length']}+"
            f"{options['response_length']} tokens, {epochs}, {rows}; {steps} timed on {machine['processor']}, "
            f"{threads}, commit {machine['commit']}" + (f". **Busy**: {BUSY[check.name]}" if check.name in BUSY else "")
        )
    return "\n".join(lines)


def _rows(checks: Sequence[Check]) -> str:
    lines = ["| measurement | variant | " + " | ".join(_QUANTITIES) + " |", "|---" * (len(_QUANTITIES) + 2) + "|"]
    for check in checks:
        found = {(c.variant, c.quantity): c for c in check.comparisons}
        for variant in dict.fromkeys(c.variant for c in check.comparisons):
            cells = [cell(found[variant, quantity]) for quantity in _QUANTITIES]
            name = check.name.removeprefix("update-").removesuffix(".json")
            lines.append(f"| {name}{' (busy)' if check.name in BUSY else ''} | {variant} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def counted(checks: Sequence[Check], quantity: str) -> list[tuple[Check, Comparison]]:
    """One quantity of every variant, without the times of busy machines."""
    return [
        (check, comparison)
        for check in checks
        for comparison in check.comparisons
        if comparison.quantity == quantity and (quantity == "peak" or check.name not in BUSY)
    ]


def misses(checks: Sequence[Check]) -> list[tuple[str, str, str]]:
    """File, variant and quantity of every counted error beyond its limit."""
    found = [pair for quantity in _QUANTITIES for pair in counted(checks, quantity)]
    return [(check.name, c.variant, c.quantity) for check, c in found if not c.is_close]


def _verdict(checks: Sequence[Check]) -> str:
    own = misses(checks)
    reasons = "\n".join(
        f"  - {quantity} of {variant} in `{file}`: {MISSES.get((file, variant, quantity), 'not explained yet')}."
        for file, variant, quantity in own
    )
    return f"""Where the model is good, and where not (times of a busy machine are shown, but not counted):

- **A step's time** is good: {_share(checks, "step")}.
  The update is most of a step, and the model counts it well.
- **A rollout's time** is always too low: {_share(checks, "rollout")}.
  Two costs are not counted: products of few rows do not reach the rate of a layer of many rows, and each of a block's
  small operations costs a call. Read a rollout of this page as a lower bound, and expect up to twice as much, on a GPU
  as well.
- **The peak** is good, but low: {_share(checks, "peak")}.
  It lacks the freed memory that the C library keeps, and the libraries that the first rollout loads. The error is
  largest for LoRA, which holds little else. No large tensor is missing: with
  `MALLOC_MMAP_THRESHOLD_=131072 MALLOC_TRIM_THRESHOLD_=131072` before `python -m benchmarks.update` the C library gives
  freed memory back at once, and then the peaks are, predicted / measured: {_returned()}
  ([results/speed/returned-memory](../results/speed/returned-memory): 16 prompts, one epoch, one thread, commands and
  commit). The {H100.reserved / 1e9:.0f} GB assumed above are meant to include what CUDA's allocator keeps.
- **FSDP2**: no time was compared. In an update two gloo processes hold, beside weights and moments, {_FSDP} of the
  prediction, for LoRA and in full, with a tied output layer and with a separate one
  (`python -m pytest -m slow tests/benchmarks/test_cost_fsdp.py`; gloo copies once more what it sends).
- Errors beyond their limit:
{reasons}
- The library has changed since some files were measured. A separate critic was asked together with the policy (before
  commit 3535536), and a tied embedding had a second gradient (before f0b2863: cb9311a and 74ba5e5). The model counts
  neither.

This comparison shows how well the model counts. It does not show that a GPU reaches the shares assumed above."""


def _returned() -> str:
    return "; ".join(
        f"{name}: " + ", ".join(f"{variant} {low:.2f} / {held:.2f} GiB" for variant, (low, held) in peaks.items())
        for name, peaks in RETURNED.items()
    )


def _share(checks: Sequence[Check], quantity: str) -> str:
    ratios = [comparison.ratio for _, comparison in counted(checks, quantity)]
    close = sum(comparison.is_close for _, comparison in counted(checks, quantity))
    return f"{close} of {len(ratios)} within their limit, ratios {min(ratios):.2f} to {max(ratios):.2f}"
