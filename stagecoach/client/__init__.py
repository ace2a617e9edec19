"""The client SDK: talk to a coordinator, synchronously or with asyncio.

    with Client("localhost:50050") as client:
        for event in client.generate("The stagecoach left at dawn", max_tokens=64):
            print(event.text, end="", flush=True)

Needs neither torch nor transformers nor numpy. Errors are the classes of
`stagecoach.contract.errors`, all of them subclasses of `StagecoachError`.
"""

from stagecoach.client.async_client import AsyncClient
from stagecoach.client.async_step_watch import AsyncStepWatch
from stagecoach.client.async_stream import AsyncTokenStream
from stagecoach.client.client import Client
from stagecoach.client.completion import (
    Completion,
    FinishReason,
    PromptLogprob,
    StageTotals,
    Timings,
    TokenEvent,
    TokenLogprobs,
    Usage,
)
from stagecoach.client.embedding import Embedding
from stagecoach.client.grammar import JsonSchema
from stagecoach.client.prompt import ChatMessage, PromptLike
from stagecoach.client.request import GenerateOptions
from stagecoach.client.step_watch import StepWatch
from stagecoach.client.stream import TokenStream
from stagecoach.contract.cluster_status import (
    CoordinatorStatus,
    ModelState,
    ModelStatus,
    StageState,
    StageStatus,
)
from stagecoach.contract.errors import (
    ContextLengthExceededError,
    DeadlineExceededError,
    IncompatibleError,
    InternalError,
    InvalidArgumentError,
    KvFullError,
    ModelNotFoundError,
    QueueFullError,
    RequestAbortedError,
    StagecoachError,
    StaleStateError,
    UnauthenticatedError,
    UnavailableError,
)
from stagecoach.contract.request_timings import StepTotals
from stagecoach.contract.step_record import StageVisit, StepRecord

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
    "Embedding",
    "FinishReason",
    "GenerateOptions",
    "IncompatibleError",
    "InternalError",
    "InvalidArgumentError",
    "JsonSchema",
    "KvFullError",
    "ModelNotFoundError",
    "ModelState",
    "ModelStatus",
    "PromptLike",
    "PromptLogprob",
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
