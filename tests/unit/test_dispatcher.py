"""Where requests go when there are several pipelines, and where they are moved."""

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

import pytest

from coordinator.core.limits import MAX_BLAMES
from coordinator.core.request import FinishReason, Request
from coordinator.core.sequence import Sequence as TokenSequence
from coordinator.core.step import SchedulerOutput
from coordinator.engine.dispatcher import PREFIX_WEIGHT, Dispatcher
from coordinator.engine.lane import Lane, OnLanded
from coordinator.engine.mask_waits import MaskWaits
from coordinator.scheduler import Pace, Scheduler, SchedulerConfig
from stagecoach.contract.errors import QueueFullError
from stagecoach.contract.logits_request import LogitsRequest

TOKEN = 7


class StandInRunner:
    """A pipeline that is sent nothing."""

    is_open = True
    blamed: frozenset[int] = frozenset()

    def start(
        self, output: SchedulerOutput, logits: Sequence[LogitsRequest], on_landed: OnLanded
    ) -> None:
        raise AssertionError("nothing is sent here")


class Lanes(NamedTuple):
    """Lanes, and the scheduler of each, which the tests step by hand."""

    lanes: list[Lane]
    schedulers: list[Scheduler]
    dispatcher: Dispatcher

    def names(self, index: int) -> list[str]:
        return [sequence.request_id for sequence in self.lanes[index].waiting]

    def place_one(self, sequence: TokenSequence) -> TokenSequence:
        self.dispatcher.place(sequence)
        return sequence

    def place(self, *request_ids: str) -> None:
        for name in request_ids:
            self.place_one(create_sequence(name))

    def step(self, index: int) -> None:
        output = self.schedulers[index].schedule()
        assert output is not None
        self.schedulers[index].update(
            output, {piece.request_id: (TOKEN,) for piece in output.slices}
        )

    def check_integrity(self) -> None:
        for scheduler in self.schedulers:
            scheduler.check_integrity()


def create_lanes(
    *, num: int = 2, max_num_seqs: int = 4, num_kv_blocks: int = 256, max_num_waiting: int = 100
) -> Lanes:
    config = SchedulerConfig(
        max_num_batched_tokens=64,
        max_num_seqs=max_num_seqs,
        max_model_len=128,
        kv_block_size=4,
        num_kv_blocks=num_kv_blocks,
        prefix_cache=True,
    )
    schedulers = [Scheduler(config) for _ in range(num)]
    lanes = [
        Lane(
            scheduler,
            Pace(num_stages=2, max_num_batched_tokens=64),
            requests={},
            masks=MaskWaits({}, asyncio.Event()),
            on_landed=lambda: None,
        )
        for scheduler in schedulers
    ]
    for lane in lanes:
        reopen(lane)
    return Lanes(lanes, schedulers, Dispatcher(lanes, max_num_waiting=max_num_waiting))


def reopen(lane: Lane) -> None:
    lane.open(StandInRunner())


def close(lane: Lane) -> None:
    assert lane.lose() == []


def create_sequence(name: str, *, prompt: tuple[int, ...] | None = None) -> TokenSequence:
    prompt_token_ids = prompt or (hash(name) % 1000,)
    return TokenSequence(
        request=Request(request_id=name, prompt_token_ids=prompt_token_ids, max_tokens=4)
    )


def test_requests_go_to_the_lane_with_the_least_to_do() -> None:
    cluster = create_lanes(num=3)
    cluster.place(*"abcdef")
    assert [lane.num_sequences for lane in cluster.lanes] == [2, 2, 2]


def test_a_lane_that_holds_the_prompt_may_have_more_to_do() -> None:
    cluster = create_lanes()
    prompt = tuple(range(41))
    warm = cluster.place_one(create_sequence("warm", prompt=prompt))
    assert cluster.names(0) == ["warm"]
    cluster.step(0)
    cluster.dispatcher.forget(warm, FinishReason.STOP)
    for name in ("a", "b", "c"):
        cluster.place_one(create_sequence(name, prompt=prompt))
    assert cluster.names(0) == ["a", "b", "c"]
    for name in ("d", "e", "f"):
        cluster.place_one(create_sequence(name, prompt=prompt))
    assert len(cluster.names(1)) > 0
    assert len(cluster.names(0)) - len(cluster.names(1)) <= PREFIX_WEIGHT


def test_a_closed_lane_gives_all_away_those_that_ran_first_and_in_order() -> None:
    cluster = create_lanes()
    close(cluster.lanes[1])
    first = cluster.place_one(create_sequence("a"))
    cluster.place("b")
    cluster.step(0)
    cluster.place("c", "d")
    reopen(cluster.lanes[1])
    close(cluster.lanes[0])
    assert cluster.names(0) == ["a", "b", "c", "d"]
    cluster.dispatcher.spread()
    assert cluster.names(0) == []
    assert cluster.names(1) == ["a", "b", "c", "d"]
    cluster.check_integrity()
    cluster.dispatcher.forget(first, FinishReason.ABORT)
    assert cluster.names(1) == ["b", "c", "d"]


def test_all_wait_where_they_are_while_no_lane_is_open() -> None:
    cluster = create_lanes()
    cluster.place("a", "b")
    for lane in cluster.lanes:
        close(lane)
    cluster.dispatcher.spread()
    cluster.place("c")
    assert sum(lane.num_sequences for lane in cluster.lanes) == 3


def test_a_lane_that_comes_back_takes_from_the_queue_of_the_other() -> None:
    cluster = create_lanes(max_num_seqs=2)
    _, back = cluster.lanes
    close(back)
    cluster.place(*(f"r{index}" for index in range(20)))
    cluster.step(0)
    reopen(back)
    cluster.dispatcher.spread()
    assert back.num_sequences >= 1
    while back.num_waiting and back.figures().num_running < 2:
        cluster.step(1)
        cluster.dispatcher.spread()
    assert back.figures().num_running == 2
    assert sum(lane.num_sequences for lane in cluster.lanes) == 20
    assert "r0" not in cluster.names(1)  # what runs stays


def test_one_that_does_not_fit_goes_to_a_lane_where_it_does() -> None:
    cluster = create_lanes(num_kv_blocks=30)
    placed = [cluster.place_one(create_sequence(name)) for name in ("here", "there")]
    for index in (0, 1):
        cluster.step(index)
    for name in ("large", "too large for both"):  # one each
        prompt = (900, *range(len(name), 100 + len(name)))
        placed.append(cluster.place_one(create_sequence(name, prompt=prompt)))
    for index in (0, 1):
        cluster.step(index)
    cluster.place_one(create_sequence("waits", prompt=tuple(range(500, 600))))
    [full] = [index for index in (0, 1) if cluster.names(index) == ["waits"]]
    other = 1 - full
    assert cluster.schedulers[full].schedule() is not None
    cluster.dispatcher.spread()
    assert cluster.names(full) == ["waits"], "there is no room elsewhere"
    for sequence in placed:
        if cluster.schedulers[other].finish(sequence.request_id, FinishReason.STOP):
            cluster.dispatcher.forget(sequence, FinishReason.STOP)
    cluster.dispatcher.spread()
    assert (cluster.names(full), cluster.names(other)) == ([], ["waits"])
    cluster.step(other)
    assert cluster.lanes[other].figures().num_running == 1


def test_a_suspect_is_one_wherever_it_goes() -> None:
    cluster = create_lanes()
    close(cluster.lanes[1])
    cluster.place("a", "b")
    for _ in range(MAX_BLAMES):
        output = cluster.schedulers[0].schedule()
        assert output is not None
        cluster.schedulers[0].preempt_all({output.micro_batch_id})
    reopen(cluster.lanes[1])
    close(cluster.lanes[0])
    cluster.dispatcher.spread()
    output = cluster.schedulers[1].schedule()
    assert output is not None
    assert len(output.slices) == 1
    cluster.check_integrity()


def test_the_queue_is_bounded_over_all_lanes() -> None:
    cluster = create_lanes(max_num_waiting=3)
    cluster.place("a", "b", "c")
    with pytest.raises(QueueFullError, match="3 requests are waiting, the limit is 3") as caught:
        cluster.dispatcher.check_room()
    assert caught.value.details == {"num_waiting": "3", "max_num_waiting": "3"}
    cluster.step(0)
    cluster.dispatcher.check_room()


def test_an_end_that_the_lane_knows_is_not_told_to_it_again() -> None:
    cluster = create_lanes(num=1)
    stopped, cancelled = (cluster.place_one(create_sequence(name)) for name in "ab")
    cluster.step(0)
    cluster.dispatcher.stop(stopped, FinishReason.STOP)
    assert cluster.lanes[0].num_sequences == 1
    cluster.dispatcher.forget(stopped, FinishReason.ABORT)
    assert stopped.finish_reason is FinishReason.STOP
    cluster.dispatcher.forget(cancelled, FinishReason.ABORT)
    assert cluster.lanes[0].num_sequences == 0
    with pytest.raises(AssertionError, match="told twice"):
        cluster.lanes[0].finish("b", FinishReason.ABORT)
    cluster.check_integrity()


def test_an_id_is_held_until_its_sequence_is_in_no_micro_batch() -> None:
    cluster = create_lanes(num=1)
    sequence = cluster.place_one(create_sequence("a"))
    output = cluster.schedulers[0].schedule()
    assert output is not None
    cluster.dispatcher.forget(sequence, FinishReason.ABORT)
    assert cluster.dispatcher.holds("a")
    cluster.schedulers[0].update(output, {})
    assert not cluster.dispatcher.holds("a")
