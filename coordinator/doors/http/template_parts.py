"""What a chat template is given by name, and which of it the template does not look for."""

import json
from collections.abc import Set as NameSet
from itertools import islice
from urllib.parse import quote

from coordinator.doors.http.schema.conversation import ConversationFields
from coordinator.doors.thinking_arguments import thinking_arguments

MAX_SHOWN_NAMES, MAX_SHOWN_NAME_CHARS = 16, 64


def looks_for_thinking(variables: NameSet[str], *, effort: str | None) -> bool:
    """Whether a template looks for any of what `thinking_arguments` says.

    Args:
        variables: What the template looks for.
        effort: As it was said; None: it was not.
    """
    said = thinking_arguments(thinks=True, effort=effort)
    return not variables.isdisjoint(said)


def template_arguments(request: ConversationFields) -> str:
    """What the chat template is given by name, as JSON."""
    arguments = thinking_arguments(thinks=request.enable_thinking, effort=request.reasoning_effort)
    given = request.chat_template_kwargs or {}
    return json.dumps({**arguments, **given}, ensure_ascii=False)


def idle_template_fields(request: ConversationFields, variables: NameSet[str]) -> dict[str, str]:
    """Fields that say something to a chat template that it does not look for, as `IgnoredFields`.

    Args:
        request: Validated.
        variables: What the template looks for.
    """
    fields = []
    effort = request.reasoning_effort
    if effort is not None and not looks_for_thinking(variables, effort=effort):
        fields.append("reasoning_effort")
    if request.enable_thinking is not None and not looks_for_thinking(variables, effort=None):
        fields.append("enable_thinking")
    fields += [
        f"chat_template_kwargs.{quote(name[:MAX_SHOWN_NAME_CHARS], errors='replace')}"
        for name in islice(request.chat_template_kwargs or (), MAX_SHOWN_NAMES)
        if name not in variables
    ]
    return {name: name for name in fields}
