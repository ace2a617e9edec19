"""Whether a model is told who speaks: few chat templates look at the names of messages."""

from collections.abc import Sequence

from coordinator.core.generation_engine import GenerationEngine
from coordinator.core.request_spec import ChatMessage, ChatPrompt
from stagecoach.contract.errors import InvalidArgumentError

_ROLES: Sequence[Sequence[str]] = (("system", "user", "assistant", "user"), ("user",))
"""Roles of conversations that are tried: not every template knows every role."""


async def reads_names(engine: GenerationEngine) -> bool:
    """Tries whether a conversation becomes other tokens when its messages have names.

    Args:
        engine: Renders and tokenizes conversations.

    Raises:
        StagecoachError: Too many conversations wait, or the template does not end.
    """
    for roles in _ROLES:
        try:
            without, with_names = [
                list(await engine.tokenize(_conversation(roles, name))) for name in (None, "Ada")
            ]
        except InvalidArgumentError:
            continue
        return without != with_names
    return False


def _conversation(roles: Sequence[str], name: str | None) -> ChatPrompt:
    return ChatPrompt(
        messages=tuple(ChatMessage(role=role, content="Hi", name=name) for role in roles)
    )
