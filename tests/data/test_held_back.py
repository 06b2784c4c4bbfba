"""Half of the records to keep stand in no text that training keeps."""

from __future__ import annotations

from data.held_back import hold_back, without_held_back
from data.types import Passage


def passage(number: int, group: str, ids: range) -> Passage:
    tokens = tuple(ids)
    return Passage(f"{group}-{number}", (), tokens[:10], tokens[10:], group)


def test_every_other_record_is_held_back_and_a_pair_that_shares_text_is_not_parted():
    starts = [0, 100, 105, 200, 300]  # the second and the third share 25 tokens
    passages = [passage(i, "keep", range(start, start + 30)) for i, start in enumerate(starts)]
    others = [passage(0, "forget", range(500, 530)), passage(0, "never", range(600, 630))]
    found = hold_back([*passages, *others])
    assert [p.group for p in found] == ["keep", "keep_shown", "keep_shown", "keep", "keep_shown", "forget", "never"]
    assert [p.ids for p in found] == [p.ids for p in [*passages, *others]]
    assert hold_back(others) == others
    assert [p.group for p in hold_back(passages[:1])] == ["keep"]


def test_a_text_with_twenty_tokens_of_a_held_back_record_goes_and_no_other():
    passages = hold_back([passage(i, "keep", range(start, start + 30)) for i, start in enumerate((0, 100))])
    held, nearly, shown = [7, *range(5, 25), 7], [7, *range(5, 24), 7], list(range(100, 130))
    assert without_held_back([held, nearly, shown], passages) == [nearly, shown]
    assert without_held_back([held], [p for p in passages if p.group != "keep"]) == [held]
