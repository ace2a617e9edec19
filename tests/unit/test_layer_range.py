import pytest
from hypothesis import given
from hypothesis import strategies as st

from stagecoach.contract.errors import InvalidArgumentError
from stagecoach.contract.layer_range import LayerRange
from tests.layer_ranges import split_evenly


@pytest.mark.parametrize(("start", "end"), [(0, 0), (3, 3), (4, 2), (-1, 2)])
def test_an_empty_or_negative_range_is_refused(start: int, end: int) -> None:
    with pytest.raises(InvalidArgumentError, match=f"{start}:{end}") as caught:
        LayerRange(start, end)
    assert caught.value.field == "layers"


@pytest.mark.parametrize(
    "text", ["", ":", "0", "0:", ":4", "0-4", "0:4:8", " 0:4", "0:4\n", "-1:4", "a:b", "0:9999999"]
)
def test_text_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match="START:END") as caught:
        LayerRange.parse(text)
    assert caught.value.field == "layers"


def test_parse_refuses_an_empty_range() -> None:
    with pytest.raises(InvalidArgumentError, match="4:4"):
        LayerRange.parse("4:4")


@given(start=st.integers(0, 99_999), length=st.integers(1, 900_000))
def test_parse_reads_what_str_writes(start: int, length: int) -> None:
    layers = LayerRange(start, start + length)
    assert LayerRange.parse(str(layers)) == layers


def test_a_range_counts_and_lists_its_layers() -> None:
    layers = LayerRange(10, 13)
    assert len(layers) == 3
    assert list(layers) == [10, 11, 12]
    assert str(layers) == "10:13"


def test_ranges_sort_by_their_first_layer() -> None:
    assert sorted([LayerRange(4, 6), LayerRange(0, 4)]) == [LayerRange(0, 4), LayerRange(4, 6)]


def test_the_larger_shares_of_an_even_split_come_first() -> None:
    assert split_evenly(30, 4) == [
        LayerRange(0, 8),
        LayerRange(8, 16),
        LayerRange(16, 23),
        LayerRange(23, 30),
    ]


@given(data=st.data(), num_layers=st.integers(1, 200))
def test_an_even_split_covers_every_layer_once(data: st.DataObject, num_layers: int) -> None:
    num_stages = data.draw(st.integers(1, num_layers))
    ranges = split_evenly(num_layers, num_stages)
    assert len(ranges) == num_stages
    assert [layer for layers in ranges for layer in layers] == list(range(num_layers))
    sizes = [len(layers) for layers in ranges]
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("num_stages", [0, -1, 4])
def test_a_split_into_more_stages_than_layers_is_refused(num_stages: int) -> None:
    with pytest.raises(InvalidArgumentError, match=f"3 layers .* {num_stages} stages") as caught:
        split_evenly(3, num_stages)
    assert caught.value.field == "stages"
