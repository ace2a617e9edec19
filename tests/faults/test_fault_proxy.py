"""The proxy itself: a test of a bad network is worth what its network is."""

import socket
import struct
import threading
import time
from collections.abc import Iterator

import pytest

from tests.faults.fault_proxy import BLACKHOLE, FaultProxy, Network, Way

PATIENCE_S = 10.0


@pytest.fixture
def proxy() -> Iterator[FaultProxy]:
    """A proxy of a server that sends everything back."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=_serve, args=(listener,), daemon=True).start()
        with FaultProxy("{}:{}".format(*listener.getsockname())) as proxy:
            yield proxy


def _serve(listener: socket.socket) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=_echo, args=(connection,), daemon=True).start()


def _echo(connection: socket.socket) -> None:
    with connection:
        try:
            while data := connection.recv(65536):
                connection.sendall(data)
        except OSError:
            return


def connect(proxy: FaultProxy) -> socket.socket:
    host, _, port = proxy.address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=PATIENCE_S)


def receive(peer: socket.socket, num_bytes: int) -> bytes:
    data = b""
    while len(data) < num_bytes and (piece := peer.recv(num_bytes - len(data))):
        data += piece
    return data


def test_a_healthy_network_changes_nothing(proxy: FaultProxy) -> None:
    data = bytes(range(256)) * 4000
    with connect(proxy) as peer:
        threading.Thread(target=peer.sendall, args=(data,)).start()
        assert receive(peer, len(data)) == data
        peer.shutdown(socket.SHUT_WR)
        assert peer.recv(1) == b""


def test_delay_and_rate_cost_time(proxy: FaultProxy) -> None:
    proxy.become(Network(delay_s=0.05, bytes_per_s=10_000))
    with connect(proxy) as peer:
        started_s = time.monotonic()
        peer.sendall(bytes(1000))
        assert len(receive(peer, 1000)) == 1000
        assert time.monotonic() - started_s >= 2 * 0.05 + 0.08  # a rate each way, side by side


def test_a_slow_network_takes_little_more_than_it_passes_on(proxy: FaultProxy) -> None:
    num_bytes, bytes_per_s = 1_000_000, 100_000
    proxy.become(Network(bytes_per_s=bytes_per_s))
    with connect(proxy) as peer:
        started_s = time.monotonic()
        sending = threading.Thread(target=peer.sendall, args=(bytes(num_bytes),))
        sending.start()
        num_received = len(receive(peer, bytes_per_s // 2))
        num_acked = acknowledged(peer)
        num_passed = bytes_per_s * (time.monotonic() - started_s)
        proxy.heal()
        num_received += len(receive(peer, num_bytes - num_received))
        sending.join()
    assert num_received == num_bytes
    assert num_acked < num_passed + 200_000


def acknowledged(peer: socket.socket) -> int:
    """Bytes of ours that the proxy's kernel has taken."""
    info = peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    (num_acked,) = struct.unpack_from("=Q", info, 120)
    return int(num_acked)


@pytest.mark.parametrize("holds", [BLACKHOLE.holds, {Way.UP}, {Way.DOWN}])
def test_what_is_held_back_arrives_when_the_network_is_healed(
    proxy: FaultProxy, holds: frozenset[Way]
) -> None:
    with connect(proxy) as peer:
        proxy.become(Network(holds=frozenset(holds)))
        peer.sendall(b"late")
        peer.settimeout(0.1)
        with pytest.raises(TimeoutError):
            peer.recv(4)
        proxy.heal()
        peer.settimeout(PATIENCE_S)
        assert receive(peer, 4) == b"late"


def test_a_cut_resets_what_is_open_and_refuses_what_is_new(proxy: FaultProxy) -> None:
    with connect(proxy) as peer:
        peer.sendall(b"x")
        assert receive(peer, 1) == b"x"
        proxy.cut()
        with pytest.raises(ConnectionResetError):
            peer.recv(1)
        with pytest.raises(ConnectionResetError), connect(proxy) as late:
            late.recv(1)
        proxy.heal()
        with connect(proxy) as again:
            again.sendall(b"y")
            assert receive(again, 1) == b"y"
    assert proxy.num_accepted == 3


def test_a_server_that_is_taken_away_leaves_its_client_in_silence(proxy: FaultProxy) -> None:
    with connect(proxy) as peer:
        peer.sendall(b"x")
        assert receive(peer, 1) == b"x"
        proxy.half_open()
        peer.sendall(b"x")
        peer.settimeout(0.1)
        with pytest.raises(TimeoutError):
            peer.recv(1)


def test_a_reset_comes_after_so_many_bytes(proxy: FaultProxy) -> None:
    with connect(proxy) as peer:
        proxy.reset_after(3, Way.DOWN)
        peer.sendall(b"ab")
        assert receive(peer, 2) == b"ab"
        peer.sendall(b"cdef")
        with pytest.raises(ConnectionResetError):
            receive(peer, 4)


def test_one_byte_is_corrupt(proxy: FaultProxy) -> None:
    with connect(proxy) as peer:
        proxy.corrupt_after(2, Way.UP)
        peer.sendall(b"\0\0\0\0")
        assert receive(peer, 4) == b"\0\0\xff\0"
