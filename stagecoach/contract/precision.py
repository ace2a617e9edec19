"""In which formats a stage keeps, computes and sends numbers; made once, from its flags."""

from enum import StrEnum
from typing import NamedTuple, Self, TypeVar

from stagecoach.contract.errors import InvalidArgumentError

_ITEMSIZES = {"float32": 4, "float16": 2, "bfloat16": 2}


_Named = TypeVar("_Named", bound=StrEnum)


def _named(choices: type[_Named], name: str, field: str) -> _Named:
    try:
        return choices(name)
    except ValueError:
        raise InvalidArgumentError(
            f"{field} {name!r} is not one of {', '.join(choices)}", field=field
        ) from None


class DType(StrEnum):
    """Type of one number, by the name that torch and `--dtype` have for it."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"

    def __init__(self, name: str) -> None:
        self.itemsize = _ITEMSIZES[name]
        """Bytes of one number."""

    @classmethod
    def named(cls, name: str) -> Self:
        """Returns the dtype of that name.

        Raises:
            InvalidArgumentError: There is no such dtype.
        """
        return _named(cls, name, "dtype")


class KvFormat(StrEnum):
    """How a stage keeps keys and values, by the name that `--kv-dtype` has for it."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    INT8 = "int8"
    """Codes of 8 bits; each head of a token has a scale and an offset in float16."""

    @classmethod
    def named(cls, name: str) -> Self:
        """Returns the format of that name.

        Raises:
            InvalidArgumentError: There is no such format.
        """
        return _named(cls, name, "kv_dtype")

    @property
    def dtype(self) -> DType | None:
        """Dtype of plain numbers; None for codes."""
        return None if self is KvFormat.INT8 else DType(self.value)

    def head_bytes(self, head_dim: int) -> int:
        """Bytes of the keys, or the values, of a token in one head."""
        if self.dtype is None:
            return head_dim + 2 * DType.FLOAT16.itemsize
        return head_dim * self.dtype.itemsize


class Encoding(NamedTuple):
    """How a row of numbers is kept or sent: in whole blocks of so many numbers and so many bytes.

    Plain numbers are blocks of one. GGUF's Q4_0 has 32 numbers and their scale in 18 bytes.
    """

    name: str
    block_size: int
    """Numbers in a block."""
    block_bytes: int

    @classmethod
    def plain(cls, dtype: DType) -> Self:
        """Numbers of a dtype, one after another."""
        return cls(dtype.value, 1, dtype.itemsize)

    @property
    def dtype(self) -> DType | None:
        """Dtype of plain numbers; None for blocks."""
        return DType(self.name) if self.block_size == 1 else None

    def row_bytes(self, num_columns: int) -> int:
        """Bytes of a row, whose last block may be partly unused."""
        return -(-num_columns // self.block_size) * self.block_bytes

    def matrix_bytes(self, num_rows: int, num_columns: int) -> int:
        """Bytes of a matrix. That of a linear layer has a row for each of its outputs."""
        return num_rows * self.row_bytes(num_columns)


INT4 = Encoding("int4", 32, 20)
"""Codes of 4 bits; 32 neighbours in a row have a scale and an offset of 16 bits each."""
INT8 = Encoding("int8", 32, 36)
"""Codes of 8 bits, in the same groups."""


def few_bits(code_bits: int) -> Encoding:
    """Returns in which few bits codes are kept: those of 5 to 8 bits in 8.

    Args:
        code_bits: Bits of a code, at most 8.
    """
    return INT4 if code_bits <= 4 else INT8


FEW_BITS = {encoding.name: encoding for encoding in (INT4, INT8)}
"""Encodings of matrices in few bits, by name."""


class Precision(NamedTuple):
    """The formats of a stage's numbers, one for each use."""

    weights: Encoding
    """Encoding of matrices: those of the layers, the embedding and the head. With few bits it is
    that of most matrices of the layers; an embedding has 8 bits then, a head plain numbers."""
    compute: DType
    """Dtype of activations, and of weights that are no matrices, such as those of norms."""
    kv: KvFormat
    """Format of keys and values in the KV cache."""
    wire: Encoding
    """Encoding of hidden states between stages."""

    def __str__(self) -> str:
        """For people: one name where all formats are one."""
        names = (self.weights.name, self.compute, self.kv, self.wire.name)
        if len(set(names)) == 1:
            return self.weights.name
        return "{} weights, {} arithmetic, {} KV, {} on the wire".format(*names)

    @classmethod
    def uniform(cls, dtype: DType) -> Self:
        """A precision that has one dtype for everything, as a GPU has it."""
        plain = Encoding.plain(dtype)
        return cls(plain, dtype, KvFormat(dtype.value), plain)

    @classmethod
    def of(cls, dtype: str, *, on_cpu: bool) -> Self:
        """Returns what `--dtype` stands for.

        A CPU has no fast arithmetic in float16: it keeps matrices in it and computes in float32.

        Args:
            dtype: Name of a `DType`.
            on_cpu: Whether torch computes on the CPU.

        Raises:
            InvalidArgumentError: There is no such dtype.
        """
        weights = DType.named(dtype)
        if on_cpu and weights is DType.FLOAT16:
            return cls.uniform(DType.FLOAT32)._replace(weights=Encoding.plain(weights))
        return cls.uniform(weights)
