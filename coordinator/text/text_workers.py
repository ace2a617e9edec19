"""Tokenizes and detokenizes for the engine: a little at once, the rest in sandboxed processes."""

import asyncio
from array import array
from collections.abc import Sequence
from contextlib import suppress

from coordinator.core.request_spec import ChatPrompt, TextPrompt
from coordinator.dialogue.output_plan import OutputPlan, WantedOutput
from coordinator.sandbox import ClientJobs, Content, ForkServer, JobPool
from coordinator.text import text_job
from coordinator.text.tokenizer import Tokenizer
from stagecoach.contract.errors import DeadlineExceededError, InvalidArgumentError

MAX_INLINE_BYTES = 2048
"""Most bytes of UTF-8 that are tokenized at once. The worst text of that length that was found, of
digits or emoji, takes two milliseconds, and the usual one half a millisecond."""

MAX_INLINE_TOKENS = 512
"""What is detokenized at once; about half a millisecond."""

QUICK_BYTES = 64 * 1024
"""A call up to this length is tried among the quick ones."""
QUICK_TIMEOUT_S = 0.5
"""A quick call that takes longer begins again among the slow ones, in nobody's way."""
SLOW_TIMEOUT_S = 10.0
SLOW_BYTES_PER_S = 200_000
"""A slow call may take a second more for each so many bytes."""

_MAX_QUICK = 4
_MAX_SLOW = 2
_MAX_WAITING = 256
_QUICK_MEMORY_BYTES = 256 << 20
_SLOW_MEMORY_BYTES = 1 << 30


class TextWorkers:
    """Implements `coordinator.engine.admission.Text`. Event loop only; the owner closes it.

    Conversations have processes of their own: a template that hangs holds up no plain text.

    Args:
        tokenizer: The model's.
        state: What it is made of; see `Tokenizer.to_state`.
    """

    def __init__(self, tokenizer: Tokenizer, state: bytes) -> None:
        self._tokenizer = tokenizer
        self._server = ForkServer("coordinator.text.text_job", state)
        self._texts = _Calls(self._server)
        self._chats = _Calls(self._server)
        self._starting: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Prepares what processes are forked from, so that the first request need not wait."""
        self._starting = asyncio.create_task(self._server.start(), name="text workers")

    def encode_now(self, prompt: TextPrompt) -> "array[int] | None":
        """Token ids of a text that takes no time; None for a longer one.

        Raises:
            InvalidArgumentError: The text is not valid Unicode.
        """
        text = prompt.text
        if len(text) > MAX_INLINE_BYTES or _num_bytes(text) > MAX_INLINE_BYTES:
            return None
        return array("I", self._tokenizer.encode_prompt(prompt))

    async def encode(self, prompt: TextPrompt | ChatPrompt) -> "array[int]":
        """Token ids of any prompt.

        Raises:
            InvalidArgumentError: It cannot be encoded, or takes too much memory.
            DeadlineExceededError: It takes too long.
            QueueFullError: Too many wait.
        """
        if isinstance(prompt, TextPrompt):
            token_ids = self.encode_now(prompt)
            if token_ids is not None:
                return token_ids
            answer = await self._texts.run(text_job.encode_call(prompt), "prompt.text")
        else:
            answer = await self._chats.run(text_job.encode_call(prompt), "prompt.chat.messages")
        return text_job.read_token_ids(answer)

    async def plan_output(self, wanted: WantedOutput) -> OutputPlan:
        """The plan of an output whose tools have long schemas.

        Raises:
            InvalidArgumentError: The schema of a tool is none of an object, or too long.
            DeadlineExceededError: It takes too long.
            QueueFullError: Too many wait.
        """
        answer = await self._texts.run(text_job.plan_call(wanted), "prompt.chat.tools")
        return text_job.read_plan(answer)

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        """The text of token ids, special tokens left out.

        Raises:
            InvalidArgumentError: It takes too much memory.
            DeadlineExceededError: It takes too long.
            QueueFullError: Too many wait.
        """
        if len(token_ids) <= MAX_INLINE_TOKENS:
            return self._tokenizer.detokenize(token_ids)
        call = text_job.detokenize_call(array("I", token_ids))
        return text_job.read_text(await self._texts.run(call, "tokens"))

    async def close(self) -> None:
        """Ends all processes; calls that run fail."""
        self._texts.close()
        self._chats.close()
        await self._server.close()
        if self._starting is not None:
            # That it was closed meanwhile is no news; other failures are the server's to log.
            await asyncio.gather(self._starting, return_exceptions=True)


class _Calls:
    """Quick calls, and beside them slow ones that they do not wait for."""

    def __init__(self, server: ForkServer) -> None:
        quick = JobPool(
            server,
            max_processes=_MAX_QUICK,
            max_waiting=_MAX_WAITING,
            memory_bytes=_QUICK_MEMORY_BYTES,
        )
        slow = JobPool(
            server,
            max_processes=_MAX_SLOW,
            max_waiting=_MAX_WAITING,
            memory_bytes=_SLOW_MEMORY_BYTES,
            is_background=True,
        )
        self._quick, self._slow = ClientJobs(quick), ClientJobs(slow)

    async def run(self, call: bytes, field: str) -> bytes:
        """Runs a call; `field` is what its errors name."""
        content = Content(field, "tokenized", field)
        if len(call) <= QUICK_BYTES:
            with suppress(DeadlineExceededError, InvalidArgumentError):
                return await self._quick.run(call, content, timeout_s=QUICK_TIMEOUT_S)
        timeout_s = SLOW_TIMEOUT_S + len(call) / SLOW_BYTES_PER_S
        return await self._slow.run(call, content, timeout_s=timeout_s)

    def close(self) -> None:
        """Ends all calls."""
        self._quick.close()
        self._slow.close()


def _num_bytes(text: str) -> int:
    return len(text.encode(errors="surrogatepass"))
