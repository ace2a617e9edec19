"""When a link is dead and when it is only slow, without a clock or a network."""

from coordinator.pipeline.channel_socket import ConnectionState
from coordinator.pipeline.liveness import (
    SLOWEST_BYTES_PER_S,
    STILL,
    WATCH_PERIOD_S,
    Liveness,
    Movement,
    TurnMeter,
    own_time_s,
)

KEEPALIVE_S = 5.0


class Connection:
    """A connection that a test lets do what it likes, watched as a link would."""

    def __init__(self) -> None:
        self.acked = self.received = self.queued = self.unread = 0
        self.since_heard_s = 0.0
        self.round_trip_s = 0.001
        self.liveness = Liveness(KEEPALIVE_S)
        self.look(0.0)

    def look(self, elapsed_s: float) -> Movement:
        state = ConnectionState(
            num_acked_bytes=self.acked,
            num_received_bytes=self.received,
            num_queued_bytes=self.queued,
            num_unread_bytes=self.unread,
            since_heard_s=self.since_heard_s,
            round_trip_s=self.round_trip_s,
        )
        return self.liveness.look(state, elapsed_s)

    def passes(
        self, seconds: float, *, acked_per_s: float = 0, received_per_s: float = 0, heard: bool
    ) -> float:
        """Lets time pass until the stage counts as dead; returns how much did."""
        passed_s = 0.0
        while passed_s < seconds and self.liveness.problem is None:
            passed_s += WATCH_PERIOD_S
            self.acked += int(acked_per_s * WATCH_PERIOD_S)
            self.received += int(received_per_s * WATCH_PERIOD_S)
            self.since_heard_s = 0.0 if heard else self.since_heard_s + WATCH_PERIOD_S
            self.look(WATCH_PERIOD_S)
        return passed_s


def test_a_machine_that_acknowledges_nothing_is_dead_after_a_while() -> None:
    connection = Connection()
    connection.queued = 17
    assert connection.passes(60, heard=False) == 1.5 * KEEPALIVE_S + WATCH_PERIOD_S
    assert "acknowledged nothing" in str(connection.liveness.problem)


def test_a_link_with_nothing_on_its_way_owes_no_acknowledgement() -> None:
    connection = Connection()
    assert connection.passes(2 * KEEPALIVE_S, heard=False) == 2 * KEEPALIVE_S
    assert connection.liveness.problem is None


def test_a_machine_that_says_that_it_has_no_room_is_reachable_and_its_process_silent() -> None:
    connection = Connection()
    connection.queued = 1_000_000
    assert connection.passes(60, heard=True) == 2 * KEEPALIVE_S + WATCH_PERIOD_S
    assert "nothing came from it" in str(connection.liveness.problem)


def test_a_long_way_has_longer_for_its_acknowledgements() -> None:
    connection = Connection()
    connection.queued, connection.round_trip_s = 100, 1.0
    assert connection.passes(60, heard=False) == 8.0 + WATCH_PERIOD_S


def test_an_upload_that_moves_is_waited_for_however_long_it_takes() -> None:
    connection = Connection()
    connection.queued = 20_000_000
    assert connection.passes(600, acked_per_s=20_000, heard=True) == 600
    assert connection.liveness.problem is None


def test_an_upload_that_moves_in_bursts_is_waited_for() -> None:
    connection = Connection()
    connection.queued = 20_000_000
    for _ in range(20):
        connection.passes(1, acked_per_s=60_000, heard=True)
        connection.passes(4, heard=False)
    assert connection.liveness.problem is None


def test_a_trickle_of_acknowledged_pings_is_no_sign_of_a_process() -> None:
    connection = Connection()
    connection.queued = 1_000_000
    passed_s = connection.passes(60, acked_per_s=200, heard=True)
    assert 2 * KEEPALIVE_S < passed_s < 2 * KEEPALIVE_S + 1


def test_whatever_comes_is_a_sign_of_life_and_so_is_what_was_not_read_yet() -> None:
    connection = Connection()
    assert connection.passes(60, received_per_s=4, heard=True) == 60
    connection.unread = 1
    assert connection.passes(60, heard=False) == 60


def test_a_process_answers_as_long_as_something_came_after_the_last_ping_but_one() -> None:
    connection = Connection()
    connection.passes(2.0, received_per_s=8, heard=True)
    assert connection.liveness.is_answering
    connection.passes(3.75, heard=True)
    assert connection.liveness.is_answering
    connection.passes(0.25, heard=True)
    assert not connection.liveness.is_answering


def test_time_in_which_this_process_stood_still_hardly_counts() -> None:
    assert own_time_s(10.0, 10.25) == 0.25
    assert own_time_s(10.0, 30.0) == 2 * WATCH_PERIOD_S


def waited_s(meter: TurnMeter, seconds: float, moved: Movement = STILL) -> float:
    """Lets time pass in a turn that began at 0, or goes on; returns what counts of it."""
    now_s = meter._looked_s
    end_s = now_s + seconds
    waited = 0.0
    while now_s < end_s:
        now_s += WATCH_PERIOD_S
        waited = meter.look(now_s, moved)
    return waited


def test_a_turn_waits_as_long_as_nothing_moves() -> None:
    meter = TurnMeter()
    meter.begin(0.0, 10_000)
    assert waited_s(meter, 3.0) == 3.0
    assert meter.end(3.1) == 3.1


def test_a_turn_waits_for_its_answer_from_when_its_upload_is_through() -> None:
    meter = TurnMeter()
    meter.begin(0.0, 1_000_000)
    assert waited_s(meter, 10.0, Movement(num_acked_bytes=25_000)) == 0.0
    assert waited_s(meter, 2.0) == 2.0
    assert waited_s(meter, 10.0, Movement(num_received_bytes=25_000)) == 0.0
    assert meter.end(22.0) == 2.0


def test_a_turn_hears_of_what_comes_in_it_and_not_before() -> None:
    meter = TurnMeter()
    meter.begin(0.0, 100)
    meter.look(0.25, Movement(num_acked_bytes=100))
    assert not meter.has_heard
    meter.look(0.5, Movement(num_received_bytes=17))
    meter.look(0.75)
    assert meter.has_heard
    meter.begin(1.0, 100)
    assert not meter.has_heard


def test_acknowledgements_of_what_comes_behind_it_count_for_no_turn() -> None:
    """A model thread that hangs is not excused by the uploads of the next micro-batches."""
    meter = TurnMeter()
    meter.begin(0.0, 100_000)
    assert waited_s(meter, 1.0, Movement(num_acked_bytes=25_000)) == 0.0
    assert waited_s(meter, 20.0, Movement(num_acked_bytes=25_000)) == 20.0


def test_what_moves_slower_than_the_slowest_link_turns_a_turn_back_in_proportion() -> None:
    meter = TurnMeter()
    meter.begin(0.0, 1_000_000)
    half = int(SLOWEST_BYTES_PER_S * WATCH_PERIOD_S / 2)
    assert waited_s(meter, 10.0, Movement(num_acked_bytes=half)) == 5.0


def test_a_turn_does_not_count_what_this_process_has_yet_to_read_or_was_stopped() -> None:
    meter = TurnMeter()
    meter.begin(0.0, 100)
    assert waited_s(meter, 10.0, Movement(has_unread=True)) == 0.0
    assert meter.look(100.0) == 2 * WATCH_PERIOD_S
    assert meter.end(200.0) == 4 * WATCH_PERIOD_S


def test_a_turn_that_ends_before_anyone_looked_took_as_long_as_it_did() -> None:
    meter = TurnMeter()
    meter.begin(5.0, 100)
    assert meter.end(5.125) == 0.125
