"""Compiles grammars for one model, each in a process of its own, within limits."""

import asyncio
import logging
from dataclasses import dataclass
from functools import partial
from typing import Any

from coordinator.constraint.compile_turns import CompileTurns
from coordinator.constraint.failure import failure, killed, sandbox_failure
from coordinator.constraint.mask_reader import MaskReader
from coordinator.constraint.messages import Standing, decode_compiled, encode_grammar
from coordinator.constraint.output_group import OutputGroup
from coordinator.constraint.template_cache import Template, TemplateCache
from coordinator.constraint.token_constraint import TokenConstraint
from coordinator.constraint.vocabulary import Vocabulary
from coordinator.core.grammar import Grammar
from coordinator.sandbox import (
    ForkServer,
    JobError,
    ProcessKilledError,
    SandboxError,
    SandboxProcess,
    unless_killed,
)
from coordinator.text.tokenizer import Tokenizer
from stagecoach.contract.errors import (
    InvalidArgumentError,
    QueueFullError,
    StagecoachError,
    UnavailableError,
    UnsupportedModelError,
)

_log = logging.getLogger(__name__)

COMPILE_TIMEOUT_S = 10.0
"""Most seconds that a request waits for its grammar, once the vocabulary is read."""

MAX_WAITING = 64
"""Most requests that wait for a grammar at once."""

MAX_OUTPUTS = 512
"""Most outputs that follow grammars at once, those that wait for their first token included. Each
that has its grammar for itself is a process, which holds about 4 MB of its own."""

COMPILE_MEMORY_BYTES = 512 << 20
"""What compiling one grammar may take."""

OUTPUT_MEMORY_BYTES = 256 << 20
"""What following outputs may take in one process, beyond their grammar."""

_JOB = "coordinator.constraint.grammar_job"


@dataclass(slots=True)
class _Compilation:
    """A grammar that is being compiled, for all who wait for it."""

    task: asyncio.Task[Template]
    num_waiting: int = 0


class GrammarCompiler:
    """Makes constraints of grammars; the work is done in sandboxed processes. Event loop only.

    Args:
        tokenizer: The model's; None when it serves token ids only.
        vocab_size: Logits in a row.
        eos_token_ids: Ids that end an output; allowed only where it is complete.
    """

    def __init__(
        self, tokenizer: Tokenizer | None, *, vocab_size: int, eos_token_ids: frozenset[int]
    ) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos_token_ids = eos_token_ids
        self._server: ForkServer | None = None
        self._masks = MaskReader(vocab_size, frozenset())
        self._masks_without_eos = MaskReader(vocab_size, eos_token_ids)
        self._templates = TemplateCache()
        self._compiling: dict[Grammar, _Compilation] = {}
        self._tasks: set[asyncio.Task[Template]] = set()
        self._turns = CompileTurns()
        self._num_waiting = 0
        self._num_outputs = 0
        self._starting: asyncio.Task[None] | None = None
        self._is_closed = False

    def check_model(self, grammar: Grammar) -> None:
        """Refuses grammars for a model whose output has no text.

        Raises:
            InvalidArgumentError: It has no tokenizer.
        """
        if self._tokenizer is None:
            raise InvalidArgumentError(
                f"{grammar.field}: the model has no tokenizer", field=grammar.field
            )

    async def start(self) -> None:
        """Reads the model's vocabulary, so that the first grammar does not wait for that.

        Raises:
            UnsupportedModelError: What the model's tokens spell cannot be told.
            UnavailableError: No process could be started, or the compiler was closed.
        """
        try:
            await unless_killed(lambda: self._fork_server().start())
        except SandboxError as error:
            raise self._start_failure(error) from error

    def start_soon(self) -> None:
        """Reads the model's vocabulary in the background; what is wrong with it is logged."""
        if self._starting is None:
            self._starting = asyncio.create_task(self.start(), name="vocabulary")
            self._starting.add_done_callback(_log_failure)

    async def compile(self, grammar: Grammar, *, ignore_eos: bool = False) -> TokenConstraint:
        """Makes the constraint of one new output; to give up the wait is to end the work.

        Args:
            grammar: What it must match.
            ignore_eos: Choose the model's end tokens only where nothing else may follow.

        Returns:
            The constraint, which the caller closes.

        Raises:
            InvalidArgumentError: The grammar is wrong or too large, or the model has no tokenizer.
            UnsupportedModelError: What the model's tokens spell cannot be told.
            QueueFullError: Too many requests wait for their grammars, or follow grammars.
            DeadlineExceededError: It took too long.
            UnavailableError: The compiler was closed, the machine has no room for a process, or
                each is killed.
        """
        self.check_model(grammar)
        if self._num_waiting >= MAX_WAITING:
            raise QueueFullError(
                f"{self._num_waiting} requests wait for their grammars, at most {MAX_WAITING} may",
                limit=MAX_WAITING,
            )
        if self._num_outputs >= MAX_OUTPUTS:
            raise QueueFullError(
                f"{self._num_outputs} outputs follow grammars, at most {MAX_OUTPUTS} may",
                limit=MAX_OUTPUTS,
            )
        self._num_waiting += 1
        self._num_outputs += 1
        try:
            template, group = await self._group(grammar, alone=False)
        except BaseException:
            self._num_outputs -= 1
            raise
        finally:
            self._num_waiting -= 1
        return TokenConstraint(
            group,
            grammar,
            template.state,
            relaxed_fields=template.relaxed_fields,
            masks=self._masks_without_eos if ignore_eos else self._masks,
            begin=partial(self._begin, grammar),
            on_fault=partial(self._stop_sharing, grammar),
            on_closed=self._forget_output,
        )

    async def close(self) -> None:
        """Takes no more grammars, and ends all processes at once. May be called again."""
        self._is_closed = True
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._templates.clear()
        if self._server is not None:
            await self._server.close()
        if self._starting is not None:
            await asyncio.wait({self._starting})

    def _forget_output(self) -> None:
        self._num_outputs -= 1

    async def _template(self, grammar: Grammar) -> Template:
        """The compiled grammar: from the cache, or with all who wait for it."""
        template = self._templates.get(grammar)
        if template is not None:
            return template
        compilation = self._compiling.get(grammar)
        if compilation is None:
            task = asyncio.create_task(self._compile(grammar), name="grammar")
            compilation = self._compiling[grammar] = _Compilation(task)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            task.add_done_callback(_retrieve)
        compilation.num_waiting += 1
        try:
            await asyncio.wait({compilation.task})
        finally:
            compilation.num_waiting -= 1
            if compilation.num_waiting == 0:
                compilation.task.cancel()
                del self._compiling[grammar]
        if compilation.task.cancelled():
            raise self._shut_down()
        return compilation.task.result()

    async def _compile(self, grammar: Grammar) -> Template:
        try:
            template = await unless_killed(lambda: self._compile_once(grammar))
        except ProcessKilledError as error:
            raise self._start_failure(error) from error
        self._templates.put(grammar, template)
        return template

    async def _compile_once(self, grammar: Grammar) -> Template:
        process: SandboxProcess | None = None
        try:
            await self._fork_server().start()
            async with self._turns.starting():
                process = await self._fork_server().fork(memory_bytes=COMPILE_MEMORY_BYTES)
                payload = encode_grammar(grammar.kind, grammar.text)
                answer = process.submit(payload, timeout_s=COMPILE_TIMEOUT_S)
                answer.add_done_callback(_retrieve)
                takes_long = await self._turns.has_taken_long(process, answer)
            if takes_long:
                await self._turns.go_on(process, answer)
            state, own_bytes, relaxed_fields = decode_compiled(answer.result())
            if state.standing is Standing.BROKEN:
                raise failure(grammar, state.error, state.field)
        except BaseException as error:
            if process is not None:
                process.close()
            if isinstance(error, SandboxError) and not isinstance(error, ProcessKilledError):
                raise self._compile_failure(grammar, error, process) from error
            raise
        return Template(process, state, own_bytes, relaxed_fields)

    async def _begin(self, grammar: Grammar, *, alone: bool) -> OutputGroup:
        """A process for an output that lost its own."""
        _, group = await self._group(grammar, alone=alone)
        return group

    async def _group(self, grammar: Grammar, *, alone: bool) -> tuple[Template, OutputGroup]:
        """A process for one more output, and what it was forked from."""

        async def attempt() -> tuple[Template, OutputGroup]:
            template = await self._template(grammar)
            start = template.fork_group if alone else template.group
            return template, await start(OUTPUT_MEMORY_BYTES)

        try:
            # A template may be pushed out of the cache while it is forked, too.
            return await unless_killed(attempt)
        except SandboxError as error:
            if self._is_closed:
                raise self._shut_down() from error
            if isinstance(error, ProcessKilledError):
                raise killed() from error
            raise UnavailableError(f"no process for an output: {error}") from error

    def _stop_sharing(self, grammar: Grammar) -> None:
        """Gives each output of a grammar that went wrong in company a process of its own."""
        template = self._templates.get(grammar)
        if template is not None and template.is_shared:
            template.is_shared = False
            _log.warning("outputs of a grammar go on alone", extra={"field": grammar.field})

    def _fork_server(self) -> ForkServer:
        if self._is_closed:
            raise self._shut_down()
        if self._server is None:
            assert self._tokenizer is not None, "checked before"
            if not self._eos_token_ids:
                raise UnsupportedModelError("the model has no end token, which a grammar ends with")
            vocabulary = Vocabulary(
                tokenizer=self._tokenizer.serialized(),
                num_logits=self._vocab_size,
                eos_token_ids=tuple(sorted(self._eos_token_ids)),
            )
            self._server = ForkServer(_JOB, vocabulary.encode())
        return self._server

    def _start_failure(self, error: SandboxError) -> StagecoachError:
        if self._is_closed:
            return self._shut_down()
        if isinstance(error, ProcessKilledError):
            return killed()
        if isinstance(error, JobError):
            return UnsupportedModelError(f"what the model's tokens spell cannot be told: {error}")
        return UnavailableError(f"grammars cannot be compiled: {error}")

    def _compile_failure(
        self, grammar: Grammar, error: SandboxError, process: SandboxProcess | None
    ) -> StagecoachError:
        if process is None or self._is_closed:
            return self._start_failure(error)
        return sandbox_failure(grammar, error, work="compiled", limit_s=COMPILE_TIMEOUT_S)

    @staticmethod
    def _shut_down() -> UnavailableError:
        return UnavailableError("the coordinator is shutting down")


def _log_failure(starting: asyncio.Task[None]) -> None:
    error = None if starting.cancelled() else starting.exception()
    if error is not None and not isinstance(error, UnavailableError):
        _log.warning("no grammars for this model", extra={"error": str(error)})


def _retrieve(ended: "asyncio.Future[Any]") -> None:
    """Hears of an error that nobody waits for any more."""
    if not ended.cancelled():
        ended.exception()
