"""The central faults once more, for stages whose weights have 4 bits and whose KV has 8.

What such stages compute again after a fault is rounded otherwise than before, so that a token may
be another one. The oracle asks whether each is nearly the best after those before it.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.cluster import Cluster
from tests.faults.conftest import NUM_TEXTS, TEXT_TOKENS
from tests.faults.oracle import Oracle, check_ended, stage_info
from tests.faults.reference import NearContinuation, near_continuations, rounded_copy
from tests.faults.test_network import (
    test_f15_f16_a_busy_stage_that_is_cut_off_is_given_up_and_its_late_replies_refused,
    test_f17_a_reset_in_the_middle_of_a_frame_costs_no_token,
)
from tests.faults.test_processes import (
    test_f1_a_stage_killed_while_idle_is_seen_waited_for_and_used_again,
    test_f2_f3_streams_go_on_exactly_when_stages_are_killed_while_they_decode,
    test_f3_a_stage_killed_again_during_the_replay_costs_no_token,
    test_f3_a_stage_killed_during_a_prefill_chunk_costs_no_token,
    test_f4_stages_free_everything_when_the_coordinator_is_killed_and_take_the_next,
    test_f5_a_frozen_stage_is_given_up_by_deadline_and_its_late_frames_are_refused,
    test_f14_a_stage_that_is_told_to_stop_exits_well_and_costs_no_token,
)

pytestmark = pytest.mark.slow

__all__ = [
    "test_f1_a_stage_killed_while_idle_is_seen_waited_for_and_used_again",
    "test_f2_f3_streams_go_on_exactly_when_stages_are_killed_while_they_decode",
    "test_f3_a_stage_killed_again_during_the_replay_costs_no_token",
    "test_f3_a_stage_killed_during_a_prefill_chunk_costs_no_token",
    "test_f4_stages_free_everything_when_the_coordinator_is_killed_and_take_the_next",
    "test_f5_a_frozen_stage_is_given_up_by_deadline_and_its_late_frames_are_refused",
    "test_f14_a_stage_that_is_told_to_stop_exits_well_and_costs_no_token",
    "test_f15_f16_a_busy_stage_that_is_cut_off_is_given_up_and_its_late_replies_refused",
    "test_f17_a_reset_in_the_middle_of_a_frame_costs_no_token",
]


@pytest.fixture(scope="module")
def rounded_model(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rounded_copy(model, tmp_path_factory.mktemp("rounded"))


@pytest.fixture(scope="module")
def texts(rounded_model: Path) -> list[NearContinuation]:
    return near_continuations(rounded_model, num_tokens=TEXT_TOKENS, count=NUM_TEXTS)


@pytest.fixture(scope="module")
def shared_cluster(
    rounded_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    flags = ("--weights", "int4", "--kv-dtype", "int8")
    cluster = Cluster(rounded_model, tmp_path_factory.mktemp("few"), stage_flags=flags)
    try:
        yield cluster
    finally:
        addresses = [cluster.address, *(stage.address for stage in cluster.stages)]
        cluster.close()
    check_ended([process.pid for process in cluster.processes], addresses)


def test_tokens_after_other_tokens_are_not_taken_for_the_text(
    texts: list[NearContinuation],
) -> None:
    """Tokens that a stage computes from KV of another place are seen, as are lost ones."""
    others = [*texts[1:], texts[0]]
    for text, other in zip(texts, others, strict=True):
        assert text.goes_on_with(40, text.output(40, 60))
        assert not text.goes_on_with(40, other.output(40, 60))


async def test_the_stages_are_in_few_bits(oracle: Oracle) -> None:
    for stage in oracle.cluster.stages:
        info = await stage_info(stage.address)
        assert (info.dtype, info.kv_dtype) == ("int4", "int8")
