"""Runs micro-batches through all stages in turn.

The hub of the system: one stage's answer becomes the next stage's input, undecoded. A pipeline
lives until one of its stages is lost. The loss fails all micro-batches in flight at once;
`StagePool` makes the next pipeline.
"""

import time
from collections.abc import Sequence

from coordinator.core.step import SchedulerOutput, StepOutput
from coordinator.pipeline import wire
from coordinator.pipeline.answered_logits import read_logits, read_prompt_logits
from coordinator.pipeline.answered_sums import read_hidden_sums
from coordinator.pipeline.forward_stream import Loss
from coordinator.pipeline.stage_link import StageLink
from stagecoach.contract.errors import InternalError, UnavailableError
from stagecoach.contract.logits_request import LogitsRequest
from stagecoach.contract.step_record import StageVisit


class Pipeline:
    """One server of every stage, in order, with all slots empty at first. One event loop.

    Args:
        index: Tells it from the other pipelines that there are now.
        links: Open, in pipeline order, and in no other pipeline.
        vocab_size: Logits in a full row.
        hidden_size: Width of a hidden state.
        adds_noise: Whether the last stage knows contenders.
    """

    def __init__(
        self,
        index: int,
        links: Sequence[StageLink],
        *,
        vocab_size: int,
        hidden_size: int,
        adds_noise: bool,
    ) -> None:
        self.index = index
        self._links = tuple(links)
        self._vocab_size = vocab_size
        self._hidden_size = hidden_size
        self._adds_noise = adds_noise
        self._is_open = True
        self._blamed: set[int] = set()

    @property
    def addresses(self) -> tuple[str, ...]:
        """Addresses of the pipeline's server of every stage, in order."""
        return tuple(link.address for link in self._links)

    @property
    def is_open(self) -> bool:
        """True until a stage is lost."""
        return self._is_open

    @property
    def blamed(self) -> frozenset[int]:
        """Micro-batches that a stage may have been lost by: those that it had not answered."""
        return frozenset(self._blamed)

    def lose(self, loss: Loss) -> None:
        """Ends the pipeline, because one of its stages was lost; may be called for each.

        The streams of the other stages are taken down too, so that they hold nothing of it.
        """
        self._is_open = False
        if not loss.is_announced:
            self._blamed |= loss.micro_batch_ids
        for link in self._links:
            link.drop()

    async def run(self, output: SchedulerOutput, logits: Sequence[LogitsRequest]) -> StepOutput:
        """Runs one micro-batch through all stages.

        Micro-batches keep the order in which `run` was called at every stage, so slot operations
        stay in order however many are in flight. The loss of any stage fails all of them at once.

        Args:
            output: What to run; says of which rows of prompts logits and hidden states are wanted.
            logits: Rows whose logits the sampler wants.

        Raises:
            UnavailableError: A stage is or was lost.
            DeadlineExceededError: A stage did not answer in time and is given up.
            StagecoachError: A stage refused or failed this micro-batch; later stages have not seen
                it.
        """
        visits: list[StageVisit] = []
        own_ns: list[int] = []  # for each stage, writing requests and reading answers here
        num_tokens = output.num_tokens
        last = self._links[-1]
        if not self._adds_noise:
            logits = [wanted.without_contenders(self._vocab_size) for wanted in logits]
        of_prompts, hidden_sums = output.prompt_logits(), output.hidden_sums()
        started_ns = time.perf_counter_ns()
        request = wire.first_request(output)
        for link in self._links:
            if not self._is_open:
                raise UnavailableError("a stage was lost meanwhile")
            if link is last:
                wire.add_logits(request, logits)
                wire.add_prompt_logits(request, of_prompts)
                wire.add_hidden_sums(request, hidden_sums)
            own_ns.append(time.perf_counter_ns() - started_ns)
            reply = await link.forward(request, num_tokens)
            visits.append(reply.visit)
            started_ns = time.perf_counter_ns()
            if num_tokens and link is not last:
                wire.set_hidden_states(request, reply.result)
        try:
            rows = read_logits(reply.result.logits, logits, self._vocab_size)
            prompts = read_prompt_logits(reply.result.prompt_logits, of_prompts, self._vocab_size)
            sums = read_hidden_sums(reply.result.hidden_sums, hidden_sums, self._hidden_size)
        except InternalError as error:
            raise InternalError(f"stage {last.address} {error.message}") from error
        own_ns[-1] += time.perf_counter_ns() - started_ns
        return StepOutput(
            micro_batch_id=output.micro_batch_id,
            logits=rows,
            prompt_logits=prompts,
            hidden_sums=sums,
            visits=tuple(visits),
            stage_timings=tuple(
                visit.timings.with_serialization(duration_ns)
                for visit, duration_ns in zip(visits, own_ns, strict=True)
            ),
        )
