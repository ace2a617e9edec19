"""A TCP proxy that can be told to be a bad network. Runs in a thread of its own.

What it holds back is not lost: it is delivered when the network is healed, as TCP would by sending
again. It takes little more than it passes on, so that who sends sees how slow the network is.
"""

import asyncio
import socket
import struct
import threading
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from types import TracebackType
from typing import Any, Self, TypeVar

T = TypeVar("T")

_CHUNK_BYTES = 1 << 16
_MAX_CHUNKS = 64
"""On their way in one direction of a connection; more are not read, which slows the sender."""
_SLOW_CHUNK_S = 0.02
"""What a slow network passes on at once."""
_BUFFER_BYTES = 1 << 14
"""What the kernel and a reader hold for each connection; the kernel doubles it."""
_SEGMENT_BYTES = 1460
"""As on an Ethernet; the loopback's own are larger than the buffers."""
_CONTROL_TIMEOUT_S = 10.0


class Way(Enum):
    """A direction, as the client sees it."""

    UP = "up"
    DOWN = "down"


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """How the network behaves, for connections that are open and for new ones."""

    delay_s: float = 0.0
    """Added to every byte, each way."""
    bytes_per_s: float | None = None
    """Each way; None is unlimited."""
    holds: frozenset[Way] = frozenset()
    """Directions in which nothing arrives any more."""
    refuses: bool = False
    """New connections are closed at once."""


HEALTHY = Network()
BLACKHOLE = Network(holds=frozenset(Way))


class FaultProxy:
    """Forwards connections to one server. Methods may be called from any thread.

    Args:
        target: HOST:PORT of the server, which may come and go.

    Attributes:
        address: HOST:PORT that clients connect to.
    """

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._network = HEALTHY
        self._connections: set[_Connection] = set()
        self._changed = asyncio.Event()
        self._reset_in: dict[Way, int] = {}
        self._corrupt_in: dict[Way, int] = {}
        self._num_accepted = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        listener = _small(socket.socket())
        listener.bind(("127.0.0.1", 0))
        self._server = self._call(
            asyncio.start_server(self._accept, sock=listener, limit=_BUFFER_BYTES)
        )
        self.address = "{}:{}".format(*listener.getsockname())

    @property
    def num_accepted(self) -> int:
        """Connections that clients have made so far."""
        return self._num_accepted

    def become(self, network: Network) -> None:
        """Changes how the network behaves."""
        self._call(self._become(network))

    def heal(self) -> None:
        """Behaves well again; what was held back is delivered, connections that broke stay so."""
        self._reset_in.clear()
        self._corrupt_in.clear()
        self.become(HEALTHY)

    def cut(self) -> None:
        """Resets every connection and refuses new ones."""
        self._call(self._cut())

    def half_open(self) -> None:
        """Takes the server away without telling the client, whose connections stay up, silent."""
        self._call(self._half_open())

    def reset_after(self, num_bytes: int, way: Way) -> None:
        """Resets a connection once so many more bytes went this way, in the middle of whatever."""
        self._reset_in[way] = num_bytes

    def corrupt_after(self, num_bytes: int, way: Way) -> None:
        """Flips all bits of one byte, so many bytes from now."""
        self._corrupt_in[way] = num_bytes

    def close(self) -> None:
        """Ends every connection and the thread."""
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        return future.result(_CONTROL_TIMEOUT_S)

    async def _become(self, network: Network) -> None:
        self._network = network
        self._changed.set()
        self._changed = asyncio.Event()

    async def _cut(self) -> None:
        await self._become(Network(refuses=True))
        for connection in tuple(self._connections):
            connection.reset()

    async def _half_open(self) -> None:
        await self._become(Network(refuses=True))
        for connection in self._connections:
            connection.lose_server()

    async def _close(self) -> None:
        self._server.close()
        for connection in tuple(self._connections):
            connection.reset()
        await asyncio.gather(*(connection.ended.wait() for connection in self._connections))

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._num_accepted += 1
        if self._network.refuses:
            _abort(writer)
            return
        try:
            upstream = await _connect(self._target)
        except OSError:
            _abort(writer)
            return
        connection = _Connection(self, (reader, writer), upstream)
        self._connections.add(connection)
        try:
            await connection.run()
        finally:
            self._connections.discard(connection)
            connection.ended.set()

    @property
    def _chunk_bytes(self) -> int:
        """What is read at once."""
        bytes_per_s = self._network.bytes_per_s
        if bytes_per_s is None:
            return _CHUNK_BYTES
        return max(1, min(_CHUNK_BYTES, int(bytes_per_s * _SLOW_CHUNK_S)))

    async def _until_passable(self, way: Way) -> None:
        while way in self._network.holds:
            await self._changed.wait()

    def _spoil(self, chunk: bytes, way: Way) -> tuple[bytes, bool]:
        """Returns what of a chunk goes out, and whether the connection is reset after it."""
        if (at := self._corrupt_in.get(way)) is not None:
            if at < len(chunk):
                del self._corrupt_in[way]
                chunk = chunk[:at] + bytes([chunk[at] ^ 0xFF]) + chunk[at + 1 :]
            else:
                self._corrupt_in[way] = at - len(chunk)
        if (at := self._reset_in.get(way)) is not None:
            if at < len(chunk):
                del self._reset_in[way]
                return chunk[:at], True
            self._reset_in[way] = at - len(chunk)
        return chunk, False


Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class _Connection:
    """One client's connection and ours to the server."""

    def __init__(self, proxy: FaultProxy, client: Ends, server: Ends) -> None:
        self._proxy = proxy
        self._client = client
        self._server = server
        self._pumps: list[asyncio.Task[None]] = []
        self.ended = asyncio.Event()
        self._released = asyncio.Event()
        """Set when a client whose server was lost may go."""
        self._released.set()

    async def run(self) -> None:
        self._pumps = [
            asyncio.create_task(self._pump(Way.UP, self._client[0], self._server[1])),
            asyncio.create_task(self._pump(Way.DOWN, self._server[0], self._client[1])),
        ]
        await asyncio.gather(*self._pumps, return_exceptions=True)
        if not self._released.is_set():
            with suppress(OSError):
                while await self._client[0].read(_CHUNK_BYTES):
                    pass
        for _, writer in (self._client, self._server):
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    def reset(self) -> None:
        self._released.set()
        _abort(self._client[1])
        _abort(self._server[1])
        for pump in self._pumps:
            pump.cancel()

    def lose_server(self) -> None:
        self._released.clear()
        _abort(self._server[1])
        for pump in self._pumps:
            pump.cancel()

    async def _pump(
        self, way: Way, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        chunks: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_MAX_CHUNKS)
        reading = asyncio.create_task(self._read(way, reader, chunks))
        try:
            await self._write(way, writer, chunks)
        except OSError:
            self.reset()
        finally:
            reading.cancel()

    async def _read(
        self,
        way: Way,
        reader: asyncio.StreamReader,
        chunks: "asyncio.Queue[tuple[float, bytes]]",
    ) -> None:
        now = asyncio.get_running_loop().time
        free_s = now()
        """When the line has passed on what came before."""
        try:
            while True:
                await self._proxy._until_passable(way)
                chunk = await reader.read(self._proxy._chunk_bytes)
                if (bytes_per_s := self._proxy._network.bytes_per_s) is not None:
                    free_s = max(free_s, now() - _SLOW_CHUNK_S) + len(chunk) / bytes_per_s
                    await asyncio.sleep(free_s - now())
                await chunks.put((now() + self._proxy._network.delay_s, chunk))
                if not chunk:
                    return
        except OSError:
            self.reset()

    async def _write(
        self,
        way: Way,
        writer: asyncio.StreamWriter,
        chunks: "asyncio.Queue[tuple[float, bytes]]",
    ) -> None:
        now = asyncio.get_running_loop().time
        while True:
            due_s, chunk = await chunks.get()
            if (pause_s := due_s - now()) > 0:
                await asyncio.sleep(pause_s)
            await self._proxy._until_passable(way)
            if not chunk:
                writer.write_eof()
                return
            chunk, resets = self._proxy._spoil(chunk, way)
            writer.write(chunk)
            await writer.drain()
            if resets:
                self.reset()


def _small(unused: socket.socket) -> socket.socket:
    """Makes a socket that is not connected take little, in segments of the usual size."""
    unused.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
    unused.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, _SEGMENT_BYTES)
    return unused


async def _connect(target: tuple[str, int]) -> Ends:
    upstream = _small(socket.socket())
    upstream.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(upstream, target)
    except OSError:
        upstream.close()
        raise
    return await asyncio.open_connection(sock=upstream, limit=_BUFFER_BYTES)


def _abort(writer: asyncio.StreamWriter) -> None:
    """Closes a connection with a reset instead of an orderly end."""
    sock = writer.get_extra_info("socket")
    if sock is not None and not writer.is_closing():
        with suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
