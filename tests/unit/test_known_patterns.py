"""Patterns that stand for published ones match the same texts."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.constraint.known_patterns import SAME_MEANING

TEXTS = st.one_of(
    st.text("ab.@'-+", max_size=12),
    st.builds(
        "{}@{}".format, st.text("a.'-", max_size=6), st.text("a.-", max_size=4).map("{}.bc".format)
    ),
    st.text("P1YMWDTHS,.", max_size=10).map("P{}".format),
    st.lists(st.sampled_from(["P", "1Y", "2M", "3D", "T", "4H", "5M", "6S", "7W"])).map("".join),
)


@pytest.mark.parametrize("pattern", SAME_MEANING)
@given(text=TEXTS)
def test_any_text_matches_both_or_none(pattern: str, text: str) -> None:
    assert bool(re.search(pattern, text)) == bool(re.search(SAME_MEANING[pattern], text))


@pytest.mark.parametrize("pattern", SAME_MEANING)
@given(data=st.data())
def test_what_stands_for_it_matches_nothing_else(pattern: str, data: st.DataObject) -> None:
    text = data.draw(st.from_regex(SAME_MEANING[pattern], fullmatch=True))
    assert re.search(pattern, text)
