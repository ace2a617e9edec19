"""Which device each stage server of a cluster on one machine takes, and how much of its memory."""

from collections import Counter
from dataclasses import dataclass
from typing import Self

from stagecoach.contract.errors import InvalidArgumentError


@dataclass(frozen=True, slots=True)
class DeviceTurns:
    """Devices that stage servers take by turns.

    Servers on one card get equal shares of its memory: each would else take what is free when it
    has loaded, and leave nothing to the next.

    Args:
        devices: As `stage-server --device` takes them; None: what each server takes by itself.
        num_servers: Servers that compute on devices of this machine.
    """

    devices: tuple[str | None, ...]
    num_servers: int

    @classmethod
    def parse(cls, text: str | None, num_servers: int) -> Self:
        """Reads a list such as `cuda:0,cuda:1`; None: servers take a device by themselves.

        Raises:
            InvalidArgumentError: A name in the list is empty.
        """
        if text is None:
            return cls((None,), num_servers)
        devices = tuple(name.strip() for name in text.split(","))
        if not all(devices):
            raise InvalidArgumentError(
                f"device {text!r} is not one device, nor several such as cuda:0,cuda:1",
                field="device",
            )
        return cls(devices, num_servers)

    def arguments(self, server: int) -> tuple[str, ...]:
        """The flags of one stage server.

        Args:
            server: Place of the server among all of them, from 0.
        """
        device = self._device_of(server)
        num_on = Counter(_card(self._device_of(other)) for other in range(self.num_servers))
        num_sharing = num_on[_card(device)]
        return (
            *(("--device", device) if device else ()),
            *(("--device-share", f"{10_000 // num_sharing / 10_000}") if num_sharing > 1 else ()),
        )

    def _device_of(self, server: int) -> str | None:
        return self.devices[server % len(self.devices)]


def _card(device: str | None) -> str:
    """The card that a device names; `auto` is the first that can be used, most often this one."""
    return "cuda:0" if device in (None, "auto", "cuda") else device


OWN_CHOICE = DeviceTurns((None,), 1)
"""Each server chooses for itself, and shares with none."""
