"""What the doors need of what generates, of one model. Owned here, implemented by the engine."""

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from coordinator.core.events import GenerationEvent
from coordinator.core.request_spec import Prompt, RequestSpec
from coordinator.core.served_model import ServedModel
from coordinator.core.step_chunk import StepChunk
from stagecoach.contract.cluster_status import ModelStatus


class EventStream(Protocol):
    """The events of one request, in the order of `coordinator.core.events`.

    Iteration raises a `StagecoachError` in the place of `Finished` when the request failed.
    """

    def __aiter__(self) -> AsyncIterator[GenerationEvent]: ...

    def cancel(self) -> None:
        """Ends the request; does nothing when it has ended."""
        ...


class StepFeed(Protocol):
    """What each micro-batch did, in chunks, from the origin on.

    Iteration ends only with a `StagecoachError`, when the engine closes.
    """

    @property
    def origin_ns(self) -> int:
        """When it began, in nanoseconds of `time.perf_counter_ns`; no step began before."""
        ...

    def __aiter__(self) -> AsyncIterator[StepChunk]: ...

    def close(self) -> None:
        """Stops watching; may be called again."""
        ...


class GenerationEngine(Protocol):
    """Generates text of one model for many requests at once. Called from one event loop only."""

    @property
    def served_model(self) -> ServedModel:
        """What clients may know of the model."""
        ...

    @property
    def is_ready(self) -> bool:
        """True while requests are served; else those that are taken wait."""
        ...

    @property
    def problem(self) -> str:
        """Why requests are not served at present; empty while they are."""
        ...

    async def submit(self, spec: RequestSpec) -> EventStream:
        """Validates a request and queues it; to cancel the call is to give the request up.

        Returns:
            Its events; the first is there. The caller reads them to the end or cancels the stream.

        Raises:
            StagecoachError: The request was not taken.
        """
        ...

    async def tokenize(self, prompt: Prompt) -> Sequence[int]:
        """Turns a prompt into token ids, as `submit` would.

        Raises:
            InvalidArgumentError: The prompt is empty, not in the vocabulary, or cannot be encoded.
            StagecoachError: It takes too long, or too many wait.
        """
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """What a token stands for in a text; empty without a tokenizer.

        Args:
            token_id: In the vocabulary.
        """
        ...

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        """Turns token ids into text, special tokens left out.

        Raises:
            InvalidArgumentError: An id is not in the vocabulary, or there is no tokenizer.
            StagecoachError: It takes too long, or too many wait.
        """
        ...

    async def status(self) -> ModelStatus:
        """The state of the model and of every stage."""
        ...

    def watch_steps(self) -> StepFeed:
        """Tells what each micro-batch does from now on; the caller closes the feed.

        Never slows the engine down; what is not read in time is dropped and counted.

        Raises:
            QueueFullError: Too many watch already.
        """
        ...
