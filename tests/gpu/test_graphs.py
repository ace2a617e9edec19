"""What a decode step by a CUDA graph costs the host, as counts; see `fake_card`."""

from itertools import cycle
from unittest import mock

import pytest
import torch

from stage_server.compute import graph_check
from stage_server.compute.graph_check import CardMeter
from stage_server.core.batch import SequenceSlice
from stagecoach.contract.layer_range import LayerRange
from tests.gpu.fake_card import WAIT, Counts, FakeCard
from tests.gpu.fake_engines import KERNELS, batch_for, fake_engine, shape_files
from tests.gpu.steps import LARGE_STEPS, SETTINGS, Kind, count_steps
from tests.gpu.test_steps import FETCHED, KERNEL_LIMITS, SENT

MAX_LAUNCHES = {
    Kind.DECODE_1: 6,
    Kind.DECODE_8: 6,
    Kind.DECODE_96: 9,
}
"""Of a whole step of a first stage, the two copies between host and card included."""


def counts_of(layers: LayerRange) -> tuple[dict[Kind, Counts], tuple[int, ...]]:
    with (
        FakeCard(records_graphs=True) as card,
        # There are neither values nor times. A graph is asked for its time before the plain step.
        mock.patch.object(graph_check, "difference", return_value=0.0),
        mock.patch.object(CardMeter, "seconds", side_effect=cycle([1.0, 2.0])),
    ):
        engine = fake_engine(shape_files("llama-2-13b"), layers, kernels=KERNELS, **SETTINGS)
        counts = count_steps(card, engine, LARGE_STEPS)
        graphs = engine._forward_pass.graphs
        assert graphs is not None
        assert engine.info.max_graph_seqs == graphs.sizes[-1]
        return counts, graphs.sizes


@pytest.mark.parametrize("num_layers", [1, 3])
def test_a_decode_step_launches_the_same_few_for_any_number_of_layers(num_layers: int) -> None:
    counts, sizes = counts_of(LayerRange(0, num_layers))
    assert sizes == (1, 2, 4, 8, 16, 32, 64, 128)
    found = {kind: counts[kind].num_launches for kind in MAX_LAUNCHES}
    assert found == MAX_LAUNCHES
    for kind in MAX_LAUNCHES:
        assert counts[kind].launches["graph"] == 1
        assert counts[kind].crossings == [SENT, FETCHED, WAIT]
    mixed = counts[Kind.MIXED]
    assert mixed.launches["graph"] == 0
    assert mixed.num_launches >= num_layers * KERNEL_LIMITS[Kind.MIXED].launches_a_layer


def test_a_card_that_cannot_record_serves_as_before() -> None:
    with FakeCard() as card:
        engine = fake_engine(
            shape_files("llama-2-13b"),
            LayerRange(0, 1),
            kernels=KERNELS,
            **SETTINGS,
        )
        before = torch.cuda.current_stream()
        engine.warm_up()
        assert engine._forward_pass.graphs is None
        assert engine.info.max_graph_seqs == 0
        assert torch.cuda.current_stream() is before
        with card.record() as counts:
            engine.forward(batch_for(engine, [SequenceSlice(0, 0, 1)]))
        assert counts.num_launches > KERNEL_LIMITS[Kind.DECODE_1].launches_a_layer


def test_without_kernels_nothing_is_recorded_and_all_blocks_are_served() -> None:
    with FakeCard(records_graphs=True):
        engine = fake_engine(shape_files("llama-2-13b"), LayerRange(0, 1), **SETTINGS)
        engine.warm_up()
        assert engine.info.num_kv_blocks == engine._pool.num_blocks
        assert engine._forward_pass.graphs is None
