"""Embeds the texts of a request, and answers in the form of the API that was asked."""

import asyncio
from array import array
from base64 import b64encode
from collections.abc import Iterator, Sequence
from typing import Protocol

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from coordinator.core.generation_engine import GenerationEngine
from coordinator.core.request_spec import RequestSpec
from coordinator.doors.embedding import Embedded, embed_all
from coordinator.doors.http.held_logprobs import HeldLogprobs, Hold
from coordinator.doors.http.pieces import PiecewiseResponse, chain_listed, listed, spliced
from coordinator.doors.http.schema.embedding import Embedding, EmbeddingList, EmbeddingUsage
from coordinator.doors.prompt_items import of_item
from stagecoach.contract.errors import RequestAbortedError, StagecoachError

_NUMBERS_PER_PIECE = 1024
"""Numbers that are written at one go, which takes about a millisecond."""


class EmbeddingWriter(Protocol):
    """Writes the answer to one request."""

    def pieces(self, embedded: Sequence[Embedded]) -> Iterator[str]:
        """The answer as JSON, in pieces none of which takes long.

        Args:
            embedded: In the order of the texts.
        """
        ...


class EmbeddingAnswer(Response):
    """Embeds, and answers when all is there.

    Args:
        engine: What embeds.
        specs: One for each text, in order.
        writer: Writes the answer.
        held: What all answers hold.
    """

    media_type = "application/json"

    def __init__(
        self,
        engine: GenerationEngine,
        specs: Sequence[RequestSpec],
        writer: EmbeddingWriter,
        held: HeldLogprobs,
    ) -> None:
        super().__init__()
        self._engine = engine
        self._specs = specs
        self._writer = writer
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Embeds and sends.

        Raises:
            StagecoachError: A text was not taken or failed, or the client is gone. Nothing was
                sent.
        """
        with self._held.answer() as hold:
            embedded = await self._embed(hold, receive)
            await PiecewiseResponse(self._writer.pieces(embedded))(scope, receive, send)

    async def _embed(self, hold: Hold, receive: Receive) -> Sequence[Embedded]:
        """The embeddings in the order of the texts; whoever is gone gets none."""
        found: dict[int, Embedded] = {}

        async def take(one: Embedded) -> None:
            hold(one)
            found[one.index] = one

        work = asyncio.create_task(
            embed_all(self._engine, self._specs, take, of_item=self._of_item)
        )
        watch = asyncio.create_task(_until_gone(receive))
        try:
            await asyncio.wait({work, watch}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise RequestAbortedError("the client is gone")
            work.result()
        finally:
            work.cancel()
            watch.cancel()
            await asyncio.gather(work, watch, return_exceptions=True)
        return [found[index] for index in range(len(self._specs))]

    def _of_item(self, error: StagecoachError, index: int) -> StagecoachError:
        """Says of an error which of several texts it is of."""
        return error if len(self._specs) == 1 else of_item(error, index)


class EmbeddingListWriter:
    """An `EmbeddingWriter` of OpenAI's form.

    Args:
        model: Name of the model that the answer shows.
        in_base64: Whether embeddings are written as base64 of float32.
    """

    def __init__(self, model: str, *, in_base64: bool) -> None:
        self._model = model
        self._in_base64 = in_base64

    def pieces(self, embedded: Sequence[Embedded]) -> Iterator[str]:
        """See `EmbeddingWriter.pieces`."""
        num_tokens = sum(one.num_prompt_tokens for one in embedded)
        answer = EmbeddingList(
            object="list",
            data=[],
            model=self._model,
            usage=EmbeddingUsage(prompt_tokens=num_tokens, total_tokens=num_tokens),
        )
        items = chain_listed(map(self._item_pieces, embedded))
        return spliced(answer.model_dump_json(), [("data", items)])

    def _item_pieces(self, one: Embedded) -> Iterator[str]:
        item = Embedding(object="embedding", index=one.index, embedding=[])
        if self._in_base64:
            # This machine is little-endian, as tensors of the contract ask for.
            item.embedding = b64encode(array("f", one.values).tobytes()).decode()
            yield item.model_dump_json()
            return
        yield from spliced(item.model_dump_json(), [("embedding", written_numbers(one))])


def written_numbers(one: Embedded) -> Iterator[str]:
    """The inside of a JSON list of the numbers of an embedding, in pieces."""
    return listed(one.values, list, num_items=_NUMBERS_PER_PIECE)


async def _until_gone(receive: Receive) -> None:
    """Waits until the client is gone; its request has been read."""
    while (await receive())["type"] != "http.disconnect":
        pass
