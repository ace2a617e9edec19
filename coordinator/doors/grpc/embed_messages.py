"""`stagecoach.v1` messages of Embed <-> domain types."""

from collections.abc import Mapping
from types import MappingProxyType

from coordinator.core.embedding import EmbeddingParams, Pooling
from coordinator.core.request_spec import RequestSpec
from coordinator.doors import prompt_items
from coordinator.doors.embedding import Embedded, check_num_prompts
from coordinator.doors.grpc.messages import prompt
from coordinator.doors.grpc.unknown_fields import refuse_unknown_fields
from stagecoach.contract.errors import InvalidArgumentError, StagecoachError
from stagecoach.v1 import generation_pb2

_PROMPTS = "prompts"

_POOLINGS: Mapping[int, Pooling] = MappingProxyType(
    {
        generation_pb2.POOLING_UNSPECIFIED: Pooling.LAST,
        generation_pb2.POOLING_LAST: Pooling.LAST,
        generation_pb2.POOLING_MEAN: Pooling.MEAN,
    }
)


def embedding_specs(message: generation_pb2.EmbedRequest) -> list[RequestSpec]:
    """Reads what each prompt of a request asks of the engine, in their order.

    Raises:
        InvalidArgumentError: A field is unknown, missing or out of range; the error names it.
    """
    refuse_unknown_fields(message, "EmbedRequest")
    check_num_prompts(len(message.prompts), prompts=_PROMPTS)
    if message.pooling not in _POOLINGS:
        raise InvalidArgumentError(
            f"pooling is {message.pooling}, which is no value of Pooling", field="pooling"
        )
    params = EmbeddingParams(
        pooling=_POOLINGS[message.pooling],
        normalize=message.normalize if message.HasField("normalize") else True,
        dimensions=message.dimensions if message.HasField("dimensions") else None,
    )
    specs = []
    for index, one in enumerate(message.prompts):
        try:
            spec = RequestSpec(
                prompt=prompt(one),
                max_tokens=0,
                cache_salt=message.cache_salt if message.HasField("cache_salt") else None,
                embedding=params,
            )
        except InvalidArgumentError as error:
            raise of_item(error, index) from error
        specs.append(spec)
    return specs


def of_item(error: StagecoachError, index: int) -> StagecoachError:
    """Says of an error of one of the prompts which one it is; others stay as they are."""
    return prompt_items.of_item(error, index, prompts=_PROMPTS)


def embed_response(one: Embedded) -> generation_pb2.EmbedResponse:
    """Writes an embedding."""
    return generation_pb2.EmbedResponse(
        index=one.index,
        values=one.values,
        num_prompt_tokens=one.num_prompt_tokens,
        num_cached_tokens=one.num_cached_tokens,
    )
