"""GPTQ: codes of 2 to 8 bits, packed along the inputs, with groups that may be scattered.

Layout: `QuantLinear` of AutoGPTQ and GPTQModel. `qweight` is `[num_columns * bits / 32, num_rows]`,
`qzeros` `[num_groups, num_rows * bits / 32]`, `scales` `[num_groups, num_rows]`, `g_idx`
`[num_columns]`. Codes follow each other in the bits of 32 columns.
"""

from collections.abc import Collection
from typing import NamedTuple

import numpy as np

from stagecoach.model_files.packed_form import PackedForm, Quantization, encoding_of
from stagecoach.model_files.packed_matrix import (
    Codes,
    IntegerMatrix,
    PackedMatrix,
    Scales,
    kept_bits,
    unpacked,
)
from stagecoach.model_files.quantization_settings import QuantizationSettings
from stagecoach.model_files.stored_matrix import FLOATS, StoredMatrix

_BITS = (2, 3, 4, 5, 6, 7, 8)
_ZERO_OFFSETS = {"gptq": 1, "gptq_v2": 0}
"""How much less than the code of 0 is stored for it, by the format of the checkpoint."""


class _Bounds(NamedTuple):
    """What the settings say of all modules."""

    bits: Collection[int]
    """Bits of a code that a module may have."""
    group_sizes: Collection[int]
    """Columns that may share a scale; less than 1: whole rows."""
    zero_offset: int


def gptq(settings: QuantizationSettings) -> Quantization:
    """Reads the settings of AutoGPTQ and GPTQModel.

    Raises:
        UnsupportedModelError: They are of another layout.
        ModelFilesError: A value is of no use.
    """
    layout = settings.text("checkpoint_format", "format", default="gptq")
    settings.choice("gptq checkpoint_format", layout, *_ZERO_OFFSETS)
    settings.choice("gptq pack_dtype", settings.text("pack_dtype", default="int32"), "int32")
    if settings.flag("is_marlin_format", default=False):
        raise settings.refused("gptq for Marlin (is_marlin_format)")
    for key in ("rotation", "adapter"):
        if settings.get(key) is not None:
            raise settings.refused(f"gptq and {key}")
    # Rules of single modules; what they leave plain is stored plain.
    rules = settings.within("dynamic")
    return gptq_like(
        settings,
        [rules.within(rule) for rule in rules.values],
        zero_offset=_ZERO_OFFSETS[layout],
    )


def gptq_like(
    settings: QuantizationSettings,
    of_modules: Collection[QuantizationSettings],
    *,
    zero_offset: int,
) -> Quantization:
    """Reads the settings of any tool that packs as GPTQ does.

    Args:
        settings: The settings.
        of_modules: Settings of modules that have others than most.
        zero_offset: How much less than the code of 0 is stored for it.

    Raises:
        UnsupportedModelError: Codes have bits that are not served.
        ModelFilesError: A value is of no use.
    """
    num_bits = settings.whole("bits", "w_bit")
    settings.choice("gptq with bits", num_bits, *_BITS)
    group_size = settings.whole("group_size", "q_group_size", default=-1)
    bounds = _Bounds(
        {num_bits, *(each.whole("bits", default=num_bits) for each in of_modules)},
        {group_size, *(each.whole("group_size", default=group_size) for each in of_modules)},
        zero_offset,
    )
    has_own_order = not settings.flag("static_groups", default=False)
    is_scattered = settings.flag("desc_act", default=False) and has_own_order and group_size > 0
    return Quantization(
        method="gptq",
        encoding=encoding_of(num_bits, group_size, is_scattered=is_scattered),
        forms=(
            PackedForm(
                "qweight",
                (),
                ("qzeros", "scales", "g_idx"),
                lambda stored: _opened(stored, bounds),
            ),
        ),
        says={"method": "gptq", "zero_offset": zero_offset},
    )


def _opened(stored: StoredMatrix, bounds: _Bounds) -> PackedMatrix:
    num_words, num_rows = stored.shape("qweight", ("I32",), 2)
    num_groups, zero_words = stored.shape("qzeros", ("I32",), 2)
    num_bits = 32 * zero_words // max(num_rows, 1)
    if num_bits not in bounds.bits or num_bits not in _BITS:
        raise stored.misfit(
            f"{zero_words} words of qzeros for {num_rows} rows are codes of {num_bits} bits, the "
            f"configuration says {' or '.join(map(str, sorted(bounds.bits)))}"
        )
    num_columns = num_words * 32 // num_bits
    if num_columns * num_bits != 32 * num_words or num_rows * num_bits != 32 * zero_words:
        raise stored.misfit(f"codes of {num_bits} bits do not fill their words")
    stored.check_shape("scales", FLOATS, (num_groups, num_rows))
    group_size = stored.group_size(num_columns, num_groups, bounds.group_sizes)
    order = stored.scattered("g_idx", num_columns, num_groups, group_size)

    def load() -> IntegerMatrix:
        words = stored.read("qweight").astype(np.int32, copy=False)

        def codes(start: int, end: int) -> Codes:
            return unpacked(np.ascontiguousarray(words[:, start:end].T), num_bits)

        zeros = unpacked(stored.read("qzeros").astype(np.int32, copy=False), num_bits)
        shifted = zeros.T + np.uint8(bounds.zero_offset)
        shifted &= np.uint8((1 << num_bits) - 1)
        scales = Scales(np.ascontiguousarray(stored.scales("scales").T), group_size, order)
        return IntegerMatrix(codes, num_bits, scales, np.ascontiguousarray(shifted))

    return PackedMatrix(
        (num_rows, num_columns),
        kept_bits(num_bits, group_size, num_columns, is_scattered=order is not None),
        load,
    )
