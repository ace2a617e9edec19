"""What became of one question."""

from dataclasses import dataclass

from stagecoach.client import Completion, FinishReason, StagecoachError


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer that is whole, was stopped, or failed; the text is what there is of it."""

    text: str
    token_ids: tuple[int, ...]
    completion: Completion | None = None
    """Unless it was stopped or failed."""
    error: StagecoachError | None = None
    """Why it failed."""

    @property
    def finish_reason(self) -> str:
        """Finish reason of the completion; abort when it was stopped, error when it failed."""
        if self.completion is not None:
            return str(self.completion.finish_reason)
        return "error" if self.error is not None else str(FinishReason.ABORT)
