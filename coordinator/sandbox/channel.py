"""The coordinator's end of a socket to a sandboxed process."""

import asyncio
import os
import socket
from collections import deque
from collections.abc import Callable

from coordinator.sandbox.frames import Frame, FrameReader

_READ_BYTES = 1 << 18

OnFrame = Callable[[Frame, int | None], None]
"""Takes a frame and the descriptor that came with it, which is then the taker's."""
OnEnd = Callable[[bytes], None]
"""Takes what came at the end and is no frame."""


class Channel:
    """Sends bytes and descriptors without ever waiting; tells what comes back. Event loop only.

    Args:
        sock: Owned by the channel from now on.
        on_frame: Called for each frame.
        on_end: Called once, when the other end is closed; not after `close`.
    """

    def __init__(self, sock: socket.socket, on_frame: OnFrame, on_end: OnEnd) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._on_frame = on_frame
        self._on_end = on_end
        self._frames = FrameReader()
        self._fds: deque[int] = deque()
        self._unsent: deque[tuple[memoryview, tuple[int, ...]]] = deque()
        self._is_closed = False
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock.fileno(), self._read)

    def send(self, data: bytes, fd: int | None = None) -> None:
        """Sends bytes, now or when there is room; does nothing once it is closed.

        Args:
            data: A frame.
            fd: A descriptor to go with it, which is closed once it is sent.
        """
        if self._is_closed:
            if fd is not None:
                os.close(fd)
            return
        is_idle = not self._unsent
        self._unsent.append((memoryview(data), () if fd is None else (fd,)))
        if is_idle and not self._send_all():
            self._loop.add_writer(self._socket.fileno(), self._go_on)

    def close(self) -> None:
        """Ends the process on the other side, unless it is at work. May be called again."""
        if self._is_closed:
            return
        self._is_closed = True
        self._loop.remove_reader(self._socket.fileno())
        self._loop.remove_writer(self._socket.fileno())
        self._socket.close()
        for _, fds in self._unsent:
            for fd in fds:
                os.close(fd)
        for fd in self._fds:
            os.close(fd)
        self._unsent.clear()
        self._fds.clear()

    def _go_on(self) -> None:
        if self._send_all():
            self._loop.remove_writer(self._socket.fileno())

    def _send_all(self) -> bool:
        """Sends as much as there is room for; True when that is all."""
        while self._unsent:
            data, fds = self._unsent[0]
            try:
                num_sent = (
                    socket.send_fds(self._socket, [data], fds) if fds else self._socket.send(data)
                )
            except BlockingIOError:
                return False
            except ConnectionError:  # `_read` hears of it
                num_sent = len(data)
            for fd in fds:
                os.close(fd)
            if num_sent == len(data):
                self._unsent.popleft()
            else:
                self._unsent[0] = (data[num_sent:], ())
        return True

    def _read(self) -> None:
        try:
            data, fds, _, _ = socket.recv_fds(self._socket, _READ_BYTES, 1)
        except BlockingIOError:
            return
        except ConnectionError:
            data, fds = b"", []
        self._fds.extend(fds)
        self._frames.push(data)
        while not self._is_closed and (frame := self._frames.next()) is not None:
            self._on_frame(frame, self._fds.popleft() if self._fds else None)
        if not data and not self._is_closed:
            rest = self._frames.rest
            self.close()
            self._on_end(rest)
