"""What a model is told of tools and their results whose chat template does not show them."""

import json
from collections.abc import Mapping, Sequence

from coordinator.core.tools import ToolCall
from coordinator.dialogue.formats.call_format import CallFormat
from coordinator.dialogue.written_calls import written_calls

_EXAMPLE = ToolCall(call_id="ID", name="NAME", arguments='{"PARAMETER": "VALUE"}')
RESULT_BEGIN, RESULT_END = "<tool_response>\n", "\n</tool_response>"


def instructions(tools: Sequence[Mapping[str, object]], form: CallFormat) -> str:
    """The part of a system message that shows tools, and how they are called.

    Args:
        tools: Each as OpenAI writes it.
        form: Format of the calls.
    """
    lines = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    example = written_calls([_EXAMPLE], form, {_EXAMPLE.name: ["PARAMETER"]})
    return (
        "You can call functions. These are their signatures as JSON schemas:\n"
        f"<tools>\n{lines}\n</tools>\n"
        "To call a function, answer with its name and its arguments, in this form and nothing after"
        f" it:\n{example}\n"
        "Call no function that is not listed. Without need of one, answer as usual."
    )


def result_text(content: str) -> str:
    """What the result of a call becomes in a message of the user."""
    return f"{RESULT_BEGIN}{content}{RESULT_END}"
