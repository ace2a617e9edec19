"""What of the text of an output is shown, and when: stop strings, and characters in pieces."""

import pytest

from coordinator.text.output_text import OutputText
from coordinator.text.tokenizer import Tokenizer
from coordinator.text.tokenizer_files import load_tokenizer
from stagecoach.model_files import open_model


@pytest.fixture(scope="module")
def demo() -> Tokenizer:
    tokenizer = load_tokenizer(open_model("demo"))
    assert tokenizer is not None
    return tokenizer


def test_it_stops_across_tokens_and_says_nothing_afterwards(demo: Tokenizer) -> None:
    output = OutputText(demo, ["STOP"])
    shown = ""
    for token_id in demo.encode("go on, ST and then STOP here"):
        text, stopped, _ = output.push(token_id)
        shown += text
        if stopped:
            break
    assert shown == "go on, ST and then "
    assert stopped
    assert output.flush().text == ""
    assert output.stop_string == "STOP"


def test_it_flushes_what_it_held_back(demo: Tokenizer) -> None:
    output = OutputText(demo, ["STOP"])
    shown = "".join(output.push(token_id).text for token_id in demo.encode("one ST"))
    assert shown == "one "
    assert output.flush().text == "ST"
    assert output.stop_string is None


def test_it_finds_a_stop_string_that_only_the_flush_completes(demo: Tokenizer) -> None:
    output = OutputText(demo, ["\ufffd"])
    incomplete = demo.encode("a🙂")[:-1]
    shown = "".join(output.push(token_id).text for token_id in incomplete)
    assert shown + output.flush().text == "a"


def test_that_of_a_model_without_tokenizer_is_empty() -> None:
    output = OutputText(None, [])
    assert output.push(7).text == ""
    assert output.flush().text == ""


def test_stop_strings_count_only_after_the_tokens_that_must_come(demo: Tokenizer) -> None:
    token_ids = demo.encode(" STOP one STOP two STOP")

    def text(min_tokens: int) -> str:
        output = OutputText(demo, ["STOP"], min_tokens=min_tokens)
        shown = ""
        for token_id in token_ids:
            delta = output.push(token_id)
            shown += delta.text
            if delta.stopped:
                return shown
        return shown + output.flush().text

    first = next(num for num in range(len(token_ids)) if "STOP" in demo.detokenize(token_ids[:num]))
    assert text(0) == " "
    assert text(first) == " STOP one "
    assert text(len(token_ids)) == demo.detokenize(token_ids)
