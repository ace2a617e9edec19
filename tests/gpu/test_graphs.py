"""What a decode step by a CUDA graph costs the host, as counts; see `fake_card`."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import cycle
from unittest import mock

import pytest
import torch

from stage_server.compute import graph_check
from stage_server.compute.device_failures import device_failures
from stage_server.compute.graph_check import CardMeter
from stage_server.compute.torch_engine import TorchEngine
from stage_server.core.batch import SequenceSlice
from stagecoach.contract.errors import DeviceMemoryError
from stagecoach.contract.layer_range import LayerRange
from stagecoach.contract.precision import KvFormat
from tests.gpu.fake_card import CUDA, WAIT, Counts, FakeCard
from tests.gpu.fake_engines import KERNELS, batch_for, fake_engine, shape_files
from tests.gpu.steps import LARGE_STEPS, SETTINGS, Kind, count_steps
from tests.gpu.test_steps import FETCHED, KERNEL_LIMITS, SENT

MAX_LAUNCHES = {
    Kind.DECODE_1: 6,
    Kind.DECODE_8: 6,
    Kind.DECODE_96: 9,
}
"""Of a whole step of a first stage, the two copies between host and card included."""

INT8_KV_MAX_LAUNCHES = {**MAX_LAUNCHES, Kind.DECODE_96: 10}
"""Of the same over KV in 8 bits: new blocks have scales to clear."""


@contextmanager
def all_are_useful() -> Iterator[None]:
    """There are neither values nor times. A graph is asked for its time before the plain step."""
    with (
        mock.patch.object(graph_check, "difference", return_value=0.0),
        mock.patch.object(CardMeter, "seconds", side_effect=cycle([1.0, 2.0])),
    ):
        yield


def counts_of(
    layers: LayerRange, kv_dtype: str = "auto"
) -> tuple[dict[Kind, Counts], tuple[int, ...]]:
    settings = {**SETTINGS, "kv_dtype": kv_dtype}
    with FakeCard(records_graphs=True) as card, all_are_useful():
        engine = fake_engine(shape_files("llama-2-13b"), layers, kernels=KERNELS, **settings)
        counts = count_steps(card, engine, LARGE_STEPS)
        graphs = engine._forward_pass.graphs
        assert graphs is not None
        assert engine.info.max_graph_seqs == graphs.sizes[-1]
        return counts, graphs.sizes


@pytest.mark.parametrize(
    ("kv_format", "max_launches"),
    [(KvFormat.FLOAT16, MAX_LAUNCHES), (KvFormat.INT8, INT8_KV_MAX_LAUNCHES)],
)
@pytest.mark.parametrize("num_layers", [1, 3])
def test_a_decode_step_launches_the_same_few_for_any_number_of_layers(
    num_layers: int, kv_format: KvFormat, max_launches: Mapping[Kind, int]
) -> None:
    """Trials could not fill a pool of codes, and the stage had no graphs, of which plans tell."""
    layers = LayerRange(0, num_layers)
    counts, sizes = counts_of(layers, kv_format)
    assert sizes == (1, 2, 4, 8, 16, 32, 64, 128)
    found = {kind: counts[kind].num_launches for kind in max_launches}
    assert found == max_launches
    for kind in MAX_LAUNCHES:
        assert counts[kind].launches["graph"] == 1
        assert counts[kind].crossings == [SENT, FETCHED, WAIT]
    mixed = counts[Kind.MIXED]
    assert mixed.launches["graph"] == 0
    assert mixed.num_launches >= num_layers * KERNEL_LIMITS[Kind.MIXED].launches_a_layer


def engine_with_kernels() -> TorchEngine:
    return fake_engine(shape_files("llama-2-13b"), LayerRange(0, 1), kernels=KERNELS, **SETTINGS)


def assert_serves_without_graphs(card: FakeCard, engine: TorchEngine) -> None:
    assert engine._forward_pass.graphs is None
    assert engine.info.max_graph_seqs == 0
    with card.record() as counts:
        engine.forward(batch_for(engine, [SequenceSlice(0, 0, 1)]))
    assert counts.num_launches > KERNEL_LIMITS[Kind.DECODE_1].launches_a_layer


@pytest.mark.parametrize("ends_recordings", [True, False])
def test_a_card_that_cannot_record_serves_as_before(
    caplog: pytest.LogCaptureFixture, *, ends_recordings: bool
) -> None:
    """torch forgot that such a recording had ended, and the stage ended at the next question."""
    with (
        FakeCard(ends_recordings=ends_recordings) as card,
        caplog.at_level("INFO", "stage_server.compute.graph_check"),
    ):
        engine = engine_with_kernels()
        before = torch.cuda.current_stream()
        engine.warm_up()
        assert torch.cuda.current_stream() is before
        torch.cuda.empty_cache()
        assert_serves_without_graphs(card, engine)
    [record] = caplog.records
    assert record.levelname == "WARNING"
    assert record.reason == "batch 1: RuntimeError: this card records no graphs"  # type: ignore[attr-defined]


def test_a_card_on_which_graphs_do_not_pay_says_so_without_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with (
        FakeCard(records_graphs=True) as card,
        mock.patch.object(graph_check, "difference", return_value=0.0),
        mock.patch.object(CardMeter, "seconds", return_value=1.0),
        caplog.at_level("INFO", "stage_server.compute.graph_check"),
    ):
        engine = engine_with_kernels()
        engine.warm_up()
        assert_serves_without_graphs(card, engine)
    [record] = caplog.records
    assert record.levelname == "INFO"


def test_a_torch_that_cannot_be_told_of_the_end_of_a_recording_serves_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with FakeCard(ends_recordings=False) as card:
        monkeypatch.setattr(card, "_end_allocation", mock.Mock(side_effect=RuntimeError))
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", card._end_allocation)
        engine = engine_with_kernels()
        engine.warm_up()
        assert_serves_without_graphs(card, engine)
        with pytest.raises(RuntimeError, match="captures_underway"):
            torch.cuda.empty_cache()
        # Which says nothing of the card.
        with pytest.raises(DeviceMemoryError), device_failures(CUDA):
            raise torch.OutOfMemoryError("CUDA out of memory")
        with pytest.raises(ValueError, match="ours"), device_failures(CUDA):
            raise ValueError("ours")


def test_a_size_that_is_dropped_gives_back_what_it_took() -> None:
    """A size that took too much left that in the pool which it shared with the sizes that stay."""
    with FakeCard(records_graphs=True) as card, all_are_useful():
        engine = engine_with_kernels()
        engine.warm_up()
        graphs = engine._forward_pass.graphs
        assert graphs is not None
        held = [card.pooled_bytes]
        for size in reversed(graphs.sizes):
            graphs.drop(size)
            held.append(card.pooled_bytes)
    assert held == sorted(set(held), reverse=True)
    assert held[-1] == 0


def test_graphs_together_take_no_more_than_they_may(monkeypatch: pytest.MonkeyPatch) -> None:
    max_bytes = 8 << 20
    monkeypatch.setattr(graph_check, "MAX_GRAPH_BYTES", max_bytes)
    with FakeCard(records_graphs=True) as card, all_are_useful():
        engine = engine_with_kernels()
        engine.warm_up()
        graphs = engine._forward_pass.graphs
        assert graphs is not None
        assert graphs.sizes == (1, 2, 4, 8, 16, 32)
        assert 0 < card.pooled_bytes < max_bytes


def test_without_memory_for_their_buffers_there_are_no_graphs() -> None:
    with (
        FakeCard(records_graphs=True) as card,
        mock.patch.object(graph_check, "StaticDecodes", side_effect=torch.OutOfMemoryError),
    ):
        engine = engine_with_kernels()
        engine.warm_up()
        assert_serves_without_graphs(card, engine)


def test_without_kernels_nothing_is_recorded_and_all_blocks_are_served() -> None:
    with FakeCard(records_graphs=True):
        engine = fake_engine(shape_files("llama-2-13b"), LayerRange(0, 1), **SETTINGS)
        engine.warm_up()
        assert engine.info.num_kv_blocks == engine._pool.num_blocks
        assert engine._forward_pass.graphs is None
