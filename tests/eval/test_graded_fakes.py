"""The verdict on models of which it is known what they are: it must rank them, and call the exact twin alone clean.

    twin      trained as the original was, without the forget set: what exact unlearning gives
    half      weights half-way between the original and the twin
    noise     the original with so much noise on its weights that greedy decoding reproduces nothing
    filter    the original behind a filter that blocks verbatim text
    original  the model that memorised

Between the twin and the original lie models that leak a few passages: the twin's numbers with some of the original's
among them. None of them is clean, however few passages there are. Nothing here is tuned to them: margins and limits are
those of every verdict.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from data.study import load_study
from eval.attacks.relearning import relearning_attack
from eval.attacks.result import summarise
from eval.baselines.decoding import MemFree
from eval.beats import Contest, Field
from eval.clean import judge
from eval.evaluate import Evaluation, evaluate
from eval.intervals import mean_intervals
from eval.membership import membership
from eval.report.verdict import sentences
from eval.settings import Settings, is_share
from eval.teacher import teacher_force
from eval.values import passage_values
from models.load import load
from ppo.lm.backbone import vocabulary_size

pytestmark = pytest.mark.slow
RANKS = ("twin", "half", "noise", "filter", "original")  # from best to worst


def halfway(one: nn.Module, other: nn.Module) -> nn.Module:
    """A copy with the mean of both models' weights."""
    mixed, weights = copy.deepcopy(one), other.state_dict()
    mixed.load_state_dict(
        {k: (v + weights[k]) / 2 if v.is_floating_point() else v for k, v in mixed.state_dict().items()}
    )
    return mixed


def noised(model: nn.Module, strength: float) -> nn.Module:
    """A copy whose matrices have normal noise added: so many times the deviation of their entries."""
    found, generator = copy.deepcopy(model), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weights in found.parameters():
            if weights.dim() > 1:
                weights += strength * weights.std() * torch.randn(weights.shape, generator=generator)
    return found


class Fakes:
    """The evaluations of all models, with what relearning brings back of each."""

    def __init__(self) -> None:
        loaded, twin = load("lab"), load("lab:without-forget")
        self.tokenizer = loaded.tokenizer
        self.study = load_study("lab", loaded.tokenizer, vocabulary_size(loaded.model))
        self.texts = self.study.holdout[:48]
        self.original = loaded.model
        veto = MemFree([list(p.ids) for p in self.study.group("forget")])
        self.models = {"original": loaded.model, "filter": loaded.model, "noise": noised(loaded.model, 0.3),
                       "half": halfway(loaded.model, twin.model), "twin": twin.model}  # fmt: skip
        self.found: dict[str, Evaluation] = {}
        for name, model in self.models.items():
            more: dict[str, Any] = {"generate": veto} if name == "filter" else {}
            baseline = self.found["original"].summary if name != "original" else None
            settings = Settings(num_samples=1, resamples=500, secrets_by=self.study.secrets_by)
            self.found[name] = evaluate(
                model, self.tokenizer, self.study.passages, self.texts, original=self.original, baseline=baseline,
                known=self.study.retain, settings=settings, **more,
            )  # fmt: skip
        self.attacks = {name: self.relearned(model) for name, model in self.models.items() if name != "filter"}
        self.attacks["filter"] = self.attacks["original"]  # the same weights

    def relearned(self, model: nn.Module) -> list[dict[str, Any]]:
        passages = [p for p in self.study.passages if p.group in ("forget", "never")]
        return [summarise(r) for r in relearning_attack(model, self.tokenizer, passages, on=("forget",), steps=(20,))]

    def judge(self, name: str, **more: Any) -> Any:
        return judge(self.found[name].to_dict(), original=self.found["original"].to_dict(), **more)

    def point(self, name: str) -> dict[str, Any]:
        """What a comparison keeps of it."""
        texts = [(s.nll, len(s) - s.start) for s in teacher_force(self.models[name], self.texts)]
        values = passage_values(self.found[name].records, texts)
        return {"method": name, "value": 0.0, "summary": self.found[name].summary, "values": values}


@pytest.fixture(scope="module")
def fakes() -> Fakes:
    return Fakes()


def test_the_fakes_are_what_they_are_meant_to_be(fakes):
    greedy = {name: found.summary["forget/exact"] for name, found in fakes.found.items()}
    assert greedy.pop("original") > 0.9
    assert set(greedy.values()) == {0.0}  # the surface tells none of them apart


def test_the_exact_twin_alone_is_clean(fakes):
    for attacked in (False, True):
        states = {n: fakes.judge(n, attacks=fakes.attacks[n] if attacked else ()).state for n in RANKS}
        assert states == {name: "clean" if name == "twin" else "not clean" for name in RANKS}
    assert sentences(fakes.judge("twin"))[0].startswith("Clean as far as was measured")


def leaking(fakes: Fakes, count: int, *, of: int, never: int) -> dict[str, Any]:
    """The evaluation of a model that knows ``count`` of ``of`` passages by heart, and the others as the twin does."""
    twin, known = (fakes.found[name].records for name in ("twin", "original"))
    places = [i for i, r in enumerate(twin) if r["group"] == "forget" and r["secrets"]][:of]
    forget = [(known if place in places[:count] else twin)[place] for place in places]
    others = [r for r in twin if r["group"] == "never"][:never]
    found = fakes.found["twin"].to_dict()
    summary, intervals = dict(found["summary"]), dict(found["intervals"])
    rng = np.random.default_rng(0)
    for group, rows in (("forget", forget), ("never", others)):
        summary[f"{group}/passages"] = len(rows)
        for name in twin[0]:
            values = np.array([[r[name]] for r in rows if isinstance(r[name], float | int)], dtype=np.float64)
            if len(values) and f"{group}/{name}" in summary:
                low, high = mean_intervals(values, rng=rng, is_share=[is_share(name)])
                summary[f"{group}/{name}"] = float(values.mean())
                intervals[f"{group}/{name}"] = [float(low[0]), float(high[0])]
    scores = (np.array([r["loss"] for r in rows]) for rows in (forget, others))
    power = membership(*scores, rng=rng)
    summary["membership/loss_auc"], intervals["membership/loss_auc"] = power.auc, list(power.auc_interval)
    return found | {"summary": summary, "intervals": intervals}


@pytest.mark.parametrize(
    ("count", "of", "never"),
    [(1, 58, 64), (2, 58, 64), (8, 58, 64), (1, 20, 64), (2, 20, 20), (6, 32, 32), (1, 32, 8), (8, 58, 6)],
)
def test_a_model_that_leaks_a_few_passages_is_not_called_clean(fakes, count, of, never):
    verdict = judge(leaking(fakes, count, of=of, never=never), original=fakes.found["original"].to_dict())
    assert verdict.state != "clean"
    labels = [f.label for f in (*verdict.reasons, *verdict.suspects)]
    assert {"greedy extraction", "secrets in greedy outputs", "secrets still emitted"} <= set(labels)
    assert "secrets still emitted" in sentences(verdict)[0] or verdict.state == "not clean"


def test_the_exact_twin_as_the_target_changes_nothing(fakes):
    twin = fakes.found["twin"].to_dict()
    assert {n: fakes.judge(n, twin=twin).state for n in RANKS[1:]} == dict.fromkeys(RANKS[1:], "not clean")


def test_without_the_original_memory_alone_gives_them_away(fakes):
    states = {name: judge(fakes.found[name].to_dict()).state for name in RANKS}
    assert states == {name: "clean" if name == "twin" else "not clean" for name in RANKS}


def test_the_memory_that_is_left_ranks_them(fakes):
    for twin in (None, fakes.found["twin"].to_dict()):
        left = {name: fakes.judge(name, twin=twin).left for name in RANKS}
        assert sorted(left, key=left.__getitem__) == list(RANKS), left
        assert left["twin"] < 0.1
        assert left["filter"] > 0.7  # what comes out is filtered; what is known is not


def test_a_filter_and_noise_are_found_in_depth_and_by_their_secrets(fakes):
    shown = {name: {f.label for f in fakes.judge(name).reasons} for name in RANKS}
    assert {"secrets still emitted", "suffix accuracy", "longest run of right tokens"} <= shown["filter"]
    assert "greedy extraction" not in shown["filter"]
    assert {"suffix accuracy", "NLL of the suffix", "own tokens readable at a block"} <= shown["noise"]
    assert {"records to keep", "held-out perplexity over the original's"} <= shown["noise"]
    taught = {n: fakes.judge(n, attacks=fakes.attacks[n]) for n in RANKS}
    relearned = {n: "BLEU after relearning" in {f.label for f in v.reasons} for n, v in taught.items()}
    assert (relearned["twin"], relearned["filter"], relearned["original"]) == (False, True, True)


def test_nobody_beats_the_twin_and_it_beats_them_all(fakes):
    points = {name: fakes.point(name) for name in RANKS}
    for twins in ((), (points["twin"],)):
        held = Contest(Field(points["original"], twins))
        assert {n: held.duel([points["twin"]], [points[n]]).outcome for n in RANKS[1:]} == dict.fromkeys(
            RANKS[1:], "beats"
        )
        deeper = held.duel([points["half"]], [points["filter"]])
        assert deeper.outcome == "mixed"  # it has forgotten what the filter hides, and it is broken
        assert {"suffix accuracy", "longest run of right tokens"} <= {d.quantity.label for d in deeper.said("better")}
        assert {"records to keep", "writing"} <= {d.quantity.label for d in deeper.said("worse")}
