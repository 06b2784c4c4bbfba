# ruff: noqa: RUF001 (Greek letters are what is meant)
"""The trace as a page: every formula on it gives the number on it, and no text becomes markup."""

import html.parser
import json
import math
from dataclasses import replace

import pytest

from ppo.trace import render_trace_page, render_trace_text
from ppo.trace.formulas import numbers_at, quantities_of, symbols_of
from ppo.trace.text import opening_token
from tests.ppo.trace.small import assert_agrees, last_digit, make, trace_of


class Elements(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.attributes, self.scripts, self._in_script = [], [], [], False

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        self._in_script = tag == "script"
        if self._in_script:
            self.scripts.append("")

    def handle_endtag(self, tag):
        self._in_script = False

    def handle_data(self, data):
        if self._in_script:
            self.scripts[-1] += data


def parsed(page):
    elements = Elements()
    elements.feed(page)
    return elements


def test_no_text_becomes_markup_and_no_file_is_loaded(page, trace):
    elements = parsed(page)
    assert elements.tags.count("script") == 2
    assert not {"img", "link", "iframe", "audio", "object"} & set(elements.tags)
    assert not [a for a in elements.attributes if a[0] in ("src", "href") or a[0].startswith("on")]
    assert "@import" not in page
    assert "url(" not in page
    data = json.loads(elements.scripts[0])
    texts = [token["text"] for row in data["rows"] for token in row["tokens"]]
    texts += [a[0] for row in data["rows"] for token in row["tokens"] for a in token["a"]]
    assert any("</script>" in text for text in texts)
    assert [len(row["tokens"]) for row in data["rows"]] == [len(row.tokens) for row in trace.rows]
    assert "<" not in elements.scripts[0]


def test_the_page_lists_the_symbols_with_their_values(page, trace):
    listed = page.partition("<summary>Symbols</summary>")[2].partition("</details>")[0]
    assert "<dt>γ</dt><dd>discount per token (gamma) = 1</dd>" in listed
    assert "<dt>N</dt><dd>number of tokens in the minibatch</dd>" in listed  # it differs between minibatches
    assert listed.count("<dt>") == len(symbols_of(quantities_of(trace)))


def moments(page):
    return [moment["text"] for moment in json.loads(parsed(page).scripts[0])["minibatches"]]


def test_a_skipped_minibatch_says_why():
    ratio, broken = "the mean ratio is beyond max_mean_ratio", "something in it was not finite"
    trace = trace_of(max_mean_ratio=0.5)
    assert all(ratio in text and broken not in text for text in moments(render_trace_page(trace)))
    assert f"since {ratio}: 1.1, 1.2, 2.1, 2.2, 3.1, 3.2." in " ".join(render_trace_text(trace).split())

    trainer = make(stop_after_skipped_updates=9)
    rollout = trainer.rollout()
    advantages = rollout.advantages.clone()
    advantages[3, 0] = math.inf
    with pytest.warns(RuntimeWarning, match="policy/loss is -inf"):
        trace = trainer.trace(replace(rollout, advantages=advantages), [3, 5])
    skipped = [m.is_skipped for m in trace.minibatches]
    assert sum(skipped) == 3  # the row is in one minibatch of each epoch
    for is_skipped, text in zip(skipped, moments(render_trace_page(trace)), strict=True):
        assert (broken in text) == is_skipped
        assert ratio not in text
    text = render_trace_text(trace)
    assert f"since {broken}: " in " ".join(text.split())
    assert "beyond max_mean_ratio" not in text


# ---------------------------------------------------------------------- the page in a browser

WALK = """
const data = JSON.parse(document.getElementById('data').textContent), found = [];
const slider = document.getElementById('moment');
for (let r = 0; r < data.rows.length; r++) {
  document.querySelectorAll('#rows button')[r].click();
  for (let m = 0; m <= Number(slider.max); m++) {
    slider.value = m; slider.dispatchEvent(new Event('input'));
    for (const chip of document.querySelectorAll('#strip span')) {
      chip.click();
      for (const button of document.querySelectorAll('#list button')) {
        button.click();
        const text = name => { const x = document.querySelector('#card .' + name); return x ? x.textContent : ''; };
        found.push([r, m, Number(chip.id.slice(1)), button.dataset.key, text('symbols'), text('numbers'),
          text('result'), button.lastChild.textContent]);
      }
    }
  }
}
return found;
"""


@pytest.fixture
def path(page, tmp_path):
    (tmp_path / "trace.html").write_text(page, encoding="utf-8")
    return tmp_path / "trace.html"


def test_every_formula_on_the_page_gives_the_number_on_the_page(browser, path, trace):
    known = quantities_of(trace)
    with browser.open(path) as tab:
        found = tab.run(WALK)
        assert tab.errors == tab.requests == []
    seen = set()
    for r, moment, t, key, symbols, formula, result, in_list in found:
        assert result.endswith("= " + in_list)
        if formula:
            assert symbols.count("=") == 1
            assert_agrees(formula.removeprefix("= "), in_list, f"{key}: {symbols}")
        row = trace.rows[r]
        visit = moment - 1 if 0 < moment <= len(row.tokens[t].updates) else None
        value = numbers_at(trace, row, t, visit)[key]
        assert float(in_list.replace("\N{MINUS SIGN}", "-")) == pytest.approx(value, abs=last_digit(in_list))
        seen.add((r, moment, t, key))
    assert len(seen) == len(found)
    sections = {q.key: q.section for q in known}
    at = {m: {key for _, moment, _, key in seen if moment == m} for m in range(5)}
    assert {sections[key] for key in at[0]} == {"sample", "reward", "advantage"}
    assert at[1] == at[3] == {q.key for q in known if q.section != "after"}
    assert {sections[key] for key in at[4]} == {"sample", "reward", "advantage", "after"}
    assert len({(r, t) for r, _, t, _ in seen}) == sum(len(row.tokens) for row in trace.rows)


CARD = "return [document.getElementById('token').textContent, document.getElementById('card').dataset.key]"


def test_it_can_be_read_by_keyboard_and_mouse(browser, path, trace):
    count = len(trace.rows[0].tokens)
    with browser.open(path) as tab:
        assert tab.run(CARD)[0].startswith(f"Token {opening_token(trace.rows[0])},")
        for _ in range(len(trace.rows) + 1):
            tab.press("Tab")
        tab.press("Home")
        assert tab.run("return document.activeElement.id") == "t0"
        assert tab.run(CARD)[0].startswith("Token 0,")
        tab.press("ArrowRight")
        assert tab.run("return document.activeElement.id") == "t1"
        assert tab.run(CARD)[0].startswith("Token 1,")
        tab.press("End")
        assert tab.run("return document.activeElement.id") == f"t{count - 1}"
        before = tab.run(CARD)[1]
        tab.press("ArrowUp")
        assert tab.run(CARD)[1] != before
        tab.press("Tab")  # colour
        tab.press("Tab")
        assert tab.run("return document.activeElement.id") == "moment"
        tab.press("ArrowRight")
        assert tab.run("return document.getElementById('when').textContent").startswith("epoch 1 of 3")
        tab.press("Tab")
        first = tab.run("return document.activeElement.dataset.key")
        assert tab.run(CARD)[1] == first == "old_logprob"
        tab.press("ArrowDown")
        assert tab.run(CARD)[1] == "old_probability"
        tab.press("ArrowLeft")
        assert tab.run(CARD)[0].startswith(f"Token {count - 2},")
        assert tab.run("return document.activeElement.dataset.key") == "old_probability"
        tab.hover("#list [data-key=ratio]")
        assert tab.run(CARD)[1] == "ratio"
        tab.hover("#t0")
        assert tab.run(CARD) == [tab.run("return document.getElementById('token').textContent"), "old_probability"]
        assert tab.run(CARD)[0].startswith("Token 0,")
        tab.hover("h1")
        assert tab.run(CARD)[0].startswith(f"Token {count - 2},")
        assert tab.errors == []


def test_it_fits_a_phone_and_a_dark_screen(browser, path):
    paper = "return getComputedStyle(document.body).backgroundColor"
    with browser.open(path, width=375, height=720, is_phone=True) as tab:
        assert tab.run("return document.documentElement.scrollWidth") <= 375
        tab.tap("#rows button:nth-child(2)")
        assert tab.run("return document.querySelector('#rows [aria-pressed=true]').textContent").startswith(
            "Response 3"
        )
        tab.tap("#list [data-key=td_error]")
        card = tab.run("const b = document.getElementById('card').getBoundingClientRect(); return [b.top, b.bottom]")
        assert 0 <= card[0] < card[1] <= 721  # the formula is in sight while the list is scrolled
        light = tab.run(paper)
        tab.media(prefers_color_scheme="dark")
        assert tab.run(paper) != light
        assert tab.errors == tab.requests == []


def test_every_token_is_shown_as_text(browser, page, path, trace):
    with browser.open(path) as tab:
        assert tab.run("return document.title").startswith("Title </script>")
        assert tab.run("return document.images.length") == 0
        texts = tab.run(
            "const all = []; document.querySelectorAll('#rows button').forEach((_, r) => {"
            "document.querySelectorAll('#rows button')[r].click();"
            "document.querySelectorAll('#strip span').forEach(x => all.push(x.textContent)); }); return all;"
        )
    tokens = [token for row in trace.rows for token in row.tokens]
    assert len(texts) == len(tokens)
    for text, token in zip(texts, tokens, strict=True):
        assert token.text.strip() in text or not token.text.isprintable()
