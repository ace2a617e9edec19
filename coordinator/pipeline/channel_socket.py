"""Reads from the kernel which bytes of a channel's connection still move.

gRPC shows no socket. gRPC sets the TCP user timeout of a socket to the keepalive timeout of its
channel (gRFC A18), so each channel gets a keepalive timeout of its own, and its socket is found by
that number among all sockets of this process. Linux only.
"""

import array
import fcntl
import os
import socket
import stat
import struct
import termios
from itertools import count
from typing import NamedTuple, Self

_USER_TIMEOUTS_MS = range(60_000, 70_000)
"""Long enough never to be what ends a connection; the watch of its link is sooner."""

_num_given = count()

_ESTABLISHED = 1
_STATE_OFFSET = 0
_SINCE_HEARD_MS_OFFSET = 56
_RTT_US_OFFSET = 68
_COUNTS_OFFSET = 120
_INFO_BYTES = 136
"""Bytes of `struct tcp_info` up to the two counts (linux/tcp.h; since Linux 4.1)."""


class ConnectionState(NamedTuple):
    """One look at a connection."""

    num_acked_bytes: int
    """That the peer's kernel has acknowledged so far."""
    num_received_bytes: int
    """Bytes that came from the peer so far, in order."""
    num_queued_bytes: int
    """Written to the socket and not acknowledged."""
    num_unread_bytes: int
    """Received and not yet read by this process."""
    since_heard_s: float
    """Since the peer's kernel acknowledged anything, even that it has no room."""
    round_trip_s: float
    """Smoothed, as TCP measures it; includes what waits in the buffers of the network."""


def new_user_timeout_ms() -> int:
    """A keepalive timeout that no other channel of this process has."""
    return _USER_TIMEOUTS_MS[next(_num_given) % len(_USER_TIMEOUTS_MS)]


class ChannelSocket:
    """The socket under a channel, which stays gRPC's own: nothing here keeps it open.

    Args:
        fd: Descriptor of the socket.
        inode: Tells it from another that gets the descriptor later.
    """

    def __init__(self, fd: int, inode: int) -> None:
        self._fd = fd
        self._inode = inode

    @classmethod
    def find(cls, user_timeout_ms: int) -> Self | None:
        """Finds the connection of the channel that has this keepalive timeout. Any thread.

        Returns:
            None when there is none, or when this process may not look at its own descriptors or
            at what TCP counts.
        """
        try:
            names = os.listdir("/proc/self/fd")
        except OSError:
            return None
        for name in names:
            found = cls._of(int(name), user_timeout_ms)
            if found is not None:
                return found
        return None

    @classmethod
    def _of(cls, fd: int, user_timeout_ms: int) -> Self | None:
        try:
            status = os.fstat(fd)
            if not stat.S_ISSOCK(status.st_mode):
                return None
            found = cls(fd, status.st_ino)
            with found._borrowed() as borrowed:
                if borrowed.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) != (
                    user_timeout_ms
                ):
                    return None
        except OSError:  # it was closed meanwhile, or is no TCP
            return None
        state = found.look()
        return None if state is None or state.num_received_bytes == 0 else found

    def look(self) -> ConnectionState | None:
        """Looks at the connection; takes some microseconds. Any thread.

        Returns:
            None when it is closed, or when TCP does not say what it counts.
        """
        try:
            with self._borrowed() as borrowed:
                info = borrowed.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
                queued = _int_of(borrowed, termios.TIOCOUTQ)
                unread = _int_of(borrowed, termios.FIONREAD)
        except OSError:
            return None
        if len(info) < _INFO_BYTES or info[_STATE_OFFSET] != _ESTABLISHED:
            return None
        num_acked, num_received = struct.unpack_from("=QQ", info, _COUNTS_OFFSET)
        (since_heard_ms,) = struct.unpack_from("=I", info, _SINCE_HEARD_MS_OFFSET)
        (round_trip_us,) = struct.unpack_from("=I", info, _RTT_US_OFFSET)
        return ConnectionState(
            num_acked_bytes=num_acked,
            num_received_bytes=num_received,
            num_queued_bytes=queued,
            num_unread_bytes=unread,
            since_heard_s=since_heard_ms / 1e3,
            round_trip_s=round_trip_us / 1e6,
        )

    def _borrowed(self) -> socket.socket:
        """A second descriptor for the moment of a look, of this very socket.

        Raises:
            OSError: It is closed.
        """
        fd = os.dup(self._fd)
        try:
            if os.fstat(fd).st_ino != self._inode:
                raise OSError("the descriptor is another one's now")
            return socket.socket(fileno=fd)
        except OSError:
            os.close(fd)
            raise


def _int_of(borrowed: socket.socket, request: int) -> int:
    value = array.array("i", [0])
    fcntl.ioctl(borrowed.fileno(), request, value)
    return value[0]
