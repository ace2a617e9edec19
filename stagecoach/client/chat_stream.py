"""A chat as it runs, for synchronous callers."""

import inspect
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Self

from stagecoach.client.chat_events import ChatEvent, ChatResult, RoundEnds, ToolResult
from stagecoach.client.chat_message import ChatMessage
from stagecoach.client.chat_run import ChatRun, FunctionCall, declined
from stagecoach.client.function_tool import result_text
from stagecoach.client.output_parts import ToolCall
from stagecoach.client.stream import TokenStream
from stagecoach.contract.errors import (
    InvalidArgumentError,
    RequestAbortedError,
    StagecoachError,
)
from stagecoach.v1 import generation_pb2

MayCall = Callable[[ToolCall], bool]
"""Says whether a function may be called."""


class ChatStream:
    """Iterator over the `ChatEvent`s of a chat; calls the functions that the model asks for.

    A stream that is left before its end should be closed, as a `with` block does; that cancels the
    request. For one thread, except that `close` may be called from any.

    Args:
        run: The chat.
        start: Starts a completion.
        may_call: Asked before each call of a function. None: all may be called.

    Raises:
        InvalidArgumentError: A function is a coroutine, or an option is wrong.
    """

    def __init__(
        self,
        run: ChatRun,
        start: Callable[[generation_pb2.GenerateRequest], TokenStream],
        may_call: MayCall | None,
    ) -> None:
        for one in run.functions:
            if one.is_coroutine:
                raise InvalidArgumentError(
                    f"tools: {one.name}() is a coroutine, which only AsyncClient can await",
                    field="tools",
                )
        self._run = run
        self._start = start
        self._may_call = may_call
        self._is_closed = False
        self._failure: Exception | None = None
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

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> ChatEvent:
        """Waits for the next event.

        Raises:
            StopIteration: The chat is over.
            StagecoachError: A request failed, or the stream was closed before.
            Exception: A function raised it, and the model is not told of it.
        """
        if self._failure is not None:
            raise self._failure
        try:
            while not self._events:
                self._advance()
        except Exception as error:  # the end too: neither changes
            self._failure = error
            raise
        return self._events.popleft()

    def result(self) -> ChatResult:
        """Waits for the end and returns what the chat came to; may be called again.

        Raises:
            StagecoachError: A request failed, or the stream was closed before its end.
            Exception: A function raised it, and the model is not told of it.
        """
        for _event in self:
            pass
        return self._run.result()

    def close(self) -> None:
        """Cancels the request; does nothing after the end."""
        self._is_closed = True
        self._stream.close()

    def _advance(self) -> None:
        """Does what comes next, which adds events or begins a round."""
        if self._calls:
            result = self._answer(self._calls.popleft())
            self._run.answer(result)
            self._events.append(result)
        elif not self._is_round_over:
            self._read()
        elif self._run.is_over:
            raise StopIteration
        else:
            self._check_open()
            self._stream = self._start(self._run.request())
            self._is_round_over = False
            if self._is_closed:  # by another thread, which did not see this stream
                self._stream.close()

    def _read(self) -> None:
        """Reads the next event of the round, or its end."""
        try:
            event = next(self._stream, None)
            if event is not None:
                self._events.extend(event.parts)
                return
            completion = self._stream.result()
        except StagecoachError as error:
            raise self._run.named(error) from error
        self._is_round_over = True
        self._calls.extend(self._run.take(completion))
        self._events.append(RoundEnds(completion=completion))

    def _answer(self, wanted: FunctionCall) -> ToolResult:
        call, function = wanted
        self._check_open()
        if self._may_call is not None and not self._may_call(call):
            return declined(call)
        try:
            returned = function.call(call.arguments)
        except Exception as error:  # of a function of the caller's, who may have the model told
            return self._run.failed(call, error)
        if inspect.isawaitable(returned):
            raise InvalidArgumentError(
                f"tools: {function.name}() returned what only AsyncClient can await", field="tools"
            )
        return ToolResult(call=call, content=result_text(function.name, returned))

    def _check_open(self) -> None:
        if self._is_closed:
            raise RequestAbortedError("the stream was closed")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
