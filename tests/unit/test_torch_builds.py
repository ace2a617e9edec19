"""Which cards a build of torch runs on, and that what is written of the pinned one is true."""

import re
from pathlib import Path

import pytest
import torch

from stagecoach.roofline.capability import Capability
from stagecoach.roofline.devices import GPUS, gpu_named
from stagecoach.roofline.torch_builds import OLDER_BUILD_DRIVER, PINNED_TORCH, TorchBuild

ROOT = Path(__file__).resolve().parents[2]
CU126 = TorchBuild(
    version="2.13.0+cu126",
    cuda="12.6",
    architectures=("sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90"),
)


@pytest.mark.parametrize(
    ("architecture", "capability", "runs"),
    [
        ("sm_86", (8, 6), True),
        ("sm_86", (8, 9), True),  # as Ada does
        ("sm_86", (8, 0), False),
        ("sm_86", (9, 0), False),  # machine code stays within a major version
        ("sm_75", (7, 0), False),
        ("sm_100", (10, 3), True),
        ("sm_120", (12, 0), True),
        ("sm_120", (10, 0), False),
        ("compute_75", (7, 5), True),
        ("compute_75", (12, 0), True),  # PTX goes forward
        ("compute_75", (7, 0), False),
        ("sm_90a", (9, 0), True),
        ("sm_100a", (10, 3), False),
        ("gfx1100", (11, 0), False),
    ],
)
def test_machine_code_runs_within_a_major_version_and_ptx_forward(
    architecture: str, capability: tuple[int, int], runs: bool
) -> None:
    build = TorchBuild("2.13.0", "13.0", (architecture,))
    assert build.has_kernels_for(Capability(*capability)) is runs


def test_a_card_may_be_older_than_a_build_or_newer() -> None:
    assert PINNED_TORCH.is_for_newer_than(Capability(7, 0))
    assert not PINNED_TORCH.is_for_newer_than(Capability(7, 5))
    assert not PINNED_TORCH.is_for_newer_than(Capability(13, 0))
    assert not PINNED_TORCH.has_kernels_for(Capability(13, 0))


def test_each_cuda_says_which_driver_it_needs() -> None:
    assert (PINNED_TORCH.min_driver, CU126.min_driver) == ("580.65", OLDER_BUILD_DRIVER)
    assert TorchBuild("2.13.0+cpu", None, ()).min_driver is None
    assert TorchBuild("9.0.0", "14.1", ()).min_driver is None


def test_the_pinned_build_is_the_pinned_version() -> None:
    pin = re.search(r"^torch==(.+)$", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE)
    assert pin is not None
    assert pin[1] == PINNED_TORCH.version


@pytest.mark.skipif(torch.version.cuda is None, reason="this build of torch has no CUDA")
def test_the_installed_build_is_as_written() -> None:
    assert torch.version.cuda == PINNED_TORCH.cuda
    assert torch.__version__.partition("+")[0] == PINNED_TORCH.version
    # get_arch_list is empty where no card is.
    flags = torch._C._cuda_getArchFlags()
    assert flags is not None
    assert tuple(flags.split()) == PINNED_TORCH.architectures


def test_pascal_and_volta_need_the_older_build_and_no_other_card_does() -> None:
    older = {"gtx-1060-6gb", "gtx-1070-8gb", "gtx-1080-8gb", "gtx-1080-ti-11gb", "p40-24gb"}
    older |= {"p100-16gb", "v100-16gb", "v100-32gb"}
    assert {name for name, gpu in GPUS.items() if not gpu.runs_pinned_torch} == older
    assert all(CU126.has_kernels_for(gpu_named(name).capability) for name in older)


@pytest.mark.parametrize(
    ("name", "capability"),
    [
        ("p100-16gb", "6.0"),
        ("p40-24gb", "6.1"),
        ("v100-32gb", "7.0"),
        ("t4-16gb", "7.5"),
        ("a100-40gb", "8.0"),
        ("rtx-3060-12gb", "8.6"),
        ("l4-24gb", "8.9"),
        ("h200-141gb", "9.0"),
        ("rtx-5090-32gb", "12.0"),
    ],
)
def test_cards_have_the_capabilities_of_their_architectures(name: str, capability: str) -> None:
    assert str(gpu_named(name).capability) == capability
