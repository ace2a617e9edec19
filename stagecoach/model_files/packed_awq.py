"""AWQ: codes of 4 bits, packed along the outputs in an order that its kernels unpack fast.

Layout: `WQLinear_GEMM` of AutoAWQ. `qweight` is `[num_columns, num_rows / 8]`, `qzeros`
`[num_groups, num_rows / 8]`, `scales` `[num_groups, num_rows]`.
"""

from collections.abc import Collection

import numpy as np

from stagecoach.model_files.packed_form import PackedForm, Quantization, encoding_of
from stagecoach.model_files.packed_matrix import (
    Codes,
    IntegerMatrix,
    PackedMatrix,
    Scales,
    Words,
    kept_bits,
    unpacked,
)
from stagecoach.model_files.quantization_settings import QuantizationSettings
from stagecoach.model_files.stored_matrix import FLOATS, StoredMatrix

_BITS = 4
_PER_WORD = 32 // _BITS
_PLACES = [0, 4, 1, 5, 2, 6, 3, 7]
"""Place in a word of each of eight neighbours."""


def awq(
    settings: QuantizationSettings, of_modules: Collection[QuantizationSettings] = ()
) -> Quantization:
    """Reads the settings of AutoAWQ, and of what writes the same tensors.

    Args:
        settings: The settings.
        of_modules: Settings of modules that have others than most.

    Raises:
        UnsupportedModelError: They are of another layout.
        ModelFilesError: A value is of no use.
    """
    num_bits = settings.whole("bits", "w_bit", default=_BITS)
    settings.choice("awq with bits", num_bits, _BITS)
    settings.choice(
        "awq version",
        settings.text("version", "checkpoint_format", "format", default="gemm"),
        "gemm",
    )
    backend = settings.text("backend", default="autoawq")
    if backend == "llm-awq":
        raise settings.refused(f"awq of backend {backend}")
    group_size = settings.whole("group_size", "q_group_size", default=128)
    sizes = {group_size, *(each.whole("group_size", default=group_size) for each in of_modules)}
    return Quantization(
        method="awq",
        encoding=encoding_of(_BITS, group_size),
        forms=(
            PackedForm(
                "qweight",
                (),
                ("qzeros", "scales"),
                lambda stored: _opened(stored, sizes),
            ),
        ),
        says={"method": "awq"},
    )


def _opened(stored: StoredMatrix, group_sizes: Collection[int]) -> PackedMatrix:
    num_columns, num_words = stored.shape("qweight", ("I32",), 2)
    num_rows = num_words * _PER_WORD
    num_groups, _ = stored.shape("scales", FLOATS, 2)
    stored.check_shape("scales", FLOATS, (num_groups, num_rows))
    stored.check_shape("qzeros", ("I32",), (num_groups, num_words))
    group_size = stored.group_size(num_columns, num_groups, group_sizes)

    def load() -> IntegerMatrix:
        words = stored.read("qweight").astype(np.int32, copy=False)

        def codes(start: int, end: int) -> Codes:
            first = start // _PER_WORD
            some = words[:, first : -(-end // _PER_WORD)]
            skipped = first * _PER_WORD
            return _in_order(some)[start - skipped : end - skipped]

        zeros = _in_order(stored.read("qzeros").astype(np.int32, copy=False))
        scales = Scales(np.ascontiguousarray(stored.scales("scales").T), group_size)
        return IntegerMatrix(codes, _BITS, scales, zeros)

    return PackedMatrix((num_rows, num_columns), kept_bits(_BITS, group_size, num_columns), load)


def _in_order(words: Words) -> Codes:
    """Unpacks `[n, num_rows / 8]`; returns `[num_rows, n]`."""
    packed = unpacked(np.ascontiguousarray(words), _BITS)
    by_word = packed.reshape(len(words), -1, _PER_WORD)[..., _PLACES]
    return np.ascontiguousarray(by_word.reshape(len(words), -1).T)
