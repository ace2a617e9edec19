"""Where the tokens of a prompt are in its text, whatever its tokenizer made of it."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.core.request_spec import Prompt, TextPrompt, TokenPrompt
from coordinator.doors.http.echoed_prompt import EchoedPrompt, echoed_prompt

EMOJI = "\N{GRINNING FACE}"


async def echo_of(prompt: Prompt, spellings: list[str | bytes]) -> EchoedPrompt:
    """The token ids are the numbers of their spellings."""
    spelled = [one.encode() if isinstance(one, str) else one for one in spellings]
    return await echoed_prompt(
        prompt, range(len(spelled)), lambda token_id: spelled[token_id], with_starts=True
    )


@pytest.mark.parametrize(
    ("text", "spellings", "starts"),
    [
        ("Hello world", ["Hello", " world"], [0, 5]),
        ("Hello world", [" Hello", " world"], [0, 5]),  # a space that the tokenizer puts there
        ("Hello", ["<s>", "Hello"], [0, 0]),  # a begin token that it puts there
        ("<s>Hello</s>", ["<s>", "Hello", "</s>"], [0, 3, 8]),
        (f"a{EMOJI}b", ["a", EMOJI.encode()[:2], EMOJI.encode()[2:], "b"], [0, 1, 1, 2]),
        ("e\u0301 x", ["\u00e9", " x"], [0, 2]),  # what it has composed
        ("a\tb c", ["a", " b", " c"], [0, 1, 3]),  # a space in the place of another
        ("\ufb01ne day", ["fi", "ne", " day"], [0, 1, 3]),  # a letter that it has taken apart
        ("\u00e9 x", ["e", "\u0301", " x"], [0, 0, 1]),  # taken apart into two tokens
        ("a  b c", ["a", " b", " c"], [0, 2, 4]),  # a space that it has left out
        ("a\n\nb", ["a", "b"], [0, 3]),
        ("The Day", ["the", " day"], [0, 3]),
        ("a\u200b\u200bword", ["a", "word"], [0, 3]),  # characters that it has left out
        (  # the composed form comes again farther on
            "e\u0301t and the end of the day, \u00e9t and the rest",
            ["\u00e9", "t", " and", " the", " end", " of", " the", " day", ",", " \u00e9", "t"],
            [0, 2, 3, 7, 11, 15, 18, 22, 26, 27, 29],
        ),
        (
            "e\u0301t and the end of the day, \u00e9t and the rest",
            ["\u00e9t", " and", " the"],
            [0, 3, 7],
        ),
        ("abc", [], []),
    ],
)
async def test_tokens_are_found_in_a_text_as_it_was_sent(
    text: str, spellings: list[str | bytes], starts: list[int]
) -> None:
    found = await echo_of(TextPrompt(text=text), spellings)
    assert found.text == text
    assert list(found.starts) == starts
    count = len(spellings)
    assert count == 0 or "".join(found.text_of(i, i + 1) for i in range(count)) == text


FORMS = [*"abfi. \t", "e\u0301", "\u00e9", "\ufb01", "\u2026", "\u1e9b\u0323"]


@given(st.lists(st.lists(st.sampled_from(FORMS), min_size=1, max_size=4), max_size=30))
async def test_no_form_of_a_character_moves_the_tokens_behind_it(words: list[list[str]]) -> None:
    """A twin that knows which characters of the text became which token."""
    texts = ["".join(word) for word in words]
    spellings: list[str | bytes] = [
        "".join(" " if one == "\t" else unicodedata.normalize("NFKC", one) for one in word)
        for word in words
    ]
    if not texts:
        return
    found = await echo_of(TextPrompt(text="".join(texts)), spellings)
    assert list(found.starts) == [sum(map(len, texts[:i])) for i in range(len(texts))]


async def test_what_ids_spell_is_their_text() -> None:
    prompt = TokenPrompt(token_ids=(0, 1, 2, 3))
    found = await echo_of(prompt, ["<s>", "a", EMOJI.encode()[:3], "b"])
    assert found.text == "<s>a\N{REPLACEMENT CHARACTER}b"
    assert list(found.starts) == [0, 3, 4, 5]
    cut_off = await echo_of(prompt, ["a", EMOJI.encode()[:3]])
    assert cut_off.text == "a\N{REPLACEMENT CHARACTER}"
    assert list(cut_off.starts) == [0, 1]


async def test_a_text_whose_places_nobody_wants_is_not_looked_through() -> None:
    def spell(token_id: int) -> bytes:
        raise AssertionError(f"token {token_id} was looked for")

    found = await echoed_prompt(TextPrompt(text="ab"), (1, 2), spell, with_starts=False)
    assert found == EchoedPrompt("ab", (1, 2), ())


async def test_a_text_that_is_nothing_like_its_tokens_is_returned_all_the_same() -> None:
    found = await echo_of(TextPrompt(text="x" * 1000), ["y"] * 5)
    assert list(found.starts) == [0] * 5
    assert found.text_of(0, 5) == "x" * 1000
