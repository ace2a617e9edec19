"""Conversations in the order that a chat template takes.

Clients write turns as they come: two of the user one after the other, what the system says in the
middle, a turn of the user behind the result of a tool. Many templates refuse one of these. What a
template refuses is written for it in the nearest order that it takes, with nothing left out.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress

from stagecoach.contract.errors import InvalidArgumentError

Turn = Mapping[str, object]
"""A message as a template sees it."""

Render = Callable[[Sequence[Turn], Sequence[Mapping[str, object]] | None], str]
"""Renders turns, with tools or none.

Raises `InvalidArgumentError` where the template refuses them."""

THOUGHTS = ("reasoning_content", "reasoning", "thinking")
"""What templates call the thinking of a turn; each has one of these names."""

_BETWEEN = "\n\n"
"""Stands between two contents that become one."""
_NOTHING: Turn = {"role": None}
_SILENT_ASSISTANT: Turn = {"role": "assistant", "content": ""}
_SILENT_USER: Turn = {"role": "user", "content": ""}


def in_order_taken(render: Render) -> Render:
    """Renders as a template does, and what it refuses in the nearest order that it takes.

    Args:
        render: Renders with the template.

    Returns:
        What raises the template's own refusal of the turns as they were, where it takes no order.
    """

    def rendered(turns: Sequence[Turn], tools: Sequence[Mapping[str, object]] | None) -> str:
        try:
            return render(turns, tools)
        except InvalidArgumentError:
            for other in _other_orders(turns):
                with suppress(InvalidArgumentError):
                    return render(other, tools)
            raise

    return rendered


def _other_orders(turns: Sequence[Turn]) -> Iterator[Sequence[Turn]]:
    """The same conversation in other orders, the nearest first."""
    tried = [turns]
    for change in (
        *(_with_one_system, _alternating, _without_system, _without_empty_turns),
        _with_all_thought,
    ):
        changed = change(tried[-1])
        if changed != tried[-1]:
            tried.append(changed)
            yield changed


def _with_one_system(turns: Sequence[Turn]) -> Sequence[Turn]:
    """What the system says after the first turn is said by the user."""
    return [
        {**turn, "role": "user"} if index and turn["role"] == "system" else turn
        for index, turn in enumerate(turns)
    ]


def _alternating(turns: Sequence[Turn]) -> Sequence[Turn]:
    """Neighbours of one role are one turn; empty turns stand where the other one said nothing."""
    alternating: list[Turn] = []
    for turn in turns:
        before = alternating[-1] if alternating else _NOTHING
        match before["role"], turn["role"]:
            case "tool", "user":
                alternating += [_SILENT_ASSISTANT, turn]
            case (("system" | None), "assistant"):
                alternating += [_SILENT_USER, turn]
            case _ if _are_one(before, turn):
                alternating[-1] = _joined(before, turn)
            case _:
                alternating.append(turn)
    return alternating


def _are_one(first: Turn, second: Turn) -> bool:
    """Whether two turns say no more than their contents, and the same one says both."""
    is_said = first["role"] == second["role"] and first["role"] != "tool"
    return is_said and not first.get("tool_calls") and not second.get("tool_calls")


def _joined(first: Turn, second: Turn) -> Turn:
    return {**first, "content": f"{first['content']}{_BETWEEN}{second['content']}"}


def _without_system(turns: Sequence[Turn]) -> Sequence[Turn]:
    """What the system says at the beginning is said by the user, before all else."""
    if not turns or turns[0]["role"] != "system":
        return turns
    return _alternating([{**turns[0], "role": "user"}, *turns[1:]])


def _without_empty_turns(turns: Sequence[Turn]) -> Sequence[Turn]:
    """What the user says behind a result, where no turn may be empty, is told with the result."""
    kept: list[Turn] = []
    for turn in turns:
        if turn == _SILENT_ASSISTANT:
            continue
        if turn["role"] == "user" and kept and kept[-1]["role"] == "tool":
            kept[-1] = _joined(kept[-1], turn)
        else:
            kept.append(turn)
    return kept


def _with_all_thought(turns: Sequence[Turn]) -> Sequence[Turn]:
    """What is said beside a call and thinking is thought, as gpt-oss takes one of both."""
    return [
        {**turn, "content": "", **_joined_thoughts(turn)}
        if turn.get("tool_calls") and turn["content"]
        else turn
        for turn in turns
    ]


def _joined_thoughts(turn: Turn) -> Turn:
    thoughts = {name: turn[name] for name in THOUGHTS if name in turn}
    if not thoughts:
        return {"content": turn["content"]}
    return {name: f"{thought}{_BETWEEN}{turn['content']}" for name, thought in thoughts.items()}
