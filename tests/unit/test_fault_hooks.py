"""The hooks that make a stage fail on demand: when they strike, how, and that they are opt-in."""

import json
from pathlib import Path

import pytest
import torch

from stage_server.compute.fault_hooks import FaultHooks, PlannedFault
from stage_server.core.batch import ForwardBatch, SequenceSlice
from stage_server.core.engine import DeviceLostError, finished
from stagecoach.contract.errors import DeviceMemoryError, InvalidArgumentError
from stagecoach.contract.layer_range import LayerRange
from stagecoach.contract.logits_request import LogitsRequest
from tests.contract.arithmetic_engine import HIDDEN_SIZE, ArithmeticEngine, arithmetic_info
from tests.contract.stage_builders import stage_config

TOKENS = (3, 4, 5)


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    return tmp_path / "fault.json"


def first_stage(plan: Path) -> FaultHooks:
    return FaultHooks(ArithmeticEngine(arithmetic_info()), plan)


def batch_of(*token_ids: int) -> ForwardBatch:
    return ForwardBatch(
        slices=(SequenceSlice(0, 0, len(token_ids)),), token_ids=torch.tensor(token_ids)
    )


def test_without_a_plan_forwards_are_the_engines_own(plan: Path) -> None:
    hooked, plain = first_stage(plan), ArithmeticEngine(arithmetic_info())
    ours, theirs = (
        finished(one.launch(batch_of(*TOKENS))).hidden_states for one in (hooked, plain)
    )
    assert ours is not None
    assert theirs is not None
    assert torch.equal(ours, theirs)
    assert hooked.num_free_kv_blocks == plain.num_free_kv_blocks


def test_a_stage_with_hooks_says_so_to_whoever_asks(plan: Path) -> None:
    assert "unsafe fault hooks" in first_stage(plan).info.device


@pytest.mark.parametrize(
    ("fault", "raised"),
    [
        ("raise", RuntimeError),
        ("out-of-memory", DeviceMemoryError),
        ("device-error", DeviceLostError),
    ],
)
def test_a_planned_fault_strikes_once(plan: Path, fault: str, raised: type[Exception]) -> None:
    engine = first_stage(plan)
    plan.write_text(json.dumps({"fault": fault}))
    with pytest.raises(raised):
        engine.launch(batch_of(*TOKENS))
    assert not plan.exists()
    assert finished(engine.launch(batch_of(*TOKENS))).hidden_states is not None


def test_a_fault_of_a_token_strikes_each_time_that_it_comes_and_no_other(plan: Path) -> None:
    engine = first_stage(plan)
    plan.write_text(json.dumps({"fault": "raise", "token_id": 9, "repeats": True}))
    for _ in range(2):
        engine.launch(batch_of(*TOKENS))
        with pytest.raises(RuntimeError, match="planned: raise"):
            engine.launch(batch_of(1, 9))


def test_a_micro_batch_without_tokens_is_spared(plan: Path) -> None:
    plan.write_text(json.dumps({"fault": "raise"}))
    first_stage(plan).launch(ForwardBatch(slices=()))
    assert plan.exists()


def test_the_last_row_that_comes_in_is_not_a_number_and_the_batch_itself_is_untouched(
    plan: Path,
) -> None:
    seen: list[torch.Tensor] = []

    def see(batch: ForwardBatch) -> None:
        assert batch.hidden_states is not None
        seen.append(batch.hidden_states)
        raise InterruptedError

    engine = FaultHooks(ArithmeticEngine(arithmetic_info(LayerRange(2, 6)), see), plan)
    plan.write_text(json.dumps({"fault": "nan-row"}))
    hidden_states = torch.ones(2, HIDDEN_SIZE)
    batch = ForwardBatch(
        slices=(SequenceSlice(0, 0, 2),),
        hidden_states=hidden_states,
        logits=(LogitsRequest(row=1, num_candidates=1),),
    )
    with pytest.raises(InterruptedError):
        engine.launch(batch)
    assert seen[0][0].isfinite().all()
    assert seen[0][1].isnan().all()
    assert hidden_states.isfinite().all()


def test_a_first_stage_has_no_row_to_spoil(plan: Path) -> None:
    plan.write_text(json.dumps({"fault": "nan-row"}))
    with pytest.raises(InvalidArgumentError, match="nan-row"):
        first_stage(plan).launch(batch_of(*TOKENS))


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"fault": "surprise"}', '{"fault": "raise", "when": "now"}']
)
def test_a_plan_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        PlannedFault.parse(text)
    assert caught.value.field == "unsafe_fault_hooks"


def test_hooks_are_off_unless_asked_for() -> None:
    assert stage_config().unsafe_fault_hooks is None
