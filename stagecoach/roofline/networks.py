"""The networks that join boxes: what a message costs on them."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from stagecoach.roofline.named import find_named


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A network whose every box has a full-duplex link of the same speed to one switch."""

    name: str
    """Name that options take: `1gbe`."""
    bits_per_s: float
    """Rate of payload: the line's rate less the headers of Ethernet, IP and TCP."""
    round_trip_s: float
    """Assumed for a small message and its answer, without the software at the ends."""

    def transfer_s(self, num_bytes: float) -> float:
        """Returns the time in which a link passes this many bytes, one way."""
        return num_bytes * 8 / self.bits_per_s


def network_named(name: str) -> Network:
    """Returns the network of that name.

    Raises:
        InvalidArgumentError: It is not in the table; the message names the nearest ones.
    """
    return find_named(NETWORKS, name, field="network")


_TCP_SHARE = 1448 / 1538
"""Payload of a full Ethernet frame over all that passes the line for it: preamble, header, check
sum, gap (38 bytes), IP and TCP headers with time stamps (52)."""


def _network(name: str, line_bits_per_s: float, round_trip_s: float) -> Network:
    return Network(name=name, bits_per_s=line_bits_per_s * _TCP_SHARE, round_trip_s=round_trip_s)


_ALL = (
    # A ping over one switch takes about this long: interrupt moderation is most of it.
    _network("100mbe", 1e8, 400e-6),
    _network("1gbe", 1e9, 200e-6),
    _network("2.5gbe", 2.5e9, 150e-6),
    _network("5gbe", 5e9, 100e-6),
    _network("10gbe", 1e10, 60e-6),
    _network("25gbe", 2.5e10, 30e-6),
    _network("40gbe", 4e10, 30e-6),
    _network("100gbe", 1e11, 20e-6),
    # Everything on one box: the kernel's own copy between two processes.
    Network(name="loopback", bits_per_s=2e10, round_trip_s=30e-6),
)

NETWORKS: Mapping[str, Network] = MappingProxyType({network.name: network for network in _ALL})
"""All of them, by name, slowest first."""
