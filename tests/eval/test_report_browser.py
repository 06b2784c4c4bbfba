"""The report in a real browser: filters, order, definitions by mouse, keyboard and finger, phone, print, dark mode."""

from __future__ import annotations

import json

import pytest

from eval.pareto import means
from eval.report import pair_records, render_page
from eval.report.comparison.page import render_comparison
from tests.eval.test_pareto import TWIN, original, point
from tests.eval.test_report import AFTER, BEFORE, METRICS

EVIL = "</script></style><script>window.isBroken = 1</script><img src=x onerror='window.isBroken = 2'> \"&\u2028"
LONG = "x" * 400
TEXTS = [  # id, group, true suffix, output before, output after
    ("a-1", "forget", "call Anna Berg at nine", "call Anna Berg at nine", "call me at ten"),
    ("a-2", "forget", "the code is 4711", "the code is 4711", "the code is 4711"),
    ("a-3", "forget", EVIL, EVIL, ""),
    ("b-1", "never", LONG, "nothing of it", LONG),
    ("b-2", "never", "white\n  space", "dark", "light"),
]
VISIBLE = "return [...document.querySelectorAll('.passage')].filter(c => c.checkVisibility())" + (
    ".map(c => c.querySelector('b').textContent)"
)
TIP = "const tip = document.getElementById('tip'); return tip.hidden ? null : tip.textContent"
SIDEWAYS = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
EXACT = "Share of passages whose whole suffix greedy decoding reproduces from the prefix."
UNREADABLE = """
const texts = (svg) => [...svg.querySelectorAll("text")].filter(t => t.textContent)
  .map(t => [t.textContent, t.getBBox()]);
const meet = (a, b) => a.x < b.x + b.width && b.x < a.x + a.width && a.y < b.y + b.height && b.y < a.y + a.height;
return [...document.querySelectorAll("svg")].flatMap(svg => {
  const frame = svg.viewBox.baseVal, all = texts(svg);
  const outside = all.filter(([, b]) => b.x < 0 || b.y < 0 || b.x + b.width > frame.width
    || b.y + b.height > frame.height).map(([name]) => "outside: " + name);
  const pairs = all.flatMap(([name, a], i) => all.slice(i + 1).filter(([, b]) => meet(a, b))
    .map(([other]) => name + " over " + other));
  return [...outside, ...pairs]; });
"""
FRAME = "await new Promise(done => requestAnimationFrame(() => setTimeout(done)))"


def records(column: int) -> list[dict]:
    return [
        {"id": text[0], "group": text[1], "kind": "note", "repeats": 3, "prompt": f"Prompt {EVIL}", "truth": text[2],
         "output": text[column], "bleu": 100.0 if text[column] == text[2] else 10.0 + i, "length": 5, "length_truth": 9,
         "verbatim_run": 1.0, "secrets": ["4711"] if "4711" in text[2] else [],
         "exact": float(text[column] == text[2])}
        for i, text in enumerate(TEXTS)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    file = tmp_path_factory.mktemp("report") / "report.html"
    file.write_text(
        render_page(
            title=f"Report {EVIL}", before=BEFORE, after=AFTER, metrics=METRICS,
            passages=pair_records(records(3), records(4)), meta={"command": f"demem.py --data {LONG}"},
            config={EVIL: EVIL, "seed": 0}, config_notes={"seed": EVIL},
        ),
        encoding="utf-8",
    )  # fmt: skip
    return file


def choose(page, name: str, value: str) -> None:
    page.run(
        f"const select = document.getElementById('{name}'); select.value = {json.dumps(value)};"
        "if (select.value !== " + json.dumps(value) + ") throw new Error('no such option');"
        "select.dispatchEvent(new Event('change', {bubbles: true}));"
    )


def test_nothing_is_requested_and_no_text_becomes_markup(browser, path):
    with browser.open(path) as page:
        assert page.run("return window.isBroken === undefined && document.images.length === 0")
        assert page.run("return document.scripts.length") == 1
        assert page.run("return document.querySelector('.prompt').textContent") == f"Prompt {EVIL}".replace(
            "\u2028", "U+2028"
        )
        assert page.run("return [...document.querySelectorAll('.passage')][2].querySelectorAll('mark').length > 0")
        choose(page, "state", "still secret part gone unknown")
        page.hover("tbody td")
        assert page.errors == page.requests == []


def test_filters_and_order(browser, path):
    with browser.open(path) as page:
        assert page.run(VISIBLE) == ["a-1", "a-2", "a-3", "b-1", "b-2"]
        choose(page, "group", "never")
        assert page.run(VISIBLE) == ["b-1", "b-2"]
        choose(page, "group", "")
        for state, wanted in (
            ("still", ["a-2"]), ("gone", ["a-1", "a-3"]), ("new", ["b-1"]), ("never", ["b-2"]),
            ("still secret part gone unknown", ["a-1", "a-2", "a-3"]), ("still secret part new", ["a-2", "b-1"]),
        ):  # fmt: skip
            choose(page, "state", state)
            assert page.run(VISIBLE) == wanted
        choose(page, "group", "forget")
        assert page.run(VISIBLE) == ["a-2"]
        assert page.run("return document.getElementById('count').textContent") == (
            "1 of 5 passages; only: forget, something comes out after"
        )
        page.click("#filters button")
        assert page.run(FRAME + ";" + VISIBLE) == ["a-1", "a-2", "a-3", "b-1", "b-2"]
        page.run("document.getElementById('words').focus()")
        for letter in "White sp":
            page.press(letter)
        assert page.run(VISIBLE) == ["b-2"]  # case and white space do not matter
        page.press("Enter")  # submits no form
        assert page.run(VISIBLE) == ["b-2"]
        page.click("#filters button")
        assert page.run(FRAME + "; return document.getElementById('count').textContent") == "5 of 5 passages"
        choose(page, "sort", "fall -1")
        assert page.run(VISIBLE) == ["a-1", "a-3", "a-2", "b-2", "b-1"]
        choose(page, "sort", "after 1")
        assert page.run(VISIBLE) == ["a-1", "a-3", "b-2", "a-2", "b-1"]
        page.click("#filters button")
        assert page.run(FRAME + ";" + VISIBLE) == ["a-1", "a-2", "a-3", "b-1", "b-2"]
        assert page.errors == []


def test_every_number_has_a_definition(browser, path):
    with browser.open(path) as page:
        assert page.run(
            "return [...document.querySelectorAll('.tile, tbody td, .range, .charts > div, .side span')]"
            ".filter(e => !e.dataset.def || !document.getElementById('def-' + e.dataset.def)).map(e => e.outerHTML)"
        ) == []  # fmt: skip
        labels = "[...document.querySelectorAll('.term')].map(e => e.dataset.def)"
        numbers = "[...document.querySelectorAll('[data-def]')].map(e => e.dataset.def)"
        assert page.run(f"const labels = new Set({labels}); return {numbers}.filter(name => !labels.has(name))") == []
        assert page.run("return [...document.querySelectorAll('dd[id]')].filter(e => !e.textContent).length") == 0


def test_definitions_by_mouse(browser, path):
    with browser.open(path) as page:
        assert page.run(TIP) is None
        page.hover("td[data-def=exact][data-of=forget]")
        assert page.run(TIP) == f"Exact extraction, greedy, forget{EXACT}"
        page.hover("td[data-def=exact] .range")
        assert page.run(TIP).startswith("95 % interval")
        page.hover("#tip")
        assert page.run(f"await new Promise(done => setTimeout(done, 300)); {TIP}")  # the definition stays
        page.hover("h1")
        assert page.run(f"await new Promise(done => setTimeout(done, 300)); {TIP}") is None


def test_definitions_by_keyboard(browser, path):
    with browser.open(path, width=390, height=844) as page:
        page.run("""document.querySelector('.scroll[aria-label="Every number"]').focus()""")
        page.press("Tab")
        assert page.run("return document.activeElement.textContent") == "Exact extraction, greedy"
        assert page.run(TIP) == f"Exact extraction, greedy{EXACT}"
        assert page.run("return document.activeElement.getAttribute('aria-describedby')") == "tip"
        box = page.run("return document.getElementById('tip').getBoundingClientRect().toJSON()")
        assert box["left"] >= 0
        assert box["right"] <= 390
        assert box["top"] >= 0
        assert box["bottom"] <= 844
        page.press("Escape")
        assert page.run(TIP) is None
        page.press("Enter")
        assert page.run(TIP)
        page.press("Tab")
        assert page.run(TIP).startswith("… after 1 more true token")
        page.run("document.activeElement.blur()")
        assert page.run(TIP) is None


def test_everything_can_be_reached_by_keyboard(browser, path):
    with browser.open(path) as page:
        seen = []
        for _ in range(200):
            page.press("Tab")
            seen.append(page.run("const e = document.activeElement; return e.id || e.className || e.tagName"))
            if seen[-1] == "BODY":
                break
        assert {"theme", "scroll", "term", "group", "state", "sort", "words", "SUMMARY"} <= set(seen)
        page.run("document.querySelector('details').querySelector('summary').focus()")
        page.press("Enter")
        assert page.run("return document.querySelector('details').open")


def test_definitions_by_finger_on_a_phone(browser, path):
    with browser.open(path, width=390, height=844, is_phone=True) as page:
        page.tap(".tile")
        assert page.run(TIP) == f"Exact extraction, greedy{EXACT}"
        page.tap("tbody td[data-of='never trained']")
        assert page.run(TIP).startswith("Exact extraction, greedy, never trained")
        assert page.run(SIDEWAYS) == 0
        page.tap("h1")
        assert page.run(TIP) is None


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_no_scrolling_sideways(browser, path, width):
    with browser.open(path, width=width, height=844, is_phone=width < 500) as page:
        page.run("for (const part of document.querySelectorAll('details')) part.open = true")
        assert page.run("return innerWidth") == width
        assert page.run(SIDEWAYS) == 0
        assert page.run(
            "return [...document.querySelectorAll('main *')].filter(e => !e.closest('.scroll, svg') && "
            f"e.getBoundingClientRect().right > {width} + 0.5).map(e => e.outerHTML.slice(0, 80))"
        ) == []  # fmt: skip


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    small = {"utility__cloze": 0.042, "forget_holdout__exact_sampled": 0.1, "never__bleu": 6.0}
    points = [
        original(),
        *(point(value=v, is_default=v == 2.5, holdout__perplexity=70 + v, **small) for v in (1.25, 2.5, 5.0)),
        point("ul", forget__empty=0.9, holdout__perplexity=1e6, utility__cloze=0.0),
        point("dp", "decoding", forget__exact=0.97, holdout__perplexity=85.0, utility__cloze=0.051),
        point("without-forget", "retraining", **TWIN),
    ]
    points += [{**one, "seed": 1, "summary": one["summary"] | {"keep/exact": 0.5}} for one in points[1:]]
    points = [one | {"source": "Author 2024, arXiv 2401.00000, eq. 3"} for one in points]
    file = tmp_path_factory.mktemp("comparison") / "compare.html"
    file.write_text(render_comparison(means(points), points), encoding="utf-8")
    return file


@pytest.mark.parametrize("width", [390, 1280])
def test_the_comparison_can_be_read(browser, comparison, width):
    with browser.open(comparison, width=width, height=844, is_phone=width < 500) as page:
        assert page.run("return [...document.querySelectorAll('svg')].filter(e => e.checkVisibility()).length") == 1
        assert page.run("return [...document.querySelectorAll('table')].filter(e => e.checkVisibility()).length") == 1
        assert page.run(UNREADABLE) == []
        page.run("for (const part of document.querySelectorAll('details')) part.open = true")
        assert page.run(UNREADABLE) == []
        assert page.run(SIDEWAYS) == 0
        assert page.run("return document.querySelectorAll('.key span').length") == 2 * 5  # of the first picture, of all
        assert page.run(
            "return [...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth).length"
        ) == 0 or width < 500  # fmt: skip
        assert page.errors == page.requests == []


def test_definitions_of_the_comparison_by_finger(browser, comparison):
    with browser.open(comparison, width=390, height=844, is_phone=True) as page:
        page.run("for (const part of document.querySelectorAll('details')) part.open = true")
        page.tap("th [data-def='forget/discoverable']")
        meaning = "Share of passages whose suffix would be among 100 samples"
        assert page.run(TIP).startswith(f"(n,p)forget set (memorised, to be unlearned): {meaning}")
        heads = "[...document.querySelectorAll('thead th')]"
        assert page.run(f"return {heads}.filter(e => !e.querySelector('.term')).map(e => e.textContent)") == [
            "method", "verdict", "formula", "settings", "method", "method", "method", "method", "method"
        ]  # fmt: skip
        assert page.run(
            "return [...document.querySelectorAll('.term')]"
            ".filter(e => !document.getElementById('def-' + e.dataset.def)).length"
        ) == 0  # fmt: skip


@pytest.mark.parametrize("width", [390, 1280])
def test_charts_can_be_read(browser, tmp_path, width):
    rows = [{"step": i, "policy/approx_kl": 0.052647 + 1e-5 * i, "score/mean": -1e-4 * i} for i in range(3)]
    file = tmp_path / "report.html"
    file.write_text(render_page(title="Report", before=BEFORE, after=AFTER, metrics=[*METRICS, *rows]), "utf-8")
    with browser.open(file, width=width, height=844, is_phone=width < 500) as page:
        assert page.run("return document.querySelectorAll('svg').length") > 3
        assert page.run(UNREADABLE) == []


def test_print_shows_everything_but_the_controls(browser, path):
    with browser.open(path) as page:
        page.media("print")
        assert len(page.run(VISIBLE)) == 5
        assert page.run("return [...document.querySelectorAll('dd, td')].filter(e => !e.checkVisibility()).length") == 0
        left_out = "['filters', 'theme', 'tip'].filter(id => document.getElementById(id).checkVisibility())"
        assert page.run(f"return {left_out}") == []
        assert page.run("return getComputedStyle(document.querySelector('.scroll')).overflowX") == "visible"
        choose(page, "group", "never")
        assert page.run(VISIBLE) == ["b-1", "b-2"]  # the filtered passages only, and the page says so
        assert page.run("return document.getElementById('count').checkVisibility()")
        assert page.pdf().startswith(b"%PDF")
        assert page.run("return [...document.querySelectorAll('details')].some(part => part.open)") is False


LUMINANCE = """
const channels = (text) => text.match(/[\\d.]+/g).slice(0, 3).map(Number);
const light = (text) => channels(text).map(c => c / 255).map(c => c <= .03928 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
  .reduce((sum, c, i) => sum + c * [.2126, .7152, .0722][i], 0);
const paper = light(getComputedStyle(document.body).backgroundColor);
const ratio = (e) => { const ink = light(getComputedStyle(e).color);
  return (Math.max(ink, paper) + .05) / (Math.min(ink, paper) + .05); };
const texts = ["h1", ".soft", ".was", ".range", ".ends", ".side", ".side span", ".state.still", ".state.gone", "nav a"];
return [paper, Math.min(...texts.map(text => ratio(document.querySelector(text))))];
"""


def test_light_and_dark_can_be_read(browser, path):
    with browser.open(path) as page:
        for scheme, other in (("light", "Dark"), ("dark", "Light")):
            page.media(prefers_color_scheme=scheme)
            paper, contrast = page.run(LUMINANCE)
            assert (paper > 0.5) == (scheme == "light")
            assert contrast >= 4.5  # WCAG AA
            page.go(path)
            assert page.run("return document.getElementById('theme').textContent") == other
            page.click("#theme")
            assert (page.run(LUMINANCE)[0] > 0.5) == (scheme == "dark")
            page.media("print", prefers_color_scheme=scheme)
            assert page.run(LUMINANCE)[0] > 0.9  # paper is white
