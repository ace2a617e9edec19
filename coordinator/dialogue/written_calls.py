"""Writes calls as a model would, for a history whose chat template leaves them out."""

import json
from collections.abc import Collection, Mapping, Sequence

from coordinator.core.tools import ToolCall
from coordinator.dialogue.formats.call_format import (
    CALL_ID,
    CALL_INDEX,
    NAME,
    CallFormat,
    Parameters,
)


def written_calls(
    calls: Sequence[ToolCall], form: CallFormat, as_they_are: Mapping[str, Collection[str]]
) -> str:
    """Writes calls; a format of one call only gets them one after the other.

    Args:
        calls: At least one; their arguments are JSON objects.
        form: Format of the calls.
        as_they_are: The parameters of each tool whose values are written without quotes, where they
            are strings.
    """
    parts = [form.begin]
    for index, call in enumerate(calls):
        if index:
            parts.append(form.end + form.begin if form.next is None else form.next)
        arguments = json.loads(call.arguments)
        parts += [call.name, form.name_end.replace(NAME, call.name)]
        if isinstance(form.arguments, Parameters):
            parts.append(_parameters(arguments, form.arguments, as_they_are.get(call.name, ())))
        else:
            parts.append(json.dumps(arguments, ensure_ascii=False))
        parts = [_filled("".join(parts), call.call_id, index)]
    return _filled("".join([*parts, form.end]), calls[-1].call_id, len(calls) - 1)


def _filled(text: str, call_id: str, index: int) -> str:
    return text.replace(CALL_ID, call_id).replace(CALL_INDEX, str(index))


def _parameters(
    arguments: Mapping[str, object], form: Parameters, as_they_are: Collection[str]
) -> str:
    written = []
    for name, value in arguments.items():
        one = form.of(name)
        if isinstance(value, str) and one.text_name_end is not None and name in as_they_are:
            text = value
            if any(char in one.not_plain for char in value):
                text = value.join(one.block)
            written.append(f"{one.begin}{name}{one.text_name_end}{text}{one.text_end}")
        else:
            text = json.dumps(value, ensure_ascii=False)
            written.append(f"{one.begin}{name}{one.name_end}{text}{one.end}")
    return form.separator.join(written)
