"""How both ends of a gRPC connection notice that the other one is gone. Standard library only."""


def keepalive_options(period_ms: int) -> list[tuple[str, int]]:
    """Returns options of a channel or a server that ping the other end and wait for its answer.

    A peer that vanished without a word is lost after at most twice the period.

    Args:
        period_ms: Pause before a ping, and time for its answer.
    """
    return [
        ("grpc.keepalive_time_ms", period_ms),
        ("grpc.keepalive_timeout_ms", period_ms),
        # The one that counts: without it a ping is waited for a minute.
        ("grpc.http2.ping_timeout_ms", period_ms),
        ("grpc.http2.max_pings_without_data", 0),
    ]
