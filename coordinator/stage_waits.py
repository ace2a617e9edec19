"""What a coordinator that starts waits for: shown to its operator, and told to its callers."""

from stagecoach.contract.errors import DeadlineExceededError, LoadingError, StagecoachError
from stagecoach.process.load_display import Display, Entry


class StageWaits:
    """Keeps what is known of each stage that does not serve yet.

    Args:
        display: Shows it.
    """

    def __init__(self, display: Display) -> None:
        self._display = display
        self._missing: dict[str, str] = {}

    def update(self, address: str, error: StagecoachError | None) -> str:
        """Takes in how a stage answered.

        Args:
            address: Address of the stage.
            error: Why it does not serve; None when it does.

        Returns:
            What all stages together are waited for, in words.
        """
        entry = _entry(error)
        self._display.show(address, entry)
        self._missing.pop(address, None)
        if not entry.is_done:
            self._missing[address] = entry.text
        waits = [f"stage {address} is {text}" for address, text in sorted(self._missing.items())]
        return "; ".join(waits) or "it opens its stages"


def _entry(error: StagecoachError | None) -> Entry:
    if error is None:
        return Entry("ready", is_done=True)
    if isinstance(error, LoadingError) and error.progress is not None:
        return Entry.of(error.progress)
    if isinstance(error, DeadlineExceededError):
        return Entry("not answering")
    return Entry("not reachable")
