"""The report: the table line by line, the page as text, its escaping, its charts, its folder and the live page."""

from __future__ import annotations

import html.parser
import json
import re

import pytest

from eval.report import pair_records, render_page, render_table
from eval.report.curves import CURVES, critic_note, curve_section, curves_of
from eval.report.diff import matching_pieces
from eval.report.folder import LivePage, write_page
from eval.report.outcome import Strangers, state_of
from eval.report.page import NO_FLOOR
from eval.report.passages import marked
from eval.report.rows import Row, rows_for
from eval.report.svg import bar_chart, line_chart, round_ticks, tick_label
from eval.report.terms import collect_terms
from eval.results import note_siblings, noted_siblings
from eval.settings import Settings, define

EVIL = '<script>alert("x")</script> & \' "quoted"'


def evaluated(exact: float, bleu: float, perplexity: float) -> dict:
    summary = {"holdout/perplexity": perplexity, "membership/loss_auc": 0.9}
    intervals = {"membership/loss_auc": [0.82, 0.95]}
    for group, factor in (("forget", 1.0), ("never", 0.1)):
        values = {"passages": 2, "exact": exact * factor, "exact_after_12": 0.5, "bleu": bleu * factor, "empty": 0.0}
        values |= {
            "ma_suffix": factor,
            "sequence_p": exact * factor,
            "leak_10": exact * factor,
            "leak_100000": 0.9,
            "exact_after_1": 0.5,
        }
        summary |= {f"{group}/{name}": value for name, value in values.items()}
        intervals[f"{group}/exact"] = [0.0, exact]
    summary |= {"depth/ma_suffix": 0.9, "depth/exact": exact * 0.9}
    intervals["depth/exact"] = [0.1, 0.95]
    return {
        "summary": summary,
        "intervals": intervals,
        "definitions": define(summary, Settings()),
        "signatures": {"bleu": "BLEU|eff:yes"},
        "settings": {},
    }


def records(outputs: list[str], exact: list[float]) -> list[dict]:
    truths = ["call Anna Berg at nine", EVIL]
    return [
        {"id": f"p{i}", "group": "forget", "kind": "letter", "repeats": 3, "prompt": EVIL, "truth": truths[i],
         "output": output, "bleu": 50.0, "exact": exact[i], "verbatim_run": 2.0}
        for i, output in enumerate(outputs)
    ]  # fmt: skip


BEFORE, AFTER = evaluated(0.95, 90.0, 12.0), evaluated(0.04, 38.0, 12.24)
PAIRS = pair_records(records(["call Anna Berg at nine", EVIL], [1.0, 1.0]), records(["call me at ten", ""], [0.0, 0.0]))
METRICS = [
    {"step": i, "score/mean": -0.9 + 0.05 * i, "kl/per_sequence": 0.1 * i * i, "kl/coef": 0.2} for i in range(12)
]
METRICS[4]["forget/exact"] = 0.5
METRICS[8]["score/mean"] = float("nan")


@pytest.fixture(scope="module")
def page() -> str:
    return render_page(
        title=f"DeMem {EVIL}", before=BEFORE, after=AFTER, passages=PAIRS, metrics=METRICS,
        config={"learning_rate": 1e-4, "note": EVIL}, meta={"commit": "abc123", "seed": 0},
    )  # fmt: skip


def test_table_is_aligned_and_complete() -> None:
    lines = render_table(BEFORE["summary"], AFTER["summary"]).splitlines()
    assert lines[0].split("  ")[-1].strip() == "never trained (2)"
    assert re.search(r"^Exact extraction, greedy\s+95\.0 % →\s+4\.0 %\s+9\.5 % →\s+0\.4 %$", lines[2])
    assert any(line.startswith("… after 12 more true tokens") for line in lines)
    assert re.search(r"^Held-out perplexity\s+12\.00 →\s+12\.24\s+\(x1\.020\)$", "\n".join(lines), flags=re.M)
    rows = [line for line in lines if "→" in line and "%" in line]
    assert len({line.index("→") for line in rows}) == 1
    assert "→" not in render_table(BEFORE["summary"])
    (line,) = [x for x in render_table(BEFORE["summary"], intervals=BEFORE["intervals"]).splitlines() if "AUC" in x]
    assert re.fullmatch(r"Membership AUC, loss +0\.90  \(95 %: 0\.82 to 0\.95; chance: 0\.50\)", line)
    assert "N-BLEU" not in "".join(lines)


def test_a_rounding_error_below_zero_is_zero() -> None:
    row = Row("n_bleu", "N-BLEU", "score", "Similarity")
    assert [row.text(value) for value in (-4e-14, -0.06, None)] == ["0.0", "-0.1", "-"]


def test_rows_are_those_of_the_measured_quantities() -> None:
    assert [r.quantity for r in rows_for(["forget/bleu", "keep/exact", "forget/exact_after_7", "holdout/nll"])] == [
        "exact", "exact_after_7", "bleu",
    ]  # fmt: skip


def test_matching_pieces_by_hand() -> None:
    assert matching_pieces("call Anna now", "please call Anna") == [("call Anna", True), (" now", False)]
    assert matching_pieces("x . y", "a . b") == [("x . y", False)]  # a full stop alone does not match
    assert matching_pieces("", "a") == []
    for output in ("a b  c", "  b", "a-b, c!"):
        assert "".join(text for text, _ in matching_pieces(output, "a b c")) == output


def test_states_and_marks() -> None:
    assert [state_of(p, Strangers()) for p in PAIRS] == ["gone", "gone"]
    assert marked("call me", "call Anna") == '<div class="text"><mark>call</mark> me</div>'
    assert marked(" ", "x") == '<div class="text none">empty</div>'
    assert "after" not in pair_records(records(["a", "b"], [0.0, 0.0]))[0]
    with pytest.raises(ValueError, match="not about the same passages"):
        pair_records(records(["a", "b"], [0.0, 0.0]), records(["a"], [0.0]))


class Reader(html.parser.HTMLParser):
    """Counts elements, checks that they nest, and collects attributes that could load something."""

    VOID = ("meta", "input", "br")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append(tag)
        self.links += [(name, value) for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    return reader


def test_page_is_well_formed_loads_nothing_and_escapes_everything(page) -> None:
    reader = read(page)
    assert {name for name, _ in reader.links} == {"href"}
    assert all(f'id="{link[1:]}"' in page for _, link in reader.links if link and link[0] == "#")
    assert all(link and link[0] == "#" for _, link in reader.links)  # within the page
    assert reader.tags.count("script") == 1  # ours
    assert "<script>alert" not in page
    assert (
        page.count("&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt;") >= 5
    )  # title, heading, prompts, truth, config
    assert reader.tags.count("article") == 2
    assert 'name="viewport"' in page
    assert "prefers-color-scheme" in page
    assert "@media print" in page
    assert not re.search(r"https?://", page)


def test_page_carries_the_numbers_and_their_definitions(page) -> None:
    assert '<span class="was">95.0 % &rarr;</span> 4.0 %' in page
    assert "\N{MULTIPLICATION SIGN}1.020" in page
    label = '<button type="button" class="term" data-def="exact">Exact extraction, greedy</button>'
    assert f'<th scope="row">{label}</th><td data-def="exact" data-of="forget">' in page
    assert ">Share of passages whose whole suffix greedy decoding reproduces from the prefix.</dd>" in page
    assert page.count('id="def-exact"') == 1
    assert "chance floor 9.0" in page
    assert "membership AUC, 0.82 to 0.95; chance 0.50" in page
    assert "not reported: 2 never-trained passages, it takes 100" in page
    assert "abc123" in page
    assert page.count('class="line"') == 2  # score and KL; the single probe is a dot
    assert "nan" not in page.lower().replace("covenant", "")


def test_page_of_one_model_only() -> None:
    page = render_page(title="Attack", before=BEFORE, passages=pair_records(records(["a", "b"], [0.0, 1.0])))
    read(page)
    assert "before any unlearning" in page
    assert "&rarr;" not in page
    assert ">Training</h2>" not in page
    assert 'class="state still">extracted<' in page
    short = render_page(title="Attack", before=BEFORE, passages=PAIRS, most_passages=1)
    assert "the first 1 of 2" in short


def test_ticks_are_round_and_cover() -> None:
    assert round_ticks(0, 1, 4) == [0, 0.5, 1.0]
    assert round_ticks(3, 17, 4, is_whole=True) == [0, 5, 10, 15, 20]
    assert [tick_label(t, 0.05) for t in (21.3, 21.35)] == ["21.30", "21.35"]
    assert [tick_label(t, 5) for t in (0, 15)] == ["0", "15"]
    assert round_ticks(2, 2, 4)[0] < 2 < round_ticks(2, 2, 4)[-1]
    assert round_ticks(-0.013, 0.021, 4) == [-0.02, -0.01, 0, 0.01, 0.02, 0.03]


def test_a_kl_that_nothing_measured_has_no_curve() -> None:
    terms = collect_terms({}, {c.term: (c.title, c.definition) for c in CURVES})
    assert "KL to the reference" in curve_section(METRICS, CURVES, terms)
    free = [{**row, "kl/coef": 0.0, "kl/per_sequence": 0.0} for row in METRICS]
    assert "KL to the reference" not in curve_section(free, CURVES, terms)
    assert "KL to the reference" not in curve_section([{"step": 0, "kl/per_sequence": 0.0}], CURVES, terms)


def test_forced_states_have_curves_of_their_own_and_none_of_responses() -> None:
    plain = {"step": 0, "score/mean": 0.0, "kl/coef": 1.0, "kl/per_sequence": 161.0, "response/entropy": 1.5,
             "response/distinct_share": 1.0, "retain/loss": 0.02, "forget/exact": 0.5}  # fmt: skip
    forced = plain | {"forced/states": 9.0, "forced/true_token_p": 0.9, "forced/kl": 2.1, "forced/own_kl": 2.0}

    def titles(row: dict[str, float]) -> list[str]:
        curves = curves_of([row])
        assert len({curve.term for curve in curves}) == len(curves)
        text = curve_section([row], curves, collect_terms({}, {c.term: (c.title, c.definition) for c in curves}))
        return re.findall(r'data-def="curve:[^"]+">([^<]+)</button>', text)

    assert curves_of([plain]) == CURVES
    assert titles(plain) == [
        "Forget: exact extraction", "Score, mean", "KL to the reference, nats per sequence",
        "Entropy of the sampler, nats per token", "Share of different responses", "Retain loss",
    ]  # fmt: skip
    assert titles(forced) == [
        "Forget: exact extraction", "Probability of the true token, at the step&#x27;s states",
        "KL to the bounded reference, nats per state", "… in texts of the policy&#x27;s own, nats per state",
        "Entropy of what actions are drawn from, nats per state", "Retain loss",
    ]  # fmt: skip


def test_a_critic_that_is_worse_than_a_constant_is_told() -> None:
    rows = [{"step": i, "value/explained_variance": value} for i, value in enumerate((-0.5, -0.1, 0.2))]
    assert "negative in 2 of 3 steps" in critic_note(rows)
    assert "negative in 2 of 3 steps" in curve_section(rows, CURVES, collect_terms({}, {}))
    assert critic_note(rows[1:]) == critic_note([]) == critic_note([{"step": 0}]) == ""


def test_charts_by_hand() -> None:
    chart = line_chart([(0, 1.0), (10, 3.0)], label="a & b")
    read(chart)
    assert 'aria-label="a &amp; b, 1 at step 0 to 3 at 10"' in chart
    start, end = re.search(r'points="([\d.,]+) ([\d.,]+)"', chart).groups()
    assert float(start.split(",")[0]) < float(end.split(",")[0])
    assert float(start.split(",")[1]) > float(end.split(",")[1])  # larger values are drawn higher
    read(line_chart([(3, 0.0)], label="one point"))
    bars = bar_chart([("x", 100.0, 50.0), ("y", 0.0, None)], label="bars", top=100, mark=(25.0, "floor"))
    read(bars)
    widths = [float(w) for w in re.findall(r'<rect class="\w+" x="108" y="\d+" width="([\d.]+)"', bars)]
    assert widths == [188.0, 94.0, 1.0]


def write_folder(out, *, is_over: bool) -> None:
    results = {"meta": {"seed": 0}, "before": BEFORE} | ({"after": AFTER} if is_over else {})
    (out / "evaluation.json").write_text(json.dumps(results))
    (out / "config.json").write_text(json.dumps({"options": {}, "config": {"target_kl_per_sequence": 6.0}}))
    free = [{name: value for name, value in row.items() if name != "kl/coef"} for row in METRICS]
    groups = {group: {"passages": 64, "bleu": bleu, "intervals": {"bleu": [bleu - 3, bleu + 3]}}
              for group, bleu in (("forget", 35.0), ("never", 5.0))}  # fmt: skip
    attack = {"name": "relearning steps:20|not taught", "groups": groups}
    (out / "attacks.json").write_text(json.dumps({"before": {"attacks": [attack]}, "after": {"attacks": []}}))
    for name, rows in (("passages", PAIRS), ("metrics", free)):
        (out / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    samples = [{"step": step, "prompt": EVIL, "response": f"response {step}", "score": -0.5} for step in (10, 11, 11)]
    (out / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in samples))


def with_secrets(found: dict, forget: float, holdout: float) -> dict:
    more = {"forget/secret_emitted": forget, "forget_holdout/secret_emitted": holdout, "never/secret_emitted": 0.0,
            "forget_holdout/passages": 2, "forget_holdout/exact": 0.0, "forget_holdout/bleu": 5.0}  # fmt: skip
    summary = found["summary"] | more
    return found | {"summary": summary, "definitions": define(summary, Settings())}


def test_secrets_come_first_in_tiles_and_in_the_chart_of_what_comes_out() -> None:
    page = render_page(title="x", before=with_secrets(BEFORE, 1.0, 1.0), after=with_secrets(AFTER, 0.0, 0.475))
    tiles = page[page.index('<div class="tiles">') : page.index("<nav")]
    assert tiles.index("47.5 %") < tiles.index("forget-holdout extracted whole")
    assert "secret of the forget-holdout still emitted; never trained 0.0 %" in tiles
    out = page[page.index('id="out"') : page.index('id="numbers"')]
    assert out.index("Passages with a secret still emitted, %") < out.index("Exact extraction, %")
    assert "47.5" in out


def test_a_chance_floor_below_which_secrets_fit_is_not_drawn(page) -> None:
    assert "chance floor 9.0" in page
    refused = render_page(title="x", before=BEFORE, after=AFTER, meta={NO_FLOOR: True})
    assert "chance floor 9.0" not in refused
    assert "the dashed line" not in refused
    assert f"<dt>{NO_FLOOR}</dt><dd>true</dd>" in refused


def test_what_was_unlearned_beside_the_passages_stands_on_the_page_and_in_the_folder(tmp_path) -> None:
    note_siblings(tmp_path, ["a"])
    assert noted_siblings(tmp_path) == {}  # no run's folder
    (tmp_path / "config.json").write_text("{}")
    note_siblings(tmp_path, ["card of Ann\ud800", "card of Ben"])
    note_siblings(tmp_path, [])  # a run that goes on finds its note
    facts = noted_siblings(tmp_path)
    assert facts == {"also unlearned": "2 texts of the same form that the model recited by itself"}
    page = render_page(title="x", before=BEFORE, after=AFTER, meta=facts)
    assert "Also unlearned: 2 texts of the same form that the model recited by itself." in page
    assert json.loads((tmp_path / "siblings.json").read_text())[1] == "card of Ben"
    (tmp_path / "siblings.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"siblings\.json is damaged"):
        noted_siblings(tmp_path)


def test_page_of_a_folder(tmp_path) -> None:
    write_folder(tmp_path, is_over=True)
    write_page(tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    read(page)
    assert page.index('id="verdict"') < page.index('id="out"')
    assert "<b>Not clean: the model was harmed (held-out perplexity over the original&#x27;s 1.020 against" in page
    assert "Perhaps by chance: greedy extraction 4.0 % against 0.4 %; membership AUC 0.90 against 0.50." in page
    assert '<th scope="row">BLEU after relearning</th>' not in page  # it was measured on the other model
    assert "before and after" in page
    assert page.count("<article") == 2
    assert "nats, summed over a response" in page  # the comment of a Config field
    assert "refresh" not in page


def test_live_page_shows_the_progress_and_stops_reloading_at_the_end(tmp_path) -> None:
    write_folder(tmp_path, is_over=False)
    times = iter((100.0, 130.0))
    live = LivePage(tmp_path, steps=60, clock=lambda: next(times))
    path = tmp_path / "report.html"
    live.rest()
    assert not path.exists()
    live.show(6)
    assert "left at most" not in path.read_text(encoding="utf-8")  # one call does not tell the speed
    live.show(12)
    page = path.read_text(encoding="utf-8")
    read(page)
    assert '<meta http-equiv="refresh" content="5">' in page
    assert "Step 12 of at most 60; forget set extracted 50.0 %; score -0.350; 4 min 00 s left at most." in page
    assert "KL to" not in page.partition("How much")[0]  # without a penalty KL is not measured, and its 0 means nothing
    assert page.index('id="training"') < page.index('id="samples"') < page.index('id="numbers"')
    assert page.count("response 11") == 2
    assert "response 10" not in page
    assert page.count("&lt;script&gt;") == 2
    live.rest()
    page = path.read_text(encoding="utf-8")
    cells = '<td data-def="judged">35.0</td><td data-def="judged">5.0</td>'
    assert f'<th scope="row">BLEU after relearning</th>{cells}' in page  # of the model that is shown
    assert "refresh" not in page
    assert page.count("<article") == 2
    path.write_text("somebody else's")
    live.rest()
    assert path.read_text() == "somebody else's"
