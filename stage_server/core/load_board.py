"""The progress of loading: the model thread writes it, the event loop reads it."""

from collections.abc import Callable

from stagecoach.contract.load_progress import LoadPhase, LoadProgress

Report = Callable[[LoadProgress], None]
"""Told how far the loading is."""


def no_report(_progress: LoadProgress) -> None:
    """Ignores progress, for callers who do not want to know it."""


class LoadBoard:
    """Holds the latest progress. Any thread may write and read: it is one reference."""

    def __init__(self) -> None:
        self.progress = LoadProgress(phase=LoadPhase.STARTING)

    def write(self, progress: LoadProgress) -> None:
        """Replaces what stood there."""
        self.progress = progress


class WeightProgress:
    """Turns rows of tensors that were read into bytes of weights that are loaded.

    A row that is read again, as for an embedding that is the head too, counts once.

    Args:
        total_elements: Elements of all tensors that will be read.
        total_bytes: Bytes of the same tensors where they are kept.
        report: Told after each read.
    """

    def __init__(self, total_elements: int, total_bytes: int, report: Report) -> None:
        self._total_elements = total_elements
        self._total_bytes = total_bytes
        self._report = report
        self._rows: dict[str, int] = {}
        self._done_elements = 0
        self._tell()

    def read(self, name: str, end_row: int, row_elements: int) -> None:
        """Takes note that the rows of a tensor up to `end_row` were read."""
        new_rows = end_row - self._rows.get(name, 0)
        if new_rows > 0:
            self._rows[name] = end_row
            self._done_elements += new_rows * row_elements
            self._tell()

    def _tell(self) -> None:
        self._report(
            LoadProgress(
                phase=LoadPhase.LOADING,
                done_bytes=self._total_bytes * self._done_elements // self._total_elements,
                total_bytes=self._total_bytes,
            )
        )
