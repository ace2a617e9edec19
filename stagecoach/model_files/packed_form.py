"""What a quantizing tool makes of a checkpoint: which stored tensors are one matrix, and how."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from stagecoach.contract.precision import INT8, Encoding, few_bits
from stagecoach.model_files.family import ExpertLayout
from stagecoach.model_files.packed_matrix import PackedMatrix, kept_bits
from stagecoach.model_files.stored_matrix import StoredMatrix

_MANY_COLUMNS = 1 << 12
"""Columns of a matrix that stands for all of a model, of whole groups."""


class PackedForm(NamedTuple):
    """How the stored tensors of a matrix are called, and what they say."""

    matrix: str
    """What the name of the tensor with the codes ends in, where that of plain numbers ends in
    `weight`."""
    markers: tuple[str, ...]
    """One of these lies beside it; empty: the name of the matrix alone says that it is packed."""
    beside: tuple[str, ...]
    """What else may lie beside it."""
    open: Callable[[StoredMatrix], PackedMatrix]
    """Checks the headers of the tensors, and says what the matrix is."""


class ExpertForm(NamedTuple):
    """How tensors are called that have the packed matrices of all experts of a layer."""

    matrix: str
    """What the name of the tensor with the codes ends in, behind the name of the parameter."""
    scales: str
    """What the name of the tensor with the scales ends in."""
    layout: ExpertLayout
    """What the matrices of each expert are called, of which the tensors are."""
    open: Callable[[int, StoredMatrix], PackedMatrix]
    """Checks the headers of the tensors, and says what the matrix of an expert is."""


class Quantization(NamedTuple):
    """How a checkpoint is quantized.

    What is stored decides which matrices are packed: lists of modules that are left plain need no
    reading.
    """

    method: str
    """Name, for people."""
    encoding: Encoding | None
    """In which few bits most matrices are kept; None: in none."""
    forms: tuple[PackedForm, ...]
    """Forms of its matrices."""
    says: Mapping[str, object]
    """Settings that change what the stored tensors mean, as JSON."""
    not_read: tuple[str, ...] = ()
    """Ends of names of tensors that weights have no use for."""
    not_applied: tuple[str, ...] = ()
    """Settings of activations and KV, which are not quantized here; for people."""
    expert_form: ExpertForm | None = None
    """Form of its experts; None: that of other matrices."""


def encoding_of(num_bits: int, group_size: int, *, is_scattered: bool = False) -> Encoding:
    """Returns in which few bits wide matrices of a form are kept.

    Args:
        num_bits: Bits of the stored codes.
        group_size: Columns that share a scale; less than 1: whole rows.
        is_scattered: Whether columns of a group may lie apart.
    """
    size = group_size if group_size > 0 else _MANY_COLUMNS
    bits = kept_bits(num_bits, size, size * _MANY_COLUMNS, is_scattered=is_scattered)
    return INT8 if bits is None else few_bits(bits)
