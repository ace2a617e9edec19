"""Records the steps of a coordinator while something runs, and writes the trace."""

import json
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from coordinator.timeline.chrome_trace import chrome_trace
from stagecoach.client import Client, RequestAbortedError, StagecoachError, StepRecord, StepWatch

LAST_RECORDS_TIMEOUT_S = 2.0
"""How long `wait_for` waits for records that are still on their way."""


class StepRecorder:
    """Watches a coordinator in a `with` block, in a thread of its own.

    Args:
        client: Client of the coordinator; the recorder closes it.
        model: A name of the model. None: the only one.

    Raises:
        StagecoachError: On entering: the coordinator cannot be watched.
    """

    def __init__(self, client: Client, *, model: str | None = None) -> None:
        self._client = client
        self._model = model
        self._records: list[StepRecord] = []
        self._num_slices = 0
        self._error: StagecoachError | None = None
        self._changed = threading.Condition()

    def wait_for(self, num_slices: int) -> None:
        """Waits until the last steps of a run have been told, or some seconds.

        Args:
            num_slices: Sum, over the requests of the run, of the steps that each took part in.

        Raises:
            StagecoachError: The watch broke.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: self._num_slices >= num_slices or self._error is not None,
                LAST_RECORDS_TIMEOUT_S,
            )
            if self._error is not None:
                raise self._error

    def write(self, path: Path) -> None:
        """Writes what was recorded as a Chrome trace.

        Raises:
            StagecoachError: The coordinator does not say what its stages are.
            OSError: The file cannot be written.
        """
        status = self._client.status().of_model(self._model)
        with self._changed:
            trace = chrome_trace(status, self._records, num_lost=self._watch.num_lost)
        path.write_text(json.dumps(trace))

    def _read(self, watch: StepWatch) -> None:
        try:
            for record in watch:
                with self._changed:
                    self._records.append(record)
                    self._num_slices += record.num_sequences
                    self._changed.notify_all()
        except RequestAbortedError:
            return  # `__exit__` closed the watch
        except StagecoachError as error:
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def __enter__(self) -> Self:
        try:
            self._watch = self._client.watch_steps(model=self._model)
        except BaseException:
            self._client.close()
            raise
        self._thread = threading.Thread(
            target=self._read, args=(self._watch,), name="step recorder", daemon=True
        )
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._watch.close()
        self._thread.join()
        self._client.close()
