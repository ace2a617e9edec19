"""What became of one question."""

from dataclasses import dataclass

from stagecoach.client import ChatMessage, Completion, FinishReason, StagecoachError


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer that is whole, was stopped, or failed; the text is what there is of it."""

    text: str
    token_ids: tuple[int, ...]
    turns: tuple[ChatMessage, ...] = ()
    """What came after the question: calls of tools and their results, and the answer."""
    completion: Completion | None = None
    """The last one; unless it was stopped or failed."""
    error: StagecoachError | None = None
    """Why it failed."""

    @property
    def finish_reason(self) -> str:
        """Finish reason of the completion; abort when it was stopped, error when it failed."""
        if self.completion is not None:
            return str(self.completion.finish_reason)
        return "error" if self.error is not None else str(FinishReason.ABORT)
