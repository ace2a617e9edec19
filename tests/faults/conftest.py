"""One cluster for all rows, made whole before each, and the oracle that judges it."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from stagecoach.client import AsyncClient
from tests.byte_models import byte_model
from tests.faults.cluster import MAX_MODEL_LEN, Cluster
from tests.faults.oracle import Oracle, check_ended
from tests.faults.reference import Continuation, continuations

NUM_TEXTS = 8
TEXT_TOKENS = 400


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    return byte_model(folder, max_model_len=MAX_MODEL_LEN)


@pytest.fixture(scope="session")
def texts(model: Path) -> list[Continuation]:
    return continuations(model, num_tokens=TEXT_TOKENS, count=NUM_TEXTS)


@pytest.fixture(scope="session")
def shared_cluster(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(model, tmp_path_factory.mktemp("cluster"))
    try:
        yield cluster
    finally:
        addresses = [cluster.address, *(stage.address for stage in cluster.stages)]
        cluster.close()
    check_ended([process.pid for process in cluster.processes], addresses)


@pytest.fixture
async def oracle(shared_cluster: Cluster, texts: list[Continuation]) -> AsyncIterator[Oracle]:
    shared_cluster.restore()
    async with AsyncClient(shared_cluster.address) as client:
        await client.wait_until_ready(60)
        oracle = Oracle(shared_cluster, client, texts)
        await oracle.record_baseline()
        yield oracle
        await oracle.check_whole()
