"""Decode steps by recordings give what plain steps give, whatever rows are left over."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from stage_server.compute.decode_graphs import DecodeGraphs, Recording, graph_sizes
from stage_server.compute.graph_check import MAX_GRAPH_BYTES, MIN_GAIN, record_useful
from stage_server.compute.kernel_check import difference, tolerance
from stage_server.compute.torch_engine import TorchEngine
from stage_server.core.batch import ForwardBatch, SequenceSlice
from stage_server.core.config import StageConfig
from stage_server.kv_cache import paged_attention
from stage_server.kv_cache.coded_heads import decoded
from stage_server.kv_cache.kv_pool import KvViews
from stage_server.model.layer_stack import load_layer_stack
from stagecoach.contract.layer_range import LayerRange
from stagecoach.contract.logits_request import LogitsRequest
from stagecoach.contract.precision import DType, KvFormat, Precision
from stagecoach.contract.slot_ops import ForkSlot, SlotOp
from stagecoach.model_files import open_model
from tests.obvious_kernels import ObviousKernels, obvious_store_coded
from tests.recorded_decodes import Rerun, add_graphs, graphs_of
from tests.tiny_models import VOCAB_SIZE, tiny_model

BLOCK_SIZE = 4
FIRST, LAST = LayerRange(0, 3), LayerRange(3, 6)
DECODE_SIZES = (1, 2, 4, 8)

Pieces = tuple[tuple[int, int, int], ...]


@pytest.fixture(scope="module", params=["llama", "gemma2"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(request.param, tmp_path_factory.mktemp("models"))


@pytest.fixture(autouse=True)
def _without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paged_attention, "store_coded", obvious_store_coded)


def create_engine(
    path: Path,
    layers: LayerRange,
    *,
    num_blocks: int | None = None,
    kv_format: KvFormat = KvFormat.FLOAT32,
) -> TorchEngine:
    """`num_blocks` are those of a pool in float32; None: more than a test needs."""
    files = open_model(str(path))
    kv_memory_bytes = 1 << 20
    if num_blocks is not None:
        model = files.config
        token_bytes = len(layers) * 2 * model.num_kv_heads * model.head_dim * 4
        kv_memory_bytes = num_blocks * BLOCK_SIZE * token_bytes
    config = StageConfig(
        model=str(path), layers=layers, kv_memory_bytes=kv_memory_bytes, kv_block_size=BLOCK_SIZE
    )
    precision = Precision.uniform(DType.FLOAT32)._replace(kv=kv_format)
    stack = load_layer_stack(files, layers, precision=precision, device=torch.device("cpu"))
    stack.kernels = ObviousKernels(num_processors=1)
    return TorchEngine(config, files, stack)


def steps() -> Iterator[tuple[Pieces, tuple[SlotOp, ...], int | None]]:
    """Slices, slot operations, and the rows of the graph that computes them."""
    yield ((0, 0, 9), (1, 0, 3), (2, 0, 1), (3, 0, 17), (4, 0, 6)), (), None
    yield ((0, 9, 1), (1, 3, 1), (2, 1, 1), (3, 17, 1), (4, 6, 1)), (), 8
    yield ((3, 18, 1),), (), 1
    yield ((1, 4, 1), (0, 10, 1), (4, 7, 1)), (), 4
    yield ((0, 11, 1), (1, 5, 2)), (), None
    yield ((5, 10, 1), (0, 12, 1)), (ForkSlot(0, 5, 10),), 2
    yield ((2, 2, 1), (5, 11, 1), (0, 13, 1), (3, 19, 1)), (), 4
    yield ((4, 8, 1), (2, 3, 1), (3, 13, 1)), (), 4


def batches(engine: TorchEngine) -> Iterator[tuple[ForwardBatch, int | None]]:
    generator = torch.Generator().manual_seed(0)
    info = engine.info
    for pieces, slot_ops, size in steps():
        slices = tuple(SequenceSlice(*piece) for piece in pieces)
        count = sum(piece.num_tokens for piece in slices)
        token_ids = hidden = None
        if info.is_first:
            token_ids = torch.randint(VOCAB_SIZE, (count,), generator=generator)
        else:
            hidden = torch.randn(count, info.hidden_size, generator=generator)
        logits = [LogitsRequest(row=row, num_candidates=5) for row in range(count)]
        yield (
            ForwardBatch(
                slices=slices,
                slot_ops=slot_ops,
                token_ids=token_ids,
                hidden_states=hidden,
                logits=tuple(logits) if info.is_last else (),
            ),
            size,
        )


@pytest.mark.parametrize("layers", [FIRST, LAST], ids=["first", "last"])
def test_recorded_steps_give_what_plain_ones_give(model: Path, layers: LayerRange) -> None:
    plain, recorded = create_engine(model, layers), create_engine(model, layers)
    recorder = add_graphs(recorded, sizes=DECODE_SIZES)
    expected_replays = []
    for batch, size in batches(plain):
        found, expected = (engine.forward(batch) for engine in (recorded, plain))
        expected_replays += [] if size is None else [size]
        assert recorder.replays == expected_replays
        if expected.hidden_states is not None:
            torch.testing.assert_close(
                found.hidden_states, expected.hidden_states, rtol=1e-5, atol=1e-5
            )
        for one, other in zip(found.logits, expected.logits, strict=True):
            assert one.row == other.row
            assert one.candidate_ids == other.candidate_ids
            assert one.candidate_logits == pytest.approx(other.candidate_logits, rel=1e-4)
    held = plain._pool._pool[:, :, :-1]
    torch.testing.assert_close(recorded._pool._pool[:, :, :-1], held, rtol=1e-5, atol=1e-5)
    recorded.free_all_slots()


def numbers_of(codes: KvViews) -> torch.Tensor:
    """Those of all blocks but the one where rows that are left over write."""
    assert codes.scales is not None
    return decoded(codes.rows, codes.scales, torch.float32)[:-BLOCK_SIZE]


def test_over_kv_in_8_bits_they_differ_by_a_code_at_most(model: Path) -> None:
    """A number of which another sum gives the last bit may be rounded to the next code."""
    plain, recorded = (create_engine(model, FIRST, kv_format=KvFormat.INT8) for _ in range(2))
    recorder = add_graphs(recorded, sizes=DECODE_SIZES)
    allowed = tolerance(plain._stack.precision)
    expected_replays = []
    for batch, size in batches(plain):
        found, expected = (engine.forward(batch).hidden_states for engine in (recorded, plain))
        expected_replays += [] if size is None else [size]
        assert recorder.replays == expected_replays
        assert found is not None
        assert expected is not None
        assert difference(found, expected) <= allowed
    for index in range(len(FIRST)):
        for one, other in zip(recorded._pool.layer(index), plain._pool.layer(index), strict=True):
            assert difference(numbers_of(one), numbers_of(other)) <= allowed


def test_rows_that_are_left_over_touch_no_block_that_a_sequence_may_hold(model: Path) -> None:
    engine = create_engine(model, FIRST)
    add_graphs(engine, sizes=(8,))
    for batch, size in batches(engine):
        before = engine._pool._pool.clone()
        engine.forward(batch)
        if size is None or batch.slot_ops:
            continue
        written = engine._pool._pool.ne(before).any(dim=(0, 1, 4, 5))  # [num_blocks, block_size]
        expected = torch.zeros_like(written)
        for piece in batch.slices:
            table = engine._slots._slots[piece.kv_slot].blocks
            block, offset = divmod(piece.start_position, BLOCK_SIZE)
            expected[table[block], offset] = True
        expected[-1, 0] = written[-1, 0]  # where they do write
        assert torch.equal(written, expected)


class SteadyMeter:
    """Times by the rows of the replays that ran last, and memory by the graphs that there are."""

    def __init__(self, graph_s: Callable[[int], float] = lambda _: 1.0) -> None:
        self._graph_s = graph_s
        self.recorder = Rerun()
        self.bytes_a_graph = 0
        self.lost: Exception | None = None

    def seconds(self, run: Callable[[], object]) -> float:
        before = len(self.recorder.replays)
        run()
        now = self.recorder.replays[before:]
        return self._graph_s(now[0]) if now else 2.0

    def free_bytes(self) -> int:
        return -self.bytes_a_graph * len(set(self.recorder.replays))

    def check(self) -> None:
        if self.lost is not None:
            raise self.lost


def useful(engine: TorchEngine, meter: SteadyMeter) -> tuple[tuple[int, ...], str | None]:
    graphs = graphs_of(engine, meter.recorder)
    objection = record_useful(graphs, engine._forward_pass, graph_sizes(8), meter)
    return graphs.sizes, None if objection is None else objection.reason


@pytest.mark.parametrize("num_blocks", [2, 3, 6, 8])
def test_trials_keep_to_the_blocks_of_a_small_pool(model: Path, num_blocks: int) -> None:
    """A size is rounded up, and its trial had a block a row: on a card it wrote behind the pool."""
    engine = create_engine(model, FIRST, num_blocks=num_blocks)
    assert engine._pool.num_blocks == num_blocks
    assert useful(engine, SteadyMeter()) == ((1, 2, 4, 8), None)


@pytest.mark.parametrize("kv_format", list(KvFormat))
@pytest.mark.parametrize("layers", [FIRST, LAST], ids=["first", "last"])
def test_all_sizes_that_save_time_are_recorded(
    model: Path, layers: LayerRange, kv_format: KvFormat
) -> None:
    sizes, reason = useful(create_engine(model, layers, kv_format=kv_format), SteadyMeter())
    assert (sizes, reason) == ((1, 2, 4, 8), None)


def test_the_first_size_that_saves_too_little_ends_it(model: Path) -> None:
    meter = SteadyMeter(lambda size: 1.0 if size < 4 else 2.0 * (1 - MIN_GAIN / 2))
    sizes, reason = useful(create_engine(model, FIRST), meter)
    assert sizes == (1, 2)
    assert reason is not None
    assert reason.startswith("batch 4: the graph takes 1950.000 ms, the plain step 2000.000 ms")


def test_graphs_take_no_more_memory_than_they_may(model: Path) -> None:
    meter = SteadyMeter()
    meter.bytes_a_graph = MAX_GRAPH_BYTES // 2
    sizes, reason = useful(create_engine(model, FIRST), meter)
    assert sizes == (1, 2)
    assert reason == (
        f"batch 4: graphs would take {3 * (MAX_GRAPH_BYTES // 2)} bytes, and may take "
        f"{MAX_GRAPH_BYTES}"
    )


class Wrong(Rerun):
    """Its replays compute something else."""

    def record(self, run: Callable[[], torch.Tensor]) -> Recording:
        return super().record(lambda: run() + 1)


class Unable(Rerun):
    """Cannot record."""

    def record(self, run: Callable[[], torch.Tensor]) -> Recording:
        raise RuntimeError("operation not permitted when stream is capturing")


@pytest.mark.parametrize(
    ("recorder", "named"),
    [
        (Wrong(), "batch 1: the graph differs from the plain step by "),
        (Unable(), "batch 1: RuntimeError: operation not permitted when stream is capturing"),
    ],
)
def test_a_graph_that_is_wrong_or_cannot_be_recorded_is_not_used(
    model: Path, recorder: Rerun, named: str
) -> None:
    meter = SteadyMeter()
    meter.recorder = recorder
    sizes, reason = useful(create_engine(model, FIRST), meter)
    assert sizes == ()
    assert reason is not None
    assert reason.startswith(named)


def test_a_card_that_is_lost_meanwhile_says_so(model: Path) -> None:
    meter = SteadyMeter()
    meter.recorder, meter.lost = Unable(), torch.AcceleratorError("gone")
    with pytest.raises(torch.AcceleratorError):
        useful(create_engine(model, FIRST), meter)


@pytest.mark.parametrize(
    ("max_rows", "sizes"),
    [(1, [1]), (2, [1, 2]), (5, [1, 2, 4, 8]), (300, [2**i for i in range(9)])],
)
def test_sizes_double_up_to_one_that_holds_all(max_rows: int, sizes: list[int]) -> None:
    assert graph_sizes(max_rows) == sizes


def test_only_steps_that_decode_and_fit_have_a_graph(model: Path) -> None:
    graphs: DecodeGraphs = graphs_of(create_engine(model, FIRST), Rerun())
    graphs.record(2)
    graphs.record(4)
    decodes = [SequenceSlice(slot, 3, 1) for slot in range(5)]
    assert [graphs.size_for(decodes[:count]) for count in range(1, 6)] == [2, 2, 4, 4, None]
    assert graphs.size_for([*decodes[:1], SequenceSlice(7, 0, 2)]) is None
