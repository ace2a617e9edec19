"""What one stage server was asked to be: flags and environment, parsed once into a frozen value.

Imports no torch, so that `--help` is quick and the environment is set before torch is loaded.
"""

import math
import re
from dataclasses import dataclass

from stagecoach.contract.address import Address
from stagecoach.contract.errors import InvalidArgumentError
from stagecoach.contract.layer_range import LayerRange
from stagecoach.contract.precision import FEW_BITS
from stagecoach.contract.stage_choices import (
    DTYPE_NAMES,
    ENGINE_NAMES,
    KV_DTYPE_NAMES,
    WEIGHTS_NAMES,
)
from stagecoach.roofline.devices import gpu_named
from stagecoach.roofline.kv_memory import DEFAULT_MAX_NUM_SEQS, KV_BLOCK_SIZE
from stagecoach.roofline.model_shape import DEVICE_DTYPES
from stagecoach.security.bind import check_bind
from stagecoach.security.tls_files import TlsFiles

_UNITS_BYTES = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}


DEFAULT_LISTEN = Address("127.0.0.1", 50051)


@dataclass(frozen=True, slots=True, kw_only=True)
class StageConfig:
    """Everything that the operator decides about one stage server.

    Raises:
        InvalidArgumentError: A value is out of range; the error names the field and the value.
    """

    model: str
    """Local Hugging Face folder, hub id, path of a `.gguf` file, `demo` or `shape:NAME`."""
    layers: LayerRange
    """Decoder layers that this stage owns, half-open."""
    listen: Address = DEFAULT_LISTEN
    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `cuda:N`; auto and cuda take the first NVIDIA card that torch has
    kernels for. Where there is no card, auto takes the emulated one, or the CPU. A card that torch
    cannot use is an error."""
    device_share: float = 1.0
    """Share (0, 1] of a card's memory that this stage may take; what else runs on the card has the
    rest. An emulated card is the stage's alone."""
    dtype: str = "auto"
    """Dtype of the arithmetic, one of `DTYPE_NAMES`; auto is float32 on a CPU, and on CUDA and
    emulated devices that of the checkpoint: bfloat16, or float16 for one in float16 or float32.
    float16 on a CPU is that of the weights: it computes in float32 with them."""
    weights: str = "auto"
    """Form of the matrices, one of `WEIGHTS_NAMES`. int4 and int8: matrices whose codes in files
    have as few bits keep them, others are rounded while they are loaded. auto is what a dtype other
    than auto says; else the bits of the files, and where they have plain numbers float16 on a CPU
    and the dtype on CUDA. A dtype is also that of the arithmetic, where dtype is auto."""
    kv_dtype: str = "auto"
    """How keys and values are kept, one of `KV_DTYPE_NAMES`; auto is the dtype of the arithmetic.
    int8 keeps codes, with a scale and an offset for each head of a token: half the memory of 16
    bits. Stages may differ, servers of one stage may not."""
    kv_memory_bytes: int | None = None
    """Size of the KV pool, which is allocated at start. None: what the largest micro-batch leaves
    of the stage's share of a CUDA device, less 256 MiB; 1 GiB on a CPU."""
    kv_block_size: int = KV_BLOCK_SIZE
    """Tokens in one KV block; equal on all stages."""
    max_num_seqs: int = DEFAULT_MAX_NUM_SEQS
    """KV slots, and so the most sequences that one micro-batch may carry."""
    max_num_batched_tokens: int | None = None
    """Most tokens that one micro-batch may carry. None: 2048, or 512 on a GPU below 16 GB."""
    max_model_len: int | None = None
    """Most tokens that one sequence may hold. None: what the model and the KV pool allow."""
    threads: int | None = None
    """CPU threads that compute. None: one for each physical core that this process may use, or one
    in all for an emulated stage, whose threads would only wait for each other."""
    engine: str = "torch"
    """One of `ENGINE_NAMES`."""
    emulate: str | None = None
    """GPU whose times the emulated engine takes, by its name in `stagecoach.roofline.devices`."""
    efficiency: float = 1.0
    """Share (0, 1] of its published figures that the emulated GPU reaches."""
    json_output: bool = False
    """Print one JSON line on stdout when ready."""
    json_progress: bool = False
    """Print JSON lines on stdout that say how far the loading is."""
    exit_with_parent: bool = False
    """Stop when stdin reaches its end, as it does when the process that holds it dies."""
    tls: TlsFiles | None = None
    """Files of TLS: only coordinators that show a certificate of its authority may use the stage.
    None: anyone who reaches it may."""
    insecure_bind: bool = False
    """Listen where other machines can reach it even without TLS."""
    drain_grace_s: float = 10.0
    """Seconds that micro-batches in flight get to finish after a stop signal."""
    metrics_listen: Address | None = None
    """Where Prometheus scrapes; port 0 takes a free one. None: no metrics are served."""
    unsafe_fault_hooks: str | None = None
    """File that tells this stage how to fail, for tests. None: the stage cannot be told."""
    hang_timeout_s: float = 30.0
    """Seconds, and a quarter of one for each token, after which a step counts as hung; after four
    times as long the process ends."""

    def __post_init__(self) -> None:
        if not self.model:
            raise InvalidArgumentError("model is empty", field="model")
        if re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", self.device) is None:
            raise InvalidArgumentError(
                f"device {self.device!r} is not one of auto, cpu, cuda, cuda:N", field="device"
            )
        _check_choice("dtype", self.dtype, DTYPE_NAMES)
        _check_choice("weights", self.weights, WEIGHTS_NAMES)
        _check_choice("kv_dtype", self.kv_dtype, KV_DTYPE_NAMES)
        _check_choice("engine", self.engine, ENGINE_NAMES)
        _check_share("device_share", self.device_share)
        _check_range("kv_memory", self.kv_memory_bytes, 1, 2**50)
        _check_range("kv_block_size", self.kv_block_size, 1, 1024)
        _check_range("max_num_seqs", self.max_num_seqs, 1, 65536)
        _check_range("max_num_batched_tokens", self.max_num_batched_tokens, 1, 2**20)
        _check_range("max_model_len", self.max_model_len, 1, 2**31 - 1)
        _check_range("threads", self.threads, 1, 1024)
        _check_range("drain_grace_s", self.drain_grace_s, 0, 3600)
        _check_range("hang_timeout_s", self.hang_timeout_s, 0.1, 86400)
        check_bind(
            self.listen.host,
            what="the stage server",
            remedy=None if self.tls else "give --tls-ca, --tls-cert and --tls-key",
            insecure=self.insecure_bind,
        )
        if self.metrics_listen is not None:
            check_bind(
                self.metrics_listen.host,
                what="the metrics port",
                remedy="it has neither TLS nor keys",
                insecure=self.insecure_bind,
                field="metrics_listen",
            )
        self._check_emulation()

    def _check_emulation(self) -> None:
        """Refuses what one engine needs and the other would ignore."""
        if self.engine != "emulated":
            if self.emulate is not None or self.efficiency != 1.0:
                field = "efficiency" if self.emulate is None else "emulate"
                raise InvalidArgumentError(
                    f"{field} needs engine emulated", field=field, other_field="engine"
                )
            return
        if self.emulate is None:
            raise InvalidArgumentError(
                "emulate is not given: engine emulated needs the name of a GPU, such as"
                " rtx-3060-12gb",
                field="emulate",
                other_field="engine",
            )
        gpu_named(self.emulate, field="emulate")
        _check_share("efficiency", self.efficiency)
        if self.device != "auto":
            raise InvalidArgumentError(
                f"device {self.device} is of engine torch; emulate names the emulated one",
                field="device",
                other_field="emulate",
            )
        if self.dtype not in ("auto", *DEVICE_DTYPES):
            raise InvalidArgumentError(
                f"dtype {self.dtype} is not emulated, only {' and '.join(DEVICE_DTYPES)}",
                field="dtype",
            )
        if self.weights not in ("auto", *FEW_BITS):
            raise InvalidArgumentError(
                f"weights {self.weights} are not emulated, only {' and '.join(FEW_BITS)}: give it"
                " as dtype",
                field="weights",
                other_field="engine",
            )


def parse_bytes(text: str, *, field: str) -> int:
    """Reads a size such as `2GiB`, `500MB`, `1.5 GiB` or a plain number of bytes.

    Args:
        text: The size; units are decimal (`MB`) or binary (`MiB`), in any case.
        field: Name of the field, for the error.

    Raises:
        InvalidArgumentError: `text` has another form, or is less than a byte.
    """
    match = re.fullmatch(r"([0-9]{1,18}(?:\.[0-9]{1,9})?)\s*([A-Za-z]*)", text.strip())
    if match is None or match[2].upper() not in _UNITS_BYTES:
        raise InvalidArgumentError(
            f"{field} {text!r} is not a size, such as 2GiB or 500MB", field=field
        )
    num_bytes = int(float(match[1]) * _UNITS_BYTES[match[2].upper()])
    if num_bytes < 1:
        raise InvalidArgumentError(f"{field} {text!r} must be above 0", field=field)
    return num_bytes


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InvalidArgumentError(
            f"{name} {value!r} is not one of {', '.join(choices)}", field=name
        )


def _check_range(name: str, value: float | None, low: float, high: float) -> None:
    if value is not None and not (math.isfinite(value) and low <= value <= high):
        raise InvalidArgumentError(f"{name} is {value}, must be in [{low}, {high}]", field=name)


def _check_share(name: str, value: float) -> None:
    if not 0 < value <= 1:  # also refuses NaN
        raise InvalidArgumentError(f"{name} is {value}, must be above 0 and at most 1", field=name)
