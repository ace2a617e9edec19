"""The parts of an emulated stage: logits without rows, hashes as KV, waiting without a clock."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from stage_server.core.config import StageConfig
from stage_server.core.engine import StageEngine
from stage_server.emulation import deadline
from stage_server.emulation.logits import HashedLogits
from stage_server.emulation.prefix_hashes import agreed, read_rows, write_rows
from stage_server.process.build_engine import build_engine
from stagecoach.contract.errors import IncompatibleError
from stagecoach.contract.layer_range import LayerRange
from stagecoach.contract.logits_request import LogitsRequest
from stagecoach.contract.precision import DType, Precision
from stagecoach.model_files import open_model
from tests.reduced_logits import reduce_logits

VOCAB_SIZE = 97
LOGITS = HashedLogits(VOCAB_SIZE)


@given(
    prefix_hash=st.integers(0, 2**32 - 1),
    num_candidates=st.integers(1, VOCAB_SIZE + 2),
    min_mass=st.none() | st.floats(0.0625, 1, width=32),
    min_gap=st.none() | st.floats(0, 12, width=32),
    temperature=st.floats(0.25, 4, width=32),
    token_ids=st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=4).map(tuple),
    num_contenders=st.integers(0, 5),
)
def test_reduced_logits_are_those_of_the_whole_row(
    prefix_hash: int,
    num_candidates: int,
    min_mass: float | None,
    min_gap: float | None,
    temperature: float,
    token_ids: tuple[int, ...],
    num_contenders: int,
) -> None:
    request = LogitsRequest(
        row=3,
        num_candidates=num_candidates,
        min_mass=min_mass,
        min_gap=min_gap,
        temperature=temperature,
        token_ids=token_ids,
        wants_unit_log_sum_exp=True,
        num_contenders=num_contenders,
        noise_key=2**64 - 1 - prefix_hash,
    )
    row = LOGITS.row(prefix_hash)
    if min_mass is not None:  # at the edge, rounding decides whether the candidates are enough
        shares = (row.double() / temperature).softmax(0)
        mass = float(shares.topk(min(num_candidates, VOCAB_SIZE)).values.sum())
        assume(abs(mass - min_mass) > 1e-6)
    found = LOGITS.reduce(prefix_hash, request)
    (expected,) = reduce_logits(row[None], [request])
    assert (found.row, found.candidate_ids) == (expected.row, expected.candidate_ids)
    assert found.candidate_logits == expected.candidate_logits
    assert found.token_logits == expected.token_logits
    assert list(found.contender_ids) == list(expected.contender_ids)
    assert list(found.contender_logits) == list(expected.contender_logits)
    assert found.log_sum_exp == pytest.approx(expected.log_sum_exp, abs=1e-5)
    assert found.unit_log_sum_exp == pytest.approx(expected.unit_log_sum_exp, abs=1e-5)
    assert (found.full is None) == (expected.full is None)
    if found.full is not None:
        assert torch.equal(found.full, row)


def test_a_row_looks_like_a_language_model_s() -> None:
    probabilities = HashedLogits(32000).row(0).softmax(0)
    assert probabilities[0].item() == pytest.approx(0.61, abs=0.01)
    assert probabilities[:10].sum().item() == pytest.approx(0.94, abs=0.01)
    assert bool((HashedLogits(262_144).row(0).diff() < 0).all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@given(
    numbers=st.lists(
        st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)), min_size=1, max_size=9
    )
)
def test_what_a_row_carries_survives_every_dtype(
    dtype: torch.dtype, numbers: list[tuple[int, int]]
) -> None:
    token_ids, hashes = (list(column) for column in zip(*numbers, strict=True))
    rows = write_rows(token_ids, hashes, 16, dtype)
    assert (tuple(rows.shape), rows.dtype) == ((len(numbers), 16), dtype)
    assert read_rows(rows) == (token_ids, hashes)


def test_rows_of_anything_are_read_as_some_numbers() -> None:
    rows = torch.tensor([[float("nan"), float("inf"), -3.0, 0.5, 1e4, 0.0, 7.0, -0.0]])
    token_ids, hashes = read_rows(rows.to(torch.float16))
    assert len(token_ids) == len(hashes) == 1


def test_a_stage_that_disagrees_passes_on_neither_value() -> None:
    passed = agreed([5, 6, 7], [5, 9, 7])
    assert passed[::2] == [5, 7]
    assert passed[1] not in (6, 9)


class FakeTime:
    """A clock that sleeps overshoot and that moves a little whenever it is read."""

    def __init__(self, overshoot_ns: int) -> None:
        self.now_ns = 1_000
        self.slept_ns = 0
        self._overshoot_ns = overshoot_ns

    def perf_counter_ns(self) -> int:
        self.now_ns += 50
        return self.now_ns

    def sleep(self, duration_s: float) -> None:
        self.slept_ns += round(duration_s * 1e9)
        self.now_ns += round(duration_s * 1e9) + self._overshoot_ns


@pytest.mark.parametrize("overshoot_ns", [0, 70_000, 160_000])
def test_waiting_sleeps_most_of_the_time_and_ends_on_the_moment(
    monkeypatch: pytest.MonkeyPatch, overshoot_ns: int
) -> None:
    clock = FakeTime(overshoot_ns)
    monkeypatch.setattr(deadline, "time", clock)
    deadline.wait_until(20_001_000)
    assert 0 <= clock.now_ns - 20_001_000 < 1_000
    assert clock.slept_ns > 19_000_000


def test_a_moment_that_has_passed_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeTime(0)
    monkeypatch.setattr(deadline, "time", clock)
    deadline.wait_until(500)
    assert clock.slept_ns == 0


@pytest.mark.parametrize(
    ("gpu", "dtype", "expected"),
    [
        ("rtx-3060-12gb", "auto", "bfloat16"),
        ("rtx-3060-12gb", "float16", "float16"),
        ("t4-16gb", "float16", "float16"),
    ],
)
def test_an_emulated_gpu_takes_the_dtype_that_the_card_would(
    gpu: str, dtype: str, expected: str, tmp_path: Path
) -> None:
    info = create_engine(tmp_path, gpu, dtype).info
    assert info.precision == Precision.uniform(DType(expected))


def test_an_emulated_gpu_refuses_a_dtype_as_the_card_would(tmp_path: Path) -> None:
    with pytest.raises(IncompatibleError, match=r"t4-16gb .* give --dtype float16 to every box"):
        create_engine(tmp_path, "t4-16gb", "auto")


def create_engine(folder: Path, gpu: str, dtype: str) -> StageEngine:
    """An emulated stage of a model whose checkpoint is in bfloat16."""
    config = {"model_type": "llama", "torch_dtype": "bfloat16", "num_hidden_layers": 2}
    (folder / "config.json").write_text(json.dumps(config))
    return build_engine(
        StageConfig(
            model=str(folder),
            layers=LayerRange(0, 2),
            engine="emulated",
            emulate=gpu,
            dtype=dtype,
        ),
        open_model(str(folder)),
    )
