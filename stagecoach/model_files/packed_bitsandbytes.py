"""bitsandbytes: codes of 4 bits for numbers of a table, and whole numbers of 8 bits.

Layout: `QuantState` and `Linear8bitLt` of the library. In 4 bits, `weight` has two codes a byte,
the first one high, of the matrix row after row; each block of neighbours has a scale in
`weight.absmax`, which may itself be codes of 8 bits with scales. In 8 bits, `SCB` has the largest
size of a number in each row, whose code is 127.
"""

import json
from collections.abc import Mapping

import numpy as np

from stagecoach.contract.errors import ModelFilesError
from stagecoach.contract.precision import INT8
from stagecoach.model_files.grouped_rows import MAX_SCALE
from stagecoach.model_files.packed_form import PackedForm, Quantization
from stagecoach.model_files.packed_matrix import (
    Floats,
    IntegerMatrix,
    NumberMatrix,
    PackedMatrix,
    Scales,
    kept_bits,
    rounded_bits,
    whole_codes,
)
from stagecoach.model_files.quantization_settings import MAX_SIZE, QuantizationSettings, is_size
from stagecoach.model_files.stored_matrix import FLOATS, StoredMatrix

_TYPES = ("nf4", "fp4")
_STATES = tuple(f"weight.quant_state.bitsandbytes__{kind}" for kind in _TYPES)
_NESTED = ("weight.nested_absmax", "weight.nested_quant_map")
_MAX_STATE_BYTES = 1 << 16
_ROWS = 0
"""`weight_format` of rows one after another; kernels of some cards have others."""


def bitsandbytes(settings: QuantizationSettings) -> Quantization:
    """Reads the settings of bitsandbytes.

    Raises:
        UnsupportedModelError: Weights have a table that is not served.
        ModelFilesError: A value is of no use.
    """
    is_4bit = settings.flag("load_in_4bit", default=False)
    if is_4bit:
        kind = settings.text("bnb_4bit_quant_type", default="fp4")
        settings.choice("bitsandbytes bnb_4bit_quant_type", kind, *_TYPES)
    beside = ("weight.quant_map", *_NESTED, *_STATES)
    return Quantization(
        method="bitsandbytes",
        encoding=INT8,
        forms=(
            PackedForm("weight", ("weight.absmax",), beside, _opened_4bit),
            PackedForm("weight", ("SCB",), ("weight_format",), _opened_8bit),
        ),
        says={"method": "bitsandbytes"},
    )


def _opened_8bit(stored: StoredMatrix) -> PackedMatrix:
    num_rows, num_columns = stored.shape("weight", ("I8",), 2)
    stored.check_shape("SCB", FLOATS, (num_rows,), (num_rows, 1), (1, num_rows))
    if "weight_format" in stored:
        stored.check_shape("weight_format", ("U8", "I8", "I32", "I64"), (), (1,))
        if (stored.read("weight_format") != _ROWS).any():
            raise stored.misfit("weight_format is not 0, rows one after another")

    def load() -> IntegerMatrix:
        scales = stored.scales("SCB").reshape(num_rows, 1) / np.float32(127)
        return IntegerMatrix(
            lambda start, end: whole_codes(stored.read("weight", start, end)),
            8,
            Scales(scales, num_columns),
            None,
        )

    return PackedMatrix((num_rows, num_columns), kept_bits(8, num_columns, num_columns), load)


def _opened_4bit(stored: StoredMatrix) -> PackedMatrix:
    state = _State(stored)
    num_rows, num_columns = state.shape
    num_elements = num_rows * num_columns
    num_blocks = -(-num_elements // state.block_size)
    stored.check_num_bytes("weight", -(-num_elements // 2))
    stored.check_shape("weight.quant_map", ("F32",), (16,))
    stored.check_shape("weight.absmax", ("U8",) if state.is_nested else FLOATS, (num_blocks,))
    if state.is_nested:
        stored.check_shape("weight.nested_quant_map", ("F32",), (256,))
        num_outer = -(-num_blocks // state.nested_block_size)
        stored.check_shape("weight.nested_absmax", FLOATS, (num_outer,))

    def load() -> NumberMatrix:
        table = stored.scales("weight.quant_map")
        scales = _scales(stored, state)

        def read(start: int, end: int) -> Floats:
            first, last = start * num_columns, end * num_columns
            packed = stored.read_bytes("weight", first // 2, -(-last // 2))
            codes = np.stack((packed >> 4, packed & 15), axis=-1).reshape(-1)[first % 2 :]
            blocks = np.arange(first, last) // state.block_size
            numbers: Floats = table[codes[: last - first]] * scales[blocks]
            return numbers.reshape(-1, num_columns)

        return NumberMatrix(stored.name("weight"), read)

    return PackedMatrix((num_rows, num_columns), rounded_bits(num_columns), load)


def _scales(stored: StoredMatrix, state: "_State") -> Floats:
    """Scales of all blocks, `[num_blocks]`."""
    if not state.is_nested:
        return stored.scales("weight.absmax")
    codes = stored.read("weight.absmax")
    outer = stored.scales("weight.nested_absmax")[np.arange(len(codes)) // state.nested_block_size]
    scales: Floats = stored.scales("weight.nested_quant_map")[codes] * outer
    return scales + np.float32(state.offset)


class _State:
    """What the JSON beside a matrix says.

    Args:
        stored: The tensors of the matrix.

    Raises:
        ModelFilesError: It does not say what it must.
    """

    def __init__(self, stored: StoredMatrix) -> None:
        found = [part for part in _STATES if part in stored]
        if len(found) > 1:
            raise stored.misfit(f"there are {' and '.join(found)}, must be one of them")
        self._part = found[0] if found else _STATES[0]
        self._stored = stored
        (size,) = stored.shape(self._part, ("U8",), 1)
        if size > _MAX_STATE_BYTES:
            raise self._fault(f"has {size} bytes, at most {_MAX_STATE_BYTES} are read")
        try:
            self._says = json.loads(stored.read(self._part).tobytes())
        except (ValueError, RecursionError) as error:
            raise self._fault("is not JSON") from error
        if not isinstance(self._says, Mapping):
            raise self._fault("is not a JSON object")
        self.block_size = self._size("blocksize")
        self.is_nested = any(part in stored for part in _NESTED)
        self.nested_block_size = self._size("nested_blocksize") if self.is_nested else 1
        self.offset = self._number("nested_offset") if self.is_nested else 0.0
        shape = self._says.get("shape")
        if not isinstance(shape, list) or len(shape) != 2 or not all(map(is_size, shape)):
            raise self._fault(
                f"says shape {shape!r:.80}, must be two sizes from 1 to {MAX_SIZE}, of a matrix"
            )
        self.shape: tuple[int, int] = (shape[0], shape[1])

    def _size(self, key: str) -> int:
        value = self._says.get(key)
        if not is_size(value):
            raise self._fault(
                f"says {key} {value!r:.80}, must be a whole number from 1 to {MAX_SIZE}"
            )
        return value

    def _number(self, key: str) -> float:
        value = self._says.get(key)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not abs(value) <= MAX_SCALE:  # also refuses NaN
            raise self._fault(
                f"says {key} {value!r:.80}, must be a number of at most {MAX_SCALE:.0f}"
            )
        return float(value)

    def _fault(self, what: str) -> ModelFilesError:
        return ModelFilesError(f"{self._stored.name(self._part)} {what}")
