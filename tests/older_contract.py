"""The contract of GenerationService as it was before tools: messages of older programs.

Made of the contract of today, less what came with tools and thinking.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.message import Message

from stagecoach.v1 import generation_pb2

_LATER_FIELDS: Mapping[str, Sequence[int]] = {
    "Chat": range(4, 10),
    "ChatMessage": range(4, 7),
    "GenerateRequest": range(14, 16),
    "TokenChunk": (4,),
    "Finished": (7, 8),
}
_LATER_TYPES = {
    *("Tool", "ToolChoice", "ToolMode", "AllowedTools", "ToolCall"),
    *("OutputPart", "CallBegins", "ArgumentsPart", "CallEnds"),
}


def older(message: type[Message]) -> type[Any]:
    """The class that a message of GenerationService had in programs before tools."""
    name = message.DESCRIPTOR.full_name
    return message_factory.GetMessageClass(_pool().FindMessageTypeByName(name))


@cache
def _pool() -> descriptor_pool.DescriptorPool:
    pool = descriptor_pool.DescriptorPool()
    for needed in generation_pb2.DESCRIPTOR.dependencies:
        _add(pool, needed)
    file = descriptor_pb2.FileDescriptorProto()
    generation_pb2.DESCRIPTOR.CopyToProto(file)
    _remove(file.message_type, [one for one in file.message_type if one.name in _LATER_TYPES])
    _remove(file.enum_type, [one for one in file.enum_type if one.name in _LATER_TYPES])
    for one in file.enum_type:
        if one.name == "FinishReason":
            _remove(one.value, [value for value in one.value if value.number == 4])
    for kind in file.message_type:
        later = _LATER_FIELDS.get(kind.name, ())
        _remove(kind.field, [field for field in kind.field if field.number in later])
        _drop_oneofs(kind)
    pool.AddSerializedFile(file.SerializeToString())
    return pool


def _add(pool: descriptor_pool.DescriptorPool, file: FileDescriptor) -> None:
    """Adds a file as it is, after those that it needs."""
    for needed in file.dependencies:
        _add(pool, needed)
    pool.AddSerializedFile(file.serialized_pb)


def _drop_oneofs(kind: descriptor_pb2.DescriptorProto) -> None:
    """Takes away those that stand for `optional` of fields that are gone."""
    used = sorted({field.oneof_index for field in kind.field if field.HasField("oneof_index")})
    places = {index: place for place, index in enumerate(used)}
    names = [kind.oneof_decl[index].name for index in used]
    del kind.oneof_decl[:]
    for name in names:
        kind.oneof_decl.add(name=name)
    for field in kind.field:
        if field.HasField("oneof_index"):
            field.oneof_index = places[field.oneof_index]


def _remove(listed: Any, gone: Sequence[Any]) -> None:
    for one in gone:
        listed.remove(one)
