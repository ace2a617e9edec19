"""What was said so far, and what of it the model gets to see. Pure."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from stagecoach.client import ChatMessage


class Exchange(NamedTuple):
    """A question and what came of it, which may have been stopped half way."""

    question: str
    turns: tuple[ChatMessage, ...]
    """Calls of tools with their results, and the answer."""


def answered_turns(turns: Sequence[ChatMessage]) -> tuple[ChatMessage, ...]:
    """The same turns, without calls at the end that were not all answered: templates want both."""
    asking = [place for place, one in enumerate(turns) if one.tool_calls]
    if not asking:
        return tuple(turns)
    place = asking[-1]
    answered = {one.tool_call_id for one in turns[place + 1 :]}
    if answered.issuperset(call.call_id for call in turns[place].tool_calls):
        return tuple(turns)
    return (*turns[:place], replace(turns[place], tool_calls=()))


class Conversation:
    """Exchanges in order, under at most one system message.

    Args:
        system: The system message.
    """

    def __init__(self, system: str | None = None) -> None:
        self.system = system
        self._exchanges: list[Exchange] = []

    def messages(self, question: str | None = None) -> list[ChatMessage]:
        """The conversation as a model gets it.

        Args:
            question: Asked at its end.
        """
        turns = [] if self.system is None else [ChatMessage(role="system", content=self.system)]
        for exchange in self._exchanges:
            turns += [ChatMessage(role="user", content=exchange.question), *exchange.turns]
        if question is not None:
            turns.append(ChatMessage(role="user", content=question))
        return turns

    def add(self, exchange: Exchange) -> None:
        """Adds an exchange at the end."""
        self._exchanges.append(exchange)

    def undo(self) -> Exchange | None:
        """Takes the last exchange back and returns it; None when there is none."""
        return self._exchanges.pop() if self._exchanges else None

    def drop_oldest(self) -> bool:
        """Forgets the oldest exchange; False when there is none."""
        if not self._exchanges:
            return False
        del self._exchanges[0]
        return True

    def reset(self) -> None:
        """Forgets all exchanges; the system message stays."""
        self._exchanges.clear()
