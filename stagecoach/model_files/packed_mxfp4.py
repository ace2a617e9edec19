"""MXFP4: codes of 4 bits for numbers of one table, with a power of two for each block of 32.

The format is that of the OCP Microscaling specification 1.0, E2M1 with E8M0 scales; the layout is
that of OpenAI's gpt-oss. A tensor has the matrices of all experts of a layer: `_blocks` is
`[num_experts, num_rows, num_blocks, 16]`, two codes a byte, the first one low, and `_scales` is
`[num_experts, num_rows, num_blocks]`.

Twice a number of the table is a whole number up to 12. So devices keep the numbers exactly, as
codes of 8 bits with scales of a half of the blocks'.
"""

from functools import partial

import numpy as np

from stagecoach.contract.errors import ModelFilesError
from stagecoach.contract.precision import INT8
from stagecoach.model_files.family import ExpertLayout
from stagecoach.model_files.grouped_rows import GroupedRows
from stagecoach.model_files.packed_form import ExpertForm, Quantization
from stagecoach.model_files.packed_matrix import Codes, Floats, PackedMatrix
from stagecoach.model_files.quantization_settings import QuantizationSettings
from stagecoach.model_files.stored_matrix import StoredMatrix, as_float32

BLOCKS, SCALES = "_blocks", "_scales"

_TABLE = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
"""Numbers of the codes: a sign, two bits of an exponent, one of a fraction."""

_BLOCK_SIZE = 32
_MIDDLE = 128
_KEPT_CODES = (_TABLE * 2 + _MIDDLE).astype(np.uint8)
_LOWEST, _HIGHEST = 2.0**-24, 2.0**15
"""Powers of two that a scale of float16 holds."""

LAYOUT = ExpertLayout(
    gate_up=("mlp.experts.{}.gate_up_proj.weight",),
    down="mlp.experts.{}.down_proj.weight",
    gate_up_bias=("mlp.experts.gate_up_proj_bias",),
    down_bias=("mlp.experts.down_proj_bias",),
)
"""Names of experts whose matrices are in blocks."""


def mxfp4(settings: QuantizationSettings) -> Quantization:
    """Reads the settings of MXFP4, of which none changes what is stored."""
    del settings
    return Quantization(
        method="mxfp4",
        encoding=INT8,
        forms=(),
        says={"method": "mxfp4"},
        expert_form=ExpertForm(BLOCKS, SCALES, LAYOUT, opened),
    )


def opened(expert: int, stored: StoredMatrix) -> PackedMatrix:
    """Checks the tensors of all experts, and says what the matrix of one is.

    Raises:
        UnsupportedModelError: They are of another type.
        ModelFilesError: They do not fit together.
    """
    num_experts, num_rows, num_blocks, num_bytes = stored.shape(BLOCKS, ("U8",), 4)
    if num_bytes != _BLOCK_SIZE // 2:
        raise stored.misfit(f"a block has {num_bytes} bytes, must have {_BLOCK_SIZE // 2}")
    stored.check_shape(SCALES, ("U8", "F8_E8M0"), (num_experts, num_rows, num_blocks))
    if expert >= num_experts:
        raise stored.misfit(f"there are {num_experts} experts, and expert {expert} is wanted")
    shape = num_rows, num_blocks * _BLOCK_SIZE
    return PackedMatrix(shape, 8, partial(_Mxfp4Matrix, stored, expert, shape))


class _Mxfp4Matrix:
    """Implements `LoadedMatrix` for the matrix of one expert, whose codes are in memory.

    Raises:
        ModelFilesError: A scale is no number.
    """

    def __init__(self, stored: StoredMatrix, expert: int, shape: tuple[int, int]) -> None:
        packed = stored.read(BLOCKS, expert, expert + 1).astype(np.uint8, copy=False)
        codes = np.stack((packed & 15, packed >> 4), axis=-1)
        self._codes: Codes = codes.reshape(shape)
        [scales] = stored.read(SCALES, expert, expert + 1)
        self._scales: Floats = as_float32(scales, "F8_E8M0")
        self._name = stored.name(SCALES)
        if np.isnan(self._scales).any():
            raise ModelFilesError(f"{self._name} is damaged: a scale of expert {expert} is NaN")

    def values(self, start: int, end: int) -> Floats:
        """The numbers of rows `[start, end)`, exactly.

        Raises:
            ModelFilesError: One is beyond float32.
        """
        numbers, scales = _TABLE[self._codes[start:end]], self._scales[start:end]
        with np.errstate(over="ignore"):  # refused below
            scaled: Floats = numbers.reshape(*scales.shape, -1) * scales[..., None]
        if not np.isfinite(scaled).all():
            raise ModelFilesError(f"{self._name} is damaged: a scale is {scales.max():g}")
        return scaled.reshape(numbers.shape)

    def groups(self, start: int, end: int) -> GroupedRows:
        """The same rows in codes of 8 bits, exactly.

        Raises:
            ModelFilesError: A scale is none that devices keep, of numbers that are not all 0.
        """
        codes, scales = self._codes[start:end], self._scales[start:end] / 2
        is_zero = ~(codes & 7).reshape(*scales.shape, -1).any(-1)
        is_kept = (scales >= _LOWEST) & (scales <= _HIGHEST)
        if not (is_kept | is_zero).all():
            odd = float(scales[~(is_kept | is_zero)][0]) * 2
            raise ModelFilesError(
                f"{self._name}: a scale is {odd:g}, must be from {2 * _LOWEST:g} to "
                f"{2 * _HIGHEST:g}"
            )
        return GroupedRows(_KEPT_CODES[codes], _MIDDLE, np.where(is_kept, scales, 0), None)
