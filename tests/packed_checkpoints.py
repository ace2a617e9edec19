"""Writes tiny models as quantizing tools publish them, number by number and slowly.

What a format says is written here a second time, from its specification, with whole numbers of
Python. `tests/recorded_checkpoints` has what the tools themselves wrote.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import load_file
from safetensors.torch import save_file
from torch import Tensor, float8_e4m3fn, from_numpy

from tests.tiny_models import tiny_model

SHAPE: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128}
"""Columns for whole groups of 32."""

Tensors = dict[str, Any]


class Packed(NamedTuple):
    """One matrix in a format."""

    tensors: Tensors
    """Arrays of numpy or tensors of torch, by what their names end in."""
    numbers: np.ndarray
    """What they stand for, float32 `[num_rows, num_columns]`."""


class Grid(NamedTuple):
    """A matrix in codes of few bits."""

    codes: np.ndarray
    """`[num_rows, num_columns]`."""
    scales: np.ndarray
    """float16 `[num_rows, num_groups]`."""
    zeros: np.ndarray
    """As the scales."""
    numbers: np.ndarray


def grid(
    weight: np.ndarray, bits: int, groups: np.ndarray, *, symmetric: bool, least_zero: int = 0
) -> Grid:
    """Rounds a matrix.

    Args:
        weight: `[num_rows, num_columns]`.
        bits: Bits of a code.
        groups: The group of every column.
        symmetric: Whether the middle code is 0 everywhere.
        least_zero: Least code that is 0.
    """
    largest = (1 << bits) - 1
    shape = len(weight), int(groups.max()) + 1
    scales, zeros = np.empty(shape, np.float16), np.empty(shape, np.int64)
    codes, numbers = np.empty(weight.shape, np.int64), np.empty(weight.shape, np.float32)
    for row, group in np.ndindex(shape):
        columns = groups == group
        some = weight[row, columns]
        low, high = min(some.min(), 0.0), max(some.max(), 0.0)
        if symmetric:
            scales[row, group] = 2 * max(high, -low) / largest
            zeros[row, group] = 1 << (bits - 1)
        else:
            scales[row, group] = (high - low) / largest
            zeros[row, group] = max(round(-low / float(scales[row, group])), least_zero)
        scale, zero = np.float32(scales[row, group]), zeros[row, group]
        codes[row, columns] = np.clip(np.rint(some / scale) + zero, 0, largest)
        numbers[row, columns] = (codes[row, columns] - zero).astype(np.float32) * scale
    return Grid(codes, scales, zeros, numbers)


def packed_bits(codes: np.ndarray, bits: int) -> np.ndarray:
    """Packs codes one after another into the bits of a whole number, cut into words of 32.

    Args:
        codes: `[num_codes]`.
        bits: Bits of a code.
    """
    whole = sum(int(code) << bits * place for place, code in enumerate(codes))
    num_words = -(-len(codes) * bits // 32)
    return np.frombuffer(whole.to_bytes(4 * num_words, "little"), "<i4")


def _each(rows: np.ndarray, bits: int) -> np.ndarray:
    return np.stack([packed_bits(row, bits) for row in rows])


def _neighbours(weight: np.ndarray, group_size: int) -> np.ndarray:
    return np.arange(weight.shape[1]) // group_size


def awq(weight: np.ndarray) -> Packed:
    """The places of eight neighbouring outputs in a word are 0, 4, 1, 5, 2, 6, 3, 7."""
    made = grid(weight, 4, _neighbours(weight, 32), symmetric=False)

    def interleaved(rows: np.ndarray) -> np.ndarray:
        eights = rows.reshape(len(rows), -1, 8)[..., [0, 2, 4, 6, 1, 3, 5, 7]]
        return _each(eights.reshape(rows.shape), 4)

    tensors = {
        "qweight": interleaved(made.codes.T),
        "qzeros": interleaved(made.zeros.T),
        "scales": made.scales.T,
    }
    return Packed(tensors, made.numbers)


def gptq(
    bits: int,
    group_size: int = 32,
    *,
    symmetric: bool = False,
    act_order: bool = False,
    less: int = 1,
    has_bias: bool = False,
) -> Callable[[np.ndarray], Packed]:
    """Codes are packed along the inputs; `less` than the code of 0 is stored for it."""

    def make(weight: np.ndarray) -> Packed:
        num_rows, num_columns = weight.shape
        groups = _neighbours(weight, group_size if group_size > 0 else num_columns)
        if act_order:
            groups = np.random.default_rng(num_rows).permutation(groups)
        made = grid(weight, bits, groups, symmetric=symmetric, least_zero=less)
        tensors: Tensors = {
            "qweight": _each(made.codes, bits).T,
            "qzeros": _each(made.zeros.T - less, bits),
            "scales": made.scales.T,
            "g_idx": groups.astype(np.int32),
        }
        if has_bias:
            tensors["bias"] = np.zeros(num_rows, np.float16)
        return Packed(tensors, made.numbers)

    return make


def compressed(
    bits: int,
    group_size: int = 32,
    *,
    symmetric: bool = True,
    packs: bool = True,
    act_order: bool = False,
) -> Callable[[np.ndarray], Packed]:
    """Codes of compressed-tensors, packed along the inputs, or as whole numbers of 8 bits."""

    def make(weight: np.ndarray) -> Packed:
        size = group_size if group_size > 0 else weight.shape[1]
        groups = _neighbours(weight, size)
        tensors: Tensors = {}
        if act_order:
            groups = np.random.default_rng(len(weight)).permutation(groups)
            tensors["weight_g_idx"] = groups.astype(np.int32)
        made = grid(weight, bits, groups, symmetric=symmetric)
        tensors["weight_scale"] = made.scales
        if not packs:
            tensors["weight"] = (made.codes - (1 << (bits - 1))).astype(np.int8)
            return Packed(tensors, made.numbers)
        tensors["weight_packed"] = _each(made.codes, bits)
        tensors["weight_shape"] = np.array(weight.shape)
        if not symmetric:
            tensors["weight_zero_point"] = _each(made.zeros.T, bits).T
        return Packed(tensors, made.numbers)

    return make


def fp8(scale_name: str, block: tuple[int, int] | None) -> Callable[[np.ndarray], Packed]:
    """FP8 in the form e4m3, with a scale for each block; None: for each row."""

    def make(weight: np.ndarray) -> Packed:
        rows, columns = block or (1, weight.shape[1])
        grid_shape = -(-weight.shape[0] // rows), -(-weight.shape[1] // columns)
        scales = np.empty(grid_shape, np.float32)
        codes: Tensor = from_numpy(np.zeros_like(weight)).to(float8_e4m3fn)
        numbers = np.empty_like(weight)
        for row, column in np.ndindex(grid_shape):
            place = (
                slice(row * rows, (row + 1) * rows),
                slice(column * columns, (column + 1) * columns),
            )
            scales[row, column] = np.abs(weight[place]).max() / 448
            some = from_numpy(weight[place] / scales[row, column]).to(float8_e4m3fn)
            codes[place] = some
            numbers[place] = some.float().numpy() * scales[row, column]
        return Packed({"weight": codes, scale_name: scales}, numbers)

    return make


_NF4 = np.array(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ],
    np.float32,
)
"""QLoRA, arXiv:2305.14314, appendix E."""


def nf4(weight: np.ndarray) -> Packed:
    """Blocks of 64, the scales of which are codes of 8 bits in blocks of 256."""
    blocks = weight.reshape(-1, 64)
    sizes = np.abs(blocks).max(-1)
    offset = float(sizes.mean())
    table = np.linspace(-1, 1, 256, dtype=np.float32)
    outer = [np.abs(sizes[at : at + 256] - offset).max() or 1.0 for at in range(0, len(sizes), 256)]
    nested = np.array(outer, np.float32)
    absmax: list[int] = []
    codes: list[int] = []
    numbers = []
    for index, block in enumerate(blocks):
        step = nested[index // 256]
        code = int(np.abs(table * step + np.float32(offset) - sizes[index]).argmin())
        scale = table[code] * step + np.float32(offset)
        chosen = np.abs(block[:, None] / scale - _NF4).argmin(-1)
        absmax.append(code)
        codes.extend(int(each) for each in chosen)
        numbers.append(_NF4[chosen] * scale)
    state = {
        "quant_type": "nf4",
        "blocksize": 64,
        "dtype": "float16",
        "shape": list(weight.shape),
        "nested_blocksize": 256,
        "nested_dtype": "float32",
        "nested_offset": offset,
    }
    high, low = np.array(codes[::2], np.uint8), np.array(codes[1::2], np.uint8)
    tensors = {
        "weight": (high * 16 + low)[:, None],
        "weight.absmax": np.array(absmax, np.uint8),
        "weight.quant_map": _NF4,
        "weight.nested_absmax": nested,
        "weight.nested_quant_map": table,
        "weight.quant_state.bitsandbytes__nf4": np.frombuffer(json.dumps(state).encode(), np.uint8),
    }
    return Packed(tensors, np.stack(numbers).reshape(weight.shape))


def int8(weight: np.ndarray) -> Packed:
    """Whole numbers of 8 bits; the largest of a row is 127."""
    largest = np.abs(weight).max(-1)
    scales = (largest / np.float32(127))[:, None]
    codes = np.rint(weight / scales).astype(np.int8)
    tensors = {"weight": codes, "SCB": largest, "weight_format": np.array(0, np.uint8)}
    return Packed(tensors, codes.astype(np.float32) * scales)


class Format(NamedTuple):
    """A format that checkpoints are published in."""

    make: Callable[[np.ndarray], Packed]
    settings: Mapping[str, object]
    """Its `quantization_config`."""
    encoding: str
    """In which few bits most matrices are kept."""
    code_bits: int
    """Bits of the codes that are read."""


def _weights(bits: int, **more: object) -> dict[str, object]:
    group = {"targets": ["Linear"], "weights": {"num_bits": bits, "type": "int", **more}}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }


def _gptq(bits: int, group_size: int, **more: object) -> dict[str, object]:
    return {"quant_method": "gptq", "bits": bits, "group_size": group_size, **more}


_GROUPS = {"strategy": "group", "group_size": 32}

FORMATS: dict[str, Format] = {
    "awq": Format(
        awq,
        {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True},
        *("int4", 4),
    ),
    "gptq, symmetric": Format(
        gptq(4, symmetric=True, has_bias=True), _gptq(4, 32, sym=True), "int4", 4
    ),
    "gptq": Format(gptq(4), _gptq(4, 32, sym=False), "int4", 4),
    "gptq, act-order": Format(gptq(4, act_order=True), _gptq(4, 32, desc_act=True), "int8", 8),
    "gptq_v2": Format(gptq(4, less=0), _gptq(4, 32, checkpoint_format="gptq_v2"), "int4", 4),
    "gptq, 2 bits": Format(gptq(2), _gptq(2, 32), "int4", 2),
    "gptq, 3 bits": Format(gptq(3, 64), _gptq(3, 64), "int4", 3),
    "gptq, 8 bits": Format(gptq(8, -1, symmetric=True), _gptq(8, -1), "int8", 8),
    "auto-round": Format(
        gptq(4),
        {
            "quant_method": "auto-round",
            "packing_format": "auto_round:auto_gptq",
            **{"bits": 4, "group_size": 32, "sym": False},
        },
        *("int4", 4),
    ),
    "compressed-tensors, int4": Format(compressed(4), _weights(4, **_GROUPS), "int4", 4),
    "compressed-tensors, int4, asymmetric": Format(
        compressed(4, symmetric=False), _weights(4, **_GROUPS, symmetric=False), "int4", 4
    ),
    "compressed-tensors, act-order": Format(
        compressed(4, act_order=True), _weights(4, **_GROUPS, actorder="group"), "int8", 8
    ),
    "compressed-tensors, int8": Format(
        compressed(8, -1), _weights(8, strategy="channel"), "int8", 8
    ),
    "compressed-tensors, int-quantized": Format(
        compressed(8, -1, packs=False),
        {**_weights(8, strategy="channel"), "format": "int-quantized"},
        *("int8", 8),
    ),
    "compressed-tensors, FP8": Format(
        fp8("weight_scale", None),
        {**_weights(8, strategy="channel", type="float"), "format": "float-quantized"},
        *("int8", 8),
    ),
    "compressed-tensors, FP8 in groups": Format(
        fp8("weight_scale", (1, 32)),
        {**_weights(8, **_GROUPS, type="float"), "format": "float-quantized"},
        *("int8", 8),
    ),
    "compressed-tensors, int4 in bytes": Format(
        compressed(4, -1, packs=False),
        {**_weights(4, strategy="channel"), "format": "int-quantized"},
        *("int8", 8),
    ),
    "gptq, static groups": Format(
        gptq(4), _gptq(4, 32, desc_act=True, static_groups=True), "int4", 4
    ),
    "fp8": Format(
        fp8("weight_scale_inv", (48, 48)),
        {"quant_method": "fp8", "weight_block_size": [48, 48]},
        *("int8", 8),
    ),
    "fbgemm_fp8": Format(fp8("weight_scale", None), {"quant_method": "fbgemm_fp8"}, "int8", 8),
    "bitsandbytes, nf4": Format(
        nf4,
        {
            "quant_method": "bitsandbytes",
            **{"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
        },
        *("int8", 8),
    ),
    "bitsandbytes, int8": Format(
        int8, {"quant_method": "bitsandbytes", "load_in_8bit": True}, "int8", 8
    ),
}
"""Formats by a name for people. Blocks of 48 end within matrices."""


class Checkpoint(NamedTuple):
    """A quantized model, and the plain one that it stands for."""

    path: Path
    plain: Path
    """A model in float32 of the same numbers."""


def packed_model(
    format_: Format,
    case: str,
    folder: Path,
    *,
    skips: Callable[[str], bool] = lambda _: False,
    max_shard_size: str = "1GB",
    **overrides: Any,
) -> Checkpoint:
    """Saves a tiny random model in a format.

    Args:
        format_: The format of the matrices of its layers.
        case: A key of `tests.tiny_models.FAMILIES`.
        folder: Where the model's own folders are made.
        skips: Whether a module is left plain.
        max_shard_size: As `tests.tiny_models.tiny_model`.
        **overrides: Values of the configuration.
    """
    plain = tiny_model(
        case, folder / "plain", max_shard_size=max_shard_size, **{**SHAPE, **overrides}
    )
    path = folder / "packed"
    path.mkdir(parents=True)
    for file in sorted(plain.glob("*.safetensors")):
        stored, numbers = _packed_tensors(load_file(file), format_, skips)
        save_file(stored, path / file.name)
        save_file(numbers, file)
    index = plain / "model.safetensors.index.json"
    if index.is_file():
        _write_index(path)
    config = json.loads((plain / "config.json").read_text())
    settings = {"quantization_config": format_.settings}
    (path / "config.json").write_text(json.dumps({**config, **settings}))
    return Checkpoint(path, plain)


def _packed_tensors(
    tensors: Mapping[str, np.ndarray], format_: Format, skips: Callable[[str], bool]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The stored tensors, and the numbers that they stand for."""
    stored: dict[str, Tensor] = {}
    numbers = {name: from_numpy(values) for name, values in tensors.items()}
    for name, values in tensors.items():
        module = name.removesuffix(".weight")
        if values.ndim != 2 or ".layers." not in name or skips(module):
            stored[name] = numbers[name]
            continue
        packed = _made(format_.make, values.shape, values.tobytes())
        numbers[name] = from_numpy(packed.numbers)
        for end, part in packed.tensors.items():
            own = part if isinstance(part, Tensor) else from_numpy(np.array(part, order="C"))
            stored.setdefault(f"{module}.{end}", own)
    return stored, numbers


@lru_cache(maxsize=512)
def _made(make: Callable[[np.ndarray], Packed], shape: tuple[int, ...], numbers: bytes) -> Packed:
    """The same matrices in the same formats are what most tests begin with."""
    return make(np.frombuffer(numbers, np.float32).reshape(shape))


def _write_index(path: Path) -> None:
    names = {name: file.name for file in path.glob("*.safetensors") for name in _names_in(file)}
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def _names_in(file: Path) -> Iterator[str]:
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    yield from (name for name in json.loads(data[8 : 8 + length]) if name != "__metadata__")
