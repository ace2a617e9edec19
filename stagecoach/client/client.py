"""The synchronous client."""

import time
from collections.abc import Sequence
from functools import partial
from types import TracebackType
from typing import Self, Unpack

import grpc

from stagecoach.client.call_messages import CallMessages
from stagecoach.client.call_starter import CallStarter
from stagecoach.client.call_timeout import Deadline, call_timeout_s
from stagecoach.client.channel import (
    READY_POLL_S,
    Peer,
    TlsSetting,
    channel_options,
    read_error,
)
from stagecoach.client.chat_events import ChatResult
from stagecoach.client.chat_message import MessageLike
from stagecoach.client.chat_run import DEFAULT_MAX_ROUNDS, ChatRun, OnToolError
from stagecoach.client.chat_stream import ChatStream, MayCall
from stagecoach.client.completion import Completion, PartialCompletion
from stagecoach.client.embedding import (
    EmbedCall,
    Embedding,
    EmbedOptions,
    PartialEmbeddings,
    embed_calls,
)
from stagecoach.client.prompt import PromptLike, PromptOptions
from stagecoach.client.request import (
    GenerateOptions,
    generate_request,
    tokenize_request,
    watch_request,
)
from stagecoach.client.step_watch import StepWatch
from stagecoach.client.stream import TokenStream
from stagecoach.contract import cluster_status_codec
from stagecoach.contract.address import DEFAULT_ADDRESS
from stagecoach.contract.cluster_status import CoordinatorStatus
from stagecoach.contract.errors import (
    DeadlineExceededError,
    RequestAbortedError,
    UnavailableError,
)
from stagecoach.v1 import generation_pb2, generation_pb2_grpc


class Client:
    """Talks to one coordinator. Any number of threads may share a client.

    Every method raises `StagecoachError`, one class for each kind of failure. Connects on first
    use, and again when the connection was lost.

    Args:
        address: HOST:PORT.
        tls: Whether to use TLS, and whom to trust; a path names the certificate of an authority.
        api_key: Shown with every call.

    Raises:
        InvalidArgumentError: The authority cannot be read, or the key cannot be sent.
    """

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        tls: TlsSetting = False,
        api_key: str | None = None,
    ) -> None:
        self.address = address
        self._peer = peer = Peer.of(address, tls=tls, api_key=api_key)
        self._metadata = peer.metadata
        options, credentials = channel_options(address), peer.credentials
        if credentials is None:
            self._channel = grpc.insecure_channel(address, options=options)
        else:
            self._channel = grpc.secure_channel(address, credentials, options=options)
        self._stub = generation_pb2_grpc.GenerationServiceStub(self._channel)
        self._starter = CallStarter()
        self._is_closed = False

    def generate(
        self,
        prompt: PromptLike,
        *,
        timeout_s: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> TokenStream:
        """Starts a completion.

        Args:
            prompt: Text, token ids, or chat messages.
            timeout_s: Time limit of the whole completion. None: no limit.
            **options: See `GenerateOptions`.

        Returns:
            An iterator over the new tokens as they come, also a context manager. Closing it before
            the end cancels the request. Errors of the coordinator are raised while iterating.

        Raises:
            InvalidArgumentError: A value has the wrong type, or `timeout_s` is not above 0.
            RequestAbortedError: The client is closed.
        """
        request = generate_request(prompt, **options)
        return self._start(request, timeout_s=call_timeout_s(timeout_s))

    def complete(
        self,
        prompt: PromptLike,
        *,
        timeout_s: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Completion:
        """Makes a completion and waits for its end; arguments as of `generate`.

        Raises:
            StagecoachError: The request failed.
        """
        with self.generate(prompt, timeout_s=timeout_s, **options) as stream:
            return stream.result()

    def chat(
        self,
        messages: Sequence[MessageLike],
        *,
        max_rounds: int = DEFAULT_MAX_ROUNDS,
        may_call: MayCall | None = None,
        on_tool_error: OnToolError | None = None,
        timeout_s: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> ChatResult:
        """Chats until there is an answer, calling functions on the way.

        Arguments are those of `chat_stream`.

        Raises:
            StagecoachError: A request failed.
            Exception: A function raised it, and the model is not told of it.
        """
        with self.chat_stream(
            messages,
            max_rounds=max_rounds,
            may_call=may_call,
            on_tool_error=on_tool_error,
            timeout_s=timeout_s,
            **options,
        ) as stream:
            return stream.result()

    def chat_stream(
        self,
        messages: Sequence[MessageLike],
        *,
        max_rounds: int = DEFAULT_MAX_ROUNDS,
        may_call: MayCall | None = None,
        on_tool_error: OnToolError | None = None,
        timeout_s: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> ChatStream:
        """Starts a chat in which the model may call functions, and calls them.

        The output is divided: content, thinking and calls of tools are told apart. After a round
        that asks for functions of `tools`, they are called one after the other, and the model is
        asked again with their results, until it asks for none, or for a tool that is no Python
        function. A call that `tool_choice` forces is forced in the first round only.

        Args:
            messages: The conversation so far, oldest message first.
            max_rounds: Most times that the model is asked; functions that it asks for in the last
                round are not called.
            may_call: Asked before each call of a function; where it says no, the model is
                told so. None: all may be called.
            on_tool_error: Says what the model is told of an exception that a function raised.
                None: of a `ToolError` its text, and of arguments that do not fit; any other
                exception is raised, and ends the chat.
            timeout_s: Time limit of the whole chat, checked before each round. None: no limit.
            **options: See `GenerateOptions`.

        Returns:
            An iterator over content, thinking, calls, results and ends of rounds as
            they come, also a context manager. Closing it before the end cancels the request. Errors
            are raised while iterating.

        Raises:
            InvalidArgumentError: A value has the wrong type, or a function has a parameter that
                JSON does not know.
            RequestAbortedError: The client is closed.
        """
        deadline = Deadline(timeout_s)
        run = ChatRun(messages, max_rounds=max_rounds, on_tool_error=on_tool_error, **options)
        return ChatStream(
            run, lambda request: self._start(request, timeout_s=deadline.left_s()), may_call
        )

    def embed(
        self,
        prompts: str | Sequence[PromptLike],
        *,
        timeout_s: float | None = None,
        **options: Unpack[EmbedOptions],
    ) -> list[Embedding]:
        """Turns prompts into vectors, made of the model's hidden states behind its last norm.

        Any number of prompts may be given: they go in calls of up to 2048 prompts, one after the
        other.

        Args:
            prompts: Each as `generate` takes it; a text alone is one prompt.
            timeout_s: Time limit of all. None: no limit.
            **options: See `EmbedOptions`.

        Returns:
            One embedding for each prompt, in their order.

        Raises:
            StagecoachError: A prompt cannot be embedded.
        """
        calls = embed_calls(prompts, **options)
        deadline = Deadline(timeout_s)
        embeddings: list[Embedding] = []
        for call in calls:
            embeddings += self._embed(call, timeout_s=deadline.left_s())
        return embeddings

    def tokenize(
        self,
        prompt: PromptLike,
        *,
        model: str | None = None,
        timeout_s: float | None = None,
        **options: Unpack[PromptOptions],
    ) -> list[int]:
        """Turns a prompt into token ids, special tokens included, as `generate` does.

        Args:
            prompt: Text, token ids, or chat messages.
            model: A name of the model. None: the only one.
            timeout_s: Time limit of the answer. None: no limit.
            **options: See `PromptOptions`.

        Raises:
            StagecoachError: The prompt cannot be tokenized.
        """
        request = tokenize_request(prompt, model=model, **options)
        try:
            return list(
                self._open_stub()
                .Tokenize(request, timeout=call_timeout_s(timeout_s), metadata=self._metadata)
                .token_ids
            )
        except grpc.RpcError as error:
            raise read_error(error, self._peer) from error

    def status(self, *, timeout_s: float | None = None) -> CoordinatorStatus:
        """Asks for the state of the coordinator, of every model and of every stage.

        Raises:
            StagecoachError: The coordinator did not answer.
        """
        request = generation_pb2.GetStatusRequest()
        try:
            return cluster_status_codec.from_message(
                self._open_stub().GetStatus(
                    request, timeout=call_timeout_s(timeout_s), metadata=self._metadata
                )
            )
        except grpc.RpcError as error:
            raise read_error(error, self._peer) from error

    def watch_steps(self, *, model: str | None = None, timeout_s: float | None = None) -> StepWatch:
        """Watches what each micro-batch does from now on, whoever's requests are in it.

        Args:
            model: A name of the model whose micro-batches they are. None: the only one.
            timeout_s: Time limit of the whole watch. None: no limit.

        Returns:
            An endless iterator over `StepRecord`s, also a context manager, which has begun. Reading
            too slowly loses records, which `num_lost` counts.

        Raises:
            StagecoachError: The coordinator does not let itself be watched.
        """
        start = partial(
            self._open_stub().WatchSteps,
            watch_request(model),
            timeout=call_timeout_s(timeout_s),
            metadata=self._metadata,
        )
        return StepWatch(self._starter.start(start), self._peer)

    def wait_until_ready(self, timeout_s: float, *, model: str | None = None) -> CoordinatorStatus:
        """Waits until the coordinator serves requests.

        Args:
            timeout_s: Longest wait.
            model: A name of the model whose requests it is to serve. None: of every model.

        Raises:
            ModelNotFoundError: No model has that name.
            DeadlineExceededError: It did not within `timeout_s`; the message says why not.
            InvalidArgumentError: `timeout_s` is not above 0.
        """
        call_timeout_s(timeout_s)
        deadline = time.monotonic() + timeout_s
        while True:
            remaining_s = max(deadline - time.monotonic(), READY_POLL_S)
            try:
                status = self.status(timeout_s=remaining_s)
                waited = status if model is None else status.of_model(model)
                if waited.ready:
                    return status
                problem = "" if model is None else f": {waited.problem}"
                reason = f"coordinator at {self.address} is not ready{problem}"
            except (UnavailableError, DeadlineExceededError) as error:
                reason = error.message
            if time.monotonic() + READY_POLL_S > deadline:
                raise DeadlineExceededError(f"not ready within {timeout_s} s: {reason}")
            time.sleep(READY_POLL_S)

    def close(self) -> None:
        """Closes the connection; streams that still run are cancelled."""
        self._is_closed = True
        self._channel.close()
        self._starter.close()

    def _start(
        self, request: generation_pb2.GenerateRequest, *, timeout_s: float | None
    ) -> TokenStream:
        """Starts a completion; the time is as gRPC takes it."""
        start = partial(
            self._open_stub().Generate, request, timeout=timeout_s, metadata=self._metadata
        )
        return TokenStream(self._starter.start(start), self._peer, PartialCompletion.of(request))

    def _embed(self, call: EmbedCall, *, timeout_s: float | None) -> list[Embedding]:
        partial_ = PartialEmbeddings(call)
        start = partial(
            self._open_stub().Embed, call.request, timeout=timeout_s, metadata=self._metadata
        )
        messages = CallMessages(self._starter.start(start), "call")
        try:
            for message in messages:
                partial_.take(message)
        except grpc.RpcError as error:
            raise partial_.named(read_error(error, self._peer)) from error
        finally:
            messages.close()
        return partial_.result()

    def _open_stub(self) -> generation_pb2_grpc.GenerationServiceStub:
        """Returns the calls of the service.

        Raises:
            RequestAbortedError: The client is closed.
        """
        if self._is_closed:
            raise RequestAbortedError("the client is closed")
        return self._stub

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
