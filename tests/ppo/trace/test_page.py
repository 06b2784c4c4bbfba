# ruff: noqa: RUF001 (Greek letters are what is meant)
"""The trace as text and as a page: every formula, worked out again from what is printed, gives what is printed."""

import html.parser
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

from ppo.trace import render_trace_page, render_trace_text
from ppo.trace.formulas import numbers_at, quantities_of, shown, substituted, symbols_of
from ppo.trace.text import WIDTH, opening_token, token_label
from tests.ppo.trace.test_update import GROUPS, all_rows, make

ROOT = Path(__file__).resolve().parents[3]
EVIL = '</script><img src="http://x/y.png" onerror=alert(1)>&\u2028'


class Evil:
    """One token writes HTML, one a line end, one nothing, one a wide letter; the others are words with a space."""

    def decode(self, token_ids, *, skip_special_tokens=False):
        return "".join({5: EVIL, 6: "\n", 7: "", 8: "語"}.get(int(i), f" w{int(i)}") for i in token_ids)

    def __call__(self, text, *, add_special_tokens=True):
        return {"input_ids": [2, 3]}


def trace_of(**changes):
    trainer = make(**changes)
    trainer.tokenizer = Evil()
    rollout = trainer.rollout()
    return trainer.trace(rollout, [0, 3, 5])


@pytest.fixture(scope="module")
def trace():
    return trace_of()


@pytest.fixture(scope="module")
def page(trace):
    return render_trace_page(trace, title=f"Title {EVIL}", meta={"model": EVIL, "seed": 0})


def recomputed(text: str) -> float:
    """What a reader gets who types a printed formula into a calculator."""
    plain = text.replace("\N{MINUS SIGN}", "-").replace("\N{MULTIPLICATION SIGN}", "*").replace("²", "**2")
    plain = plain.replace("\N{GREATER-THAN OR EQUAL TO}", ">=")
    names = {"exp": math.exp, "sqrt": math.sqrt, "max": max, "clip": lambda x, a, b: min(max(x, a), b)}
    return eval(plain, {"__builtins__": {}}, names)


def last_digit(text: str) -> float:
    """What one more in the last printed digit is worth."""
    digits, _, exponent = text.replace("\N{MINUS SIGN}", "-").partition("e")
    return 10.0 ** (int(exponent or 0) - len(digits.partition(".")[2]))


def assert_agrees(formula: str, result: str, where: str) -> None:
    printed = float(result.replace("\N{MINUS SIGN}", "-"))
    assert abs(recomputed(formula) - printed) <= 1.001 * last_digit(result), (where, formula, result)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"whiten_rewards": True, "kl_estimator": "k3", "value_clip": None, "gamma": 0.9},
        {"kl_estimator": "k2", "whiten_advantages": False, "temperature": 0.8},
        {"advantage": "grpo", "kl_as": "loss", "kl_estimator": "k3", **GROUPS},
        {"advantage": "rloo", "kl_as": "loss", "kl_estimator": "k2", "entropy_coef": 0.1, **GROUPS},
        {"kl_coef": 0.0},
        {"scale_scores": True},
        {"missing_eos_penalty": 0.7},
        {"scale_scores": True, "clip_scores": 4.0, "missing_eos_penalty": 0.3},
    ],
)
def test_every_formula_gives_its_number(changes):
    trace, num_digits = trace_of(**changes), []
    known = quantities_of(trace)
    assert any(q.key == "token_reward" and q.formula for q in known)
    assert len({q.key for q in known}) == len(known)
    for row in trace.rows:
        for t, token in enumerate(row.tokens):
            for visit in range(len(token.updates)):
                numbers = numbers_at(trace, row, t, visit)
                for q in known:
                    result = shown(numbers[q.key], q.formula, numbers)
                    assert float(result) == pytest.approx(numbers[q.key], abs=0.51 * last_digit(result))
                    if q.formula:
                        assert_agrees(substituted(q.formula, numbers), result, q.key)
                    if q.formula and q.key != "gate" and abs(numbers[q.key]) > 1e-3:
                        num_digits.append(len(re.sub(r"^-?0?\.?0*|e.*|\.", "", result)))
    assert min(num_digits) >= 3
    assert sum(num_digits) / len(num_digits) > 5


def test_the_reward_given_can_be_worked_out_from_the_score():
    _, trace = all_rows(make(scale_scores=True, clip_scores=4.0, missing_eos_penalty=0.3))
    assert {row.is_ended for row in trace.rows} == {True, False}
    sides = set()
    for row in trace.rows:
        scaled = row.score / trace.numbers["score_std"]
        sides.add(scaled > 4)
        expected = min(scaled, 4) - (0 if row.is_ended else 0.3)
        assert [token.token_reward for token in row.tokens[:-1]] == [0] * (len(row.tokens) - 1)
        assert row.tokens[-1].token_reward == pytest.approx(expected, abs=1e-5)
    assert sides == {True, False}
    assert "= lastₜ \N{MULTIPLICATION SIGN} (clip(S / " in " ".join(render_trace_text(trace).split())


def test_what_cannot_be_worked_out_says_what_is_missing():
    def each_id(samples):
        return [[float(i) for i in s.ids] for s in samples]

    for changes, missing in (({}, ()), ({"scale_scores": True, "missing_eos_penalty": 0.5}, ("divided by", "0.5"))):
        (given,) = (q for q in quantities_of(trace_of(reward=each_id, **changes)) if q.key == "token_reward")
        assert given.formula == ""
        assert all(word in given.says for word in missing)
        assert ("not kept" in given.says) == bool(missing)
    trainer = make(scale_scores=True)
    trace = trainer.trace(replace(trainer.rollout(), metrics={}), [0, 3])  # what divided the scores was not handed on
    assert not any(q.key == "token_reward" and q.formula for q in quantities_of(trace))
    assert "</html>" in render_trace_page(trace)


def test_results_are_printed_as_far_as_their_formula_can_vouch_for():
    known = {"a": 87.123456, "b": 87.123999}
    assert shown(known["b"] - known["a"], "{b} - {a}", known) == "0.0005"  # float32 knows no more of it
    assert shown(1.0, "", {}) == "1"
    assert shown(1.0, "{a} / 2", {"a": 2.0}) == "1.00000"
    assert shown(0.0, "{a} - {a}", {"a": 0.0}) == "0.000000"
    assert [shown(x, "1 if {a} >= {b} else 0", {"a": 2.0, "b": 3.0 - x}) for x in (0.0, 1.0)] == ["0", "1"]
    assert shown(-3.125e-7, "{a} / 2", {"a": -6.25e-7}) == "-3.12500e-7"
    assert shown(12345.678, "", {}) == "12345.7"
    assert shown(math.inf, "", {}) == "not finite"
    assert substituted("{a} - {b}**2 * 2", {"a": -1.5, "b": 2e-9}) == "−1.5 − 2e−9² × 2"


def test_the_text_fits_a_terminal_and_shows_the_tokens(trace):
    text = render_trace_text(trace)
    for line in text.splitlines():
        assert sum(2 if c == "語" else 1 for c in line) <= WIDTH, line
    assert "By hand" in text
    assert "\x1b" not in text
    row = trace.rows[0]
    assert f"Response {row.index}: score {row.score:.5g}" in text
    table = text[text.index("  t token") :].splitlines()[1 : len(row.tokens) + 1]
    assert [int(line.split()[0]) for line in table] == list(range(len(row.tokens)))
    assert float(table[-1].split()[-1]) == pytest.approx(row.tokens[-1].return_value, abs=1e-3)
    by_hand = []
    for line in re.findall(r"^  (?! ).*(?:\n      .*)*", text[text.index("By hand") :], flags=re.MULTILINE):
        if line.count("=") == 3:
            symbol, _, formula, result = " ".join(line.split()).split(" = ")
            assert_agrees(formula, result, line)
            by_hand.append(symbol)
    assert by_hand.count("δₜ") == len(trace.rows)


@pytest.mark.parametrize("changes", [{"epochs": 9}, {"stop_kl_per_token": 1e-6}, {"kl_coef": 0.0},
                                     {"advantage": "grpo", **GROUPS}])  # fmt: skip
def test_every_kind_of_trace_can_be_shown(changes):
    trace = trace_of(**changes)
    assert all(len(line) <= WIDTH for line in render_trace_text(trace).replace("語", "ww").splitlines())
    assert "</html>" in render_trace_page(trace)


def test_a_step_without_a_reference_says_why_and_speaks_of_no_kl(trace):
    bare, why = trace_of(kl_coef=0.0), "kl_coef is 0, so no reference was asked"
    assert why in " ".join(render_trace_text(bare).split())
    assert why in render_trace_page(bare)
    assert why not in render_trace_text(trace)
    assert why not in render_trace_page(trace)

    def labels(some):
        return [q.label for q in quantities_of(some) if q.section == "reward"]

    assert labels(bare) == ["reward given", "reward"]
    assert labels(trace_of(kl_as="loss", kl_estimator="k3")) == ["reward given", "reward"]
    assert labels(trace) == ["reward given", "reward after KL"]


def test_reading_begins_at_the_largest_advantage_and_among_equals_at_what_was_clipped(trace):
    row = trace.rows[0]
    tokens = [replace(token, advantage=-2.0, updates=[token.updates[0]]) for token in row.tokens[:5]]
    tokens[1] = replace(tokens[1], advantage=1.0)
    tokens = [replace(x, updates=[replace(x.updates[0], ratio=r, is_clipped=False)]) for x, r in
              zip(tokens, (1.1, 9.0, 1.3, 0.6, 1.2), strict=True)]  # fmt: skip
    equal = replace(row, tokens=tokens)
    assert opening_token(equal) == 3
    tokens[4] = replace(tokens[4], updates=[replace(tokens[4].updates[0], is_clipped=True)])
    assert opening_token(equal) == 4
    tokens[1] = replace(tokens[1], advantage=-3.0)
    assert opening_token(equal) == 1
    assert opening_token(replace(equal, tokens=[replace(token, updates=[]) for token in tokens])) == 1


def test_a_quantity_names_the_place_that_makes_it(trace):
    for some in (trace, trace_of(advantage="grpo", kl_as="loss", kl_estimator="k3", **GROUPS)):
        for q in quantities_of(some):
            path, _, name = q.code.partition(": ")
            if q.code == "torch.autograd":  # which nobody asked for a gradient without the clip
                assert q.key in ("logprob_gradient", "value_gradient")
            else:
                assert f" {name.split('.')[-1]}" in (ROOT / path).read_text(encoding="utf-8"), q.code


def test_what_stands_in_the_text_is_explained_in_it(trace):
    text = " ".join(render_trace_text(trace).split())
    titles = next(line for line in render_trace_text(trace).splitlines() if line.startswith("  t token")).split()
    assert titles[2:] == ["H", "logπ", "ref", "KL", "given", "reward", "value", "TD", "A", "Â", "return"]
    assert all(f" {title}: " in text for title in titles[2:])
    assert "(thrown away where skipped)" in text
    assert "KL coefficient β 0.3" in text
    for sign in ("γ", "λ", "β", "ε", "ε_V", "c_V", "N", "Aₜ₊₁"):
        assert f" {sign}: " in text.partition("In the formulas")[2]
    groups = render_trace_text(trace_of(advantage="grpo", **GROUPS))
    assert "return: " not in groups
    assert " λ: " not in groups
    assert "mean(Σr): " in " ".join(groups.split())


def test_the_page_lists_the_symbols_with_their_values(page, trace):
    listed = page.partition("<summary>Symbols</summary>")[2].partition("</details>")[0]
    assert "<dt>γ</dt><dd>discount a token (gamma) = 1</dd>" in listed
    assert "<dt>N</dt><dd>tokens of the minibatch</dd>" in listed  # differs from minibatch to minibatch
    assert listed.count("<dt>") == len(symbols_of(quantities_of(trace)))


def update_tables(trace):
    """The lines of each response's second table, one a token."""
    tables = render_trace_text(trace).split("\n\n")[3::4]
    return [table.splitlines()[1 : len(row.tokens) + 1] for table, row in zip(tables, trace.rows, strict=True)]


def test_the_text_shows_what_could_have_come_instead(trace):
    for row, lines in zip(trace.rows, update_tables(trace), strict=True):
        for token, line in zip(row.tokens, lines, strict=True):
            other = max((a for a in token.alternatives if a.id != token.id), key=lambda a: a.before)
            *_, label, chance = line.split()
            assert token_label(other.text, other.id).startswith(label.removesuffix("…"))
            assert float(chance) == pytest.approx(other.before, abs=6e-4)
    for line in update_tables(trace_of(top_k=1))[0]:  # a sampler that has no choice
        assert len(line.split()) == 8


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


def test_tokens_become_visible_words():
    assert token_label(" the", 1) == "·the"
    assert token_label("\n", 1) == "⏎"
    assert token_label("", 17) == "#17"
    assert token_label("\x1b[2J", 1) == "\\x1b[2J"


# ---------------------------------------------------------------------- the page as text


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


def test_nothing_of_the_text_becomes_markup_and_nothing_is_loaded(page, trace):
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


def test_a_token_is_text_whatever_it_says(browser, page, path, trace):
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
