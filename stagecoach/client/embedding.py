"""Embeddings: what a caller may ask, its messages, and what comes back. No I/O."""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import NamedTuple, Unpack, cast

from stagecoach.client.prompt import PromptLike, PromptOptions, prompt_message
from stagecoach.client.request import set_field
from stagecoach.contract.error_words import in_words_of
from stagecoach.contract.errors import IncompatibleError, InvalidArgumentError, StagecoachError
from stagecoach.v1 import generation_pb2

_MAX_CALL_PROMPTS = 2048
"""What a coordinator takes at once."""

_MAX_CALL_BYTES = 512 * 1024
"""Bytes of the prompts of one call, unless one has more: every coordinator reads so many."""

_POOLINGS = MappingProxyType(
    {"last": generation_pb2.POOLING_LAST, "mean": generation_pb2.POOLING_MEAN}
)


class EmbedOptions(PromptOptions, total=False):
    """Keyword arguments of `embed`. Left out or None: the default."""

    model: str | None
    """A name of a model; the status lists them. Default: the only one."""
    pooling: str | None
    """Which hidden states count: `last`, that of the last token, or `mean`, those of all.
    Default: last."""
    normalize: bool | None
    """Whether each embedding has the length 1. Default: True."""
    dimensions: int | None
    """How many of the first elements are kept, before the length is made 1. Default: all."""
    cache_salt: str | None
    """Only requests of the same salt share the KV of a common prefix. Default: shared with all
    others that have none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedding:
    """One prompt as a vector."""

    values: Sequence[float]
    """An array of float32, which numpy takes as it is."""
    num_prompt_tokens: int
    num_cached_tokens: int
    """Tokens of the prompt that the prefix cache held, so that they were not computed."""


class EmbedCall(NamedTuple):
    """One call, of some of the prompts."""

    first: int
    """Place of its first prompt among all."""
    request: generation_pb2.EmbedRequest


def embed_calls(
    prompts: str | Sequence[PromptLike], **options: Unpack[EmbedOptions]
) -> list[EmbedCall]:
    """Writes the calls that embed prompts, at least one, in their order.

    Raises:
        InvalidArgumentError: A value has the wrong type, or one that no message can hold.
        TypeError: There is no such option.
    """
    unknown = set(options) - set(EmbedOptions.__annotations__)
    if unknown:
        raise TypeError(f"embed() has no option {', '.join(sorted(unknown))}")
    settings = generation_pb2.EmbedRequest()
    pooling = options.get("pooling")
    if pooling is not None:
        if pooling not in _POOLINGS:
            raise InvalidArgumentError(
                f"pooling is {pooling!r:.100}, must be {' or '.join(_POOLINGS)}", field="pooling"
            )
        settings.pooling = _POOLINGS[pooling]
    of_prompt: dict[str, object] = {}
    for name, value in options.items():
        if name in PromptOptions.__annotations__:
            of_prompt[name] = value
        elif name != "pooling" and value is not None:
            set_field(settings, name, value)
    calls: list[EmbedCall] = []
    num_bytes = 0
    for index, message in enumerate(_messages(prompts, cast(PromptOptions, of_prompt))):
        num_bytes += message.ByteSize()
        is_full = calls and len(calls[-1].request.prompts) == _MAX_CALL_PROMPTS
        if not calls or is_full or num_bytes > _MAX_CALL_BYTES:
            request = generation_pb2.EmbedRequest()
            request.CopyFrom(settings)
            calls.append(EmbedCall(index, request))
            num_bytes = message.ByteSize()
        calls[-1].request.prompts.append(message)
    if not calls:
        raise InvalidArgumentError("prompts is empty", field="prompts")
    return calls


def _messages(
    prompts: str | Sequence[PromptLike], options: PromptOptions
) -> Iterator[generation_pb2.Prompt]:
    for index, prompt in enumerate((prompts,) if isinstance(prompts, str) else prompts):
        try:
            yield prompt_message(prompt, **options)
        except InvalidArgumentError as error:
            if error.field != "prompt":
                raise
            raise in_words_of(error, partial(_placed, index)) from error


def _placed(index: int, _: str) -> str:
    """The name of a prompt among the others."""
    return f"prompts[{index}]"


class PartialEmbeddings:
    """Gathers the embeddings of one call until all are there. No I/O.

    Args:
        call: The call.
    """

    def __init__(self, call: EmbedCall) -> None:
        self._call = call
        self._found: dict[int, Embedding] = {}

    def take(self, message: generation_pb2.EmbedResponse) -> None:
        """Takes in one message."""
        self._found[message.index] = Embedding(
            values=array("f", message.values),
            num_prompt_tokens=message.num_prompt_tokens,
            num_cached_tokens=message.num_cached_tokens,
        )

    def result(self) -> list[Embedding]:
        """The embeddings in the order of the prompts.

        Raises:
            IncompatibleError: The coordinator ended the call without some of them.
        """
        num_prompts = len(self._call.request.prompts)
        if self._found.keys() != set(range(num_prompts)):
            raise IncompatibleError(
                f"the coordinator answered with {len(self._found)} embeddings of {num_prompts}"
            )
        return [self._found[index] for index in range(num_prompts)]

    def named(self, error: StagecoachError) -> StagecoachError:
        """Names a prompt that an error is of by its place among all prompts."""
        name, bracket, rest = error.details.get("field", "").partition("[")
        index, closing, tail = rest.partition("]")
        if name != "prompts" or not (bracket and closing) or not index.isdecimal():
            return error
        place = f"prompts[{int(index) + self._call.first}]{tail}"
        return in_words_of(error, lambda field: place if field.startswith("prompts[") else field)
