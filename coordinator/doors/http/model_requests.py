"""What is asked of a model: read within the bound that the model's length sets, and checked."""

from collections.abc import Sequence
from collections.abc import Set as NameSet
from typing import Generic, NamedTuple, TypeVar

from fastapi import Request

from coordinator.core.catalog import CatalogModel
from coordinator.core.generation_engine import GenerationEngine
from coordinator.core.limits import ASSUMED_MODEL_LEN
from coordinator.doors.http.body import read_body
from coordinator.doors.http.door import Door
from coordinator.doors.http.field_names import field_names
from coordinator.doors.http.ignored_fields import IgnoredFields
from coordinator.doors.http.message_specs import idle_message_fields
from coordinator.doors.http.ollama_specs import idle_ollama_fields
from coordinator.doors.http.schema.anthropic import MessagesPrompt
from coordinator.doors.http.schema.base import ModelRequest
from coordinator.doors.http.schema.conversation import ConversationFields
from coordinator.doors.http.schema.ollama import OllamaModelRequest, OllamaRequest
from coordinator.doors.http.template_parts import idle_template_fields
from stagecoach.contract.limits import max_request_bytes

NAME = "messages[].name"
"""The kind of field, among those that change nothing, of which some models make something."""

_TAG = ":latest"
"""What Ollama's clients put behind a name that has no tag."""

Wanted = TypeVar("Wanted", bound=ModelRequest)


class Asked(NamedTuple, Generic[Wanted]):
    """What is asked, and of which model."""

    wanted: Wanted
    engine: GenerationEngine


async def read_model_request(
    request: Request, kind: type[Wanted], door: Door, *, min_tokens: int = 0
) -> Asked[Wanted]:
    """Reads a request of a served model.

    Args:
        request: Whose body was not touched yet.
        kind: What it must be.
        door: Holds the models.
        min_tokens: Tokens for which there is room in its body, whatever the models' length.

    Raises:
        ModelNotFoundError: It is for a model that is not served.
        InvalidArgumentError: It names no model, and several are served.
        UnavailableError: No model was served yet, or this one has no engine.
        StagecoachError: As `read_body`.
    """
    models = door.catalog.models()
    lengths = [model.max_model_len or ASSUMED_MODEL_LEN for model in models]
    max_bytes = max_request_bytes(max(min_tokens, *lengths))
    wanted, ignored = await read_body(request, kind, door.bodies, max_bytes=max_bytes)
    request.state.field_names = field_names(wanted)
    request.state.ignored = ignored
    engine = door.catalog.engine(_name_of(wanted, models))
    if NAME in ignored and await door.model_reads_names(engine):
        ignored = {kind: place for kind, place in ignored.items() if kind != NAME}
    request.state.ignored = {**ignored, **_idle(wanted, engine.served_model.template_variables)}
    return Asked(wanted, engine)


def _name_of(wanted: ModelRequest, models: Sequence[CatalogModel]) -> str | None:
    """What the catalog calls the model that is asked for."""
    name = wanted.model
    if name is not None and isinstance(wanted, OllamaModelRequest):
        known = {one for model in models for one in model.names}
        bare = name.removesuffix(_TAG)
        return bare if name not in known and bare in known else name
    return name


def _idle(wanted: ModelRequest, variables: NameSet[str]) -> IgnoredFields:
    """Fields that say something to a chat template that it does not look for."""
    match wanted:
        case ConversationFields():
            return idle_template_fields(wanted, variables)
        case MessagesPrompt():
            return idle_message_fields(wanted, variables)
        case OllamaRequest():
            return idle_ollama_fields(wanted, variables)
    return {}
