"""Items of `/v1/responses`: what the model is told by each, and how each is listed again."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from coordinator.core.request_spec import ChatMessage
from coordinator.core.tools import ToolCall
from coordinator.doors.http.schema.responses_answer import (
    OutputFunctionCall,
    OutputItem,
    OutputMessage,
    OutputReasoning,
)
from coordinator.doors.http.schema.responses_items import (
    InputFunctionCall,
    InputFunctionOutput,
    InputItem,
    InputMessage,
    InputReasoning,
    ItemReference,
    RefusalPart,
    TextPart,
)
from coordinator.doors.http.schema.tools import arguments_object

_PREFIXES = {"message": "msg", "reasoning": "rs", "function_call": "fc"}
_OTHER_PREFIX = "item"


class Item(NamedTuple):
    """One item of a conversation."""

    message: ChatMessage | None
    """What the model is told: a whole message, or one call or the thinking of one. None: nothing,
    as of a call that was cut."""
    text: str
    """The item as a JSON object, with its id if it has one."""
    id: str | None = None
    """Under which it is listed. None: not known yet."""
    reference: str | None = None
    """Id of the kept item that this one stands for."""


def given_items(given: str | Sequence[InputItem | Item] | None) -> list[Item]:
    """Reads the input of a request.

    Args:
        given: What was validated, or what this returned.
    """
    if given is None:
        return []
    if isinstance(given, str):
        return [_message("user", given, None)]
    return [one if isinstance(one, Item) else _item(one) for one in given]


def shown_name(name: str, namespace: str | None) -> str:
    """The name of a function as the model knows it."""
    return f"{namespace}.{name}" if namespace else name


def item_of_output(made: OutputItem) -> Item:
    """An item that the model made; of a call that was cut, it is told nothing later."""
    message: ChatMessage | None
    match made:
        case OutputMessage():
            text = "".join(part.text for part in made.content)
            message = ChatMessage(role="assistant", content=text)
        case OutputReasoning():
            thought = "".join(part.text for part in made.content)
            message = ChatMessage(role="assistant", reasoning=thought)
        case OutputFunctionCall(status="completed"):
            name = shown_name(made.name, made.namespace)
            arguments = arguments_object(made.arguments)
            call = ToolCall(call_id=made.call_id, name=name, arguments=arguments)
            message = ChatMessage(role="assistant", tool_calls=(call,))
        case OutputFunctionCall():
            message = None
    return Item(message, made.model_dump_json(), id=made.id)


def with_id(item: Item, item_id: str) -> Item:
    """The same item, listed under an id."""
    return item._replace(text=f'{{"id":"{item_id}",{item.text[1:]}', id=item_id)


def item_id(kind: str, response_id: str, place: str) -> str:
    """The id of an item, which tells the response that it came with.

    Args:
        kind: Type of the item.
        response_id: Id of the response.
        place: Tells it from the other items of the response.
    """
    prefix = _PREFIXES.get(kind, _OTHER_PREFIX)
    return f"{prefix}_{response_id.partition('_')[2]}_{place}"


def response_of(item: str) -> str:
    """Id of the response that an item came with, if its id is one of `item_id`."""
    return "resp_" + item.partition("_")[2].partition("_")[0]


def kind_of(item: Item) -> str:
    """Type of an item that a client gave."""
    message = item.message
    if message is None or message.reasoning is not None:
        return "reasoning"
    if message.tool_calls:
        return "function_call"
    return "function_call_output" if message.role == "tool" else "message"


def conversation(turns: Iterable[Sequence[ChatMessage]]) -> tuple[ChatMessage, ...]:
    """The messages that a model is told: one for each of `conversation_turns`."""
    return tuple(map(_joined, turns))


def conversation_turns(
    instructions: str | None, told: Iterable[ChatMessage]
) -> Sequence[Sequence[ChatMessage]]:
    """What becomes one message of those that a model is told.

    Thinking, what follows it, and calls become one message of the assistant. Instructions, and what
    the system says right after them, become one message: most templates take only one.
    """
    turns: list[list[ChatMessage]] = []
    if instructions:
        turns.append([ChatMessage(role="system", content=instructions)])
    for one in told:
        if turns and _goes_on(turns, one):
            turns[-1].append(one)
        else:
            turns.append([one])
    return turns


def to_facts(item: Item) -> Mapping[str, object]:
    """An item as what JSON can write."""
    message = item.message
    if message is None:
        return {"text": item.text, "reference": item.reference}
    return {
        "text": item.text,
        "message": {
            "role": message.role,
            "content": message.content,
            "reasoning": message.reasoning,
            "tool_call_id": message.tool_call_id,
            "tool_calls": [
                {"call_id": call.call_id, "name": call.name, "arguments": call.arguments}
                for call in message.tool_calls
            ],
        },
    }


def from_facts(facts: Mapping[str, Any]) -> Item:
    """The item of `to_facts`."""
    message = facts.get("message")
    if message is None:
        return Item(None, facts["text"], reference=facts.get("reference"))
    calls = tuple(ToolCall(**call) for call in message["tool_calls"])
    return Item(ChatMessage(**{**message, "tool_calls": calls}), facts["text"])


def _item(given: InputItem) -> Item:
    match given:
        case InputMessage():
            return _message(given.role, _text(given.content), given.status)
        case InputFunctionCall():
            call = ToolCall(
                call_id=given.call_id,
                name=shown_name(given.name, given.namespace),
                arguments=arguments_object(given.arguments),
            )
            return Item(
                ChatMessage(role="assistant", tool_calls=(call,)),
                _listed(
                    "function_call",
                    call_id=given.call_id,
                    name=given.name,
                    namespace=given.namespace,
                    arguments=given.arguments,
                    status=given.status or "completed",
                ),
            )
        case InputFunctionOutput():
            text = _text(given.output)
            return Item(
                ChatMessage(role="tool", content=text, tool_call_id=given.call_id),
                _listed(
                    "function_call_output",
                    call_id=given.call_id,
                    output=text,
                    status=given.status or "completed",
                ),
            )
        case InputReasoning():
            return _reasoning(given)
        case ItemReference():
            return Item(None, "{}", reference=given.id)


def _message(role: str, text: str, status: str | None) -> Item:
    is_answer = role == "assistant"
    part: dict[str, object] = {"type": "output_text" if is_answer else "input_text", "text": text}
    if is_answer:
        part["annotations"] = []
    listed = _listed("message", role=role, status=status or "completed", content=[part])
    told_role = "system" if role == "developer" else role
    return Item(ChatMessage(role=told_role, content=text), listed)


def _reasoning(given: InputReasoning) -> Item:
    content = [one.text for one in given.content or ()]
    summary = [one.text for one in given.summary or ()]
    text = "\n\n".join(content or summary)
    listed = _listed(
        "reasoning",
        summary=[{"type": "summary_text", "text": one} for one in summary],
        content=[{"type": "reasoning_text", "text": one} for one in content],
        status=given.status or "completed",
    )
    return Item(ChatMessage(role="assistant", reasoning=text) if text else None, listed)


def _listed(kind: str, **fields: object) -> str:
    return json.dumps({"type": kind, **fields}, ensure_ascii=False, separators=(",", ":"))


def _text(content: str | Sequence[TextPart | RefusalPart]) -> str:
    if isinstance(content, str):
        return content
    return "".join(one.refusal if isinstance(one, RefusalPart) else one.text for one in content)


def _goes_on(turns: Sequence[Sequence[ChatMessage]], one: ChatMessage) -> bool:
    """Whether a message is part of the last one."""
    last = turns[-1][-1]
    if one.role == "system":
        return len(turns) == 1 and last.role == "system"
    if one.role != "assistant" or last.role != "assistant":
        return False
    return bool(one.tool_calls) or last.reasoning is not None


def _joined(turn: Sequence[ChatMessage]) -> ChatMessage:
    if len(turn) == 1:
        return turn[0]
    if turn[0].role == "system":
        return ChatMessage(role="system", content="\n\n".join(one.content for one in turn))
    thoughts = [one.reasoning for one in turn if one.reasoning is not None]
    return ChatMessage(
        role="assistant",
        content="".join(one.content for one in turn),
        tool_calls=tuple(call for one in turn for call in one.tool_calls),
        reasoning="\n\n".join(thoughts) if thoughts else None,
    )
