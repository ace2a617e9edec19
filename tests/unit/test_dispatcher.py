"""Where requests go when there are several pipelines, and where they are moved."""

import pytest

from coordinator.core.limits import MAX_REPLAYS
from coordinator.core.request import FinishReason, Request
from coordinator.engine.dispatcher import PREFIX_WEIGHT, Dispatcher
from coordinator.engine.lane import Lane
from coordinator.scheduler import Pace, Scheduler, SchedulerConfig
from stagecoach.contract.errors import QueueFullError

TOKEN = 7


class StandInPipeline:
    """As much of a pipeline as a lane that sends nothing asks for."""

    is_open = True
    blamed: frozenset[int] = frozenset()


def create_lanes(*, num: int = 2, max_num_seqs: int = 4, num_kv_blocks: int = 256) -> list[Lane]:
    config = SchedulerConfig(
        max_num_batched_tokens=64,
        max_num_seqs=max_num_seqs,
        max_model_len=128,
        kv_block_size=4,
        num_kv_blocks=num_kv_blocks,
        max_num_waiting=1000,
        prefix_cache=True,
    )
    lanes = [
        Lane(Scheduler(config), Pace(num_stages=2, max_num_batched_tokens=64), lambda: None)
        for _ in range(num)
    ]
    for lane in lanes:
        reopen(lane)
    return lanes


def reopen(lane: Lane) -> None:
    lane.open(StandInPipeline())  # type: ignore[arg-type]


def close(lane: Lane) -> None:
    lane.lose()


def create_request(name: str, *, prompt: tuple[int, ...] | None = None) -> Request:
    return Request(request_id=name, prompt_token_ids=prompt or (hash(name) % 1000,), max_tokens=4)


def names(lane: Lane) -> list[str]:
    return [sequence.request_id for sequence in lane.scheduler.waiting]


def place(dispatcher: Dispatcher, *request_ids: str) -> None:
    for name in request_ids:
        dispatcher.place(create_request(name))


def step(lane: Lane) -> None:
    output = lane.scheduler.schedule()
    assert output is not None
    lane.scheduler.update(output, {piece.request_id: (TOKEN,) for piece in output.slices})


def test_requests_go_to_the_lane_with_the_least_to_do() -> None:
    lanes = create_lanes(num=3)
    place(Dispatcher(lanes, max_num_waiting=100), *"abcdef")
    assert [lane.num_sequences for lane in lanes] == [2, 2, 2]


def test_a_lane_that_holds_the_prompt_may_have_more_to_do() -> None:
    lanes = create_lanes()
    dispatcher = Dispatcher(lanes, max_num_waiting=100)
    prompt = tuple(range(41))
    dispatcher.place(create_request("warm", prompt=prompt))
    assert names(lanes[0]) == ["warm"]
    step(lanes[0])
    dispatcher.finish("warm", FinishReason.STOP)
    for name in ("a", "b", "c"):
        dispatcher.place(create_request(name, prompt=prompt))
    assert names(lanes[0]) == ["a", "b", "c"]
    for name in ("d", "e", "f"):
        dispatcher.place(create_request(name, prompt=prompt))
    assert len(names(lanes[1])) > 0
    assert len(names(lanes[0])) - len(names(lanes[1])) <= PREFIX_WEIGHT


def test_a_closed_lane_gives_all_away_those_that_ran_first_and_in_order() -> None:
    lanes = create_lanes()
    dispatcher = Dispatcher(lanes, max_num_waiting=100)
    close(lanes[1])
    place(dispatcher, "a", "b")
    step(lanes[0])
    place(dispatcher, "c", "d")
    reopen(lanes[1])
    close(lanes[0])
    assert names(lanes[0]) == ["a", "b", "c", "d"]
    dispatcher.spread()
    assert names(lanes[0]) == []
    assert names(lanes[1]) == ["a", "b", "c", "d"]
    for lane in lanes:
        lane.scheduler.check_integrity()
    dispatcher.finish("a", FinishReason.ABORT)
    assert names(lanes[1]) == ["b", "c", "d"]


def test_all_wait_where_they_are_while_no_lane_is_open() -> None:
    lanes = create_lanes()
    dispatcher = Dispatcher(lanes, max_num_waiting=100)
    place(dispatcher, "a", "b")
    for lane in lanes:
        close(lane)
    dispatcher.spread()
    place(dispatcher, "c")
    assert sum(lane.num_sequences for lane in lanes) == 3


def test_a_lane_that_comes_back_takes_from_the_queue_of_the_other() -> None:
    lanes = create_lanes(max_num_seqs=2)
    dispatcher = Dispatcher(lanes, max_num_waiting=100)
    close(lanes[1])
    place(dispatcher, *(f"r{index}" for index in range(20)))
    step(lanes[0])
    reopen(lanes[1])
    dispatcher.spread()
    assert lanes[1].num_sequences >= 1
    while lanes[1].scheduler.num_waiting and lanes[1].scheduler.num_running < 2:
        step(lanes[1])
        dispatcher.spread()
    assert lanes[1].scheduler.num_running == 2
    assert sum(lane.num_sequences for lane in lanes) == 20
    assert "r0" not in names(lanes[1])  # what runs stays


def test_one_that_does_not_fit_goes_to_a_lane_where_it_does() -> None:
    lanes = create_lanes(num_kv_blocks=30)
    dispatcher = Dispatcher(lanes, max_num_waiting=100)
    place(dispatcher, "here", "there")
    for lane in lanes:
        step(lane)
    for name in ("large", "too large for both"):  # one each
        dispatcher.place(create_request(name, prompt=(900, *range(len(name), 100 + len(name)))))
    for lane in lanes:
        step(lane)
    dispatcher.place(create_request("waits", prompt=tuple(range(500, 600))))
    [full] = [lane for lane in lanes if names(lane) == ["waits"]]
    [other] = [lane for lane in lanes if lane is not full]
    assert full.scheduler.schedule() is not None
    dispatcher.spread()
    assert names(full) == ["waits"], "there is no room elsewhere"
    for name in ("large", "too large for both", "here", "there"):
        if dispatcher._lane_of[name] is other:
            dispatcher.finish(name, FinishReason.STOP)
    dispatcher.spread()
    assert (names(full), names(other)) == ([], ["waits"])
    step(other)
    assert other.scheduler.num_running == 1


def test_a_suspect_is_one_wherever_it_goes() -> None:
    lanes = create_lanes()
    dispatcher = Dispatcher(lanes, max_num_waiting=100)
    close(lanes[1])
    place(dispatcher, "a", "b")
    for _ in range(MAX_REPLAYS):
        output = lanes[0].scheduler.schedule()
        assert output is not None
        lanes[0].scheduler.preempt_all({output.micro_batch_id})
    reopen(lanes[1])
    close(lanes[0])
    dispatcher.spread()
    output = lanes[1].scheduler.schedule()
    assert output is not None
    assert len(output.slices) == 1
    for lane in lanes:
        lane.scheduler.check_integrity()


def test_the_queue_is_bounded_over_all_lanes() -> None:
    dispatcher = Dispatcher(create_lanes(), max_num_waiting=3)
    place(dispatcher, "a", "b", "c")
    with pytest.raises(QueueFullError, match="3 requests are waiting, the limit is 3"):
        dispatcher.check_room()
