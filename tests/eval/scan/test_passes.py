"""The layout of passes: every token is scored, once in each layer, and each pass holds its windows exactly."""

import pytest

from eval.scan.passes import Layout, Pass, layout
from tests.fakes import one_line


@pytest.mark.parametrize("has_bos", [True, False])
@pytest.mark.parametrize("size", [1, 2, 5, 49, 50, 51, 120, 333])
@pytest.mark.parametrize("stride", [None, 7, 20, 40])
def test_each_layer_scores_every_token_that_it_reaches_once(size, stride, has_bos):
    shape = layout([5, 9], 10, room=60, stride=stride)
    scored = {layer: [] for layer in range(shape.layers)}
    for one in shape.passes(size, has_bos=has_bos):
        assert 0 <= one.start <= one.first < one.stop <= size
        assert one.stop - one.start <= shape.length <= 60
        assert has_bos or one.first > one.start
        assert one.first - one.start >= 5 or one.start == 0
        scored[one.layer] += range(one.first, one.stop)
    for layer, tokens in scored.items():
        begin = layer * shape.stride + 5 if layer else int(not has_bos)
        assert tokens == list(range(begin, size))


def test_the_next_pass_begins_where_every_token_is_scored_once():
    shape = Layout((2,), 2, 6, 4, 1)
    assert shape.passes(9, has_bos=True) == [Pass(0, 6, 0), Pass(4, 9, 6)]
    assert shape.cost == 1.5
    assert shape.passes(6, has_bos=False) == [Pass(0, 6, 1)]  # another pass would have nothing to score


def test_a_pass_holds_the_windows_of_each_prefix_length_and_the_suffixes_side_by_side():
    shape = layout([2, 3], 2, room=None, length=8)
    assert shape.windows(Pass(10, 18, 12)) == [(2, 12), (3, 13), (4, 14), (6, 16)]
    assert shape.windows(Pass(10, 13, 12)) == []
    assert shape.windows(Pass(0, 5, 0)) == [(2, 2), (3, 3)]


def test_a_pass_is_as_long_as_eight_suffixes_or_as_the_context_has_room_for():
    assert layout([50], 50, room=None).length == layout([50], 50, room=1023).length == 450
    assert layout([50], 50, room=255).length == 255
    assert layout([50], 50, room=255).stride == 205
    assert layout([50], 50, room=1023, stride=10).layers == 40
    assert layout([50, 200], 50, room=255, stride=100).length == 250


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prefixes": [], "suffix": 5}, "give at least 1 of each"),
        ({"prefixes": [0], "suffix": 5}, "give at least 1 of each"),
        ({"prefixes": [50], "suffix": 50, "room": 99}, "exceed the model's context of 99 tokens"),
        ({"prefixes": [50], "suffix": 50, "room": None, "length": 80}, "exceed a pass of 80 tokens"),
        (
            {"prefixes": [50], "suffix": 50, "room": 200, "stride": 151},
            "a stride of 151 leaves tokens out: a pass of 200",
        ),
        (
            {"prefixes": [50, 200], "suffix": 50, "room": 255, "stride": 90},
            "a stride of 90 does not fit a context of 255",
        ),
        ({"prefixes": [50], "suffix": 50, "room": 200, "stride": 0}, "a stride of 0 leaves tokens out"),
    ],
)
def test_what_does_not_fit_is_an_error(arguments, message):
    arguments = {"room": None, **arguments}
    with pytest.raises(ValueError, match=one_line(message)):
        layout(arguments.pop("prefixes"), arguments.pop("suffix"), **arguments)
