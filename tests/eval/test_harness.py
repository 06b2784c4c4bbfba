"""The adapter to EleutherAI's harness, with tasks from local files. No test asks a hub."""

import json

import pytest
import torch

from eval.utility import Cloze, Question, cloze_accuracy, encode_pair, multiple_choice
from models.load import load

pytest.importorskip("lm_eval", reason="the extra 'harness' is not installed")

TEXTS = [
    "The statement raises an exception and the value of the",
    "If the argument is not given, the default",
    "A class is created when the class definition is",
    "The list is",
]
QUESTIONS = [
    {"context": "The type of the object is", "choices": ["a class", "zebra yes"], "answer": 0},
    {"context": "An exception is raised", "choices": ["xylophone", "if the value is not valid"], "answer": 1},
    {"context": "The default is", "choices": ["qqqq", "None", "to be or not to be"], "answer": 2},
]


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    """A folder with a cloze task, a multiple-choice task and a generation task in the harness's YAML."""
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    (tmp_path / "cloze.json").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    (tmp_path / "choice.json").write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    common = (
        f"dataset_path: json\ntest_split: test\ndataset_kwargs:\n  cache_dir: {tmp_path / 'cache'}\n  data_files:\n"
    )
    (tmp_path / "cloze.yaml").write_text(
        f"task: local_cloze\n{common}    test: {tmp_path / 'cloze.json'}\noutput_type: loglikelihood\n"
        "doc_to_text: \"{{text.rsplit(' ', 1)[0]}}\"\ndoc_to_target: \"{{' ' + text.rsplit(' ', 1)[1]}}\"\n"
        "metric_list:\n  - metric: acc\n  - metric: perplexity\n"
    )
    (tmp_path / "choice.yaml").write_text(
        f"task: local_choice\n{common}    test: {tmp_path / 'choice.json'}\noutput_type: multiple_choice\n"
        'doc_to_text: "{{context}}"\ndoc_to_choice: choices\ndoc_to_target: answer\n'
        "metric_list:\n  - metric: acc\n  - metric: acc_norm\n"
    )
    return tmp_path


def test_tasks_agree_with_our_own_measures(tasks):
    from eval.harness import run_tasks

    loaded = load("lab")
    found = run_tasks(loaded.model, loaded.tokenizer, ["local_cloze", "local_choice"], include=tasks)
    items = [Cloze(text.rsplit(" ", 1)[0], " " + text.rsplit(" ", 1)[1]) for text in TEXTS]
    assert found["local_cloze"]["acc,none"] == cloze_accuracy(loaded.model, loaded.tokenizer, items).value
    questions = [Question(q["context"], tuple(f" {c}" for c in q["choices"]), q["answer"]) for q in QUESTIONS]
    ours = multiple_choice(loaded.model, loaded.tokenizer, questions)
    assert found["local_choice"]["acc,none"] == pytest.approx(ours.plain.value)
    assert found["local_choice"]["acc_norm,none"] == pytest.approx(ours.normalised.value)


def test_answers_to_requests_by_hand():
    from lm_eval.api.instance import Instance

    from eval.harness import InMemory

    loaded = load("lab")
    lm = InMemory(loaded.model, loaded.tokenizer)
    text = "The list is a sequence of items."
    ids = [lm.start, *loaded.tokenizer(text, add_special_tokens=False)["input_ids"]]
    rows = torch.log_softmax(loaded.model(torch.tensor([ids])).logits[0].detach().double(), dim=-1)
    expected = sum(float(rows[t - 1, ids[t]]) for t in range(1, len(ids)))
    asked = [Instance("loglikelihood_rolling", {}, (text,), 0)]
    assert lm.loglikelihood_rolling(asked) == [pytest.approx(expected, abs=1e-3)]
    # an empty context becomes the start token, and an empty continuation has probability 1
    pairs = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate([("", text), ("The", "")])]
    first, second = lm.loglikelihood(pairs)
    assert first[0] == pytest.approx(expected, abs=1e-3)
    assert second == (0.0, True)
    wishes = {"until": [" is", "\n"], "max_gen_toks": 12}
    (written,) = lm.generate_until([Instance("generate_until", {}, ("If the argument", wishes), 0)])
    assert " is" not in written
    assert lm.generate_until([Instance("generate_until", {}, ("If the argument", {"max_gen_toks": 12}), 0)])[
        0
    ].startswith(written)


def test_a_continuation_longer_than_the_context_goes_through_in_windows():
    from lm_eval.api.instance import Instance

    from eval.harness import InMemory

    loaded = load("lab")
    lm = InMemory(loaded.model, loaded.tokenizer)
    text = "The list is a sequence of items. " * lm.limit
    pairs = [("", text), ("The default is None." * lm.limit, " The value")]
    found = lm.loglikelihood([Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)])
    (rolling,) = lm.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), 0)])
    assert found[0][0] == pytest.approx(rolling)
    head, tail = encode_pair(loaded.tokenizer, *pairs[1])
    ids = [*head, *tail][-lm.limit :]  # a context that is too long loses its start
    rows = torch.log_softmax(loaded.model(torch.tensor([ids])).logits[0].detach().double(), dim=-1)
    expected = sum(float(rows[t - 1, ids[t]]) for t in range(lm.limit - len(tail), lm.limit))
    assert found[1][0] == pytest.approx(expected, abs=1e-3)
