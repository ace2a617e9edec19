"""The asyncio client."""

import asyncio
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self, Unpack

import grpc.aio

from stagecoach.client.async_read import read_message
from stagecoach.client.async_step_watch import AsyncStepWatch
from stagecoach.client.async_stream import AsyncTokenStream
from stagecoach.client.call_timeout import Deadline, call_timeout_s
from stagecoach.client.channel import (
    READY_POLL_S,
    Peer,
    TlsSetting,
    channel_options,
    read_error_async,
)
from stagecoach.client.completion import Completion, PartialCompletion
from stagecoach.client.embedding import EmbedCall, Embedding, PartialEmbeddings, embed_calls
from stagecoach.client.prompt import PromptLike, PromptOptions
from stagecoach.client.request import (
    GenerateOptions,
    generate_request,
    tokenize_request,
    watch_request,
)
from stagecoach.contract import cluster_status_codec
from stagecoach.contract.address import DEFAULT_ADDRESS
from stagecoach.contract.cluster_status import CoordinatorStatus
from stagecoach.contract.errors import (
    DeadlineExceededError,
    RequestAbortedError,
    StagecoachError,
    UnavailableError,
)
from stagecoach.v1 import generation_pb2, generation_pb2_grpc


class AsyncClient:
    """Talks to one coordinator, from one event loop; make it inside that loop.

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
            self._channel = grpc.aio.insecure_channel(address, options=options)
        else:
            self._channel = grpc.aio.secure_channel(address, credentials, options=options)
        self._stub = generation_pb2_grpc.GenerationServiceStub(self._channel)
        self._is_closed = False

    def generate(
        self,
        prompt: PromptLike,
        *,
        timeout_s: float | None = None,
        **options: Unpack[GenerateOptions],
    ) -> AsyncTokenStream:
        """Starts a completion.

        Args:
            prompt: Text, token ids, or chat messages.
            timeout_s: Time limit of the whole completion. None: no limit.
            **options: See `GenerateOptions`.

        Returns:
            An async iterator over the new tokens as they come, also a context manager. Closing it
            before the end cancels the request. Errors of the coordinator are raised while
            iterating.

        Raises:
            InvalidArgumentError: A value has the wrong type, or `timeout_s` is not above 0.
            RequestAbortedError: The client is closed.
        """
        request = generate_request(prompt, **options)
        return AsyncTokenStream(
            self._open_stub().Generate(
                request, timeout=call_timeout_s(timeout_s), metadata=self._metadata
            ),
            self._peer,
            PartialCompletion.of(request),
        )

    async def complete(
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
        async with self.generate(prompt, timeout_s=timeout_s, **options) as stream:
            return await stream.result()

    async def embed(
        self,
        prompts: str | Sequence[PromptLike],
        *,
        pooling: str | None = None,
        normalize: bool | None = None,
        dimensions: int | None = None,
        cache_salt: str | None = None,
        model: str | None = None,
        timeout_s: float | None = None,
        **options: Unpack[PromptOptions],
    ) -> list[Embedding]:
        """Turns prompts into vectors, made of the model's hidden states behind its last norm.

        Any number of prompts may be given: they go in calls of up to 2048 prompts, one after the
        other.

        Args:
            prompts: Each as `generate` takes it; a text alone is one prompt.
            pooling: "last", the hidden state of the last token, or "mean", that of all. None: last.
            normalize: Whether each embedding has the length 1. None: it has.
            dimensions: How many of the first elements are kept, before the length is made 1. None:
                all.
            cache_salt: As of `generate`.
            model: A name of the model. None: the only one.
            timeout_s: Time limit of all. None: no limit.
            **options: See `PromptOptions`.

        Returns:
            One embedding for each prompt, in their order.

        Raises:
            StagecoachError: A prompt cannot be embedded.
        """
        calls = embed_calls(
            prompts,
            pooling=pooling,
            normalize=normalize,
            dimensions=dimensions,
            cache_salt=cache_salt,
            model=model,
            **options,
        )
        deadline = Deadline(timeout_s)
        embeddings: list[Embedding] = []
        for call in calls:
            embeddings += await self._embed(call, timeout_s=deadline.left_s())
        return embeddings

    async def tokenize(
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
                (
                    await self._open_stub().Tokenize(
                        request, timeout=call_timeout_s(timeout_s), metadata=self._metadata
                    )
                ).token_ids
            )
        except grpc.RpcError as error:
            raise await read_error_async(error, self._peer) from error

    async def status(self, *, timeout_s: float | None = None) -> CoordinatorStatus:
        """Asks for the state of the coordinator, of every model and of every stage.

        Raises:
            StagecoachError: The coordinator did not answer.
        """
        request = generation_pb2.GetStatusRequest()
        try:
            return cluster_status_codec.from_message(
                await self._open_stub().GetStatus(
                    request, timeout=call_timeout_s(timeout_s), metadata=self._metadata
                )
            )
        except grpc.RpcError as error:
            raise await read_error_async(error, self._peer) from error

    async def watch_steps(
        self, *, model: str | None = None, timeout_s: float | None = None
    ) -> AsyncStepWatch:
        """Watches what each micro-batch does from now on, whoever's requests are in it.

        Args:
            model: A name of the model whose micro-batches they are. None: the only one.
            timeout_s: Time limit of the whole watch. None: no limit.

        Returns:
            An endless async iterator over `StepRecord`s, also a context manager, which has begun.
            Reading too slowly loses records, which `num_lost` counts.

        Raises:
            StagecoachError: The coordinator does not let itself be watched.
        """
        call = self._open_stub().WatchSteps(
            watch_request(model), timeout=call_timeout_s(timeout_s), metadata=self._metadata
        )
        return await AsyncStepWatch(call, self._peer).start()

    async def wait_until_ready(
        self, timeout_s: float, *, model: str | None = None
    ) -> CoordinatorStatus:
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
                status = await self.status(timeout_s=remaining_s)
                waited = status if model is None else status.of_model(model)
                if waited.ready:
                    return status
                problem = "" if model is None else f": {waited.problem}"
                reason = f"coordinator at {self.address} is not ready{problem}"
            except (UnavailableError, DeadlineExceededError) as error:
                reason = error.message
            if time.monotonic() + READY_POLL_S > deadline:
                raise DeadlineExceededError(f"not ready within {timeout_s} s: {reason}")
            await asyncio.sleep(READY_POLL_S)

    async def close(self) -> None:
        """Closes the connection; streams that still run are cancelled."""
        self._is_closed = True
        await self._channel.close()

    async def _embed(self, call: EmbedCall, *, timeout_s: float | None) -> list[Embedding]:
        partial = PartialEmbeddings(call)
        running = self._open_stub().Embed(call.request, timeout=timeout_s, metadata=self._metadata)
        try:
            # Anything else is grpc's sign that the stream ended in good order.
            while isinstance(
                message := await read_message(running, peer=self._peer, name="call"),
                generation_pb2.EmbedResponse,
            ):
                partial.take(message)
        except StagecoachError as error:
            raise partial.named(error) from error
        finally:
            running.cancel()
        return partial.result()

    def _open_stub(self) -> "generation_pb2_grpc.GenerationServiceAsyncStub":
        """Returns the calls of the service.

        Raises:
            RequestAbortedError: The client is closed.
        """
        if self._is_closed:
            raise RequestAbortedError("the client is closed")
        return self._stub

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()
