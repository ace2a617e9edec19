"""What a stream was sent and is not answered, and when its stage is dead; without clock or wire."""

from coordinator.pipeline.channel_socket import ConnectionState
from coordinator.pipeline.liveness import LATE_FACTOR, SLOWEST_BYTES_PER_S, WATCH_PERIOD_S
from coordinator.pipeline.step_deadline import StepDeadline, StepTimeouts
from coordinator.pipeline.stream_watch import REST_BYTES, StreamWatch
from stagecoach.contract.errors import DeadlineExceededError, UnavailableError

TIMEOUTS = StepTimeouts(ceiling_s=4.0, ceiling_per_token_s=0.5, floor_s=1.0)
KEEPALIVE_S = 5.0
NUM_TOKEN_BYTES = 100


class Stream:
    """A watched stream whose clock and connection a test turns."""

    def __init__(self, deadline: StepDeadline | None = None) -> None:
        self.now_s = 100.0
        self.num_acked_bytes = self.num_received_bytes = self.num_queued_bytes = 0
        self.watch = StreamWatch(
            deadline or StepDeadline(TIMEOUTS),
            keepalive_s=KEEPALIVE_S,
            num_token_bytes=NUM_TOKEN_BYTES,
            now_s=self.now_s,
        )

    def state(self) -> ConnectionState:
        return ConnectionState(
            num_acked_bytes=self.num_acked_bytes,
            num_received_bytes=self.num_received_bytes,
            num_queued_bytes=self.num_queued_bytes,
            num_unread_bytes=0,
            since_heard_s=self.now_s,
            round_trip_s=0.001,
        )

    def lost_after_s(
        self,
        limit_s: float,
        *,
        is_seen: bool = True,
        acked_per_s: float = 0,
        received_per_s: float = 0,
    ) -> tuple[float, UnavailableError | DeadlineExceededError | None]:
        """Lets time pass; returns how much did until the stage was dead, and why it is."""
        started_s = self.now_s
        while self.now_s - started_s < limit_s:
            self.now_s += WATCH_PERIOD_S
            self.num_acked_bytes += int(acked_per_s * WATCH_PERIOD_S)
            self.num_received_bytes += int(received_per_s * WATCH_PERIOD_S)
            error = self.watch.look(self.state() if is_seen else None, self.now_s)
            if error is not None:
                return self.now_s - started_s, error
        return limit_s, None


def test_a_stream_that_owes_nothing_is_never_late() -> None:
    assert Stream().lost_after_s(100, is_seen=False) == (100, None)


def test_what_is_sent_is_unanswered_until_its_answer_whatever_else_is_answered() -> None:
    stream = Stream()
    for micro_batch_id in (7, 8, 9):
        stream.watch.send(micro_batch_id, 1, stream.now_s)
    stream.watch.answer(7, stream.now_s)
    stream.watch.answer(5, stream.now_s)
    assert stream.watch.unanswered == {8, 9}


def test_only_the_first_that_is_unanswered_has_a_turn_and_each_has_its_own_time() -> None:
    stream = Stream()
    stream.watch.send(1, 2, stream.now_s)
    stream.watch.send(2, 4, stream.now_s)
    assert stream.lost_after_s(4.5, is_seen=False) == (4.5, None)
    stream.watch.answer(1, stream.now_s)
    passed_s, error = stream.lost_after_s(100, is_seen=False)
    assert passed_s == 4.0 + 4 * 0.5 + WATCH_PERIOD_S
    assert isinstance(error, DeadlineExceededError)
    assert error.message == "4 tokens were not answered in time, 6.0 s"


def test_one_that_is_late_gives_the_next_stream_twice_the_margin() -> None:
    deadline = StepDeadline(TIMEOUTS)
    for _ in range(20):
        deadline.observe(1, 0.0)
    before_s = deadline.limit_s(1)
    stream = Stream(deadline)
    stream.watch.send(1, 1, stream.now_s)
    assert stream.lost_after_s(100, is_seen=False)[1] is not None
    again = Stream(deadline)
    for micro_batch_id in range(20):
        again.watch.send(micro_batch_id, 1, again.now_s)
        again.watch.answer(micro_batch_id, again.now_s)
    assert deadline.limit_s(1) == 2 * before_s == 2.0


def test_an_upload_that_moves_is_not_late_and_counts_no_more_than_its_own_bytes() -> None:
    stream = Stream()
    stream.watch.look(stream.state(), stream.now_s)
    stream.watch.send(1, 1, stream.now_s)
    num_bytes = NUM_TOKEN_BYTES + REST_BYTES
    moves_s = num_bytes / SLOWEST_BYTES_PER_S
    passed_s, error = stream.lost_after_s(100, acked_per_s=SLOWEST_BYTES_PER_S)
    assert isinstance(error, DeadlineExceededError)
    assert moves_s + 4.5 <= passed_s <= moves_s + 4.5 + 2 * WATCH_PERIOD_S


def test_a_stage_that_answers_pings_is_starved_and_has_longer() -> None:
    stream = Stream()
    stream.watch.look(stream.state(), stream.now_s)
    stream.watch.send(1, 1, stream.now_s)
    passed_s, error = stream.lost_after_s(100, received_per_s=4)
    assert isinstance(error, DeadlineExceededError)
    assert LATE_FACTOR * 4.5 < passed_s < LATE_FACTOR * 4.5 + 2 * WATCH_PERIOD_S


def test_a_connection_on_which_nothing_comes_is_dead_though_nothing_is_owed() -> None:
    stream = Stream()
    stream.watch.look(stream.state(), stream.now_s)
    passed_s, error = stream.lost_after_s(100)
    assert isinstance(error, UnavailableError)
    assert "nothing came from it" in error.message
    assert passed_s == 2 * KEEPALIVE_S + WATCH_PERIOD_S
