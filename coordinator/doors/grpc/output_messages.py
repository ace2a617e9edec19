"""Domain types -> `stagecoach.v1.OutputPart`: what a divided output consists of."""

from collections.abc import Sequence

from coordinator.core.output_parts import (
    ArgumentsPart,
    CallBegins,
    CallEnds,
    ContentPart,
    OutputPart,
    ReasoningPart,
)
from stagecoach.v1 import generation_pb2


def output_parts(parts: Sequence[OutputPart]) -> Sequence[generation_pb2.OutputPart]:
    """Writes parts; none where all of them are content, which the message has as text."""
    for part in parts:
        if not isinstance(part, ContentPart):
            return [_part(one) for one in parts]
    return ()


def _part(part: OutputPart) -> generation_pb2.OutputPart:
    match part:
        case ContentPart():
            return generation_pb2.OutputPart(content=part.text)
        case ReasoningPart():
            return generation_pb2.OutputPart(reasoning=part.text)
        case CallBegins():
            begins = generation_pb2.CallBegins(index=part.index, id=part.call_id, name=part.name)
            return generation_pb2.OutputPart(call_begins=begins)
        case ArgumentsPart():
            arguments = generation_pb2.ArgumentsPart(index=part.index, text=part.text)
            return generation_pb2.OutputPart(arguments=arguments)
        case CallEnds():
            return generation_pb2.OutputPart(call_ends=generation_pb2.CallEnds(index=part.index))
