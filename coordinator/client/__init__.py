"""The client SDK: talk to a coordinator, synchronously or with asyncio.

    with Client("localhost:50050") as client:
        for event in client.generate("The stagecoach left at dawn", max_tokens=64):
            print(event.text, end="", flush=True)

Needs neither torch nor transformers nor numpy. Errors are the classes of `protos.errors`, all of
them subclasses of `StagecoachError`.
"""

from coordinator.client.async_client import AsyncClient
from coordinator.client.async_step_watch import AsyncStepWatch
from coordinator.client.async_stream import AsyncTokenStream
from coordinator.client.client import Client
from coordinator.client.completion import (
    Completion,
    FinishReason,
    StageTotals,
    StepTotals,
    Timings,
    TokenEvent,
    TokenLogprobs,
    Usage,
)
from coordinator.client.grammar import JsonSchema
from coordinator.client.prompt import ChatMessage, PromptLike
from coordinator.client.request import GenerateOptions
from coordinator.client.status import CoordinatorStatus, StageState, StageStatus
from coordinator.client.step_watch import StepWatch
from coordinator.client.steps import StageVisit, StepRecord
from coordinator.client.stream import TokenStream
from protos.errors import (
    ContextLengthExceededError,
    DeadlineExceededError,
    IncompatibleError,
    InternalError,
    InvalidArgumentError,
    KvFullError,
    QueueFullError,
    RequestAbortedError,
    StagecoachError,
    StaleStateError,
    UnauthenticatedError,
    UnavailableError,
)

__all__ = [
    "AsyncClient",
    "AsyncStepWatch",
    "AsyncTokenStream",
    "ChatMessage",
    "Client",
    "Completion",
    "ContextLengthExceededError",
    "CoordinatorStatus",
    "DeadlineExceededError",
    "FinishReason",
    "GenerateOptions",
    "IncompatibleError",
    "InternalError",
    "InvalidArgumentError",
    "JsonSchema",
    "KvFullError",
    "PromptLike",
    "QueueFullError",
    "RequestAbortedError",
    "StageState",
    "StageStatus",
    "StageTotals",
    "StageVisit",
    "StagecoachError",
    "StaleStateError",
    "StepRecord",
    "StepTotals",
    "StepWatch",
    "Timings",
    "TokenEvent",
    "TokenLogprobs",
    "TokenStream",
    "UnauthenticatedError",
    "UnavailableError",
    "Usage",
]
