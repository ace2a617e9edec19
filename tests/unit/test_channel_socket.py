"""What can be seen of a connection that belongs to somebody else in this process."""

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from coordinator.pipeline.channel_socket import ChannelSocket, new_user_timeout_ms
from tests.faults.waiting import eventually
from tests.open_files import open_files

pytestmark = pytest.mark.usefixtures("_no_leak")


@pytest.fixture
def _no_leak() -> Iterator[None]:
    before = open_files()
    yield
    assert open_files() - before == set()


def connected(stack: ExitStack, family: int = socket.AF_INET) -> tuple[socket.socket, ...]:
    """Both ends of a connection, after the far one has sent a byte that was read."""
    host = "127.0.0.1" if family == socket.AF_INET else "::1"
    with socket.create_server((host, 0), family=family) as listener:
        near = stack.enter_context(socket.create_connection(listener.getsockname()[:2]))
        far = stack.enter_context(listener.accept()[0])
    far.sendall(b"x")
    assert near.recv(1) == b"x"
    return near, far


def mark(near: socket.socket) -> int:
    user_timeout_ms = new_user_timeout_ms()
    near.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, user_timeout_ms)
    return user_timeout_ms


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
async def test_a_connection_is_found_by_its_mark_and_seen_to_move(family: int) -> None:
    with ExitStack() as stack:
        others = [connected(stack) for _ in range(3)]
        near, far = connected(stack, family)
        user_timeout_ms = mark(near)
        mark(others[1][0])
        found = ChannelSocket.find(user_timeout_ms)
        assert found is not None
        first = found.look()
        assert first is not None

        near.sendall(bytes(1000))
        far.sendall(bytes(300))

        def has_moved() -> bool:
            now = found.look()
            return (
                now is not None
                and now.num_acked_bytes - first.num_acked_bytes == 1000
                and now.num_received_bytes - first.num_received_bytes == 300
                and now.num_unread_bytes == 300
                and now.num_queued_bytes == 0
            )

        await eventually(has_moved, within_s=5, what="the bytes are counted")


def test_what_the_far_end_has_no_room_for_is_queued() -> None:
    with ExitStack() as stack:
        near, _ = connected(stack)
        found = ChannelSocket.find(mark(near))
        assert found is not None
        near.setblocking(False)
        num_sent = 0
        try:
            while True:
                num_sent += near.send(bytes(1 << 16))
        except BlockingIOError:
            state = found.look()
        assert state is not None
        assert 0 < state.num_queued_bytes < num_sent


def test_a_connection_that_is_closed_is_not_looked_at_nor_whatever_has_its_descriptor() -> None:
    with ExitStack() as stack:
        near, far = connected(stack)
        found = ChannelSocket.find(mark(near))
        assert found is not None
        fd = near.fileno()
        # Replaced, never free in between: another thread might get it, and lose it to us.
        os.dup2(far.fileno(), fd)
        assert far.recv(1) == b""  # nobody kept it open
        assert found.look() is None
        reader, writer = os.pipe()
        os.dup2(reader, fd)
        assert found.look() is None
        for one in (reader, writer):
            os.close(one)
        near.close()
        assert found.look() is None


def test_nothing_is_found_by_a_mark_that_nobody_has_nor_without_a_list_of_descriptors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with ExitStack() as stack:
        near, _ = connected(stack)
        user_timeout_ms = mark(near)
        assert ChannelSocket.find(user_timeout_ms + 1) is None

        def listdir(_: str) -> list[str]:
            raise PermissionError

        monkeypatch.setattr(os, "listdir", listdir)
        assert ChannelSocket.find(user_timeout_ms) is None
        monkeypatch.undo()
