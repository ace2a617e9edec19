"""The client SDK: talk to a coordinator, synchronously or with asyncio.

    with Client("localhost:50050") as client:
        for event in client.generate("The stagecoach left at dawn", max_tokens=64):
            print(event.text, end="", flush=True)

Needs neither torch nor transformers nor numpy. Errors are the classes of
`stagecoach.contract.errors`, all of them subclasses of `StagecoachError`.
"""

from stagecoach.client.async_chat_stream import AsyncChatStream
from stagecoach.client.async_client import AsyncClient
from stagecoach.client.async_step_watch import AsyncStepWatch
from stagecoach.client.async_stream import AsyncTokenStream
from stagecoach.client.chat_events import ChatEvent, ChatResult, RoundEnds, ToolResult
from stagecoach.client.chat_message import ChatMessage, MessageLike
from stagecoach.client.chat_stream import ChatStream
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
from stagecoach.client.embedding import Embedding, EmbedOptions
from stagecoach.client.function_tool import ToolError
from stagecoach.client.grammar import JsonSchema
from stagecoach.client.output_parts import (
    ArgumentsPart,
    CallBegins,
    CallEnds,
    ContentPart,
    OutputPart,
    ReasoningPart,
    ToolCall,
)
from stagecoach.client.prompt import PromptLike
from stagecoach.client.request import GenerateOptions
from stagecoach.client.step_watch import StepWatch
from stagecoach.client.stream import TokenStream
from stagecoach.client.tools import ToolChoiceLike, ToolLike
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
    "ArgumentsPart",
    "AsyncChatStream",
    "AsyncClient",
    "AsyncStepWatch",
    "AsyncTokenStream",
    "CallBegins",
    "CallEnds",
    "ChatEvent",
    "ChatMessage",
    "ChatResult",
    "ChatStream",
    "Client",
    "Completion",
    "ContentPart",
    "ContextLengthExceededError",
    "CoordinatorStatus",
    "DeadlineExceededError",
    "EmbedOptions",
    "Embedding",
    "FinishReason",
    "GenerateOptions",
    "IncompatibleError",
    "InternalError",
    "InvalidArgumentError",
    "JsonSchema",
    "KvFullError",
    "MessageLike",
    "ModelNotFoundError",
    "ModelState",
    "ModelStatus",
    "OutputPart",
    "PromptLike",
    "PromptLogprob",
    "QueueFullError",
    "ReasoningPart",
    "RequestAbortedError",
    "RoundEnds",
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
    "ToolCall",
    "ToolChoiceLike",
    "ToolError",
    "ToolLike",
    "ToolResult",
    "UnauthenticatedError",
    "UnavailableError",
    "Usage",
]
