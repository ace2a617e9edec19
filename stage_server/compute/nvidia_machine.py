"""What this machine shows of NVIDIA cards without torch: PCI, the kernel driver, device files."""

import re
from pathlib import Path
from typing import NamedTuple, Self

_NVIDIA = "0x10de"
_DISPLAY = "0x03"
"""PCI's base class of display controllers, to which cards that drive no screen belong too."""

_DRIVER_VERSION = re.compile(r"^NVRM version: .*?Kernel.*?\s(\d{3,}(?:\.\d+)+)\s", re.MULTILINE)
"""Finds the version in /proc/driver/nvidia/version. The open kernel modules word their line in
another order, and have changed it."""


class NvidiaMachine(NamedTuple):
    """Signs of NVIDIA cards."""

    driver_version: str | None
    """Version of NVIDIA's kernel driver, such as 535.261.03; None: it is not loaded."""
    pci_drivers: tuple[str | None, ...]
    """Kernel driver in charge of each card on the PCI bus, such as nouveau; None: there is none."""
    has_device_files: bool
    """True when programs can reach a card: a container has the files only if it was given one."""
    is_wsl: bool
    """True under Windows' subsystem for Linux with Windows' driver, whose version is not shown."""

    @classmethod
    def look(cls, root: Path = Path("/")) -> Self:
        """Reads what the kernel shows.

        Args:
            root: Folder that stands for `/`.
        """
        return cls(
            driver_version=_driver_version(root / "proc/driver/nvidia/version"),
            pci_drivers=tuple(_pci_drivers(root / "sys/bus/pci/devices")),
            has_device_files=_has_device_files(root / "dev"),
            is_wsl=runs_on_wsl(root) and (root / "usr/lib/wsl/lib/libcuda.so.1").exists(),
        )

    @property
    def has_card(self) -> bool:
        """Whether anything shows that there is a card."""
        return bool(self.driver_version or self.pci_drivers or self.has_device_files or self.is_wsl)


def runs_on_wsl(root: Path = Path("/")) -> bool:
    """Whether this is Windows' subsystem for Linux, with any graphics card."""
    return (root / "dev/dxg").exists()


def _driver_version(path: Path) -> str | None:
    try:
        match = _DRIVER_VERSION.search(path.read_text())
    except OSError:
        return None
    return match and match[1]


def _pci_drivers(devices: Path) -> list[str | None]:
    found: list[str | None] = []
    for device in sorted(devices.glob("*")):
        try:
            vendor, kind = ((device / name).read_text().strip() for name in ("vendor", "class"))
        except OSError:
            continue
        if vendor == _NVIDIA and kind.startswith(_DISPLAY):
            driver = device / "driver"
            found.append(driver.resolve().name if driver.exists() else None)
    return found


def _has_device_files(dev: Path) -> bool:
    return (dev / "nvidiactl").exists() and any(
        path.name.removeprefix("nvidia").isdigit() for path in dev.glob("nvidia*")
    )
