"""What was said so far, and what of it the model gets to see. Pure."""

from typing import NamedTuple

from stagecoach.client import ChatMessage


class Exchange(NamedTuple):
    """A question and the answer to it, which may have been stopped half way."""

    question: str
    answer: str


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
        turns = [] if self.system is None else [("system", self.system)]
        for exchange in self._exchanges:
            turns += [("user", exchange.question), ("assistant", exchange.answer)]
        if question is not None:
            turns.append(("user", question))
        return [ChatMessage(role=role, content=content) for role, content in turns]

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
