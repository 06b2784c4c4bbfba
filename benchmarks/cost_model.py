"""What one PPO step of this library costs on paper: operations, bytes, memory, seconds, for any size and device.

    python -m benchmarks.cost_model --model gpt-neo-1.3b --devices 8 --prompts 256 --precision autocast
    python -m benchmarks.cost_model --model meta-folder/ --devices 8 --sharding fsdp
    python -m benchmarks.cost_model --check update.json     # beside a measurement of benchmarks.update, by part
    python -m benchmarks.cost_model --check results/speed/update*.json --page docs/scale.md

The program only computes: it makes no model and needs no weights. ``--model`` is one of the known shapes, or a folder
with a transformers config.json of a GPT-2, GPT-Neo, OPT or Llama. ``--check`` measures nothing either: it takes the
machine's rates from the same file. Of several files, those without rates are left out. For a single file without them
there is ``--measure-rates``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from benchmarks.cost.architecture import KNOWN, Architecture, from_config
from benchmarks.cost.check import Check, has_rates, plan_of, read_checks, read_result, table
from benchmarks.cost.check import architecture as model_shape
from benchmarks.cost.device import H100
from benchmarks.cost.estimate import Estimate, estimate, remedies
from benchmarks.cost.page import page
from benchmarks.cost.plan import Plan
from benchmarks.machine import peak_memory_bytes
from benchmarks.rates import machine_rates

_CHOICES = {
    "precision": ["float32", "autocast", "bfloat16"],
    "moments": ["float32", "bfloat16"],
    "value_head": ["linear", "critic"],
    "reference": ["copy", "copy-bfloat16", "none"],
    "sharding": ["none", "fsdp"],
}


def main() -> None:
    options = read_options()
    checks = [] if options.check is None else make_checks(options.check, is_measured=options.measure_rates)
    for check in checks:
        print(f"{check.file}: predicted / measured\n\n{table(check.comparisons)}\n")
    if options.page is not None:
        Path(options.page).write_text(page(checks), encoding="utf-8")
    if options.check is None and options.page is None:
        plan = Plan(**{field.name: getattr(options, field.name) for field in fields(Plan)})
        show(estimate(architecture(options.model), plan, H100))


def make_checks(files: Sequence[str], *, is_measured: bool) -> list[Check]:
    """The checks of all files with rates, or of one file whose rates are measured now; prints what is left out."""
    if is_measured or len(files) == 1:
        if len(files) > 1:
            raise SystemExit(f"--measure-rates fits one measurement, not {len(files)}: name a single file")
        return read_checks(files, measure_rates(read_result(files[0])["options"]) if is_measured else None)
    lacking = [file for file in files if not has_rates(read_result(file))]
    for file in lacking:
        print(f"{file}: left out, it holds no rates (--check {file} --measure-rates)\n")
    return read_checks(file for file in files if file not in lacking)


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--model", default="gpt-neo-1.3b", help=", ".join(KNOWN) + ", or a folder with a config.json")
    for field in fields(Plan):
        flag, kind = "--" + field.name.replace("_", "-"), {"bool": bool}.get(str(field.type), int)
        if field.name in _CHOICES:
            parser.add_argument(flag, default=field.default, choices=_CHOICES[field.name])
        elif kind is bool and field.default:
            parser.add_argument(flag.replace("--", "--no-", 1), dest=field.name, action="store_false")
        elif kind is bool:
            parser.add_argument(flag, action="store_true")
        else:
            parser.add_argument(flag, default=field.default, type=int)
    parser.add_argument("--check", nargs="+", default=None, metavar="FILE", help="JSON of benchmarks.update")
    parser.add_argument(
        "--measure-rates", action="store_true", help="measure this machine now, for a file without rates"
    )
    parser.add_argument("--page", default=None, help="write docs/scale.md there")
    return parser.parse_args()


def measure_rates(measured: Any) -> dict[str, float]:
    """The rates of this machine now, for the options of a measurement; "start_memory_bytes", too."""
    start = float(peak_memory_bytes())
    arch, plan = model_shape(measured["model"]), plan_of("shared", measured)
    inputs, outputs = max(arch.linears, key=lambda pair: pair[0] * pair[1])
    layer = (plan.own_microbatch * plan.length, inputs, outputs)
    attention = (plan.own_microbatch, arch.heads, plan.length, arch.head_width)
    return machine_rates(layer, attention) | {"start_memory_bytes": start}


def architecture(name: str) -> Architecture:
    """One of the known shapes, or the shape of a folder's model."""
    if name in KNOWN:
        return KNOWN[name]
    if not Path(name).exists():
        raise SystemExit(f"--model {name!r} is neither a folder nor one of {', '.join(KNOWN)}")
    config: Any = AutoConfig.from_pretrained(name, trust_remote_code=False)
    return from_config(config, Path(name).name)


def show(found: Estimate) -> None:
    """Print every kind of work, then the memory of every phase, then whether the step fits."""
    plan = found.plan
    print(f"{found.arch.name}, {found.arch.parameters / 1e6:,.1f} M parameters, {plan.devices} x {found.device.name}")
    print(f"\n{'one step, one device':36} {'TFLOP':>10} {'GB moved':>10} {'GB sent':>10} {'seconds':>10}")
    for part, seconds in found.seconds_by_part().items():
        for piece in found.work:
            cost = found.device.seconds([piece], devices=plan.devices)
            if piece.part == part and cost > 0:
                print(
                    f"  {piece.name:34} {piece.operations / 1e12:10.2f} {piece.moved / 1e9:10.1f} "
                    f"{piece.sent / 1e9:10.1f} {cost:10.3f}"
                )
        print(f"{part:67} {seconds:12.3f}")
    print(f"\n{'GB on one device':36}")
    for phase, parts in found.memory.phases.items():
        listed = ", ".join(f"{name} {size / 1e9:.1f}" for name, size in parts.items() if size >= 5e7)
        listed += f", reserved {found.memory.reserved / 1e9:.1f}"
        print(f"  {phase:10} {found.memory.total(phase) / 1e9:8.1f}   {listed}")
    print(
        f"\npeak {found.memory.peak / 1e9:.1f} GB of {found.device.memory / 1e9:.0f} GB, in the {found.memory.fullest}"
    )
    if not found.fits:
        names, changed = remedies(found.arch, plan, found.device)
        verdict = "fits with" if changed.fits else "does not fit even with"
        print(f"DOES NOT FIT. It {verdict} {', '.join(names)}: peak {changed.memory.peak / 1e9:.1f} GB")


if __name__ == "__main__":
    main()
