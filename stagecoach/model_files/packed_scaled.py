"""Numbers of 8 bits beside scales: FP8 in the form e4m3, and whole numbers.

A tensor, a row, a group of a row or a block has a scale, by which its numbers are multiplied, also
where its tensor is called an inverse. e4m3: `https://arxiv.org/abs/2209.05433`, table 1.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from stagecoach.contract.precision import INT8
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
from stagecoach.model_files.quantization_settings import QuantizationSettings
from stagecoach.model_files.stored_matrix import FLOATS, StoredMatrix

_SCALES = ("weight_scale", "weight_scale_inv")

UNREAD_SCALES = (
    *(".input_scale", ".output_scale", ".input_zero_point", ".output_zero_point"),
    *(".k_scale", ".v_scale", ".q_scale", ".kv_scale", ".prob_scale", ".input_global_scale"),
    *(".k_zero_point", ".v_zero_point", ".q_zero_point"),
    *(".activation_scale", ".act_scale", ".input_scale_ub"),
)
"""Ends of names of what only activations and KV are quantized by."""


class Layout(NamedTuple):
    """How scales may lie."""

    blocks: Collection[tuple[int, int]] = ()
    """Rows and columns of a block that has a scale."""
    group_sizes: Collection[int] = ()
    """Columns of a row that share a scale."""


def fp8(settings: QuantizationSettings) -> Quantization:
    """Reads the settings of checkpoints in FP8, as DeepSeek, Qwen and AutoFP8 publish them.

    Raises:
        UnsupportedModelError: They are of another format of 8 bits.
        ModelFilesError: A value is of no use.
    """
    settings.choice("fp8 fmt", settings.text("fmt", default="e4m3"), "e4m3", "float8_e4m3fn")
    block = settings.pair("weight_block_size")
    layout = Layout(() if block is None else (block,))
    return _fp8("fp8", layout, settings.said("activation_scheme", "kv_cache_scheme"))


def fbgemm_fp8(settings: QuantizationSettings) -> Quantization:
    """Reads the settings of checkpoints in FP8 for FBGEMM, with a scale a row."""
    return _fp8("fbgemm_fp8", Layout(), settings.said("activation_scale_ub", "kv_cache_scheme"))


def modelopt(settings: QuantizationSettings) -> Quantization:
    """Reads the settings of NVIDIA's ModelOpt, of whose forms FP8 is served.

    Raises:
        UnsupportedModelError: They are of another form.
        ModelFilesError: A value is of no use.
    """
    inner = settings.within("quantization")
    settings = inner if inner.values else settings
    settings.choice("modelopt quant_algo", settings.text("quant_algo"), "fp8")
    activations = activations_of_groups(settings.within("config_groups"))
    kv = settings.said("kv_cache_scheme", "kv_cache_quant_algo")
    return _fp8("modelopt", Layout(), (*activations, *kv))


def activations_of_groups(groups: QuantizationSettings) -> Iterator[str]:
    """Yields the paths of settings of activations.

    Args:
        groups: Settings of groups of modules, by their names.
    """
    for name, group in groups.values.items():
        if isinstance(group, Mapping):
            yield from groups.within(name).said("input_activations", "output_activations")


def _fp8(method: str, layout: Layout, not_applied: tuple[str, ...]) -> Quantization:
    """Describes a checkpoint in FP8."""
    return Quantization(
        method=method,
        encoding=INT8,
        forms=(scaled_form(layout),),
        says={"method": method, "blocks": sorted(layout.blocks)},
        not_read=UNREAD_SCALES,
        not_applied=not_applied,
    )


def scaled_form(layout: Layout) -> PackedForm:
    """Returns the form of matrices in numbers of 8 bits with scales.

    Args:
        layout: How their scales may lie.
    """
    return PackedForm(
        "weight", _SCALES, ("weight_zero_point",), lambda stored: _opened(stored, layout)
    )


def _opened(stored: StoredMatrix, layout: Layout) -> PackedMatrix:
    num_rows, num_columns = stored.shape("weight", ("F8_E4M3", "I8"), 2)
    scale, *others = (part for part in _SCALES if part in stored)
    if others:
        raise stored.misfit(f"there are {scale} and {others[0]}, must be one of them")
    grid = _Grid.of(stored, scale, (num_rows, num_columns), layout)
    is_whole = stored.dtype("weight") == "I8"
    has_zeros = "weight_zero_point" in stored
    if has_zeros:
        shape = stored.any_shape(scale, FLOATS)
        stored.check_shape("weight_zero_point", (stored.dtype("weight"),), shape)

    def load_whole() -> IntegerMatrix:
        zeros = None
        if has_zeros:
            zeros = grid.rows(whole_codes(stored.read("weight_zero_point")), num_rows)
        scales = Scales(grid.rows(stored.scales(scale), num_rows), grid.num_columns)
        return IntegerMatrix(
            lambda start, end: whole_codes(stored.read("weight", start, end)), 8, scales, zeros
        )

    def load_floats() -> NumberMatrix:
        if has_zeros and E4M3[stored.read("weight_zero_point")].any():
            raise stored.misfit("weight_zero_point is not 0, which numbers in FP8 have no use for")
        scales = Scales(grid.rows(stored.scales(scale), num_rows), grid.num_columns)

        def read(start: int, end: int) -> Floats:
            numbers: Floats = E4M3[stored.read("weight", start, end)]
            numbers *= scales.spread(scales.values[start:end], num_columns)
            return numbers

        return NumberMatrix(stored.name("weight"), read)

    bits = kept_bits(8, grid.num_columns, num_columns) if is_whole else rounded_bits(num_columns)
    return PackedMatrix((num_rows, num_columns), bits, load_whole if is_whole else load_floats)


class _Grid(NamedTuple):
    """How the scales of a matrix lie."""

    shape: tuple[int, int]
    """Rows and columns of the scales."""
    num_rows: int
    """Rows of the matrix that share a scale; the last may be fewer."""
    num_columns: int
    """Columns of the matrix that share a scale; the last may be fewer."""

    @classmethod
    def of(
        cls, stored: StoredMatrix, scale: str, matrix: tuple[int, int], layout: Layout
    ) -> "_Grid":
        """Finds out by the shape of the scales.

        Raises:
            ModelFilesError: They do not fit the matrix, or in more than one way.
        """
        shape = stored.any_shape(scale, FLOATS)
        found = set(cls._fitting(shape, matrix, layout))
        if len(found) == 1:
            return found.pop()
        blocks = "".join(f", or blocks of {rows} x {columns}" for rows, columns in layout.blocks)
        sizes = "".join(f", or groups of {size}" for size in layout.group_sizes)
        raise stored.misfit(
            f"{scale} has shape {list(shape)}, weight {list(matrix)}: must be of the tensor, its "
            f"rows{blocks}{sizes}, and of one of them alone"
        )

    @classmethod
    def _fitting(
        cls, shape: tuple[int, ...], matrix: tuple[int, int], layout: Layout
    ) -> Iterator["_Grid"]:
        """Yields what scales of a shape may be, no block larger than the matrix."""
        num_rows, num_columns = matrix
        if shape in ((), (1,), (1, 1)):
            yield cls((1, 1), num_rows, num_columns)
        if shape in ((num_rows,), (num_rows, 1)):
            yield cls((num_rows, 1), 1, num_columns)
        groups = ((1, size) for size in layout.group_sizes if num_columns % size == 0)
        for rows, columns in (*layout.blocks, *groups):
            own = min(rows, num_rows), min(columns, num_columns)
            if shape == (-(-num_rows // own[0]), -(-num_columns // own[1])):
                yield cls(shape, *own)

    def rows(self, scales: np.ndarray, num_rows: int) -> np.ndarray:
        """Repeats the scales of blocks for each of their rows: `[num_rows, num_groups]`."""
        return np.repeat(scales.reshape(self.shape), self.num_rows, axis=0)[:num_rows]


def _e4m3() -> Floats:
    codes = np.arange(256)
    exponents, fractions = codes >> 3 & 15, codes & 7
    sizes = np.where(exponents > 0, 8 + fractions, fractions) * 2.0 ** (
        np.maximum(exponents, 1) - 10
    )
    sizes[codes & 127 == 127] = np.nan
    numbers: Floats = np.where(codes & 128, -sizes, sizes).astype(np.float32)
    return numbers


E4M3 = _e4m3()
"""The number of each code of FP8 with 4 bits of exponent and 3 of fraction, without infinities."""
