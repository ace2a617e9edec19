"""The check of the device itself: what it is, how fast its memory is, and how attention reads."""

import platform
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version

import torch

from benchmarks.gpu_check.bandwidth import nominal_bytes_per_s, read_bytes_per_s
from benchmarks.gpu_check.checks import CPU, DEVICE_FACT
from benchmarks.gpu_check.messages import Fact
from benchmarks.gpu_check.report import Figure, Limit
from benchmarks.gpu_check.subject import Subject
from stage_server.compute.kernel_check import failure_of
from stage_server.compute.nvidia_machine import NvidiaMachine
from stage_server.kernels.kernels import Kernels
from stage_server.model.lean_blueprint import LeanBlueprint
from stagecoach.contract.layer_range import LayerRange
from stagecoach.contract.precision import DType, Precision
from stagecoach.model_files import open_model
from stagecoach.roofline.kv_memory import KV_BLOCK_SIZE
from tests.shapes_only import ShapesOnly

_FLOAT16 = Precision.uniform(DType.FLOAT16)

_BANDWIDTH = "read bandwidth"
_ATTENTION = "a Llama of 1.1 B runs by kernels"

_SHARE_OF_NOMINAL = 0.7
"""Sums and copies reach 85 to 95 % of what the clock allows on cards of every kind; one that does
not reach this is throttled, or something else uses its memory."""

_LEAST_BYTES_PER_S = 200e9
"""Where the driver does not tell the clock: less than any card of the planner's table that the
pinned torch runs on."""

_NUM_BYTES = 1 << 29
_NUM_QUICK_BYTES = 1 << 24


def names(_: Subject) -> Sequence[str]:
    """Names the rows."""
    return [_BANDWIDTH, _ATTENTION]


def figures(subject: Subject) -> Iterator[Figure | Fact]:
    """Describes the device and measures it."""
    yield from _facts(subject)
    yield _bandwidth(subject)
    reason = _why_no_kernels(subject.device) if subject.is_card else "the CPU has none"
    text = "kernel" if reason is None else f"gather, because of this: {reason}"
    yield Fact("attention", text)
    yield Figure(
        _ATTENTION,
        float(reason is None),
        "of 1",
        Limit(least=1),
        note=reason or "",
        is_of_cards=True,
    )


def _facts(subject: Subject) -> Iterator[Fact]:
    card = subject.chosen.card
    if card is None:
        yield Fact(DEVICE_FACT, CPU)
    else:
        _, total_bytes = torch.cuda.mem_get_info(subject.device)
        yield Fact(DEVICE_FACT, f"{subject.chosen.name} {card.name}")
        yield Fact("compute capability", str(card.capability))
        yield Fact("memory", f"{total_bytes / 2**30:.2f} GiB")
        yield Fact("driver", NvidiaMachine.look().driver_version or "its version is not shown")
    cuda = torch.version.cuda
    yield Fact("torch", f"{torch.__version__}" + (f", CUDA {cuda}" if cuda else ""))
    yield Fact("triton", _version_of("triton"))
    yield Fact("transformers", _version_of("transformers"))
    yield Fact("python", platform.python_version())


def _bandwidth(subject: Subject) -> Figure:
    num_bytes = _NUM_QUICK_BYTES if subject.is_quick else _NUM_BYTES
    found = read_bytes_per_s(subject.device, num_bytes)
    nominal = nominal_bytes_per_s(subject.device) if subject.is_card else None
    note = "the driver does not tell the memory's clock"
    least = _LEAST_BYTES_PER_S
    if nominal is not None:
        note = f"{found / nominal:.0%} of the {nominal / 1e9:.0f} GB/s at the memory's clock"
        least = _SHARE_OF_NOMINAL * nominal
    limit = Limit(least=least / 1e9)
    return Figure(
        _BANDWIDTH, found / 1e9, "GB/s", limit, note if subject.is_card else "", is_of_cards=True
    )


def _why_no_kernels(device: torch.device) -> str | None:
    """What is wrong with the kernels of a Llama of 1.1 B in float16; None: nothing."""
    files = ShapesOnly("llama-1b", open_model("shape:llama-1b").config)
    blueprint = LeanBlueprint(files, LayerRange(0, 1))
    return failure_of(Kernels.of(device), blueprint, KV_BLOCK_SIZE, _FLOAT16, device)


def _version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
