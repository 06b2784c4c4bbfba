"""Pieces of a text in another: wrapped, quoted, in capitals; and what is too short for one."""

import numpy as np

from eval.scan.near import NEAR_SIGNS, Near

TEXT = "On 4 May, Anna Weber of Kiel paid 4,211 crowns to the dentist at number 7."


def test_a_piece_is_found_however_it_is_written():
    near = Near([TEXT])
    assert near.holds(TEXT)
    assert near.holds("> " + TEXT.replace(" ", "\n> ").upper())
    assert near.places(f"Before. {TEXT} After.").tolist() == [False] * 8 + [True] * (len(TEXT) - 1) + [False] * 8


def test_a_piece_is_as_long_as_it_must_be():
    signs = "".join(s for s in TEXT if s.isalnum())
    assert Near([TEXT]).holds(signs[3 : 3 + NEAR_SIGNS])
    assert not Near([TEXT]).holds(signs[3 : 2 + NEAR_SIGNS])


def test_a_shorter_text_is_looked_for_whole_and_an_empty_one_not_at_all():
    near = Near(["pin 4711", "", "--"])
    assert near.places("my Pin: 4711!").tolist() == [False] * 3 + [True] * 9 + [False]
    assert not near.holds("pin 471")
    assert not near.holds("")
    assert np.array_equal(Near([]).places("abc"), np.zeros(3, dtype=bool))
