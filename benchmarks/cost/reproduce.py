"""docs/reproduce.md: what the models of the DeMem paper take, by the cost model.

    python -m benchmarks.cost.reproduce     # prints the table of the page

Computed, not measured: :mod:`benchmarks.cost.page` says what is assumed and how far it is off.
"""

from __future__ import annotations

from .architecture import KNOWN, Architecture
from .device import H100
from .estimate import estimate
from .plan import Plan

MODELS = ("gpt-neo-125m", "gpt-neo-1.3b", "gpt-neo-2.7b", "opt-125m", "opt-1.3b", "opt-2.7b")
STEPS = 60  # of the preset paper, at most
TRAININGS = 9  # three sizes, three seeds
ROWS = 1500
CONTINUATIONS = 6  # of each row: greedy behind the prefix and behind all of the prompt, and four samples
PLAN = Plan(prompts=32, minibatch=8, epochs=8, precision="autocast")
ROLLOUT = Plan(prompts=64, epochs=1, precision="autocast")


def row(arch: Architecture) -> list[str]:
    """A row of the table: what one model takes."""
    found = estimate(arch, PLAN, H100)
    step = found.seconds()
    attack = estimate(arch, ROLLOUT, H100).seconds("rollout") * ROWS * CONTINUATIONS / ROLLOUT.prompts
    return [
        arch.name,
        f"{arch.parameters / 1e6:,.0f} M",
        f"{found.memory.peak / 1e9:.1f} GB",
        f"{step:.2f} s",
        f"{STEPS * step / 60:.1f} min",
        f"{TRAININGS * STEPS * step / 3600:.1f} h",
        f"{attack:.0f} s",
    ]


def table() -> str:
    """The table, as Markdown."""
    head = [
        "model",
        "parameters",
        "peak memory",
        "step",
        f"{STEPS} steps",
        f"{TRAININGS} trainings",
        "attack, sampling",
    ]
    rows = [head, ["---"] * len(head), *(row(KNOWN[name]) for name in MODELS)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


if __name__ == "__main__":
    print(table())
