"""What every method of a comparison was given, in plain words: updates, rows, values that were tried, text to keep.

A line says it of all methods that have it alike. Every row of a table says where its formula comes from and whether its
settings were tuned. This module knows the points; what they hold is checked in :mod:`eval.compared`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...pareto import Mean
from ..bounds import cut
from ..rows import group_label

Line = tuple[str, str]
"""What a line is about, and what it says."""

ON = {"passage": "windows of the whole passage", "suffix": "the suffix behind its prefix"}
NOT_TUNED, NOTHING = "not tuned", "-"
NOT_STORED = "These points do not say what their methods were given: an earlier version measured them."


def source(mean: Mean) -> str:
    """Where the formula of a method comes from; a dash where its points do not say."""
    return str(mean.points[0].get("source", NOTHING))


def settings(mean: Mean) -> str:
    """Whether the settings of a row were tuned, and which."""
    if mean.kind not in ("training", "decoding"):
        return NOTHING
    tried = _tried(mean)
    return f"{mean.knob}: best of {len(tried)}; the rest {NOT_TUNED}" if len(tried) > 1 else NOT_TUNED


def given_lines(all_means: Sequence[Mean]) -> list[Line]:
    """A line each, of the methods at their defaults. The only one says so where no point holds a budget."""
    chosen = [m for m in all_means if m.is_default and m.kind in ("training", "decoding")]
    trained = [m for m in chosen if any(p.get("budget") for p in m.points)]
    if not trained and any(m.kind == "training" for m in chosen):
        return [("What was given", NOT_STORED)]
    found = [
        ("Updates", _alike(trained, _updates)),
        ("Rows to forget", _alike(trained, _rows)),
        ("Tokens in the losses", _alike(trained, _tokens)),
        ("Values", _values(all_means, chosen)),
        ("Text to keep", _kept(trained)),
        ("Reward", _alike([m for m in chosen if "reward" in m.points[0].get("notes", {})], _reward)),
    ]
    return [(name, text) for name, text in found if text]


def _alike(means: Sequence[Mean], tell: Callable[[Mean], str]) -> str:
    """What is told of some methods, once for all of which it is the same: "a and b: this. c: that."."""
    groups: dict[str, list[str]] = {}
    is_one = len({m.size for m in means}) == 1
    for mean in means:
        groups.setdefault(tell(mean), []).append(mean.method if is_one else f"{mean.method} ({mean.size} records)")
    return " ".join(f"{listed(names)}: {text}." for text, names in groups.items())


def _updates(mean: Mean) -> str:
    used, most = _span(mean, "updates"), _span(mean, "most_updates")
    if not any(p["budget"]["early_end"] for p in mean.points):
        return f"{used}, and no look could end them earlier"
    return f"{used} of at most {most}; a look after every {_span(mean, 'look_every')} could end them"


def _rows(mean: Mean) -> str:
    on = listed(sorted({ON[p["budget"]["forget_on"]] for p in mean.points}))
    own, siblings = (max(p["budget"].get(name, 0) for p in mean.points) for name in ("own_rows", "siblings"))
    more = f"; the policy itself continues {own:,} of them" if own else ""
    more += f"; beside them at most {siblings:,} texts of the same form" if siblings else ""
    return f"{_span(mean, 'update_rows')} in each update, out of {_span(mean, 'rows')}: {on}{more}"


def _tokens(mean: Mean) -> str:
    return f"{_span(mean, 'forget_tokens')} to forget, {_span(mean, 'keep_tokens')} to keep"


def _reward(mean: Mean) -> str:
    return listed(list(dict.fromkeys(p["notes"]["reward"] for p in mean.points)))


def _values(all_means: Sequence[Mean], chosen: Sequence[Mean]) -> str:
    """Which value each method has, of how many that were tried, and on which passages it was chosen."""

    def tell(mean: Mean) -> str:
        tried = _tried(mean)
        if len(tried) > 1:
            return f"{mean.knob} {mean.value:g}, the best of {', '.join(tried)}"
        values = sorted({m.value for m in all_means if (m.method, m.size) == (mean.method, mean.size)})
        shown = f"; {', '.join(f'{v:g}' for v in values)} are all shown" if len(values) > 1 else ""
        return f"{mean.knob} {mean.value:g}, its default{shown}"

    told = _alike([m for m in chosen if m.knob], tell)
    on = [p["tuning"] for m in chosen for p in m.points if len(p.get("tuning", {}).get("tried", ())) > 1]
    if not on:
        return f"{told} Nothing was tuned for this comparison." if told else ""
    places = list(dict.fromkeys(_counted(t["passages"]) for t in on))
    return (
        f"{told} A best value was chosen with one training each, on texts that are not reported: "
        f"{'; or '.join(places)}, and held-out text. The other settings of every method were not tuned."
    )


def _counted(passages: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {cut(group_label(name))}" for name, count in passages.items())


def _kept(trained: Sequence[Mean]) -> str:
    """The text to keep: how much, whose, how much of the records to keep stands in it, and who keeps none."""
    texts = [p["kept"] for m in trained for p in m.points if p.get("kept")]
    points = [p for m in trained for p in m.points if p.get("text_to_keep")]
    groups = list(dict.fromkeys(name for p in points for name in p["text_to_keep"]))
    shares = {name: [100 * p["text_to_keep"].get(name, 0.0) for p in points] for name in groups}
    none = list(dict.fromkeys(m.method for m in trained if not any(p["budget"]["keep_tokens"] for p in m.points)))
    parts = []
    if texts:
        names = ("texts", "tokens", "own", "records")
        count, tokens, own, records = (_range([text[name] for text in texts]) for name in names)
        parts += [f"{count} texts of {tokens} tokens, the same for all methods with a seed."]
        parts += [f"The model wrote {own} of them itself, {records} are records to keep, some more than once."]
    if groups:
        told = [f"{_range(found)} % of those of {cut(group_label(name))}" for name, found in shares.items()]
        parts += [f"Of all runs of 20 tokens, {listed(told)} stand in it."]
    parts += ["The records of keep are held back from it."] if "keep" in groups else []
    parts += [f"{listed(none)} {'keeps' if len(none) == 1 else 'keep'} none."] if none else []
    return " ".join(parts)


def _tried(mean: Mean) -> list[str]:
    """The values among which one was chosen; [] where none was."""
    tuning: Mapping[str, Any] = mean.points[0].get("tuning", {})
    return list(tuning.get("tried", ()))


def _span(mean: Mean, name: str) -> str:
    """A number of the budget, or its range over the seeds."""
    return _range([p["budget"][name] for p in mean.points])


def _range(numbers: Sequence[float]) -> str:
    low, high = (f"{round(number):,}" for number in (min(numbers), max(numbers)))
    return low if low == high else f"{low} to {high}"


def listed(names: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"; "" for none."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else ""
