"""The parts of a chat that need no terminal and no coordinator."""

import json
from pathlib import Path

import pytest

from coordinator.cli.chat.commands import Command, Verb, help_text, literal, parse_command
from coordinator.cli.chat.conversation import Conversation, Exchange
from coordinator.cli.chat.input import history_path
from coordinator.cli.chat.message_text import is_complete, message_of
from coordinator.cli.chat.settings import NAMES, Settings
from coordinator.cli.chat.transcript import write_transcript
from coordinator.cli.shared.console import printable
from stagecoach.client import ChatMessage, GenerateOptions, InvalidArgumentError


def a_conversation() -> Conversation:
    conversation = Conversation("Be brief.")
    conversation.add(Exchange("one?", answered("1")))
    conversation.add(Exchange("two?", answered("2")))
    return conversation


def answered(text: str) -> tuple[ChatMessage, ...]:
    return (ChatMessage(role="assistant", content=text),)


def turns(conversation: Conversation, question: str | None = None) -> list[tuple[str, str]]:
    return [(turn.role, turn.content) for turn in conversation.messages(question)]


def test_the_model_sees_the_system_message_all_turns_and_the_question() -> None:
    assert turns(a_conversation(), "three?") == [
        ("system", "Be brief."),
        ("user", "one?"),
        ("assistant", "1"),
        ("user", "two?"),
        ("assistant", "2"),
        ("user", "three?"),
    ]


def test_turns_go_from_either_end_and_the_system_message_stays() -> None:
    conversation = a_conversation()
    assert conversation.undo() == Exchange("two?", answered("2"))
    assert conversation.drop_oldest()
    assert turns(conversation) == [("system", "Be brief.")]
    assert not conversation.drop_oldest()
    assert conversation.undo() is None


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("hello", "hello"),
        ("  hello ", "hello"),
        ("", ""),
        ("a\\\nb", "a\nb"),
        ("a\\\nb\\\nc", "a\nb\nc"),
        ('"""one line"""', "one line"),
        ('"""\na\n\n  b\\\n"""', "a\n\n  b\\"),
        ("pasted\nlines", "pasted\nlines"),
        ('say """ aloud', 'say """ aloud'),
    ],
)
def test_complete_text_is_a_message(typed: str, message: str) -> None:
    assert is_complete(typed)
    assert message_of(typed) == message


@pytest.mark.parametrize("typed", ["a\\", '"""', '""""', '"""a', '"""a\nb\\', "a\\\nb\\"])
def test_text_that_asks_for_another_line_is_not_complete(typed: str) -> None:
    assert not is_complete(typed)


@pytest.mark.parametrize(
    ("message", "command"),
    [
        ("/help", Command(Verb.HELP, "")),
        ("/?", Command(Verb.HELP, "")),
        ("/quit", Command(Verb.EXIT, "")),
        ("/system Be kind.\nAnd brief.", Command(Verb.SYSTEM, "Be kind.\nAnd brief.")),
        ("/set  temperature 0.7 ", Command(Verb.SET, "temperature 0.7")),
        ("no command", None),
        ("//usr/bin is a folder", None),
    ],
)
def test_a_slash_begins_a_command_and_two_begin_a_message(
    message: str, command: Command | None
) -> None:
    assert parse_command(message) == command


@pytest.mark.parametrize(("message", "near"), [("/retyr", "/retry"), ("/", "/help"), ("/x", "//")])
def test_an_unknown_command_is_refused_with_what_is_near(message: str, near: str) -> None:
    with pytest.raises(InvalidArgumentError, match=near):
        parse_command(message)


def test_of_two_slashes_the_model_sees_one() -> None:
    assert literal("//usr") == "/usr"
    assert literal("a//b") == "a//b"


def test_help_names_every_command() -> None:
    assert all(f"/{verb}" in help_text() for verb in Verb)


def test_settings_change_and_go_back() -> None:
    settings = Settings(GenerateOptions(max_tokens=9, temperature=None), drop_oldest=False)
    for name, value in (("temperature", "0.7"), ("top-k", "4"), ("max_tokens", "5")):
        settings.set(name, value)
    settings.set("drop-oldest", "on")
    settings.set("stop", "\\n\\n")
    assert settings.options == {
        "max_tokens": 5,
        "temperature": 0.7,
        "top_k": 4,
        "stop": ("\n\n",),
    }
    assert settings.drop_oldest
    for name in ("temperature", "top-k", "max-tokens", "drop-oldest", "stop"):
        settings.set(name, "default")
    assert settings.options == {"max_tokens": 9, "temperature": None}
    assert settings.shown() == {"max_tokens": 9, "drop_oldest": "off"}


@pytest.mark.parametrize(
    ("name", "value", "part"),
    [
        ("temprature", "1", "temperature"),
        ("temperature", "warm", "a number"),
        ("top-k", "1.5", "a whole number"),
        ("drop-oldest", "maybe", "on or off"),
        ("zzz", "1", "max-tokens"),
    ],
)
def test_a_setting_that_is_not_there_or_has_no_such_value_is_refused(
    name: str, value: str, part: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=part):
        Settings(GenerateOptions(), drop_oldest=False).set(name, value)


def test_every_setting_but_one_is_an_option_of_a_request() -> None:
    fields = {name.replace("-", "_") for name in NAMES}
    assert fields - set(GenerateOptions.__annotations__) == {"drop_oldest"}


def test_a_conversation_is_saved_as_json_or_text_and_never_over_a_file(tmp_path: Path) -> None:
    as_json, as_text = tmp_path / "chat.json", tmp_path / "chat.md"
    for path in (as_json, as_text):
        write_transcript(path, a_conversation(), model="demo", may_replace=False)
    saved = json.loads(as_json.read_text())
    assert (saved["model"], saved["messages"][-1]) == (
        "demo",
        {"role": "assistant", "content": "2"},
    )
    assert as_text.read_text().startswith("# system\n\nBe brief.\n\n# user\n\none?\n")
    with pytest.raises(InvalidArgumentError, match="exists already"):
        write_transcript(as_text, Conversation(), model="demo", may_replace=False)
    write_transcript(as_text, Conversation(), model="demo", may_replace=True)
    assert as_text.read_text() == "\n"
    with pytest.raises(InvalidArgumentError, match="Is a directory"):
        write_transcript(tmp_path, Conversation(), model="demo", may_replace=True)


def test_the_history_is_in_the_users_state_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert history_path() == Path("/state/stagecoach/chat_history")
    for value in ("", "relative"):
        monkeypatch.setenv("XDG_STATE_HOME", value)
        assert history_path() == Path("/home/someone/.local/state/stagecoach/chat_history")


def test_control_characters_of_a_model_do_not_reach_a_terminal() -> None:
    assert printable("a\x1b[2Jb\x07\x9b\tc\r\nd é 漢") == "a�[2Jb��\tc\nd é 漢"
