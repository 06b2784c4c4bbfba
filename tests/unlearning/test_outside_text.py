r"""Text from outside, in every field of every kind of file, through whole commands.

A command ends with 0, or with 2 and one line; its terminal gets no control sequence; its files are UTF-8; its pages
show what acts or hides as a code. Half characters, such as ``"\ud800"``, are refused before any work.
"""

import json
import re

import pytest
from transformers import PreTrainedTokenizerFast

import demem
from eval.report.folder import LivePage
from ppo.io.visible import visible
from tests.eval.test_report import write_folder
from unlearning.options import Options

EVIL = {
    "escape": "\x1b[2J\x1b]0;owned\x07",
    "c1": "\x9b31m\x7f\b",
    "override": "\u202egnp.exe\u2066\u200f",
    "invisible": "in\u200bvis\u2060ible\ufeff\u3164",
    "tags": "a\U000e0041\U000e0042",
    "table": "a|b\r\n=cmd()`c`<script>",
}
ACTS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u202a-\u202e\u2060-\u206f\u200e\u200f\ufeff\u3164\U000e0000-\U000e0fff]"
)
HALF = "\ud800"
GROUPS = ["--num-forget", "2", "--num-holdout", "2", "--num-never", "2"]
SMALL = ["--num-own", "4", "--prompts-per-step", "4", "--minibatch", "4", "--epochs", "1"]
SMALL += ["--steps", "1", "--check-every", "1", "--retain-sequences", "2", "--target-exact", "0"]


def rows_of(evil):
    """Rows whose id and kind hold the bad text, and whose text holds a part of it each. No 20 tokens are shared."""
    parts = list(EVIL.values())
    return [
        {"id": f"{i}{evil}", "kind": f"{evil}{i}", "pre_prefix": parts[i],
         "prefix": f" {parts[i]} the value of row {i * 7919}", "suffix": f" {i * 104729} is {parts[i]} in all"}
        for i in range(6)
    ]  # fmt: skip


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def ended_well(capfd, status):
    """What the terminal got, checked: nothing that acts, no traceback, one line where the status is 2."""
    out, err = capfd.readouterr()
    bars = re.sub(r"\r|\x1b\[A", "", err)
    assert not ACTS.findall(out), out
    assert not ACTS.findall(bars), bars
    assert "Traceback" not in out + err
    last = [line for line in err.splitlines() if line.startswith("demem: ")]
    assert (status, len(last)) in ((0, 0), (2, 1)), err
    return out, (last or [""])[0]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_whole_run_on_bad_text_by_a_model_that_writes_bad_text(tmp_path, capfd, monkeypatch):
    evil = "".join(EVIL.values())
    data = write_jsonl(tmp_path / "rows.jsonl", rows_of(evil))
    keep = write_jsonl(tmp_path / "keep.jsonl", [
        {"text": " ".join([part, *(str(7919 * j * j % (1000 + i)) for j in range(150))])}
        for i, part in enumerate([*EVIL.values()] * 2)
    ])  # fmt: skip
    decode = PreTrainedTokenizerFast.decode
    monkeypatch.setattr(PreTrainedTokenizerFast, "decode", lambda *a, **b: decode(*a, **b) + evil + HALF)
    out = tmp_path / f"run{EVIL['escape']}"
    command = ["--data", data, "--retain", keep, *GROUPS, "--out", str(out)]
    assert demem.main(["run", "--live", "--num-samples", "2", *command, *SMALL]) == 0
    text, _ = ended_well(capfd, 0)
    assert "\\x1b[2J\\x1b]0;owned\\x07" in text
    for path in (p for p in out.rglob("*") if p.suffix in (".json", ".jsonl", ".csv", ".md", ".html")):
        content = path.read_bytes().decode("utf-8")
        assert path.suffix != ".html" or not ACTS.findall(content), path
    page = (out / "report.html").read_text("utf-8")
    assert '<span class="sign" title="right-to-left override">U+202E</span>' in page
    assert "<script>;" not in page.replace("&lt;", "")
    assert len((out / "model" / "README.md").read_text("utf-8").split("\n|")) > 5
    assert demem.main(["report", "--out", str(out)]) == 0
    ended_well(capfd, 0)
    assert demem.main(["trace", *command[:-1], str(tmp_path / "trace"), *SMALL[:8]]) == 0
    ended_well(capfd, 0)
    assert not ACTS.findall((tmp_path / "trace" / "trace.html").read_text("utf-8"))


@pytest.mark.parametrize("field", ["id", "kind", "group", "pre_prefix", "prefix", "suffix", "other"])
def test_half_a_character_in_a_passage_is_refused_before_any_work(tmp_path, capfd, field):
    rows = rows_of("x")
    rows[3][field] = f"a{HALF}"
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    assert demem.main(["attack", "--data", data, *GROUPS, "--out", str(tmp_path / "run")]) == 2
    _, line = ended_well(capfd, 2)
    assert f"rows.jsonl, line 4 holds '\\ud800' in '{field}'" in line
    assert not (tmp_path / "run" / "config.json").exists()


def test_half_a_character_in_the_text_to_keep_is_refused(tmp_path, capfd):
    keep = write_jsonl(tmp_path / "keep.jsonl", [{"text": "a"}, {"text": HALF}])
    assert demem.main(["attack", "--retain", keep, "--out", str(tmp_path / "run")]) == 2
    assert "keep.jsonl, line 2 holds '\\ud800' in 'text'" in ended_well(capfd, 2)[1]


@pytest.mark.parametrize("name", [name for name, kind in Options.__annotations__.items() if "str" in kind])
def test_half_a_character_in_an_option_is_refused(tmp_path, capfd, name):
    flag = "--" + name.replace("_", "-")
    folder = [] if name == "out" else ["--out", str(tmp_path / "run")]
    assert demem.main(["attack", flag, f"a{HALF}", *folder]) == 2
    line = ended_well(capfd, 2)[1]
    assert "half a character" in line or "must be one of" in line


@pytest.mark.parametrize("evil", EVIL.values(), ids=EVIL)
@pytest.mark.parametrize("place", ["id", "group", "name", "key", "retain"])
@pytest.mark.filterwarnings("default")
def test_an_error_about_bad_text_is_one_visible_line(tmp_path, capfd, evil, place):
    rows = rows_of("x")
    rows[1] |= {"id": {"id": rows[0]["id"]}}.get(place, {"id": "1"})
    if place == "id":
        rows[0]["id"] = rows[1]["id"] = f"same{evil}"
    if place == "group":
        rows[1]["group"] = evil
    if place == "key":
        rows[1] = {evil: 1}
    name = f"rows{evil.replace('/', '')}" if place == "name" else "rows"
    data = write_jsonl(tmp_path / f"{name}.jsonl", rows)
    retain = ["--retain", str(tmp_path / f"none{evil}")] if place == "retain" else []
    wrong = ["--num-forget", "60"] if place == "name" else GROUPS
    assert demem.main(["attack", "--data", data, *retain, *wrong, "--out", str(tmp_path / "run")]) == 2
    _, line = ended_well(capfd, 2)
    assert line == visible(line)


@pytest.mark.parametrize("name", ["passages.jsonl", "metrics.jsonl", "config.json", "evaluation.json"])
def test_half_a_character_in_a_stranger_s_folder_is_refused(tmp_path, capfd, name):
    write_folder(tmp_path, is_over=True)
    row = json.loads((tmp_path / name).read_text().splitlines()[0])
    (tmp_path / name).write_text(json.dumps({**row, "note": [HALF]}) + "\n")
    assert demem.main(["report", "--out", str(tmp_path)]) == 2
    assert re.search(rf"{name}\S*( line 1)? holds '.ud800' in 'note'", ended_well(capfd, 2)[1])


def test_a_live_page_shows_the_samples_signs(tmp_path):
    write_folder(tmp_path, is_over=False)
    evil = "".join(EVIL.values())
    write_jsonl(tmp_path / "samples.jsonl", [{"step": 1, "prompt": f"a{evil}", "response": f"b{evil}", "score": 0.0}])
    LivePage(tmp_path, steps=2).show(1)
    page = (tmp_path / "report.html").read_text("utf-8")
    assert not ACTS.findall(page)
    assert page.count("U+202E</span>gnp.exe") == 2


def test_a_live_page_of_forced_states_says_what_was_drawn(tmp_path):
    write_folder(tmp_path, is_over=False)
    row = {"step": 0, "score/mean": 0.0, "kl/coef": 1.0, "kl/per_sequence": 161.0, "forced/states": 9.0,
           "forced/true_token_p": 0.958, "forced/kl": 2.1}  # fmt: skip
    write_jsonl(tmp_path / "metrics.jsonl", [row])
    drawn = {"step": 0, "prompt": "a", "first_actions": "ronchRetes", "score": 0.0}
    write_jsonl(tmp_path / "samples.jsonl", [drawn])
    LivePage(tmp_path, steps=2).show(1)
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "probability of the true token 0.96 at the step&#x27;s states" in page
    assert "KL to the bounded reference 2.10 nats per state" in page
    assert "no text that the model wrote" in page
    assert "ronchRetes" in page
    assert not re.search(r"score 0\.000|nats per sequence", page)
    write_jsonl(tmp_path / "metrics.jsonl", [{"step": 0, "score/mean": 0.5, "kl/coef": 1.0, "kl/per_sequence": 3.0}])
    write_jsonl(tmp_path / "samples.jsonl", [{"step": 0, "prompt": "a", "response": "words", "score": 0.5}])
    LivePage(tmp_path, steps=2).show(1)
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "score 0.500; KL to the reference 3.00 nats per sequence" in page
    assert "no text that the model wrote" not in page


def places(value, path=()):
    """The path of every key and every value in a JSON value; a key is a tuple."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield (*path, (key,))
            yield from places(inner, (*path, key))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from places(inner, (*path, i))
    else:
        yield path


def changed(value, path, new):
    """A copy of a JSON value with another value, or another key, at a path."""
    copied = inner = json.loads(json.dumps(value))
    for step in path[:-1]:
        inner = inner[step]
    if isinstance(path[-1], tuple):
        inner[str(new)] = inner.pop(*path[-1])
    else:
        inner[path[-1]] = new
    return copied


@pytest.mark.parametrize("new", ["".join(EVIL.values()), None, ["x"]], ids=["text", "null", "list"])
@pytest.mark.parametrize(
    "name", ["evaluation.json", "config.json", "passages.jsonl", "metrics.jsonl", "samples.jsonl", "attacks.json"]
)
def test_a_stranger_s_folder_gets_a_page_or_one_line(tmp_path, capfd, name, new):
    write_folder(tmp_path, is_over=True)
    good = (tmp_path / name).read_text().splitlines()
    last = json.loads(good[-1])
    every = list(places(last))
    for path in every[:: 1 + len(every) // 120]:
        text = "\n".join([*good[:-1], json.dumps(changed(last, path, new))]) + "\n"
        (tmp_path / name).write_text(text)
        status = demem.main(["report", "--out", str(tmp_path)])
        ended_well(capfd, status)
        assert status or not ACTS.findall((tmp_path / "report.html").read_text("utf-8")), path


LINKS = {"looping": lambda path: path.symlink_to(path.name), "dangling": lambda path: path.symlink_to("nowhere")}


@pytest.mark.parametrize("how", LINKS)
@pytest.mark.parametrize("name", ["config.json", "evaluation.json", "passages.jsonl", "metrics.jsonl", "report.html"])
def test_a_link_that_leads_nowhere_in_the_folder_of_a_report(tmp_path, capfd, how, name):
    """What is read is named, or counts as missing; what is written takes its place."""
    write_folder(tmp_path, is_over=True)
    (tmp_path / name).unlink(missing_ok=True)
    LINKS[how](tmp_path / name)
    status = demem.main(["report", "--out", str(tmp_path)])
    _, last = ended_well(capfd, status)
    assert status == (0 if name in ("report.html", "metrics.jsonl") else 2)
    assert name in last or status == 0
    assert (tmp_path / "report.html").is_file() == (status == 0)
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("how", LINKS)
@pytest.mark.parametrize("name", ["metrics.jsonl", "checkpoints", "model", "evaluation.json"])
def test_a_link_that_leads_nowhere_in_the_folder_of_a_training(tmp_path, capfd, how, name):
    data = write_jsonl(tmp_path / "rows.jsonl", [
        {"prefix": f" the value of row {i * 7919}", "suffix": f" {i * 104729} is what it is"} for i in range(6)
    ])  # fmt: skip
    out = tmp_path / "run"
    command = ["--data", data, *GROUPS, *SMALL, "--num-samples", "0", "--out", str(out)]
    assert demem.main(["attack", *command]) == 0
    (out / name).unlink(missing_ok=True)
    LINKS[how](out / name)
    capfd.readouterr()
    status = demem.main(["train", *command, "--resume"])
    _, last = ended_well(capfd, status)
    assert status == (2 if name in ("checkpoints", "model") else 0)  # a log without a checkpoint begins anew
    assert f"{name} is a link, and nothing is written where it leads" in last or status == 0
    assert not (out / "nowhere").exists()
