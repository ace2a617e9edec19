"""Every kernel compiles for every kind of card that is served, and spills no register.

No card is needed: Triton brings NVIDIA's assembler, and a tool that shows what it made.
"""

import re
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

triton = pytest.importorskip("triton", reason="Triton has no wheel for this machine")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from stage_server.kernels.jit import (  # noqa: E402
    coded_heads,
    elementwise,
    grouped_linear,
    paged_decode,
    paged_prefill,
    rotate_and_store,
)
from stage_server.kernels.kernels import store_coded  # noqa: E402
from stage_server.kernels.operators import MAX_SPLITS  # noqa: E402

# Triton builds nodes of Python's grammar in a way that Python 3.13 calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:AnnAssign:DeprecationWarning")

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
CAPABILITIES = (75, 80, 86, 89, 90, 120)
SOME = (75, 86, 120)
EACH = [one if one in SOME else pytest.param(one, marks=pytest.mark.slow) for one in CAPABILITIES]
MAX_REGISTERS = 128
"""Above, fewer than four blocks of four warps have room on a multiprocessor."""
MAX_FEW_TOKENS_REGISTERS = 168
MAX_PREFILL_REGISTERS = 255
"""Of a chunk, whose tile of rows stays in registers: one block of eight warps has room."""
MAX_SHARED_KIB = {75: 64, 80: 163, 86: 99, 89: 99, 90: 227, 120: 99}
"""Shared memory of a block, by capability; from CUDA's table of compute capabilities."""

TYPES = {
    **dict.fromkeys(("rows", "table", "tables", "starts", "lengths", "slots"), "*i64"),
    **dict.fromkeys(("partial", "log_sums"), "*fp32"),
    **dict.fromkeys(("scaling", "softcap", "eps", "scale"), "fp32"),
    **dict.fromkeys(("window", "num_splits", "token_stride", "head_stride"), "i32"),
    **dict.fromkeys(("first_row", "num_tokens", "start_position"), "i32"),
}
"""Types of arguments; every other one points at elements of the compute dtype."""

NO_SINKS: dict[str, str | None] = {"sinks": None}
PLAIN_KV: dict[str, str | None] = {"key_scales": None, "value_scales": None}
CODED_KV: dict[str, str | None] = {
    **dict.fromkeys(("keys", "values"), "*i8"),
    **dict.fromkeys(("key_scales", "value_scales"), "*fp16"),
}


class Usage(NamedTuple):
    num_registers: int
    num_spilled_bytes: int


def compiled(
    kernel: Any,
    constants: dict[str, Any],
    capability: int,
    cache: Path,
    *,
    dtype: str = "fp16",
    options: dict[str, int] | None = None,
    **types: str | None,
) -> Usage:
    """Compiles as a launch does; `types` says what differs, None that an argument is not given."""
    signature = {}
    aligned = {}
    for index, parameter in enumerate(kernel.params):
        name = parameter.name
        given = {**TYPES, **types}.get(name, f"*{dtype}")
        if name in constants or given is None:
            signature[name] = "constexpr"
            constants = {name: None, **constants}
            continue
        signature[name] = given
        if given.startswith("*") and not parameter.do_not_specialize_on_alignment:
            aligned[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    with triton.knobs.cache.scope():
        triton.knobs.cache.dir = str(cache)
        target = GPUTarget("cuda", capability, 32)
        binary = triton.compile(source, target=target, options=options or {})
    path = cache / "kernel.cubin"
    path.write_bytes(binary.asm["cubin"])
    command = [str(CUOBJDUMP), "-res-usage", str(path)]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = {name: int(number) for name, number in re.findall(r"(REG|STACK|LOCAL):(\d+)", shown)}
    assert binary.metadata.shared <= MAX_SHARED_KIB[capability] << 10, "no card would launch it"
    return Usage(found["REG"], found["STACK"] + found["LOCAL"])


def decode_usage(capability: int, cache: Path, **case: Any) -> Usage:
    """Of decode attention; `case` says what differs from a Llama 3 of 8 B."""
    dtype = case.pop("dtype", "fp16")
    constants = {
        "num_heads": 32,
        "num_kv_heads": 8,
        "head_dim": 128,
        "block_size": 16,
        "itemsize": 4 if dtype == "fp32" else 2,
        "has_window": False,
        "has_softcap": False,
        "has_sinks": False,
        "has_scales": False,
        "is_split": True,
        **case,
    }
    types = CODED_KV if constants["has_scales"] else PLAIN_KV
    types = types | ({} if constants["has_sinks"] else NO_SINKS)
    if not constants["is_split"]:
        types = types | {"partial": None, "log_sums": None}
    return compiled(
        paged_decode.decode_splits_kernel,
        paged_decode.decode_constants(**constants),
        capability,
        cache,
        dtype=dtype,
        options=paged_decode.decode_options(),
        **types,
    )


@pytest.mark.parametrize("capability", EACH)
def test_decode_attention_fits_every_card(capability: int, tmp_path: Path) -> None:
    usage = decode_usage(capability, tmp_path)
    assert usage.num_spilled_bytes == 0
    # Before sm_80 products of matrices are taken without tensor cores, from more registers.
    assert usage.num_registers <= (MAX_REGISTERS if capability >= 80 else 255)


@pytest.mark.parametrize(
    "case",
    [
        {"num_kv_heads": 32, "is_split": False},
        {"dtype": "fp32"},
        {"dtype": "bf16", "head_dim": 256, "has_window": True, "has_softcap": True},
        {"has_scales": True},
        {"head_dim": 80, "block_size": 24},
        {"num_heads": 64, "head_dim": 64, "has_window": True, "has_sinks": True},
    ],
    ids=lambda case: "-".join(case),
)
def test_every_form_of_decode_attention_fits(case: dict[str, Any], tmp_path: Path) -> None:
    usage = decode_usage(86, tmp_path, **case)
    assert usage.num_spilled_bytes == 0
    assert usage.num_registers <= MAX_REGISTERS


def prefill_usage(capability: int, cache: Path, **case: Any) -> Usage:
    """Of attention of a chunk; `case` says what differs from a Gemma 2 of 9 B."""
    dtype = case.pop("dtype", "bf16" if capability >= 80 else "fp16")
    constants = {
        "num_heads": 16,
        "num_kv_heads": 8,
        "head_dim": 256,
        "block_size": 16,
        "on_tensor_cores": capability >= 80 and dtype != "fp32",
        "has_window": True,
        "has_softcap": True,
        "has_sinks": False,
        "has_scales": False,
        **case,
    }
    return compiled(
        paged_prefill.prefill_kernel,
        paged_prefill.prefill_constants(**constants),
        capability,
        cache,
        dtype=dtype,
        options=paged_prefill.prefill_options(on_tensor_cores=constants["on_tensor_cores"]),
        **(CODED_KV if constants["has_scales"] else PLAIN_KV),
        **({} if constants["has_sinks"] else NO_SINKS),
    )


@pytest.mark.parametrize("capability", EACH)
def test_attention_of_chunks_fits_every_card(capability: int, tmp_path: Path) -> None:
    usage = prefill_usage(capability, tmp_path)
    assert usage.num_spilled_bytes == 0
    assert usage.num_registers <= MAX_PREFILL_REGISTERS


@pytest.mark.parametrize(
    "case",
    [
        {"dtype": "fp32"},
        {"head_dim": 128, "num_heads": 32, "has_softcap": False},
        {"head_dim": 64, "has_window": False},
        {"has_scales": True},
        {
            "has_scales": True,
            **{"head_dim": 128, "num_heads": 40, "num_kv_heads": 40},
            **{"has_window": False, "has_softcap": False},
        },
        {"dtype": "fp16", "head_dim": 80, "block_size": 24},
        {"num_heads": 64, "head_dim": 64, "has_softcap": False, "has_sinks": True},
    ],
    ids=lambda case: "-".join(case),
)
def test_every_form_of_attention_of_chunks_fits(case: dict[str, Any], tmp_path: Path) -> None:
    usage = prefill_usage(86, tmp_path, **case)
    assert usage.num_spilled_bytes == 0
    assert usage.num_registers <= MAX_PREFILL_REGISTERS


def grouped_usage(kernel: str, capability: int, cache: Path, **case: Any) -> Usage:
    """Of a product with a matrix of 13B in few bits, 5120 columns."""
    dtype = case.pop("dtype", "fp16")
    has_offsets = case.pop("has_offsets", True)
    constants = getattr(grouped_linear, f"{kernel}_constants")
    return compiled(
        getattr(grouped_linear, f"{kernel}_kernel"),
        constants(**{"num_columns": 5120, "num_bits": 4, **case}),
        capability,
        cache,
        dtype=dtype,
        codes="*u8",
        scales="*fp16",
        offsets="*fp16" if has_offsets else None,
        num_rows="i32",
    )


@pytest.mark.parametrize("capability", EACH)
@pytest.mark.parametrize("num_bits", [4, 8])
def test_products_in_few_bits_fit_every_card(
    num_bits: int, capability: int, tmp_path: Path
) -> None:
    usages = [
        grouped_usage("one_token", capability, tmp_path, num_bits=num_bits),
        grouped_usage("unpack", capability, tmp_path, num_bits=num_bits),
    ]
    # Before sm_80 products of matrices are taken without tensor cores: there, rows are unpacked.
    if capability >= 80:
        usages += [
            grouped_usage("few_tokens", capability, tmp_path, num_bits=num_bits, num_tokens=count)
            for count in (2, 64)
        ]
    assert [usage.num_spilled_bytes for usage in usages] == [0] * len(usages)
    # Products of 64 tokens keep 2048 sums: three blocks of four warps have room.
    assert max(usage.num_registers for usage in usages[:3]) <= MAX_REGISTERS
    assert max(usage.num_registers for usage in usages) <= MAX_FEW_TOKENS_REGISTERS


@pytest.mark.parametrize(
    "case",
    [
        {"kernel": "one_token", "dtype": "fp32"},
        {"kernel": "one_token", "has_offsets": False},
        {"kernel": "few_tokens", "dtype": "bf16", "num_tokens": 16},
        {"kernel": "few_tokens", "has_offsets": False, "num_tokens": 32, "num_columns": 5000},
        {"kernel": "unpack", "dtype": "bf16", "has_offsets": False},
    ],
    ids=lambda case: "-".join(map(str, case.values())),
)
def test_every_form_of_such_products_fits(case: dict[str, Any], tmp_path: Path) -> None:
    kernel = case.pop("kernel")
    usage = grouped_usage(kernel, 86, tmp_path, **case)
    assert usage.num_spilled_bytes == 0
    assert usage.num_registers <= MAX_REGISTERS


@pytest.mark.parametrize("capability", SOME)
def test_the_other_kernels_fit_every_card(capability: int, tmp_path: Path) -> None:
    # The largest of Llama, 13B and 405B.
    usages = [
        compiled(
            paged_decode.merge_splits_kernel,
            paged_decode.merge_constants(num_heads=40, head_dim=128, max_splits=MAX_SPLITS),
            capability,
            tmp_path,
        ),
        *(
            compiled(
                rotate_and_store.rotate_and_store_kernel,
                rotate_and_store.rotate_constants(
                    num_heads=32,
                    num_kv_heads=8,
                    head_dim=128,
                    rotary_stride=384,
                    has_norm=True,
                    has_scales=has_scales,
                ),
                capability,
                tmp_path,
                dtype="fp16",
                options=None,
                **(CODED_KV if has_scales else PLAIN_KV),
            )
            for has_scales in (False, True)
        ),
        compiled(
            coded_heads.store_coded_kernel,
            coded_heads.store_coded_constants(num_heads=4, head_dim=256),
            capability,
            tmp_path,
            codes="*i8",
            scales="*fp16",
        ),
        compiled(
            elementwise.silu_and_mul_kernel, elementwise.silu_constants(13824), capability, tmp_path
        ),
        compiled(
            elementwise.add_rms_norm_kernel,
            elementwise.norm_constants(16384),
            capability,
            tmp_path,
            options=elementwise.norm_options(16384),
        ),
    ]
    assert [usage.num_spilled_bytes for usage in usages] == [0] * len(usages)
    assert max(usage.num_registers for usage in usages) <= 64


class Launches:
    """Stands for a kernel, and takes note of what Triton would compile its launches for."""

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel
        self.compiled_for: list[dict[str, Any]] = []

    def __getitem__(self, _grid: object) -> Any:
        return self._launch

    def _launch(self, *given: Any, **constants: Any) -> None:
        # Of other numbers Triton looks whether they are 1, and whether 16 divides them.
        special = {
            parameter.name: (value == 1, value % 16 == 0)
            for parameter, value in zip(self._kernel.params, given, strict=False)
            if isinstance(value, int) and not parameter.do_not_specialize
        }
        self.compiled_for.append(special | constants)


def test_heads_are_coded_by_one_kernel_whatever_the_number_of_tokens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a single key head the stride is one of the tokens: each number of them was compiled."""
    launches = Launches(coded_heads.store_coded_kernel)
    monkeypatch.setattr(coded_heads, "store_coded_kernel", launches)
    codes = torch.zeros(40, 1, 16, dtype=torch.int8)
    scales = torch.zeros(40, 1, 2, dtype=torch.float16)
    counts = (1, 2, 3, 16, 17, 33)
    for count in counts:
        heads = torch.zeros(1, count, 16).transpose(0, 1)  # as transformers leave them
        store_coded(heads, torch.arange(count), codes, scales)
    assert len(launches.compiled_for) == len(counts)
    assert all(each == launches.compiled_for[0] for each in launches.compiled_for)


def test_a_spill_would_be_seen(tmp_path: Path) -> None:
    usage = decode_usage(86, tmp_path, dtype="fp32", itemsize=2)  # a tile twice too large
    assert usage.num_spilled_bytes > 0
