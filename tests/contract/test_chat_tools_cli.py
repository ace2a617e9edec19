"""`coordinator-cli chat` with thinking and functions, in a real terminal and from a pipe."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from coordinator.cli.chat.conversation import answered_turns
from coordinator.cli.chat.tool_files import read_tools
from stagecoach.client import ChatMessage, InvalidArgumentError, ToolCall
from tests.contract.scripted_engine import Script, ScriptedEngine
from tests.contract.test_chat_cli import COMMAND, ODD, piped
from tests.contract.test_client_chat import ANSWERS, call_text, prompts
from tests.contract.test_generation_client import BackgroundServer, until
from tests.terminal import CTRL_C, CTRL_D, ENTER, Terminal

TOOLS = '''
"""Tools of a test."""

import time
from dataclasses import dataclass
from pathlib import Path

CALLED = Path(__file__).with_name("called")

@dataclass
class Place:
    city: str

def weather(place: Place, days: int = 1) -> str:
    """Tells the weather."""
    CALLED.write_text(f"{place} {days}")
    return f"rain in {place.city}"

def broken(city: str) -> str:
    """Fails."""
    raise KeyError(city)

def slow() -> None:
    """Takes long."""
    CALLED.write_text("slow")
    time.sleep(1)

def _hidden() -> None:
    """Is no tool."""
'''
ASKS = Script(
    "<think>Look it up.</think>One moment."
    + call_text("weather", place={"city": "Rome\x1b[31m"}, days=2)
)


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    path = tmp_path / "tools.py"
    path.write_text(TOOLS)
    return path


@contextmanager
def chat(
    tools: Path, *scripts: Script, arguments: Sequence[str] = ()
) -> Iterator[tuple[Terminal, ScriptedEngine]]:
    engine = ScriptedEngine(*scripts)
    with BackgroundServer(engine) as server:
        environment = {
            "STAGECOACH_COORDINATOR": server.address,
            "XDG_STATE_HOME": str(tools.parent),
        }
        command = [*COMMAND, "--tool", str(tools), *arguments]
        with Terminal(command, environment) as terminal:
            terminal.expect("Ctrl-D leaves")
            terminal.expect("> ")
            yield terminal, engine
            terminal.type(CTRL_D)
            assert terminal.ended() == 0
            shown = terminal.shown.replace("Error: KeyError: ", "").replace("Error: the user", "")
            assert not [word for word in ODD if word in shown]


def test_thinking_is_dimmed_and_a_function_is_called_after_asking(tools: Path) -> None:
    called = tools.with_name("called")
    with chat(tools, ASKS, ANSWERS) as (terminal, engine):
        terminal.type("weather?" + ENTER)
        terminal.expect("Look it up.\n\nOne moment.\n")
        terminal.expect('weather {"place": {"city": "Rome\\u001b[31m"}, "days": 2}')
        terminal.expect("call weather? [y/N]")
        assert not called.exists()
        terminal.type("y" + ENTER)
        terminal.expect("rain in Rome")
        terminal.expect("Sunny.")
        terminal.expect("> ")
        terminal.type(f"/save {tools.with_name('chat.json')}" + ENTER)
        terminal.expect("saved to")
        assert "\x1b[2m" in terminal.raw[: terminal.raw.index("One moment.")]
        assert "\x1b[31m" not in terminal.raw[terminal.raw.index("rain in") :][:20]
    assert called.read_text() == "Place(city='Rome\\x1b[31m') 2"
    assert [message.role for message in prompts(engine)[1].messages] == [
        *("user", "assistant", "tool")
    ]
    turns = json.loads(tools.with_name("chat.json").read_text())["messages"]
    assert [turn["role"] for turn in turns] == ["user", "assistant", "tool", "assistant"]
    assert turns[1]["tool_calls"][0]["function"]["name"] == "weather"
    assert turns[2]["tool_call_id"] == turns[1]["tool_calls"][0]["id"]
    assert "_hidden" not in {tool.name for tool in prompts(engine)[0].tools}


@pytest.mark.parametrize("answer", ["n" + ENTER, ENTER, CTRL_D])
def test_a_call_that_is_declined_is_told_to_the_model(tools: Path, answer: str) -> None:
    with chat(tools, ASKS, ANSWERS) as (terminal, engine):
        terminal.type("weather?" + ENTER)
        terminal.expect("call weather? [y/N]")
        terminal.type(answer)
        terminal.expect("the user declined this call")
        terminal.expect("Sunny.")
        terminal.expect("> ")
    assert not tools.with_name("called").exists()
    assert prompts(engine)[1].messages[-1].content == "Error: the user declined this call"


def test_what_was_typed_before_the_question_is_no_answer_to_it(tools: Path) -> None:
    with chat(tools, ASKS, ANSWERS) as (terminal, engine):
        engine.delay_s = 0.02
        terminal.type("weather?" + ENTER)
        terminal.expect("Look")
        terminal.type("y" + ENTER)
        terminal.expect("call weather? [y/N]")
        terminal.type("n" + ENTER)
        terminal.expect("the user declined this call")
        terminal.expect("Sunny.")
        terminal.expect("> ")
    assert not tools.with_name("called").exists()


def test_ctrl_c_at_the_question_stops_the_answer_and_the_chat_goes_on(tools: Path) -> None:
    with chat(tools, ASKS, ANSWERS) as (terminal, engine):
        terminal.type("weather?" + ENTER)
        terminal.expect("call weather? [y/N]")
        terminal.type(CTRL_C)
        terminal.expect("(stopped)")
        until(lambda: not engine.running)
        terminal.expect("> ")
        terminal.type("more" + ENTER)
        terminal.expect("Sunny.")
        terminal.expect("> ")
    assert [message.role for message in prompts(engine)[1].messages] == [
        *("user", "assistant", "tool", "user")
    ]


def test_ctrl_c_does_not_wait_for_a_function(tools: Path) -> None:
    with chat(tools, Script(call_text("slow")), ANSWERS) as (terminal, _):
        terminal.type("go" + ENTER)
        terminal.expect("call slow? [y/N]")
        terminal.type("y" + ENTER)
        until(lambda: tools.with_name("called").exists())
        terminal.type(CTRL_C)
        terminal.expect("(stopped)")
        terminal.expect("> ")


def test_a_function_that_fails_is_shown_and_told(tools: Path) -> None:
    asks = Script(call_text("broken", city="Rome"))
    with chat(tools, asks, ANSWERS) as (terminal, engine):
        terminal.type("weather?" + ENTER)
        terminal.expect("call broken? [y/N]")
        terminal.type("y" + ENTER)
        terminal.expect("KeyError: 'Rome'")
        terminal.expect("Sunny.")
        terminal.expect("> ")
    assert prompts(engine)[1].messages[-1].content == "Error: KeyError: 'Rome'"


def test_no_thinking_goes_where_no_person_watches(tmp_path: Path) -> None:
    script = Script("<think>Look it up.</think>Sunny.")
    with BackgroundServer(ScriptedEngine(script)) as server:
        plain = piped(server, "weather?\n")
        assert (plain.returncode, plain.stdout) == (0, "Sunny.\n")
        told = json.loads(piped(server, "weather?\n", "--json").stdout)
    assert (told["text"], told["reasoning"]) == ("Sunny.", "Look it up.")


@pytest.mark.parametrize("arguments", [(), ("--json",)])
def test_functions_need_a_terminal(tools: Path, arguments: Sequence[str]) -> None:
    with BackgroundServer(ScriptedEngine(ANSWERS)) as server:
        result = piped(server, "x\n", "--tool", str(tools), *arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert "--tool is for a chat in a terminal" in result.stderr


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ("{}:nothing", "there is no nothing()"),
        ("{}/no.py", "names no file"),
        ("tools", "names no file"),
        ("{bad}", "cannot be run: ZeroDivisionError"),
        ("{empty}", "has no functions"),
        ("{untyped}", "tool: f(): x has no annotation"),
    ],
)
def test_tools_that_cannot_be_read_are_refused(tools: Path, named: str, words: str) -> None:
    files = {"bad": "1 / 0", "empty": "X = 1", "untyped": "def f(x): pass"}
    for name, source in files.items():
        tools.with_name(f"{name}.py").write_text(source)
    paths = {name: tools.with_name(f"{name}.py") for name in files}
    with pytest.raises(InvalidArgumentError) as caught:
        read_tools([named.format(tools, **paths)])
    assert caught.value.field == "tool"
    assert words in caught.value.message


def test_one_function_of_a_file_or_all_are_read(tools: Path) -> None:
    assert [one.__name__ for one in read_tools([f"{tools}:slow"])] == ["slow"]
    assert [one.__name__ for one in read_tools([str(tools)])] == ["weather", "broken", "slow"]


def test_turns_keep_no_calls_that_were_not_all_answered() -> None:
    calls = tuple(ToolCall(call_id=one, name="f", arguments="{}") for one in "ab")
    asks = ChatMessage(role="assistant", content="x", tool_calls=calls)
    answers = [ChatMessage(role="tool", content=one, tool_call_id=one) for one in "ab"]
    assert answered_turns([asks, *answers]) == (asks, *answers)
    assert answered_turns([asks, *answers, asks, answers[0]]) == (
        *(asks, *answers),
        ChatMessage(role="assistant", content="x"),
    )
    assert answered_turns([]) == ()
