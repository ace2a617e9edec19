"""What both clients agree on about the connection to a coordinator."""

from grpc import RpcError

from protos.errors import StagecoachError, UnavailableError
from protos.status import from_rpc_error

DEFAULT_ADDRESS = "localhost:50050"

READY_POLL_S = 0.1
"""Pause between two questions whether the coordinator is ready."""

_MAX_MESSAGE_BYTES = 64 * 2**20
"""Of one answer. Tokens that a slow reader has not taken come in one message."""
_KEEPALIVE_MS = 20_000

_LOOPBACK = ("localhost:", "127.", "[::1]:")


def channel_options(address: str) -> list[tuple[str, int]]:
    """Returns the options of a channel to `address`.

    Proxies of the environment are honoured, except on the way to this very machine.
    """
    return [
        ("grpc.enable_http_proxy", 0 if address.startswith(_LOOPBACK) else 1),
        ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
        # A coordinator whose machine vanished is noticed while a completion runs.
        ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", _KEEPALIVE_MS),
        ("grpc.http2.ping_timeout_ms", _KEEPALIVE_MS),  # or a ping is waited for a minute
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2000),
        # Its own connection, which closes with the client.
        ("grpc.use_local_subchannel_pool", 1),
    ]


def read_error(error: RpcError, address: str) -> StagecoachError:
    """Reads the error that ended a call; one about reaching the coordinator names it."""
    read = from_rpc_error(error)
    if isinstance(read, UnavailableError):
        return UnavailableError(f"coordinator at {address}: {read.message}", **read.details)
    return read
