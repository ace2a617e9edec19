"""A micro-batch that is run in parts, because it does not fit, gives what the whole one gives."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from stage_server.compute.divided_steps import NUM_STEPS_TO_GROW, DividedSteps
from stage_server.compute.torch_engine import TorchEngine
from stage_server.core.batch import ForwardBatch, ForwardOutput, SequenceSlice
from stage_server.core.config import StageConfig
from stage_server.core.engine import Launched
from stage_server.kv_cache.slot_tables import BlockPlan
from stage_server.model.layer_stack import load_layer_stack
from stagecoach.contract.errors import DeviceMemoryError
from stagecoach.contract.hidden_sums import HiddenSumRequest
from stagecoach.contract.layer_range import LayerRange
from stagecoach.contract.logits_request import LogitsRequest
from stagecoach.contract.precision import DType, Precision
from stagecoach.contract.prompt_logits import PromptLogitsRequest
from stagecoach.contract.slot_ops import ForkSlot, SlotOp
from stagecoach.model_files import open_model
from tests.tiny_models import VOCAB_SIZE, tiny_model

CPU = torch.device("cpu")
WHOLE = 10**6


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model("mistral-window", tmp_path_factory.mktemp("models"))


def create_engine(path: Path, layers: LayerRange) -> TorchEngine:
    config = StageConfig(model=str(path), layers=layers, kv_memory_bytes=1 << 20, kv_block_size=4)
    precision = Precision.uniform(DType.FLOAT32)
    files = open_model(config.model)
    return TorchEngine(
        config, files, load_layer_stack(files, layers, precision=precision, device=CPU)
    )


class SmallDevice:
    """Fits so many rows, and writes down how many it was given each time."""

    def __init__(self, engine: TorchEngine, max_rows: int) -> None:
        self.max_rows = max_rows
        self.tried: list[int] = []
        self._launch = engine._forward_pass.launch
        engine._steps = DividedSteps(self.launch, CPU)

    def launch(self, batch: ForwardBatch, plan: BlockPlan) -> Launched:
        self.tried.append(batch.num_tokens)
        launched = self._launch(batch, plan)  # its KV is written before memory runs out
        if batch.num_tokens > self.max_rows:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return launched


def steps() -> Iterator[tuple[tuple[SequenceSlice, ...], tuple[SlotOp, ...], tuple[int, ...]]]:
    """Slices, slot operations and the rows whose logits are wanted, not in their order."""
    yield (SequenceSlice(0, 0, 13), SequenceSlice(1, 0, 6)), (), (18, 12)
    yield (SequenceSlice(0, 13, 9), SequenceSlice(1, 6, 1), SequenceSlice(2, 0, 5)), (), (9, 14, 8)
    yield tuple(SequenceSlice(slot, (22, 7, 5)[slot], 1) for slot in range(3)), (), (2, 0, 1, 0)
    yield (
        (SequenceSlice(3, 10, 3), SequenceSlice(0, 23, 1)),
        (ForkSlot(0, 3, 10),),
        (3, 2),
    )


def prompt_requests(num_rows: int) -> Iterator[PromptLogitsRequest]:
    """Of all rows but one in the middle, with as many candidates as no other request has."""
    for first_row, end in ((0, num_rows // 2), (num_rows // 2 + 1, num_rows)):
        if first_row < end:
            token_ids = tuple((7 * row + 3) % VOCAB_SIZE for row in range(first_row, end))
            yield PromptLogitsRequest(
                first_row=first_row, token_ids=token_ids, num_candidates=first_row % 4
            )


def run_all(engine: TorchEngine) -> list[ForwardOutput]:
    outputs = []
    for number, (slices, slot_ops, rows) in enumerate(steps()):
        count = sum(piece.num_tokens for piece in slices)
        torch.manual_seed(number)
        info = engine.info
        wanted = [
            LogitsRequest(
                row=row, num_candidates=3 + i, token_ids=(5,), wants_unit_log_sum_exp=True
            )
            for i, row in enumerate(rows)
        ]
        batch = ForwardBatch(
            slices=slices,
            slot_ops=slot_ops,
            token_ids=torch.randint(VOCAB_SIZE, (count,)) if info.is_first else None,
            hidden_states=None if info.is_first else torch.randn(count, info.hidden_size),
            logits=tuple(wanted) if info.is_last else (),
            prompt_logits=tuple(prompt_requests(count)) if info.is_last else (),
            hidden_sums=tuple(
                HiddenSumRequest(first_row=one.first_row, num_rows=len(one.token_ids))
                for one in prompt_requests(count)
                if info.is_last
            ),
        )
        outputs.append(engine.forward(batch))
    return outputs


@pytest.mark.parametrize("max_rows", [1, 2, 3, 7])
@pytest.mark.parametrize("layers", [LayerRange(0, 3), LayerRange(3, 6)], ids=["first", "last"])
def test_parts_give_what_the_whole_gives(model: Path, layers: LayerRange, max_rows: int) -> None:
    expected = run_all(create_engine(model, layers))
    engine = create_engine(model, layers)
    device = SmallDevice(engine, max_rows)
    found = run_all(engine)
    assert max(device.tried) > max_rows
    for one, other in zip(found, expected, strict=True):
        assert_alike(one, other)
    engine.free_all_slots()


def assert_alike(one: ForwardOutput, other: ForwardOutput) -> None:
    """The same rows in the same order; matrices of fewer rows round their last bit otherwise."""
    if other.hidden_states is not None:
        assert one.hidden_states is not None
        torch.testing.assert_close(one.hidden_states, other.hidden_states, rtol=1e-4, atol=1e-4)
    assert [row.row for row in one.logits] == [row.row for row in other.logits]
    for row, expected in zip(one.logits, other.logits, strict=True):
        assert row.candidate_ids == expected.candidate_ids
        assert row.candidate_logits == pytest.approx(expected.candidate_logits, rel=1e-4)
        assert row.token_logits == pytest.approx(expected.token_logits, rel=1e-4, abs=1e-4)
        assert row.log_sum_exp == pytest.approx(expected.log_sum_exp, rel=1e-4)
        assert row.unit_log_sum_exp == pytest.approx(expected.unit_log_sum_exp, rel=1e-4)
    assert len(one.prompt_logits) == len(other.prompt_logits)
    for rows, whole in zip(one.prompt_logits, other.prompt_logits, strict=True):
        assert rows.first_row == whole.first_row
        assert rows.token_ranks.tolist() == whole.token_ranks.tolist()
        assert rows.candidate_ids.tolist() == whole.candidate_ids.tolist()
        for name in ("log_sum_exps", "token_logits", "candidate_logits"):
            part, expected_part = getattr(rows, name), getattr(whole, name)
            torch.testing.assert_close(part, expected_part, rtol=1e-4, atol=1e-4)
    assert len(one.hidden_sums) == len(other.hidden_sums)
    for found, all_at_once in zip(one.hidden_sums, other.hidden_sums, strict=True):
        assert found.first_row == all_at_once.first_row
        torch.testing.assert_close(found.sum, all_at_once.sum, rtol=1e-4, atol=1e-4)


def test_a_size_that_did_not_fit_is_remembered_by_kind_and_tried_again_much_later(
    model: Path,
) -> None:
    engine = create_engine(model, LayerRange(3, 6))
    device = SmallDevice(engine, 4)
    hidden = torch.zeros(16, engine.info.hidden_size)
    chunk = ForwardBatch(slices=(SequenceSlice(0, 0, 16),), hidden_states=hidden)
    engine.forward(chunk)
    assert device.tried == [16, 8, 4, 4, 4, 4]
    device.tried.clear()
    engine.forward(chunk)
    assert device.tried == [4, 4, 4, 4]
    device.tried.clear()
    decodes = ForwardBatch(
        slices=tuple(SequenceSlice(slot, 0, 1) for slot in range(1, 7)), hidden_states=hidden[:6]
    )
    engine.forward(decodes)
    assert device.tried == [6, 3, 3]
    device.max_rows = WHOLE
    for _ in range(NUM_STEPS_TO_GROW - 2):  # twice before
        device.tried.clear()
        engine.forward(chunk)
        assert device.tried == [4, 4, 4, 4]
    device.tried.clear()
    engine.forward(chunk)
    assert device.tried == [8, 8]


def test_only_a_single_token_that_does_not_fit_fails(model: Path) -> None:
    engine = create_engine(model, LayerRange(0, 3))
    device = SmallDevice(engine, 0)
    batch = ForwardBatch(
        slices=(SequenceSlice(0, 0, 3),), token_ids=torch.zeros(3, dtype=torch.int64)
    )
    with pytest.raises(DeviceMemoryError):
        engine.forward(batch)
    assert device.tried == [3, 1]
    engine.free_all_slots()
    device.tried.clear()
    device.max_rows = WHOLE
    engine.forward(batch)
    assert device.tried == [3], "a size that does not fit either is no size to keep"
