"""compressed-tensors, as llm-compressor writes it: packed whole numbers, and numbers of 8 bits.

Layout: `compressed_tensors/compressors` of the library. `weight_packed` is
`[num_rows, num_columns * bits / 32]`; codes follow each other in the bits of a row, the middle code
is 0. `weight_scale` is `[num_rows, num_groups]`; `weight_zero_point` as that, or packed along the
rows.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from stagecoach.contract.precision import Encoding
from stagecoach.model_files.packed_form import PackedForm, Quantization, encoding_of
from stagecoach.model_files.packed_matrix import (
    Codes,
    IntegerMatrix,
    PackedMatrix,
    Scales,
    kept_bits,
    unpacked,
)
from stagecoach.model_files.packed_scaled import (
    UNREAD_SCALES,
    Layout,
    activations_of_groups,
    scaled_form,
)
from stagecoach.model_files.quantization_settings import QuantizationSettings
from stagecoach.model_files.stored_matrix import FLOATS, INDICES, StoredMatrix

_PACKED = "pack-quantized"
_FORMATS = (
    *(_PACKED, "int-quantized", "float-quantized", "naive-quantized"),
    *("mixed-precision", "dense"),
)
_STRATEGIES = ("tensor", "channel", "group", "block")
_INTEGER_TYPES = tuple(("int", bits) for bits in range(2, 9))
_INTEGER_PRESET = re.compile(r"W([2-8])A(?:4|8|16|16_ASYM|FP8)|INT(8)")
_PLAIN_ACTIVATIONS = "A16"
"""What is part of the names of schemes whose activations are not quantized."""
_FLOAT_PRESETS = ("FP8", "FP8_DYNAMIC", "FP8_BLOCK")
_PRESET_GROUP_SIZE, _PRESET_BLOCK = 128, (128, 128)


class _Scheme(NamedTuple):
    """How the matrices of a group of modules are quantized."""

    num_bits: int
    form: str
    """Name of the format in which they are stored."""
    is_float: bool
    group_size: int
    """Less than 1: whole rows."""
    block: tuple[int, int] | None = None
    is_scattered: bool = False
    """Whether columns of a group may lie apart."""


def compressed_tensors(settings: QuantizationSettings) -> Quantization:
    """Reads the settings of compressed-tensors.

    Raises:
        UnsupportedModelError: Some matrices are in a form that is not served.
        ModelFilesError: A value is of no use.
    """
    _check_form(settings)
    groups = settings.within("config_groups")
    form = settings.text("format", default=_PACKED)
    schemes = [scheme for name in groups.values for scheme in _schemes(groups, name, form)]
    whole = [scheme for scheme in schemes if not scheme.is_float]
    bits = {scheme.num_bits for scheme in whole}
    sizes = {scheme.group_size for scheme in whole}
    scaled_sizes = {scheme.group_size for scheme in schemes if scheme.group_size > 0}
    blocks = sorted({scheme.block for scheme in schemes if scheme.block is not None})
    return Quantization(
        method="compressed-tensors",
        encoding=_encoding(schemes),
        forms=(
            PackedForm(
                "weight_packed",
                (),
                ("weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx"),
                lambda stored: _opened(stored, bits, sizes),
            ),
            scaled_form(Layout(blocks, sorted(scaled_sizes))),
        ),
        says={"method": "compressed-tensors", "blocks": blocks},
        not_read=UNREAD_SCALES,
        not_applied=tuple(_not_applied(settings, groups)),
    )


def _check_form(settings: QuantizationSettings) -> None:
    form = settings.text("format", default=_PACKED)
    settings.choice("compressed-tensors format", form, *_FORMATS)
    sparsity = settings.within("sparsity_config")
    sparse_form = sparsity.text("format", default="dense")
    sparsity.choice("compressed-tensors sparsity format", sparse_form, "dense")
    transforms = settings.within("transform_config").within("config_groups")
    if transforms.values:
        raise transforms.refused("transforms of compressed-tensors")


def _schemes(groups: QuantizationSettings, name: str, form: str) -> list[_Scheme]:
    """The scheme of a group; none where its weights are plain.

    Args:
        groups: All groups.
        name: Name of this one.
        form: Format of groups that have none of their own.
    """
    if not isinstance(groups.values[name], Mapping):  # a list of modules below a known name
        return [_preset(groups, name, form)]
    group = groups.within(name)
    weights = group.within("weights")
    if not weights.values:
        return []
    form = group.text("format", default=form)
    group.choice("compressed-tensors format", form, *_FORMATS)
    kind = weights.text("type", default="int")
    num_bits = weights.whole("num_bits", default=8)
    weights.choice(
        "compressed-tensors type and bits", (kind, num_bits), ("float", 8), *_INTEGER_TYPES
    )
    has_groups = weights.whole("group_size", default=-1) > 0
    strategy = weights.text("strategy", default="group" if has_groups else "tensor")
    weights.choice("compressed-tensors strategy", strategy, *_STRATEGIES)
    group_size = weights.whole("group_size", default=-1) if strategy == "group" else -1
    block = weights.pair("block_structure") if strategy == "block" else None
    is_scattered = _has_order(weights) and group_size > 0
    return [_Scheme(num_bits, form, kind == "float", group_size, block, is_scattered)]


def _has_order(weights: QuantizationSettings) -> bool:
    """Whether columns were put in groups by their size, and not in the order of their groups."""
    if isinstance(weights.get("actorder"), bool):
        return weights.flag("actorder", default=False)
    order = weights.text("actorder", default="weight")
    weights.choice("compressed-tensors actorder", order, "group", "dynamic", "weight", "static")
    return order in ("group", "dynamic")


def _preset(groups: QuantizationSettings, name: str, form: str) -> _Scheme:
    preset = name.upper()
    if preset in _FLOAT_PRESETS:
        return _Scheme(8, form, True, -1, _PRESET_BLOCK if preset == "FP8_BLOCK" else None)
    found = _INTEGER_PRESET.fullmatch(preset)
    if found is None:
        raise groups.refused(f"compressed-tensors scheme {name}")
    num_bits = int(next(bits for bits in found.groups() if bits))
    return _Scheme(num_bits, form, False, _PRESET_GROUP_SIZE if num_bits < 8 else -1)


def _encoding(schemes: Sequence[_Scheme]) -> Encoding | None:
    """Returns that of the group with the fewest bits: modules with more are exceptions."""
    if not schemes:
        return None
    fewest = min(schemes, key=_stored_bits)
    return encoding_of(_stored_bits(fewest), fewest.group_size, is_scattered=fewest.is_scattered)


def _stored_bits(scheme: _Scheme) -> int:
    """Bits of a stored code, which has a byte of its own where codes are not packed."""
    return scheme.num_bits if scheme.form in (_PACKED, "mixed-precision") else 8


def _not_applied(settings: QuantizationSettings, groups: QuantizationSettings) -> Iterator[str]:
    """Yields the names of settings of activations and KV."""
    for name, group in groups.values.items():
        if not isinstance(group, Mapping) and _PLAIN_ACTIVATIONS not in name.upper():
            yield f"{groups.path}.{name}"
    yield from activations_of_groups(groups)
    yield from settings.said("kv_cache_scheme")


def _opened(
    stored: StoredMatrix, bits: Collection[int], group_sizes: Collection[int]
) -> PackedMatrix:
    num_rows, num_words = stored.shape("weight_packed", ("I32",), 2)
    stored.check_shape("weight_shape", INDICES, (2,))
    said_rows, num_columns = map(int, stored.read("weight_shape"))
    fitting = [each for each in sorted(bits) if -(-num_columns * each // 32) == num_words]
    if said_rows != num_rows or len(fitting) != 1:
        raise stored.misfit(
            f"weight_packed has shape {[num_rows, num_words]}, weight_shape says "
            f"{[said_rows, num_columns]} in codes of {' or '.join(map(str, sorted(bits)))} bits, "
            "of which one must fit"
        )
    num_bits = fitting[0]
    num_groups = _num_groups(stored, num_rows)
    group_size = stored.group_size(num_columns, num_groups, group_sizes)
    order = stored.scattered("weight_g_idx", num_columns, num_groups, group_size, unordered=-1)
    has_zeros = "weight_zero_point" in stored
    packed_rows = -(-num_rows * num_bits // 32)
    if has_zeros:
        shape = stored.any_shape("weight_zero_point", ("I8", "I32"))
        is_packed = stored.dtype("weight_zero_point") == "I32"
        expected = (packed_rows, num_groups) if is_packed else (num_rows, num_groups)
        stored.check_shape("weight_zero_point", ("I8", "I32"), expected, *_only_one(shape))

    def codes(start: int, end: int) -> Codes:
        words = stored.read("weight_packed", start, end).astype(np.int32, copy=False)
        return unpacked(words, num_bits)[:, :num_columns]

    def load() -> IntegerMatrix:
        scales = stored.scales("weight_scale").reshape(-1, num_groups)
        by_row = np.broadcast_to(scales, (num_rows, num_groups))
        zeros = _zeros(stored, num_bits, (num_rows, num_groups)) if has_zeros else None
        return IntegerMatrix(codes, num_bits, Scales(by_row, group_size, order), zeros)

    kept = kept_bits(num_bits, group_size, num_columns, is_scattered=order is not None)
    return PackedMatrix((num_rows, num_columns), kept, load)


def _num_groups(stored: StoredMatrix, num_rows: int) -> int:
    """Scales of a row; one of a tensor is one of each of its rows."""
    shape = stored.any_shape("weight_scale", FLOATS)
    if shape in ((), (1,), (1, 1), (num_rows,)):
        return 1
    if len(shape) != 2 or shape[0] != num_rows or not shape[1]:
        raise stored.misfit(f"weight_scale has shape {list(shape)} for {num_rows} rows")
    return shape[1]


def _only_one(shape: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """A shape that one number has, where it is one."""
    return (shape,) if shape in ((), (1,)) else ()


def _zeros(stored: StoredMatrix, num_bits: int, shape: tuple[int, int]) -> Codes:
    """Codes of 0 of all rows, `[num_rows, num_groups]`.

    Raises:
        ModelFilesError: One has more bits.
    """
    numbers = stored.read("weight_zero_point").astype(np.int32, copy=False)
    if stored.dtype("weight_zero_point") == "I32" and numbers.ndim == 2:
        words = np.ascontiguousarray(numbers.T)
        return np.ascontiguousarray(unpacked(words, num_bits)[:, : shape[0]].T)
    middle = 1 << (num_bits - 1)
    if (numbers < -middle).any() or (numbers >= middle).any():
        raise stored.misfit(
            f"weight_zero_point has {numbers.min()} to {numbers.max()}, must be from {-middle} to "
            f"{middle - 1} in {num_bits} bits"
        )
    return np.broadcast_to(numbers + middle, shape).astype(np.uint8)
