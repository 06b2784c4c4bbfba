"""``demem.py attacks``: what a determined attacker gets out of the model, before and after unlearning.

Greedy decoding from the prefix is the weakest attack there is. This command tries the others (``eval/attacks``) on the
original model of a run and, where the run has trained, on ``model/``. It writes ``attacks.json`` (numbers alone) and,
in the extraction challenge's format, ``guesses-before.csv`` and ``guesses-after.csv`` (token ids that came back).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from torch import nn

import ppo
from data.types import Passage
from eval import challenge
from eval.attacks.relearning import ON
from eval.attacks.result import CONTROL, DEFINITIONS, render_attacks, summarise
from eval.attacks.suite import NAMES, AttackSettings, chosen_names, make_attacks
from eval.attacks.suite import run_attacks as run_suite
from eval.results import write_json
from models.load import LoadedModel
from ppo.io.options import given_values, parse_value
from unlearning.run import Run, load_model, prepare, say

Summary = dict[str, Any]
LESS = "less never"
"""The column of what a group gives away beyond never-trained passages."""


@dataclass(frozen=True)
class Attacker:
    """Attacks by name, the groups of passages that they attack, and their settings. Without a name nothing happens."""

    names: tuple[str, ...] = ()
    groups: tuple[str, ...] = ("forget", "forget_holdout", "never")
    settings: AttackSettings = AttackSettings()

    def of(self, config: ppo.Config) -> Attacker:
        """The same attacker with a run's seed. Relearning takes the precision of the run's training."""
        return replace(self, settings=replace(self.settings, seed=config.seed, autocast=config.autocast))

    def chosen(self, passages: Sequence[Passage]) -> list[Passage]:
        """The passages in the groups that are attacked."""
        return [p for p in passages if p.group in self.groups]

    def attack(
        self,
        model: nn.Module,
        tokenizer: Any,
        passages: Sequence[Passage],
        *,
        label: str,
        benign: Sequence[Sequence[int]] = (),
    ) -> list[Summary]:
        """The summaries of all attacks on a model. ``label`` names the model in the terminal.

        ``benign``: text that has nothing to do with the passages, for relearning.
        """
        results = run_suite(
            model, tokenizer, passages, names=self.names, settings=self.settings, benign=benign,
            say=lambda name: say(f"{label}: {name}"),
        )  # fmt: skip
        return [summarise(result, seed=self.settings.seed) for result in results]


@dataclass(frozen=True)
class AttackOptions:
    """Which attacks, on which passages, how hard. Every number in a list is a variant of its own."""

    attacks: tuple[str, ...] = ("all",)  # all, or any of greedy, context, sampling, beam, … (docs/demem.md)
    attack_groups: tuple[str, ...] = Attacker.groups  # groups of passages to attack
    attack_samples: int = 8  # samples a passage, under each sampler and for the challenge
    temperatures: tuple[str, ...] = ("0.7", "1.0")  # of the samplers' grid
    top_ks: tuple[str, ...] = ("0", "40")  # of the grid; 0 keeps all tokens
    top_ps: tuple[str, ...] = ("1.0",)  # of the grid; 1 keeps all tokens
    beams: int = 4  # width of the beam search
    hints: tuple[str, ...] = ("1", "5", "12", "25")  # true suffix tokens that are shown
    shortened_to: tuple[str, ...] = ("25", "10")  # tokens that shortened prefixes keep
    relearning_on: tuple[str, ...] = (
        ON  # forget: a quarter of the forget set; benign: text to keep; filler: its tokens mixed
    )
    relearning_steps: tuple[str, ...] = ("5", "10", "20")  # fine-tuning steps
    relearning_rate: float = 2e-4  # their learning rate
    bits: tuple[str, ...] = ("8", "4")  # of the weights, rounded to nearest

    def settings(self) -> AttackSettings:
        """The settings of the suite. ValueError names the option whose value is no number."""
        return AttackSettings(
            num_samples=self.attack_samples,
            temperatures=tuple(self._numbers("temperatures", float)),
            top_ks=tuple(self._numbers("top_ks", int)),
            top_ps=tuple(self._numbers("top_ps", float)),
            num_beams=self.beams,
            kept=tuple(self._numbers("shortened_to", int)),
            hints=tuple(self._numbers("hints", int)),
            relearning_on=tuple(self.relearning_on),
            relearning_steps=tuple(self._numbers("relearning_steps", int)),
            relearning_rate=self.relearning_rate,
            bits=tuple(self._numbers("bits", int)),
        )

    def attacker(self) -> Attacker:
        """The attacker that was asked for. ValueError, before anything is loaded, for what cannot work."""
        names, settings = chosen_names(self.attacks), self.settings()
        make_attacks(names, settings)
        return Attacker(tuple(names), tuple(self.attack_groups), settings)

    def _numbers(self, name: str, kind: type) -> list[Any]:
        return [parse_value(name, text, kind) for text in getattr(self, name)]


def run_attacks(parsed: argparse.Namespace) -> None:
    """Attack the run's original model and, where there is one, ``model/``. Print the table and write the files.

    ValueError, before anything is loaded, for options that cannot work.
    """
    attacker = AttackOptions(**given_values(parsed, AttackOptions)).attacker()
    run = prepare("attacks", parsed)
    attacker = attacker.of(run.config)
    if not attacker.chosen(run.study.passages):
        raise ValueError(f"--attack-groups {' '.join(attacker.groups)}: the data has no passage in these groups")
    models = {"before": run.loaded}
    if (run.out / "model" / "config.json").is_file():
        models["after"] = load_model(run.options, run.out / "model")
    found: dict[str, Summary] = {}
    for label, loaded in models.items():
        found[label] = attack_one(run, label, loaded, attacker)
    write_json(run.out / "attacks.json", {"meta": run.meta(), "settings": attacker.settings.to_dict(),
                                          "definitions": DEFINITIONS, **found})  # fmt: skip
    show(found)
    say(f"\nattacks: {run.out / 'attacks.json'}")


def attack_one(run: Run, label: str, loaded: LoadedModel, attacker: Attacker) -> Summary:
    """The attacks on one model. Where all of them are asked for, the challenge's score as well."""
    started, passages = time.perf_counter(), attacker.chosen(run.study.passages)
    summary: Summary = {
        "attacks": attacker.attack(loaded.model, loaded.tokenizer, passages, label=label, benign=run.study.retain)
    }
    trained = [p for p in passages if p.group != "never"]
    if set(attacker.names) == set(NAMES) and trained:
        say(f"{label}: challenge")
        summary["challenge"] = score_challenge(run, label, loaded, trained, attacker.settings)
    say(f"{label}: {len(passages)} passages attacked in {time.perf_counter() - started:.0f} s")
    return summary


def score_challenge(
    run: Run, label: str, loaded: LoadedModel, passages: Sequence[Passage], settings: AttackSettings
) -> Summary:
    """Recall at 100 errors over the passages whose suffix is the longest there is. The guesses go into a CSV file.

    As in the challenge, every example may have been memorised, so never-trained passages are no examples. Example IDs
    count the examples in their order.
    """
    length = max(len(p.suffix) for p in passages)
    chosen = [p for p in passages if len(p.suffix) == length]
    guesses = challenge.make_guesses(
        loaded.model, [p.prefix for p in chosen], length, num_samples=settings.num_samples, seed=settings.seed
    )
    challenge.write_guesses(run.out / f"guesses-{label}.csv", guesses)
    score = challenge.recall_at_errors(guesses, [p.suffix for p in chosen])
    signature = challenge.signature(challenge.BASELINE, num_samples=settings.num_samples, seed=settings.seed)
    return {"signature": signature, "examples": len(chosen)} | {f.name: getattr(score, f.name) for f in fields(score)}


def beside_never(attacks: Sequence[Summary], quantity: str) -> list[Summary]:
    """The summaries that have a control, with three columns of one number: a group, never trained, and the difference.

    The group is the forget set where it was attacked, else the first one that is no control.
    """
    found = []
    for attack in attacks:
        differences = {g: values[quantity] for g, values in attack.get("over_never", {}).items() if quantity in values}
        if differences:
            group = "forget" if "forget" in differences else next(iter(differences))
            columns = {g: {quantity: attack["groups"][g][quantity]} for g in (group, CONTROL)}
            found.append(attack | {"groups": columns | {LESS: {quantity: differences[group]["value"]}}})
    return found


def show(found: dict[str, Summary]) -> None:
    """Secrets, exact extraction and BLEU of every attack, before and after."""
    before, after = found["before"], found.get("after", {"attacks": []})
    for quantity, title in (
        ("secret", "Secret still emitted in any try"),
        ("run", "Longest verbatim run of any try, tokens"),
        ("exact", "Exact extraction in any try"),
        ("bleu", "BLEU of the best try"),
    ):
        if not any(quantity in group for attack in before["attacks"] for group in attack["groups"].values()):
            continue  # no passage has a secret
        say(f"\n{title}\n{render_attacks(before['attacks'], after['attacks'], quantity=quantity)}")
    for quantity, title in (
        ("secret", "Secret still emitted"),
        ("exact", "Exact extraction"),
        ("bleu", "BLEU of the best try"),
    ):
        sides = [beside_never(side["attacks"], quantity) for side in (before, after)]
        if sides[0]:
            say(f"\n{title}, beside never-trained passages under the same attack")
            say(render_attacks(sides[0], sides[1], quantity=quantity))
    recalls = [f"{label} {one['challenge']['recall']:.1%}" for label, one in found.items() if "challenge" in one]
    if recalls:
        say(f"\nChallenge: recall at {challenge.MAX_ERRORS} errors, {', '.join(recalls)}")
