"""Stop strings found in pieces are those found in the whole text."""

from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.text.stop_strings import StopStrings

TEXTS = st.text(alphabet="abAé🙂", max_size=30)
PIECES = st.lists(st.tuples(TEXTS, st.booleans()), max_size=8)
"""Pieces of text, and whether each is shown."""
STOPS = st.lists(st.text(alphabet="abAé🙂", min_size=1, max_size=5), max_size=4)


def cut_at_first_stop(text: str, stops: list[str]) -> tuple[str, bool]:
    """The obvious way: of all stop strings, the first to end, and of these the longest."""
    found = [(text.find(stop) + len(stop), -len(stop)) for stop in stops if stop in text]
    if not found:
        return text, False
    end, minus_length = min(found)
    return text[: end + minus_length], True


@settings(max_examples=500, deadline=None)
@given(pieces=st.lists(TEXTS, max_size=8), stops=STOPS)
def test_text_ends_before_the_first_stop_string(pieces: list[str], stops: list[str]) -> None:
    stop_strings = StopStrings(stops)
    shown, stopped = "", False
    for piece in pieces:
        text, stopped, _ = stop_strings.push(piece)
        shown += text
        if stopped:
            break
    shown += stop_strings.flush()
    text = "".join(pieces)
    assert (shown, stopped) == cut_at_first_stop(text, stops)
    if stop_strings.found is None:
        assert not stopped
    else:
        assert text.startswith(shown + stop_strings.found)
        assert stop_strings.found in stops


@settings(max_examples=300, deadline=None)
@given(text=TEXTS, stops=STOPS)
def test_no_more_is_held_back_than_may_become_a_stop_string(text: str, stops: list[str]) -> None:
    stop_strings = StopStrings(stops)
    shown, stopped, _ = stop_strings.push(text)
    if not stopped:
        held = text[len(shown) :]
        prefixes = {stop[:length] for stop in stops for length in range(len(stop))} | {""}
        longest = max((p for p in prefixes if text.endswith(p)), key=len)
        assert shown + held == text
        assert held == longest


def cut_at_first_stop_of_two(pieces: list[tuple[str, bool]], stops: list[str]) -> tuple[str, bool]:
    """The obvious way, character by character, over the shown text and over all of it."""
    seen: list[tuple[str, bool]] = []
    for char, is_shown in ((char, shown) for text, shown in pieces for char in text):
        seen.append((char, is_shown))
        shown_text = "".join(char for char, shown in seen if shown)
        all_text = "".join(char for char, _ in seen)
        cuts = [len(shown_text) - len(s) for s in stops if is_shown and shown_text.endswith(s)]
        cuts += [
            len(shown_text) - sum(shown for _, shown in seen[len(seen) - len(stop) :])
            for stop in stops
            if all_text.endswith(stop)
        ]
        if cuts:
            return shown_text[: min(cuts)], True
    return "".join(text for text, shown in pieces if shown), False


@settings(max_examples=500, deadline=None)
@given(pieces=PIECES, stops=STOPS)
def test_stop_strings_are_found_in_what_special_tokens_spell(
    pieces: list[tuple[str, bool]], stops: list[str]
) -> None:
    stop_strings = StopStrings(stops)
    shown, stopped = "", False
    for piece, is_shown in pieces:
        push = stop_strings.push if is_shown else stop_strings.push_hidden
        text, stopped, _ = push(piece)
        shown += text
        if stopped:
            break
    shown += stop_strings.flush()
    assert (shown, stopped) == cut_at_first_stop_of_two(pieces, stops)
