"""The served description of the API against what the server of a real pipeline answers."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from coordinator.core.catalog import Catalog
from coordinator.doors.http.app import create_app
from coordinator.doors.http.door import Door
from stagecoach.contract.layer_range import LayerRange
from tests.byte_models import byte_model
from tests.clusters import running_engine
from tests.contract.http_door import in_background, serving_http

MAX_MODEL_LEN = 48
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
]

NUM_EXAMPLES = 25
TIMEOUT_S = 10.0
SCHEMA = schemathesis.openapi.from_dict(create_app(Door(Catalog())).openapi())
REFUSALS = SCHEMA.config.checks.negative_data_rejection
# A body may be wrong and longer than any that is read.
REFUSALS.expected_statuses = [*REFUSALS.expected_statuses, "413"]
OPERATIONS = {
    operation.label: operation
    for operation in (one.ok() for one in SCHEMA.get_all_operations() if isinstance(one, Ok))
}


@asynccontextmanager
async def serving(model: Path) -> AsyncIterator[str]:
    limits = {"max_model_len": MAX_MODEL_LEN}
    async with (
        running_engine(model, [LayerRange(0, 6)], coordinator=limits) as engine,
        serving_http(engine) as address,
    ):
        yield address


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    model = byte_model(tmp_path_factory.mktemp("model"))
    with in_background(serving(model)) as found:
        yield found


def check_answers(label: str, mode: GenerationMode, address: str) -> None:
    """Sends generated requests to one operation and checks every answer."""

    @given(case=OPERATIONS[label].as_strategy(generation_mode=mode))
    @settings(
        max_examples=NUM_EXAMPLES,
        phases=[Phase.generate],  # what fails is small enough, and shrinking it takes minutes
        suppress_health_check=list(HealthCheck),
    )
    def check(case: schemathesis.Case[Any]) -> None:
        case.call_and_validate(base_url=f"http://{address}", checks=CHECKS, timeout=TIMEOUT_S)

    check()


@pytest.mark.parametrize("label", OPERATIONS)
def test_valid_requests_are_answered_as_described(label: str, address: str) -> None:
    check_answers(label, GenerationMode.POSITIVE, address)


@pytest.mark.parametrize("label", [label for label, one in OPERATIONS.items() if one.body])
def test_invalid_requests_are_refused_as_described(label: str, address: str) -> None:
    check_answers(label, GenerationMode.NEGATIVE, address)


def test_every_route_is_described() -> None:
    assert OPERATIONS.keys() == {
        "GET /health",
        "GET /ready",
        "GET /version",
        "GET /status",
        "GET /v1/models",
        "GET /v1/models/{model}",
        "POST /v1/chat/completions",
        "POST /v1/completions",
        "POST /v1/embeddings",
        "POST /v1/messages",
        "POST /v1/messages/count_tokens",
        "POST /api/chat",
        "POST /api/generate",
        "POST /api/show",
        "POST /api/embed",
        "POST /api/embeddings",
        "GET /api/tags",
        "GET /api/ps",
        "GET /api/version",
        "POST /v1/responses",
        "GET /v1/responses/{response_id}",
        "DELETE /v1/responses/{response_id}",
        "POST /v1/responses/{response_id}/cancel",
        "GET /v1/responses/{response_id}/input_items",
        "POST /tokenize",
        "POST /detokenize",
        "GET /tokenizer_info",
    }
