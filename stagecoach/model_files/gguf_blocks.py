"""Unpacks the blocks in which GGUF keeps rows of numbers.

Layouts: `ggml/src/ggml-common.h` of llama.cpp. The `gguf` package turns the same blocks into
float32, which the tests compare with bit for bit; it does not give the codes.

Not here are the types whose numbers are no multiples of a scale, or share scales by fewer than 32:
they are rounded to 8 bits, see `grouped_rows.rounded_rows`.
"""

from collections.abc import Callable, Mapping
from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from stagecoach.model_files.grouped_rows import GroupedRows

_Bytes = npt.NDArray[np.uint8]
_4 = np.uint8(4)


class _Groups(NamedTuple):
    """What `GroupedRows` has, by blocks in place of rows."""

    codes: _Bytes
    zero: int
    scales: npt.NDArray[np.float32]
    offsets: npt.NDArray[np.float32] | None = None


class BlockType(NamedTuple):
    """A type of block whose codes can be kept."""

    num_bits: int
    """Bits of a code."""
    block: np.dtype[np.void]
    """Fields of one block, in the order of the file."""
    unpack: Callable[[npt.NDArray[np.void]], _Groups]


def grouped_rows(kind: BlockType, rows: _Bytes) -> GroupedRows:
    """Unpacks rows.

    Args:
        kind: Their type.
        rows: `[num_rows, row_bytes]`, contiguous, as `GgufFile.read_rows` returns them.
    """
    num_rows = len(rows)
    codes, zero, scales, offsets = kind.unpack(rows.view(kind.block).reshape(-1))
    return GroupedRows(
        codes.reshape(num_rows, -1),
        zero,
        scales.reshape(num_rows, -1),
        None if offsets is None else offsets.reshape(num_rows, -1),
    )


def _nibbles(packed: _Bytes) -> _Bytes:
    """The low halves of all bytes, then the high ones, along the last dimension."""
    return np.concatenate((packed & 15, packed >> 4), axis=-1)


def _bits(packed: _Bytes, count: int) -> _Bytes:
    """`[..., n]` bytes as `[..., 8 // count, n]`: their lowest `count` bits first."""
    shifts = np.arange(0, 8, count, dtype=np.uint8)[:, None]
    found: _Bytes = (packed[..., None, :] >> shifts) & np.uint8(2**count - 1)
    return found


def _floats(field: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
    return field.astype(np.float32)[:, None]


def _q4_0(blocks: npt.NDArray[np.void]) -> _Groups:
    return _Groups(_nibbles(blocks["codes"]), 8, _floats(blocks["scale"]))


def _q4_1(blocks: npt.NDArray[np.void]) -> _Groups:
    return _Groups(_nibbles(blocks["codes"]), 0, _floats(blocks["scale"]), _floats(blocks["min"]))


def _q5(blocks: npt.NDArray[np.void]) -> _Bytes:
    fifth = np.unpackbits(blocks["fifth"], axis=-1, bitorder="little")
    return _nibbles(blocks["codes"]) | fifth << _4


def _q5_0(blocks: npt.NDArray[np.void]) -> _Groups:
    return _Groups(_q5(blocks), 16, _floats(blocks["scale"]))


def _q5_1(blocks: npt.NDArray[np.void]) -> _Groups:
    return _Groups(_q5(blocks), 0, _floats(blocks["scale"]), _floats(blocks["min"]))


def _q8_0(blocks: npt.NDArray[np.void]) -> _Groups:
    return _Groups(blocks["codes"] ^ np.uint8(128), 128, _floats(blocks["scale"]))


def _scales_and_offsets(
    blocks: npt.NDArray[np.void],
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Returns what eight groups multiply by and add.

    Both have 6 bits, in 12 bytes.
    """
    first, second, rest = np.moveaxis(blocks["scales"].reshape(-1, 3, 4), 1, 0)
    scales = np.concatenate((first & 63, rest & 15 | first >> 6 << 4), axis=-1)
    minima = np.concatenate((second & 63, rest >> 4 | second >> 6 << 4), axis=-1)
    return _floats(blocks["scale"]) * scales, -(_floats(blocks["min"]) * minima)


def _q4_k(blocks: npt.NDArray[np.void]) -> _Groups:
    codes = _nibbles(blocks["codes"].reshape(-1, 4, 32))
    return _Groups(codes, 0, *_scales_and_offsets(blocks))


def _q5_k(blocks: npt.NDArray[np.void]) -> _Groups:
    low = _nibbles(blocks["codes"].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    return _Groups(low | _bits(blocks["fifth"], 1) << _4, 0, *_scales_and_offsets(blocks))


def _q6_k(blocks: npt.NDArray[np.void]) -> _Groups:
    low = _nibbles(blocks["codes"].reshape(-1, 2, 64)).reshape(-1, 2, 4, 32)
    high = _bits(blocks["high"].reshape(-1, 2, 32), 2)
    return _Groups(low | high << _4, 32, _floats(blocks["scale"]) * blocks["scales"])


_IQ4_VALUES = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int16
)
_IQ4_CODES = (_IQ4_VALUES + 128).astype(np.uint8)

_FP4_DOUBLED = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.int16)
_FP4_CODES = (_FP4_DOUBLED + 16).astype(np.uint8)


def _iq4_nl(blocks: npt.NDArray[np.void]) -> _Groups:
    return _Groups(_IQ4_CODES[_nibbles(blocks["codes"])], 128, _floats(blocks["scale"]))


def _iq4_xs(blocks: npt.NDArray[np.void]) -> _Groups:
    low = _bits(blocks["low"][..., None], 4).reshape(-1, 8)
    high = blocks["high"][:, None] >> np.arange(0, 16, 2, dtype=np.uint16) & 3
    steps = (low | high << 4).astype(np.int16) - 32
    codes = _IQ4_CODES[_nibbles(blocks["codes"].reshape(-1, 8, 16))]
    return _Groups(codes, 128, _floats(blocks["scale"]) * steps.astype(np.float32))


def _mxfp4(blocks: npt.NDArray[np.void]) -> _Groups:
    halved = np.ldexp(np.float32(1), blocks["exponent"].astype(np.int32) - 128)
    return _Groups(_FP4_CODES[_nibbles(blocks["codes"])], 16, halved[:, None])


_HALF = "<f2"

BLOCK_TYPES: Mapping[GGMLQuantizationType, BlockType] = {
    GGMLQuantizationType.Q4_0: BlockType(
        4, np.dtype([("scale", _HALF), ("codes", "u1", 16)]), _q4_0
    ),
    GGMLQuantizationType.Q4_1: BlockType(
        4, np.dtype([("scale", _HALF), ("min", _HALF), ("codes", "u1", 16)]), _q4_1
    ),
    GGMLQuantizationType.Q5_0: BlockType(
        5, np.dtype([("scale", _HALF), ("fifth", "u1", 4), ("codes", "u1", 16)]), _q5_0
    ),
    GGMLQuantizationType.Q5_1: BlockType(
        5,
        np.dtype([("scale", _HALF), ("min", _HALF), ("fifth", "u1", 4), ("codes", "u1", 16)]),
        _q5_1,
    ),
    GGMLQuantizationType.Q8_0: BlockType(
        8, np.dtype([("scale", _HALF), ("codes", "u1", 32)]), _q8_0
    ),
    GGMLQuantizationType.Q4_K: BlockType(
        4,
        np.dtype([("scale", _HALF), ("min", _HALF), ("scales", "u1", 12), ("codes", "u1", 128)]),
        _q4_k,
    ),
    GGMLQuantizationType.Q5_K: BlockType(
        5,
        np.dtype(
            [
                *(("scale", _HALF), ("min", _HALF), ("scales", "u1", 12)),
                *(("fifth", "u1", 32), ("codes", "u1", 128)),
            ]
        ),
        _q5_k,
    ),
    GGMLQuantizationType.Q6_K: BlockType(
        6,
        np.dtype(
            [("codes", "u1", 128), ("high", "u1", 64), ("scales", "i1", 16), ("scale", _HALF)]
        ),
        _q6_k,
    ),
    GGMLQuantizationType.IQ4_NL: BlockType(
        8, np.dtype([("scale", _HALF), ("codes", "u1", 16)]), _iq4_nl
    ),
    GGMLQuantizationType.IQ4_XS: BlockType(
        8,
        np.dtype([("scale", _HALF), ("high", "<u2"), ("low", "u1", 4), ("codes", "u1", 128)]),
        _iq4_xs,
    ),
    GGMLQuantizationType.MXFP4: BlockType(
        5, np.dtype([("exponent", "u1"), ("codes", "u1", 16)]), _mxfp4
    ),
}
"""Types of which the codes can be kept, by the name that GGUF has for them."""


_ROUNDED_BITS = 8


@cache
def has_offsets(kind: GGMLQuantizationType) -> bool:
    """Whether groups of a type are spread about another number than 0."""
    if kind not in BLOCK_TYPES:
        return False
    num_bits, block, unpack = BLOCK_TYPES[kind]
    groups = unpack(np.zeros(1, block))
    return groups.offsets is not None or groups.zero != 1 << (num_bits - 1)


def code_bits(kind: GGMLQuantizationType) -> int | None:
    """Bits of a code in which rows of a type are given; None: they are plain numbers."""
    if kind in BLOCK_TYPES:
        return BLOCK_TYPES[kind].num_bits
    block_size, _ = GGML_QUANT_SIZES[kind]
    return None if block_size == 1 else _ROUNDED_BITS
