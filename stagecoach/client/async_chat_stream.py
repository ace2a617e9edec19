"""A chat as it runs, for asyncio."""

import asyncio
import inspect
from collections import deque
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

from stagecoach.client.async_stream import AsyncTokenStream
from stagecoach.client.chat_events import ChatEvent, ChatResult, RoundEnds, ToolResult
from stagecoach.client.chat_message import ChatMessage
from stagecoach.client.chat_run import ChatRun, FunctionCall, declined
from stagecoach.client.function_tool import FunctionTool, result_text
from stagecoach.client.output_parts import ToolCall
from stagecoach.contract.errors import RequestAbortedError, StagecoachError
from stagecoach.v1 import generation_pb2

AsyncMayCall = Callable[[ToolCall], bool | Awaitable[bool]]
"""Says whether a function may be called; may be a coroutine."""


class AsyncChatStream:
    """Async iterator over the `ChatEvent`s of a chat; calls the functions that the model asks for.

    Functions that are no coroutines are called in a thread, so that they hold up nothing else.

    A stream that is left before its end should be closed, as an `async with` block does; that
    cancels the request. For one task of one event loop.

    Args:
        run: The chat.
        start: Starts a completion.
        may_call: Asked before each call of a function. None: all may be called.

    Raises:
        InvalidArgumentError: An option is wrong.
    """

    def __init__(
        self,
        run: ChatRun,
        start: Callable[[generation_pb2.GenerateRequest], AsyncTokenStream],
        may_call: AsyncMayCall | None,
    ) -> None:
        self._run = run
        self._start = start
        self._may_call = may_call
        self._is_closed = False
        self._failure: Exception | None = None
        self._calling: asyncio.Future[object] | None = None
        self._stream = start(run.request())
        self._events: deque[ChatEvent] = deque()
        """What happened and was not told yet."""
        self._calls: deque[FunctionCall] = deque()
        """What is to be called before the next round."""
        self._is_round_over = False

    @property
    def text(self) -> str:
        """Content so far of the round that runs, or of the last."""
        return self._stream.text

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Token ids so far of the round that runs, or of the last."""
        return self._stream.token_ids

    @property
    def messages(self) -> tuple[ChatMessage, ...]:
        """The conversation so far, with the rounds that are over."""
        return tuple(self._run.messages)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ChatEvent:
        """Waits for the next event.

        Raises:
            StopAsyncIteration: The chat is over.
            StagecoachError: A request failed, or the stream was closed before.
            Exception: A function raised it, and the model is not told of it.
        """
        if self._failure is not None:
            raise self._failure
        try:
            while not self._events:
                await self._advance()
        except Exception as error:  # the end too: neither changes
            self._failure = error
            raise
        return self._events.popleft()

    async def result(self) -> ChatResult:
        """Waits for the end and returns what the chat came to; may be called again.

        Raises:
            StagecoachError: A request failed, or the stream was closed before its end.
            Exception: A function raised it, and the model is not told of it.
        """
        async for _event in self:
            pass
        return self._run.result()

    def close(self) -> None:
        """Cancels the request; does nothing after the end.

        A coroutine that is being called is cancelled; any other function runs on in its thread, and
        nobody waits for it.
        """
        self._is_closed = True
        self._stream.close()
        if self._calling is not None:
            self._calling.cancel()

    async def _advance(self) -> None:
        """Does what comes next, which adds events or begins a round."""
        if self._calls:
            result = await self._answer(self._calls.popleft())
            self._run.answer(result)
            self._events.append(result)
        elif not self._is_round_over:
            await self._read()
        elif self._run.is_over:
            raise StopAsyncIteration
        else:
            self._check_open()
            self._stream = self._start(self._run.request())
            self._is_round_over = False

    async def _read(self) -> None:
        """Reads the next event of the round, or its end."""
        try:
            event = await anext(self._stream, None)
            if event is not None:
                self._events.extend(event.parts)
                return
            completion = await self._stream.result()
        except StagecoachError as error:
            raise self._run.named(error) from error
        self._is_round_over = True
        self._calls.extend(self._run.take(completion))
        self._events.append(RoundEnds(completion=completion))

    async def _answer(self, wanted: FunctionCall) -> ToolResult:
        call, function = wanted
        self._check_open()
        if self._may_call is not None:
            allowed = self._may_call(call)
            if not (await allowed if inspect.isawaitable(allowed) else allowed):
                return declined(call)
        try:
            self._calling = asyncio.ensure_future(_called(function, call))
            returned = await self._calling
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._is_closed and not (task is not None and task.cancelling()):
                self._check_open()
            raise
        except Exception as error:  # of a function of the caller's, who may have the model told
            return self._run.failed(call, error)
        return ToolResult(call=call, content=result_text(function.name, returned))

    def _check_open(self) -> None:
        if self._is_closed:
            raise RequestAbortedError("the stream was closed")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


async def _called(function: FunctionTool, call: ToolCall) -> object:
    """What a function returns; one that is no coroutine runs in a thread."""
    if function.is_coroutine:
        returned = function.call(call.arguments)
    else:
        returned = await asyncio.to_thread(function.call, call.arguments)
    return await returned if inspect.isawaitable(returned) else returned
