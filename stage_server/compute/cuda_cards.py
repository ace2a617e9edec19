"""Decides on which device a stage computes, and says why torch cannot use a card that is there.

The CPU is taken only when it is asked for or when there is no card: a stage that computes on the
CPU by surprise is slow, and takes the memory that its weights would have had on the card.
"""

import warnings
from collections.abc import Mapping
from typing import NamedTuple, Self

from stage_server.compute.nvidia_machine import NvidiaMachine
from stagecoach.contract.errors import IncompatibleError
from stagecoach.roofline.capability import Capability
from stagecoach.roofline.torch_builds import (
    OLDER_BUILD,
    OLDER_BUILD_DRIVER,
    PINNED_TORCH,
    TorchBuild,
)

_VISIBLE = "CUDA_VISIBLE_DEVICES"
_CPU = "or give --device cpu to compute without it"
_WHERE = "from NVIDIA's repository or Ubuntu's (Debian's is older)"


class CudaCard(NamedTuple):
    """A card that torch finds."""

    name: str
    capability: Capability


class TorchCuda(NamedTuple):
    """What torch says of itself and of the cards here."""

    build: TorchBuild
    is_rocm: bool
    """True for AMD's build, which calls its cards cuda and has architectures of other names."""
    cards: tuple[CudaCard, ...]
    """Cards by their index; empty when torch cannot use any."""
    failure: str
    """Why it found none, in its own words; may be empty."""

    @classmethod
    def of_this_process(cls) -> Self:
        """Asks torch, which begins to use CUDA."""
        import torch

        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            is_available = torch.cuda.is_available()
        failure = " ".join(str(warning.message) for warning in caught)
        cards: list[CudaCard] = []
        try:
            # device_count alone would count cards whose driver is too old.
            for index in range(torch.cuda.device_count() if is_available else 0):
                capability = Capability(*torch.cuda.get_device_capability(index))
                cards.append(CudaCard(torch.cuda.get_device_name(index), capability))
        except RuntimeError as error:  # CUDA begins here
            cards, failure = [], str(error)
        return cls(
            build=TorchBuild(
                version=torch.__version__,
                cuda=torch.version.cuda,
                architectures=tuple(torch.cuda.get_arch_list()),
            ),
            is_rocm=torch.version.hip is not None,
            cards=tuple(cards),
            failure=failure,
        )


class ChosenDevice(NamedTuple):
    """Where a stage computes."""

    name: str
    """Name that torch has for the device: `cpu` or `cuda:N`."""
    card: CudaCard | None
    """The card; None for the CPU."""


CPU = ChosenDevice("cpu", None)


def choose_device(
    asked: str, torch_cuda: TorchCuda, machine: NvidiaMachine, environment: Mapping[str, str]
) -> ChosenDevice:
    """Returns the device that `--device` stands for, where it is not the CPU that is asked for.

    `auto` and `cuda` are the first card that torch has kernels for. Where no card is, and where
    `CUDA_VISIBLE_DEVICES` hides all of them, `auto` is the CPU.

    Args:
        asked: `auto`, `cuda` or `cuda:N`.
        torch_cuda: What torch finds.
        machine: What the kernel shows.
        environment: Variables of this process.

    Raises:
        IncompatibleError: There is a card, and torch cannot use it, or there is not the one that
            was asked for; says why and what to do.
    """
    if hides_all_cards(environment):
        if asked == "auto":
            return CPU
        raise _refusal(
            asked, f"{_VISIBLE} is {environment[_VISIBLE]!r}, which hides every card: unset it"
        )
    if not torch_cuda.cards:
        if machine.has_card:
            raise _refusal(asked, f"{_why_unusable(torch_cuda, machine, environment)}; {_CPU}")
        if asked == "auto":
            return CPU
        raise _refusal(asked, f"no NVIDIA card is found here, nor by torch {_named(torch_cuda)}")
    if asked in ("auto", "cuda"):
        return _first_usable(asked, torch_cuda)
    index = int(asked.partition(":")[2])
    if index >= len(torch_cuda.cards):
        raise _refusal(asked, f"torch finds {_listed(torch_cuda)}")
    card = torch_cuda.cards[index]
    if not _has_kernels_for(torch_cuda, card):
        raise _refusal(asked, _lacks_kernels(torch_cuda, card))
    return ChosenDevice(f"cuda:{index}", card)


def hides_all_cards(environment: Mapping[str, str]) -> bool:
    """Whether `CUDA_VISIBLE_DEVICES` is empty or begins with a negative number.

    Its list ends at the first entry that is no device.
    """
    first = environment.get(_VISIBLE, "0").partition(",")[0].strip()
    return not first or first.startswith("-")


def _first_usable(asked: str, torch_cuda: TorchCuda) -> ChosenDevice:
    for index, card in enumerate(torch_cuda.cards):
        if _has_kernels_for(torch_cuda, card):
            return ChosenDevice(f"cuda:{index}", card)
    raise _refusal(asked, f"{_lacks_kernels(torch_cuda, torch_cuda.cards[0])}; {_CPU}")


def _has_kernels_for(torch_cuda: TorchCuda, card: CudaCard) -> bool:
    return torch_cuda.is_rocm or torch_cuda.build.has_kernels_for(card.capability)


def _lacks_kernels(torch_cuda: TorchCuda, card: CudaCard) -> str:
    build = torch_cuda.build
    other = OLDER_BUILD if build.is_for_newer_than(card.capability) else "a newer torch"
    return (
        f"{card.name} has compute capability {card.capability}, and torch {_named(torch_cuda)} has "
        f"kernels for {' '.join(build.architectures)} alone: install {other}"
    )


def _why_unusable(
    torch_cuda: TorchCuda, machine: NvidiaMachine, environment: Mapping[str, str]
) -> str:
    """Says why torch finds none of the cards that are here, and what to do."""
    build, driver = torch_cuda.build, machine.driver_version
    if build.cuda is None:
        return (
            f"torch {build.version} is a build without CUDA: install pip's own torch "
            f"{PINNED_TORCH.version}, which needs driver {PINNED_TORCH.min_driver} or newer"
        )
    needed = build.min_driver or "of its CUDA's release"
    if machine.is_wsl and driver is None:
        return (
            f"torch {_named(torch_cuda)} needs NVIDIA's driver {needed} or newer, and Windows' own "
            f"does not serve it{_quoted(torch_cuda)}: install a newer driver in Windows"
        )
    if driver is None and not machine.has_device_files:
        others = sorted({name for name in machine.pci_drivers if name is not None})
        in_charge = f" ({', '.join(others)} has the card)" if others else ""
        return (
            f"NVIDIA's driver is not loaded{in_charge}: install driver {needed} or newer {_WHERE} "
            "and reboot"
        )
    if driver is not None and build.min_driver and _parts(driver) < _parts(build.min_driver):
        older = f", or {OLDER_BUILD}" if _parts(driver) >= _parts(OLDER_BUILD_DRIVER) else ""
        return (
            f"the driver of the card is {driver}, and torch {_named(torch_cuda)} needs {needed} or "
            f"newer: install that driver {_WHERE}{older}"
        )
    if not machine.has_device_files:
        return (
            "the card's files /dev/nvidiactl and /dev/nvidia0 are missing: start a container with "
            "--gpus all (with compose, add compose.gpu.yaml), or run nvidia-modprobe on the host"
        )
    if _VISIBLE in environment:
        return f"{_VISIBLE} is {environment[_VISIBLE]!r}, which is no card that is here"
    return (
        f"torch {_named(torch_cuda)} cannot use the card with driver {driver or 'of unknown age'}"
        f"{_quoted(torch_cuda)}: see whether nvidia-smi shows it, and reboot after a new driver"
    )


def _refusal(asked: str, why: str) -> IncompatibleError:
    return IncompatibleError(f"device {asked}: {why}", device=asked)


def _named(torch_cuda: TorchCuda) -> str:
    build = torch_cuda.build
    return f"{build.version} (CUDA {build.cuda})" if build.cuda else build.version


def _listed(torch_cuda: TorchCuda) -> str:
    cards = (f"cuda:{index} {card.name}" for index, card in enumerate(torch_cuda.cards))
    return f"{len(torch_cuda.cards)}: {', '.join(cards)}"


def _quoted(torch_cuda: TorchCuda) -> str:
    return f" (torch: {torch_cuda.failure})" if torch_cuda.failure else ""


def _parts(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))
