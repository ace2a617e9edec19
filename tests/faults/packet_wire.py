"""A wire between network namespaces that is as slow and as bad as it is told: packets, not bytes.

Where the fault proxy ends TCP connections, here the kernel's own TCP runs over the bad network,
with its losses, time-outs and full queues. Each namespace has a TUN device whose packets pass
through a thread of this process. Needs root, `ip` and /dev/net/tun, and no module for traffic
control.
"""

import ctypes
import fcntl
import heapq
import os
import random
import select
import shutil
import struct
import subprocess
import threading
import time
from dataclasses import dataclass
from itertools import count
from types import TracebackType
from typing import Self

_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_CLONE_NEWNET = 0x40000000
_TARGET_OFFSET, _TARGET_END = 16, 20
"""Of an IPv4 header."""
_PACKET_BYTES = 1500
_POLL_S = 0.02
_SUBNET = "10.78.0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """What lies between a machine and the switch, in either direction."""

    bits_per_s: float = 1e9
    delay_s: float = 0.0
    jitter_s: float = 0.0
    """At most so much more, at random; packets keep their order."""
    loss: float = 0.0
    """Share of packets that never arrive."""
    queue_s: float = 0.5
    """A packet that would wait longer for the line is dropped."""
    is_down: bool = False
    """Nothing passes."""


def missing() -> str | None:
    """Why this machine cannot have such a wire; None when it can."""
    if os.geteuid() != 0:
        return "needs root, to make network namespaces"
    if shutil.which("ip") is None:
        return "needs ip, of the package iproute2"
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return "needs /dev/net/tun"
    made = subprocess.run(["ip", "netns", "add", f"stagecoach-{os.getpid()}"], check=False)
    if made.returncode != 0:
        return "needs to make network namespaces"
    subprocess.run(["ip", "netns", "delete", f"stagecoach-{os.getpid()}"], check=True)
    return None


class PacketWire:
    """Machines, each a network namespace with one address, on one switch.

    Args:
        num_machines: How many.
    """

    def __init__(self, num_machines: int) -> None:
        prefix = f"stagecoach-{os.getpid()}-{next(_num_wires)}"
        self._names = [f"{prefix}-{index}" for index in range(num_machines)]
        self.addresses = [f"{_SUBNET}.{index + 1}" for index in range(num_machines)]
        self._lines = [Line()] * num_machines
        self._devices: list[int] = []
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._carry, name="wire", daemon=True)
        try:
            for name, address in zip(self._names, self.addresses, strict=True):
                _ip("netns", "add", name)
                self._devices.append(_new_device(name))
                _ip("-n", name, "address", "add", f"{address}/24", "dev", "wire")
                _ip("-n", name, "link", "set", "wire", "up")
                _ip("-n", name, "link", "set", "lo", "up")
        except BaseException:
            self._take_down()
            raise
        self._thread.start()

    def on(self, index: int) -> list[str]:
        """What a command begins with to run on this machine."""
        return ["ip", "netns", "exec", self._names[index]]

    def become(self, line: Line, *indices: int) -> None:
        """Changes the lines of some machines, or of all; for packets that come from now on."""
        for index in indices or range(len(self._lines)):
            self._lines[index] = line

    def close(self) -> None:
        """Takes everything down."""
        self._is_over.set()
        self._thread.join()
        self._take_down()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _take_down(self) -> None:
        for device in self._devices:
            os.close(device)
        for name in self._names:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)

    def _carry(self) -> None:
        """Takes packets off the devices and hands each to its target when it has passed."""
        chance = random.Random(0)
        targets = {
            bytes(map(int, address.split("."))): index
            for index, address in enumerate(self.addresses)
        }
        index_of = {device: index for index, device in enumerate(self._devices)}
        ways = {(index, is_up): _Way() for index in index_of.values() for is_up in (True, False)}
        order = count()
        on_their_way: list[tuple[float, int, int, bytes]] = []
        while not self._is_over.is_set():
            pause_s = _POLL_S
            if on_their_way:
                pause_s = min(pause_s, max(0.0, on_their_way[0][0] - time.monotonic()))
            readable, _, _ = select.select(self._devices, [], [], pause_s)
            for device in readable:
                packet = os.read(device, _PACKET_BYTES)
                source = index_of[device]
                target = targets.get(packet[_TARGET_OFFSET:_TARGET_END])
                if target is None:  # IPv6 and broadcasts
                    continue
                at_s: float | None = time.monotonic()
                for index, is_up in ((source, True), (target, False)):
                    if at_s is not None:
                        way = ways[index, is_up]
                        at_s = way.passes(len(packet), at_s, self._lines[index], chance)
                if at_s is not None:
                    heapq.heappush(on_their_way, (at_s, next(order), target, packet))
            while on_their_way and on_their_way[0][0] <= time.monotonic():
                _, _, target, packet = heapq.heappop(on_their_way)
                os.write(self._devices[target], packet)


class _Way:
    """One direction of a line."""

    def __init__(self) -> None:
        self._free_s = 0.0
        self._last_s = 0.0

    def passes(
        self, num_bytes: int, at_s: float, line: Line, chance: random.Random
    ) -> float | None:
        """When a packet that comes now is through; None when it never is."""
        begins_s = max(at_s, self._free_s)
        if line.is_down or chance.random() < line.loss or begins_s - at_s > line.queue_s:
            return None
        self._free_s = begins_s + 8 * num_bytes / line.bits_per_s
        through_s = self._free_s + line.delay_s + chance.random() * line.jitter_s
        self._last_s = max(self._last_s, through_s)
        return self._last_s


_num_wires = count()


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def _new_device(namespace: str) -> int:
    """Makes the device `wire` in a namespace; it is there as long as the descriptor is open."""
    made: list[int] = []
    problems: list[OSError] = []

    def make() -> None:
        """In a thread of its own, which alone changes its namespace."""
        libc = ctypes.CDLL(None, use_errno=True)
        try:
            with open(f"/run/netns/{namespace}") as network:
                if libc.setns(network.fileno(), _CLONE_NEWNET) != 0:
                    raise OSError(ctypes.get_errno(), "setns")
            device = os.open("/dev/net/tun", os.O_RDWR)
            made.append(device)
            fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH", b"wire", _IFF_TUN | _IFF_NO_PI))
        except OSError as error:
            problems.append(error)

    thread = threading.Thread(target=make, name="device")
    thread.start()
    thread.join()
    if problems:
        for device in made:
            os.close(device)
        raise problems[0]
    return made[0]
