"""The limits that the scheduler keeps."""

from dataclasses import dataclass, fields

from coordinator.core.request import Request
from stagecoach.contract.errors import ContextLengthExceededError, InvalidArgumentError


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """Limits of the model, of the smallest stage and of the queue.

    Raises:
        InvalidArgumentError: A value is below 1; the error names the field.
    """

    max_num_batched_tokens: int
    """Token budget of a micro-batch."""
    max_num_seqs: int
    """Sequences that run at once."""
    max_model_len: int
    """Tokens of prompt and output together that the model can place."""
    kv_block_size: int
    """Tokens a block, the same on every stage."""
    num_kv_blocks: int
    """Blocks of the smallest stage."""
    num_kv_slots: int | None = None
    """Slots of the smallest stage; those in which nothing runs can hold prefixes. None: as many as
    sequences run at once."""
    max_num_sampled_rows: int | None = None
    """Rows of a micro-batch whose logits every stage can answer, at least `max_num_seqs`; drafts
    leave no more to sample. None: as many as it has tokens."""
    prefix_cache: bool = False
    """Whether sequences share the KV of a common prefix."""
    min_awaited_tokens: int = 128
    """A prefix that another sequence computes is waited for if it has so many tokens to compute
    for it; fewer cost less than the wait."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int) and not isinstance(value, bool) and value < 1:
                raise InvalidArgumentError(
                    f"{field.name} is {value}, must be at least 1", field=field.name
                )

    @property
    def num_slots(self) -> int:
        """Number of kv slots, `[0, num_slots)`."""
        return max(self.max_num_seqs, self.num_kv_slots or 0)

    @property
    def num_kv_tokens(self) -> int:
        """Tokens that the KV memory of the smallest stage holds."""
        return self.num_kv_blocks * self.kv_block_size

    @property
    def max_request_tokens(self) -> int:
        """Tokens of prompt and output together that one request may hold."""
        return min(self.max_model_len, self.num_kv_tokens)

    def max_num_drafts(self, num_decodes: int) -> int:
        """Returns how many guessed tokens fit into a micro-batch beside so many decodes.

        Each of its tokens is sampled, so the bound on rows counts as the token budget does.
        """
        num_rows = self.max_num_batched_tokens
        if self.max_num_sampled_rows is not None:
            num_rows = min(num_rows, self.max_num_sampled_rows)
        return max(0, num_rows - num_decodes)

    def check_length(self, request: Request) -> None:
        """Refuses a request that could never run.

        Raises:
            ContextLengthExceededError: Prompt and `max_tokens` together are more than the model or
                the KV memory holds.
        """
        num_prompt_tokens = len(request.prompt_token_ids)
        num_tokens = num_prompt_tokens + request.max_tokens
        for limit, holder in (
            (self.max_model_len, "the model"),
            (self.num_kv_tokens, "the KV memory"),
        ):
            if num_tokens > limit:
                raise ContextLengthExceededError(
                    f"{num_prompt_tokens} prompt tokens and {request.max_tokens} of output are"
                    f" {num_tokens} tokens, {holder} holds {limit}",
                    num_prompt_tokens=num_prompt_tokens,
                    max_tokens=request.max_tokens,
                    limit=limit,
                )
