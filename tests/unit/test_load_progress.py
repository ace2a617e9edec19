"""How far a load is: in words, on the wire, and counted from the rows that were read."""

from pathlib import Path

import pytest
import torch

from stage_server.core.load_board import WeightProgress
from stage_server.model.layer_stack import load_layer_stack
from stagecoach.contract import status
from stagecoach.contract.errors import LoadingError, UnavailableError
from stagecoach.contract.layer_range import LayerRange
from stagecoach.contract.load_progress import LoadPhase, LoadProgress
from stagecoach.contract.precision import Precision
from stagecoach.model_files import open_model
from tests.tiny_models import tiny_model

HALF = LoadProgress(phase=LoadPhase.LOADING, done_bytes=3_100_000_000, total_bytes=6_200_000_000)


@pytest.mark.parametrize(
    ("progress", "words"),
    [
        (HALF, "loading 3.1 of 6.2 GB (50 %)"),
        (
            LoadProgress(phase=LoadPhase.DOWNLOADING, done_bytes=0, total_bytes=1_500_000),
            "downloading 0.0 of 1.5 MB (0 %)",
        ),
        (LoadProgress(phase=LoadPhase.WARMING_UP), "warming up"),
        (LoadProgress(phase=LoadPhase.LOADING, total_bytes=0), "loading"),
    ],
)
def test_progress_in_words(progress: LoadProgress, words: str) -> None:
    assert str(progress) == words


@pytest.mark.parametrize("progress", [HALF, LoadProgress(phase=LoadPhase.STARTING), None])
def test_progress_survives_the_wire(progress: LoadProgress | None) -> None:
    error = LoadingError("the stage is loading", progress=progress)
    arrived = status.from_status(status.to_status(error))
    assert isinstance(arrived, LoadingError)
    assert isinstance(arrived, UnavailableError)
    assert arrived.progress == progress


@pytest.mark.parametrize("phase", ["flying", ""])
def test_progress_that_cannot_be_read_is_none(phase: str) -> None:
    assert LoadProgress.from_details({"phase": phase, "done_bytes": "1"}) is None
    assert LoadProgress.from_details({"phase": "loading", "done_bytes": "many"}) is None


def test_rows_that_are_read_twice_count_once() -> None:
    told: list[LoadProgress] = []
    progress = WeightProgress(100, 200, told.append)
    for name, end_row in (("a", 2), ("a", 5), ("a", 5), ("a", 3), ("b", 5)):
        progress.read(name, end_row, 10)
    assert [one.done_bytes for one in told] == [0, 40, 100, 200]
    assert {one.total_bytes for one in told} == {200}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_loading_a_stage_counts_up_to_all_its_weights(tmp_path: Path, dtype: str) -> None:
    files = open_model(str(tiny_model("llama", tmp_path)))
    told: list[LoadProgress] = []
    layers = LayerRange(0, files.config.num_layers)
    precision = Precision.of(dtype, on_cpu=True)
    load_layer_stack(
        files, layers, precision=precision, device=torch.device("cpu"), report=told.append
    )
    done = [one.done_bytes for one in told]
    assert {one.phase for one in told} == {LoadPhase.LOADING}
    assert done == sorted(done)
    assert (done[0], done[-1]) == (0, told[-1].total_bytes)
