"""Loading the data of an experiment (data/study.py)."""

import json

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from data.study import check_fits, load_study, windows
from data.types import Passage


@pytest.fixture
def letters():
    """One token a letter."""
    vocabulary = {chr(i): i for i in range(128)}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="?")


def write_rows(path, count, **more):
    rows = [{"prefix": f"{i:03d} prefix ", "suffix": f"suffix {i * 7919 % 1000:03d}", **more} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_rows_without_groups_are_parted(tmp_path, letters):
    data = write_rows(tmp_path / "rows.jsonl", 20)
    study = load_study(data, letters, 128, num_forget=6, num_holdout=4)
    assert [len(study.group(name)) for name in ("forget", "forget_holdout", "never")] == [6, 4, 0]
    assert study.num_left_out == 10
    again = load_study(data, letters, 128, num_forget=6, num_holdout=4)
    assert [p.id for p in again.passages] == [p.id for p in study.passages]
    assert not {tuple(r) for r in study.retain} & {tuple(h) for h in study.holdout}


@pytest.mark.parametrize("group", ["keep", "forget"])
def test_groups_in_the_data_are_kept(tmp_path, letters, group):
    data = write_rows(tmp_path / "rows.jsonl", 3, group=group)
    study = load_study(data, letters, 128)
    assert (len(study.group(group)), study.num_left_out) == (3, 0)
    with pytest.raises(ValueError, match="names the group of every passage"):
        load_study(data, letters, 128, num_forget=1)


def test_rows_without_groups_and_numbers_are_all_to_be_forgotten(tmp_path, letters):
    data = write_rows(tmp_path / "rows.jsonl", 20)
    study = load_study(data, letters, 128)
    assert [p.group for p in study.passages] == ["forget"] * 20
    assert study.num_left_out == 0


def test_without_its_number_the_forget_group_is_all_that_the_others_leave(tmp_path, letters):
    data = write_rows(tmp_path / "rows.jsonl", 20)
    study = load_study(data, letters, 128, num_holdout=4, num_never=3)
    assert [len(study.group(name)) for name in ("forget", "forget_holdout", "never")] == [13, 4, 3]
    assert len({p.id for p in study.passages}) == 20
    study = load_study(data, letters, 128, num_forget=5)
    assert [p.group for p in study.passages] == ["forget"] * 5
    assert study.num_left_out == 15


def test_groups_are_named_by_all_rows_or_by_none(tmp_path, letters):
    path = tmp_path / "rows.jsonl"
    write_rows(path, 1)
    path.write_text(path.read_text() + json.dumps({"prefix": "p", "suffix": "s", "group": "forget"}) + "\n")
    with pytest.raises(ValueError, match="passage row-00000 names no group while others do"):
        load_study(str(path), letters, 128)


def test_a_never_group_changes_nothing_about_the_others(tmp_path, letters):
    data = write_rows(tmp_path / "rows.jsonl", 30)
    plain = load_study(data, letters, 128, num_forget=6, num_holdout=4)
    study = load_study(data, letters, 128, num_forget=6, num_holdout=4, num_never=5)
    assert study.passages[:10] == plain.passages
    assert len(study.group("never")) == 5
    assert len({p.id for p in study.passages}) == 15
    assert study.num_left_out == 15
    with pytest.raises(ValueError, match=r"lacks \{'never'"):
        load_study(data, letters, 128, num_forget=6, num_holdout=4, num_never=25)


def test_what_does_not_fit_into_the_context_is_named(tmp_path, letters):
    study = load_study(write_rows(tmp_path / "r.jsonl", 4), letters, 128, num_forget=2, num_holdout=2)
    check_fits(study, 21, 10)
    check_fits(study, None, 10_000)
    with pytest.raises(ValueError, match=r"needs 31 tokens .* exceeds the model's context of 30"):
        check_fits(study, 30, 20)
    with pytest.raises(ValueError, match="needs 21 tokens"):
        check_fits(study, 20, 1)


def test_text_to_keep_is_parted_into_retain_and_holdout(tmp_path, letters):
    notes = tmp_path / "notes.jsonl"
    texts = ["".join(chr(97 + (i * j + j * j) % 26) for j in range(128)) for i in range(1, 21)]
    notes.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    study = load_study(
        write_rows(tmp_path / "r.jsonl", 4), letters, 128, retain=[str(notes)], num_forget=2, num_holdout=2
    )
    assert len(study.retain) + len(study.holdout) == 20
    assert 1 <= len(study.holdout) <= 4
    assert len(study.retain[0]) == 128


def test_too_few_rows_are_an_error_with_figures(tmp_path, letters):
    with pytest.raises(ValueError, match="4 rows fall into"):
        load_study(write_rows(tmp_path / "r.jsonl", 4), letters, 128, num_forget=3, num_holdout=3)


def test_windows_are_the_same_text_half_a_suffix_earlier():
    passage = Passage("a", tuple(range(4)), tuple(range(4, 8)), tuple(range(8, 12)))
    expected = [((4, 5, 6, 7), (8, 9, 10, 11)), ((2, 3, 4, 5), (6, 7, 8, 9)), ((0, 1, 2, 3), (4, 5, 6, 7))]
    assert [windows(passage, count) for count in (1, 2, 3, 9)] == [expected[:1], expected[:2], expected, expected]
    short = Passage("b", (), (1, 2), (3,))
    assert windows(short, 2) == [((1, 2), (3,))]
