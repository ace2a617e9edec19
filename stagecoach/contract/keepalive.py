"""How both ends of a gRPC connection notice that the other one is gone. Standard library only.

A ping and its answer wait behind all that was written before them, as long as that takes on a slow
link. So an answer that is late says little; bytes that nobody acknowledges say that the other
machine, or the way to it, is gone.
"""

_MIN_PING_INTERVAL_MS = 200
"""Pings that come faster are taken for abuse and end the connection. Far below what a client asks
for: gRPC's own bound is five minutes, and two hours without a call."""


def keepalive_options(
    period_ms: int, *, unacknowledged_ms: int, answer_ms: int = 600_000
) -> list[tuple[str, int]]:
    """Returns options of a channel or a server that ping the other end when nothing comes from it.

    A machine that vanished without a word is lost after at most the first two times together; a
    process that stands still, on a machine that lives, after the first and the last.

    Args:
        period_ms: Pause before a ping.
        unacknowledged_ms: How long the other machine's kernel may leave bytes unacknowledged, or
            without room for them; TCP's user timeout.
        answer_ms: Time for the answer to a ping, which waits behind full buffers. In ten minutes
            they pass through a link of 64 kbit/s.
    """
    return [
        ("grpc.keepalive_time_ms", period_ms),
        # For gRPC's own waiting it does nothing; but it sets TCP's user timeout (gRFC A18).
        ("grpc.keepalive_timeout_ms", unacknowledged_ms),
        ("grpc.http2.ping_timeout_ms", answer_ms),
        ("grpc.http2.max_pings_without_data", 0),
    ]


def strict_keepalive_options(
    period_ms: int, *, answer_ms: int | None = None
) -> list[tuple[str, int]]:
    """Returns options that wait for the answer to a ping no longer than for its turn.

    For connections that carry little, on which it waits behind nothing.

    Args:
        period_ms: Pause before a ping.
        answer_ms: Time for its answer, of a way that is known to be longer. None: as its pause.
    """
    answer_ms = answer_ms or period_ms
    return [
        ("grpc.keepalive_time_ms", period_ms),
        ("grpc.keepalive_timeout_ms", answer_ms),
        # The one that counts: without it a ping is waited for a minute.
        ("grpc.http2.ping_timeout_ms", answer_ms),
        ("grpc.http2.max_pings_without_data", 0),
    ]


def permitted_pings() -> list[tuple[str, int]]:
    """Returns options of a server that let its clients ping, also without a call."""
    return [
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", _MIN_PING_INTERVAL_MS),
    ]
