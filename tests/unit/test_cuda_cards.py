"""The first start on a box with a card: what is chosen, and what is said where torch cannot.

Machines are folders that stand for `/`, with texts of real ones. No card is needed.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import torch

from stage_server.compute import devices, torch_engine
from stage_server.compute.cuda_cards import (
    CPU,
    ChosenDevice,
    CudaCard,
    TorchCuda,
    choose_device,
    hides_all_cards,
)
from stage_server.compute.cuda_environment import prepare_cuda
from stage_server.compute.devices import precision_on, take_device
from stage_server.compute.nvidia_machine import NvidiaMachine
from stage_server.core.config import StageConfig
from stage_server.model.cpu_grouped_rows import CpuRows
from stage_server.model.cuda_grouped_rows import CudaRows
from stage_server.process.build_engine import build_engine
from stagecoach.contract.errors import IncompatibleError
from stagecoach.contract.layer_range import LayerRange
from stagecoach.contract.precision import INT4, INT8, DType, Encoding, KvFormat, Precision
from stagecoach.model_files import open_model
from stagecoach.model_files.config import parse_config
from stagecoach.roofline.capability import Capability
from stagecoach.roofline.torch_builds import PINNED_TORCH, TorchBuild

ROOT = Path(__file__).resolve().parents[2]

DEBIAN_12 = """\
NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.261.03  Mon Jul 14 05:25:14 UTC 2025
GCC version:  gcc version 12.2.0 (Debian 12.2.0-14+deb12u1)
"""
DEBIAN_13 = """\
NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.163.01  Tue Apr  8 12:41:17 UTC 2025
GCC version:  gcc version 14.2.0 (Debian 14.2.0-19)
"""
OPEN = """\
NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build  (dvs-builder@U22)
GCC version:  gcc version 13.3.0 (Ubuntu 13.3.0-6ubuntu2~24.04)
"""
OPEN_590 = """\
NVRM version: NVIDIA UNIX Open Kernel x86_64 Kernel Module  590.48.01  Mon Dec  8 11:22:45 UTC 2025
"""
ANCIENT = (
    "NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.256.02  Thu May  2 14:37:44 UTC 2024\n"
)
UBUNTU = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul 27 07:11:09 UTC 2025\n"

RTX_3060 = CudaCard("NVIDIA GeForce RTX 3060", Capability(8, 6))
GTX_1060 = CudaCard("NVIDIA GeForce GTX 1060 6GB", Capability(6, 1))
FUTURE = CudaCard("NVIDIA GeForce RTX 9090", Capability(14, 0))

Box = Callable[..., NvidiaMachine]


@pytest.fixture
def box(tmp_path: Path) -> Box:
    """Builds a machine in a folder and looks at it."""

    def build(
        *,
        driver: str | None = None,
        cards: Mapping[str, tuple[str, str, str | None]] | None = None,
        files: tuple[str, ...] = (),
    ) -> NvidiaMachine:
        """Makes the files; `cards` has vendor, class and driver by their address on the bus."""
        if driver is not None:
            write(tmp_path / "proc/driver/nvidia/version", driver)
        for address, (vendor, kind, in_charge) in (cards or {}).items():
            device = tmp_path / "sys/bus/pci/devices" / address
            write(device / "vendor", f"{vendor}\n")
            write(device / "class", f"{kind}\n")
            if in_charge is not None:
                module = tmp_path / "sys/bus/pci/drivers" / in_charge
                module.mkdir(parents=True, exist_ok=True)
                (device / "driver").symlink_to(module)
        for name in files:
            write(tmp_path / name, "")
        return NvidiaMachine.look(tmp_path)

    return build


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


CARD = {"0000:01:00.0": ("0x10de", "0x030000", "nvidia")}
DEVICE_FILES = ("dev/nvidia0", "dev/nvidiactl", "dev/nvidia-uvm")


def torch_with(
    *cards: CudaCard, build: TorchBuild = PINNED_TORCH, is_rocm: bool = False, failure: str = ""
) -> TorchCuda:
    return TorchCuda(build=build, is_rocm=is_rocm, cards=cards, failure=failure)


def refusal(
    asked: str,
    torch_cuda: TorchCuda,
    machine: NvidiaMachine,
    environment: Mapping[str, str] | None = None,
) -> str:
    with pytest.raises(IncompatibleError) as caught:
        choose_device(asked, torch_cuda, machine, environment or {})
    message = caught.value.message
    assert message.startswith(f"device {asked}: ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("text", "version"),
    [
        (DEBIAN_12, "535.261.03"),
        (DEBIAN_13, "550.163.01"),
        (OPEN, "580.95.05"),
        (OPEN_590, "590.48.01"),
        (UBUNTU, "580.65.06"),
        ("something else\n", None),
    ],
)
def test_the_version_of_the_driver_is_read_in_all_its_forms(
    text: str, version: str | None, box: Box
) -> None:
    assert box(driver=text).driver_version == version


def test_a_machine_without_a_card_computes_on_its_cpu(box: Box) -> None:
    machine = box(
        cards={
            "0000:00:02.0": ("0x8086", "0x030000", "i915"),
            "0000:01:00.1": ("0x10de", "0x040300", "snd_hda_intel"),  # sound
            "0000:02:00.0": ("0x1002", "0x030000", "amdgpu"),
        },
        files=("dev/dxg", "dev/nvidia-caps/nvidia-cap1"),  # WSL with a card of another vendor
    )
    assert not machine.has_card
    assert choose_device("auto", torch_with(), machine, {}) == CPU
    assert "no NVIDIA card is found here" in refusal("cuda", torch_with(), machine)


@pytest.mark.parametrize(
    "signs",
    [
        {"driver": UBUNTU},
        {"cards": CARD},
        {"cards": {"0000:3b:00.0": ("0x10de", "0x030200", None)}},  # drives no screen
        {"files": DEVICE_FILES},
        {"files": ("dev/dxg", "usr/lib/wsl/lib/libcuda.so.1")},
    ],
    ids=["driver", "bus", "3D controller", "device files", "WSL"],
)
@pytest.mark.parametrize("asked", ["auto", "cuda", "cuda:0"])
def test_each_sign_of_a_card_that_torch_cannot_use_is_an_error(
    asked: str, signs: dict[str, object], box: Box
) -> None:
    message = refusal(asked, torch_with(), box(**signs))
    assert message.endswith("; or give --device cpu to compute without it")


def test_the_cpu_is_taken_when_it_is_asked_for_and_cuda_is_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def begin() -> bool:
        raise AssertionError("asked for a card")

    monkeypatch.setattr(torch.cuda, "is_available", begin)
    assert take_device("cpu") == CPU


@pytest.mark.parametrize("visible", ["", " ", "-1", "-1,0"])
def test_hiding_all_cards_asks_for_the_cpu(visible: str, box: Box) -> None:
    machine = box(driver=UBUNTU, cards=CARD, files=DEVICE_FILES)
    hidden = {"CUDA_VISIBLE_DEVICES": visible}
    assert choose_device("auto", torch_with(), machine, hidden) == CPU
    assert "hides every card: unset it" in refusal("cuda", torch_with(), machine, hidden)


@pytest.mark.parametrize("visible", ["0", "1,-1", "GPU-8932f937"])
def test_naming_a_card_hides_only_the_others(visible: str) -> None:
    assert not hides_all_cards({"CUDA_VISIBLE_DEVICES": visible})
    assert not hides_all_cards({})


def test_naming_a_card_that_is_not_here_is_said(box: Box) -> None:
    machine = box(driver=UBUNTU, cards=CARD, files=DEVICE_FILES)
    message = refusal("auto", torch_with(), machine, {"CUDA_VISIBLE_DEVICES": "7"})
    assert "CUDA_VISIBLE_DEVICES is '7', which is no card that is here" in message


def test_a_build_of_torch_without_cuda_is_said(box: Box) -> None:
    machine = box(driver=UBUNTU, cards=CARD, files=DEVICE_FILES)
    without = torch_with(build=TorchBuild("2.13.0+cpu", None, ()))
    assert refusal("auto", without, machine) == (
        "device auto: torch 2.13.0+cpu is a build without CUDA: install pip's own torch 2.13.0, "
        "which needs driver 580.65 or newer; or give --device cpu to compute without it"
    )


def test_a_driver_that_is_not_loaded_is_said_with_the_one_that_is(box: Box) -> None:
    machine = box(cards={"0000:01:00.0": ("0x10de", "0x030000", "nouveau")})
    assert refusal("auto", torch_with(), machine) == (
        "device auto: NVIDIA's driver is not loaded (nouveau has the card): install driver 580.65 "
        "or newer from NVIDIA's repository or Ubuntu's (Debian's is older) and reboot; or give "
        "--device cpu to compute without it"
    )


@pytest.mark.parametrize(
    ("text", "version"), [(DEBIAN_12, "535.261.03"), (DEBIAN_13, "550.163.01")]
)
def test_debians_driver_is_too_old_for_the_pinned_torch(text: str, version: str, box: Box) -> None:
    machine = box(driver=text, cards=CARD, files=DEVICE_FILES)
    assert refusal("auto", torch_with(), machine) == (
        f"device auto: the driver of the card is {version}, and torch 2.13.0 (CUDA 13.0) needs "
        "580.65 or newer: install that driver from NVIDIA's repository or Ubuntu's (Debian's is "
        "older), or torch of PyTorch's cu126 index; or give --device cpu to compute without it"
    )


def test_a_driver_that_no_build_runs_on_has_one_remedy(box: Box) -> None:
    machine = box(driver=ANCIENT, cards=CARD, files=DEVICE_FILES)
    assert "cu126" not in refusal("auto", torch_with(), machine)
    older = torch_with(build=TorchBuild("2.13.0+cu126", "12.6", ("sm_60",)))
    assert "needs 525.60 or newer" in refusal("auto", older, machine)


def test_a_container_without_the_cards_files_is_told_how_to_get_them(box: Box) -> None:
    machine = box(driver=UBUNTU, cards=CARD)
    assert "start a container with --gpus all" in refusal("auto", torch_with(), machine)


def test_windows_driver_is_to_be_renewed_in_windows(box: Box) -> None:
    machine = box(files=("dev/dxg", "usr/lib/wsl/lib/libcuda.so.1"))
    message = refusal("auto", torch_with(failure="driver too old (found version 12080)"), machine)
    assert "(torch: driver too old (found version 12080))" in message
    assert "install a newer driver in Windows" in message


def test_what_has_no_words_of_its_own_quotes_torch(box: Box) -> None:
    machine = box(driver=OPEN, cards=CARD, files=DEVICE_FILES)
    message = refusal("auto", torch_with(failure="CUDA unknown error"), machine)
    assert "with driver 580.95.05 (torch: CUDA unknown error)" in message
    # Of a CUDA whose driver is not known here.
    later = torch_with(build=TorchBuild("9.0.0", "14.0", ("sm_120",)))
    assert "torch 9.0.0 (CUDA 14.0) cannot use the card" in refusal("auto", later, machine)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("auto", ChosenDevice("cuda:0", RTX_3060)),
        ("cuda", ChosenDevice("cuda:0", RTX_3060)),
        ("cuda:1", ChosenDevice("cuda:1", RTX_3060)),
    ],
)
def test_cards_that_torch_can_use_are_taken(asked: str, expected: ChosenDevice, box: Box) -> None:
    assert choose_device(asked, torch_with(RTX_3060, RTX_3060), box(), {}) == expected


def test_an_index_without_a_card_is_refused_with_those_that_are_here(box: Box) -> None:
    message = refusal("cuda:1", torch_with(RTX_3060), box())
    assert message.endswith("torch finds 1: cuda:0 NVIDIA GeForce RTX 3060")


@pytest.mark.parametrize("asked", ["auto", "cuda"])
def test_a_card_older_than_the_build_is_refused_before_anything_is_loaded(
    asked: str, box: Box
) -> None:
    message = refusal(asked, torch_with(GTX_1060), box())
    assert (
        "NVIDIA GeForce GTX 1060 6GB has compute capability 6.1, and torch 2.13.0 (CUDA 13.0) has "
        "kernels for sm_75 sm_80 sm_86 sm_90 sm_100 sm_120 alone: install torch of PyTorch's cu126 "
        "index"
    ) in message


def test_a_card_newer_than_the_build_needs_a_newer_torch(box: Box) -> None:
    assert "alone: install a newer torch" in refusal("auto", torch_with(FUTURE), box())


@pytest.mark.parametrize("asked", ["auto", "cuda"])
def test_a_card_without_kernels_is_passed_over(asked: str, box: Box) -> None:
    mixed = torch_with(GTX_1060, RTX_3060)
    assert choose_device(asked, mixed, box(), {}) == ChosenDevice("cuda:1", RTX_3060)
    assert "compute capability 6.1" in refusal("cuda:0", mixed, box())


def test_amds_build_is_left_to_judge_its_cards(box: Box) -> None:
    build = TorchBuild("2.13.0+rocm7.0", None, ("gfx1100",))
    card = CudaCard("AMD Radeon RX 7900 XTX", Capability(11, 0))
    rocm = torch_with(card, build=build, is_rocm=True)
    assert choose_device("auto", rocm, box(), {}) == ChosenDevice("cuda:0", card)


def test_torch_is_asked_without_a_word_on_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    found = TorchCuda.of_this_process()
    assert found.build.version == torch.__version__
    assert len(found.cards) == (torch.cuda.device_count() if torch.cuda.is_available() else 0)
    assert capfd.readouterr() == ("", "")


def test_cards_that_only_the_drivers_library_counts_are_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """torch counts by NVML, which also sees cards whose driver is too old for CUDA."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert TorchCuda.of_this_process().cards == ()


def test_a_card_on_which_cuda_does_not_begin_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_index: int) -> tuple[int, int]:
        raise RuntimeError("CUDA unknown error")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", refuse)
    found = TorchCuda.of_this_process()
    assert (found.cards, found.failure) == ((), "CUDA unknown error")


@pytest.fixture
def _usual_sums() -> Iterator[None]:
    """Starts from torch's own switches, and gives them back."""
    matmul = torch.backends.cuda.matmul
    before = (
        matmul.allow_fp16_reduced_precision_reduction,
        matmul.allow_bf16_reduced_precision_reduction,
    )
    matmul.allow_fp16_reduced_precision_reduction = True
    matmul.allow_bf16_reduced_precision_reduction = True
    yield
    (
        matmul.allow_fp16_reduced_precision_reduction,
        matmul.allow_bf16_reduced_precision_reduction,
    ) = before


@pytest.mark.usefixtures("_usual_sums")
@pytest.mark.parametrize("name", ["cpu", "cuda:1"])
def test_the_device_becomes_that_of_the_thread_and_sums_stay_in_float32(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = CPU if name == "cpu" else ChosenDevice(name, RTX_3060)
    current: list[str] = []
    monkeypatch.setattr(devices, "choose_device", lambda *_: chosen)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    assert take_device("auto") == chosen
    assert current == ([] if name == "cpu" else [name])
    assert torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction is False
    assert torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction is False


GEMMA = parse_config({"model_type": "gemma2", "dtype": "bfloat16"})
ON_CPU = Precision.uniform(DType.FLOAT32)
FLOAT16_ON_CPU = ON_CPU._replace(weights=Encoding.plain(DType.FLOAT16))
"""It keeps float16 and computes in float32, so that nothing overflows."""


def test_the_cpu_computes_in_float32_unless_told_otherwise() -> None:
    assert precision_on(CPU, "auto", GEMMA) == FLOAT16_ON_CPU
    assert precision_on(CPU, "float32", GEMMA) == ON_CPU
    assert precision_on(CPU, "bfloat16", GEMMA) == Precision.uniform(DType.BFLOAT16)
    assert precision_on(CPU, "float16", GEMMA) == FLOAT16_ON_CPU


@pytest.mark.parametrize("kv_format", KvFormat)
def test_kv_is_kept_as_asked_for_whatever_else_is(kv_format: KvFormat) -> None:
    found = precision_on(CPU, "auto", GEMMA, weights="int8", kv_dtype=kv_format)
    assert found == ON_CPU._replace(weights=INT8, kv=kv_format)


@pytest.mark.parametrize(
    ("dtype", "weights", "expected"),
    [
        ("auto", "auto", ON_CPU._replace(weights=INT4)),
        ("float32", "auto", ON_CPU),
        ("float16", "auto", FLOAT16_ON_CPU),
        ("auto", "int8", ON_CPU._replace(weights=INT8)),
        ("float32", "int4", ON_CPU._replace(weights=INT4)),
        ("auto", "float16", FLOAT16_ON_CPU),
        ("auto", "float32", ON_CPU),
        ("float32", "float16", FLOAT16_ON_CPU),
        ("auto", "bfloat16", Precision.uniform(DType.BFLOAT16)),
    ],
)
def test_weights_of_a_file_in_4_bits_are_kept_unless_another_form_is_asked_for(
    dtype: str, weights: str, expected: Precision
) -> None:
    assert precision_on(CPU, dtype, GEMMA, weights=weights, own=INT4) == expected


def test_where_4_bits_cannot_be_computed_float16_is_kept_and_the_log_says_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(CpuRows, "failure", "torch's operator is not there")
    assert precision_on(CPU, "auto", GEMMA, own=INT4) == FLOAT16_ON_CPU
    [line] = caplog.records
    assert line.getMessage() == "weights of the files are not kept in their bits"
    assert line.__dict__["file"] == "int4"
    assert line.__dict__["kept"] == "float16"
    assert line.__dict__["reason"] == "torch's operator is not there"


def test_without_fbgemm_plain_weights_are_kept_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "has_fbgemm", lambda: False)
    assert precision_on(CPU, "auto", GEMMA) == ON_CPU


def test_a_card_computes_in_the_dtype_of_the_checkpoint() -> None:
    config = parse_config({"model_type": "llama", "dtype": "bfloat16"})
    card = ChosenDevice("cuda:0", RTX_3060)
    assert precision_on(card, "auto", config) == Precision.uniform(DType.BFLOAT16)
    with pytest.raises(IncompatibleError, match="NVIDIA GeForce GTX 1060 6GB"):
        precision_on(ChosenDevice("cuda:0", GTX_1060), "auto", config)


@pytest.mark.parametrize(
    ("failure", "dtype", "weights", "expected"),
    [
        (None, "auto", "auto", INT4),
        (None, "float16", "auto", Encoding.plain(DType.FLOAT16)),
        (None, "auto", "int8", INT8),
        (None, "auto", "float16", Encoding.plain(DType.FLOAT16)),
        ("no C compiler: install gcc", "auto", "auto", Encoding.plain(DType.FLOAT16)),
    ],
)
def test_a_card_keeps_the_bits_of_a_file_where_kernels_multiply_them(
    failure: str | None,
    dtype: str,
    weights: str,
    expected: Encoding,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(CudaRows, "failure", failure)
    config = parse_config({"model_type": "llama"})
    card = ChosenDevice("cuda:0", RTX_3060)
    found = precision_on(card, dtype, config, weights=weights, own=INT4)
    assert found == Precision.uniform(DType.FLOAT16)._replace(weights=expected)


@pytest.mark.parametrize(
    ("model_type", "asked", "words"),
    [("llama", "cuda", "hides every card"), ("gemma2", "auto", "gemma2 models overflow")],
    ids=["device", "dtype"],
)
def test_a_stage_refuses_before_it_loads_anything(
    model_type: str, asked: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object, **__: object) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr(torch_engine, "load_layer_stack", load)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    if asked == "auto":
        monkeypatch.setattr(devices, "choose_device", lambda *_: ChosenDevice("cuda:0", RTX_3060))
        monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    write(tmp_path / "config.json", json.dumps({"model_type": model_type}))
    config = StageConfig(
        model=str(tmp_path), layers=LayerRange(0, 1), device=asked, dtype="float16"
    )
    with pytest.raises(IncompatibleError, match=words):
        build_engine(config, open_model(config.model))


def test_the_environment_of_cuda_suits_a_stage_unless_the_operator_decided() -> None:
    environment: dict[str, str] = {}
    prepare_cuda(environment, is_wsl=False)
    assert environment == {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "PYTORCH_ALLOC_CONF": "expandable_segments:True",
    }
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        set_before = {name: "backend:cudaMallocAsync", "CUDA_DEVICE_ORDER": "FASTEST_FIRST"}
        environment = dict(set_before)
        prepare_cuda(environment, is_wsl=False)
        assert environment == set_before


def test_segments_do_not_grow_where_windows_driver_cannot() -> None:
    environment: dict[str, str] = {}
    prepare_cuda(environment, is_wsl=True)
    assert environment == {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


_AT_TORCH = """
import os, sys

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print(os.environ.get("CUDA_DEVICE_ORDER"), flush=True)
            os._exit(0)

sys.meta_path.insert(0, Watch())
sys.argv[1:] = ["--model", "demo", "--layers", "0:1"]
from stage_server.process.command import run_command
run_command()
"""


def test_a_stage_prepares_cuda_before_it_loads_torch() -> None:
    environment = {name: text for name, text in os.environ.items() if name != "CUDA_DEVICE_ORDER"}
    run = subprocess.run(
        [sys.executable, "-c", _AT_TORCH],
        check=True,
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
        timeout=60,
    )
    assert run.stdout == "PCI_BUS_ID\n"
