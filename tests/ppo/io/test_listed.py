"""What can be a list of prompts, and what is refused in one line."""

from collections import UserDict, deque
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ppo.io.listed import listed
from ppo.prompts import read_prompts
from tests.fakes import Letters, one_line


class Rows(torch.utils.data.Dataset):
    """A dataset as torch has them: it never raises IndexError, so only its length says where it ends."""

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return {"prompt": "abc"[index % 3], "index": index}


class Iterated(Rows):
    """As ``datasets.Dataset``: it is iterated over as well."""

    column_names = ("prompt", "index")

    def __iter__(self):
        return (self[index] for index in range(3))

    def to_dict(self):
        return {}


@pytest.mark.parametrize("rows", [Rows(), Iterated(), deque("abc"), dict.fromkeys("abc"), np.array(list("abc"))])
def test_whatever_has_a_length_and_an_order(rows):
    given = rows.keys() if isinstance(rows, dict) else rows
    assert [prompt.ids for prompt in read_prompts(given, Letters())] == [[2], [3], [4]]


def test_rows_of_a_dataset_reach_the_reward():
    assert [prompt.row["index"] for prompt in read_prompts(Rows(), Letters())] == [0, 1, 2]


def test_real_datasets():
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"prompt": ["ab", "c"], "answer": [1, 2]})
    prompts = read_prompts(rows, Letters())
    assert [(p.ids, p.row) for p in prompts] == [([2, 3], rows[0]), ([4], rows[1])]
    assert [p.ids for p in read_prompts(rows["prompt"], Letters())] == [[2, 3], [4]]
    with pytest.raises(
        ValueError, match=r"DatasetDict: .*if it holds the splits of a dataset, pass one of them \('train'"
    ):
        read_prompts(datasets.DatasetDict(train=rows), Letters())
    with pytest.raises(ValueError, match=r"IterableDataset: it has no length, so it may never end: pass list\(…\)"):
        read_prompts(rows.to_iterable_dataset(), Letters())


def test_real_data_frames():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"prompt": ["ab", "c"]}, index=[7, 5])
    with pytest.raises(
        ValueError, match=r'DataFrame: pass its rows, a list of dicts, by its method .to_dict\("records"'
    ):
        read_prompts(frame, Letters())
    assert [p.ids for p in read_prompts(frame.to_dict("records"), Letters())] == [[2, 3], [4]]
    assert [p.ids for p in read_prompts(frame["prompt"], Letters())] == [[2, 3], [4]]


class Endless:
    """Iterated over, without a length."""

    def __iter__(self):
        return iter("a")


class Longer(list):
    """Says a length that is not its own."""

    def __len__(self):
        return 1


FRAME = SimpleNamespace(columns=["prompt"], to_dict=dict)
WANTED = "it must be a non-empty list of strings, token ids, chat messages or dicts"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], f"prompts=[] is empty: {WANTED}"),
        ("abc", f"prompts='abc' is a str: {WANTED}"),
        (b"abc", f"prompts=b'abc' is a bytes: {WANTED}"),
        (3, f"prompts=3 is an int: {WANTED}"),
        (torch.tensor(3), f"prompts=tensor(3) is a 0-D Tensor: {WANTED}"),
        ({"prompt": "a"}, "prompts={'prompt': 'a'} is a dict: one row goes into a list"),
        (UserDict(input_ids=[[1]], attention_mask=[[1]]), "is a UserDict: pass lists of token ids without padding"),
        ({"a", "b"}, "is a set: it has no order"),
        (frozenset("a"), "is a frozenset: it has no order"),
        (FRAME, "is a SimpleNamespace: pass its rows, a list of dicts, by its method .to_dict(\"records\")"),
        (np.zeros((2, 3), dtype=int), "is a 2-D ndarray: its short rows hold padding"),
        (torch.zeros(2, 3, dtype=torch.long), "is a 2-D Tensor: its short rows hold padding"),
        ((word for word in "ab"), "is a generator: it can be read only once, and a resumed run reads it again"),
        (iter(["a"]), "is a list_iterator: it can be read only once"),
        (Endless(), "is an Endless: it has no length, so it may never end: pass list(…) of it"),
        (Longer("abc"), "prompts is a Longer of length 1 that gives more items: pass a list"),
    ],
)  # fmt: skip
def test_what_is_no_list_is_refused_in_one_line(values, message):
    with pytest.raises(ValueError, match=one_line(message)):
        listed(values)
