"""How matrices in 4 or 8 bits are multiplied on a card."""

from collections.abc import Mapping
from types import MappingProxyType

from stagecoach.contract.precision import FEW_BITS, INT4, INT8, Encoding
from stagecoach.roofline.capability import Capability

Q4_K_M = Encoding("q4_k_m", 320, 224)
"""What a GGUF file of that name takes, where half of the matrices of values and of the last ones of
the MLP have 6 bits, which are kept in 8: with the widths of Llama 15 % of a layer."""

_KEPT_IN_8_BITS = (
    *("q2_k", "q3_k_s", "q3_k_m", "q3_k_l", "iq4_nl", "iq4_xs", "mxfp4"),
    *("q5_0", "q5_1", "q5_k_s", "q5_k_m", "q6_k", "q8_0"),
)

PLANNED: Mapping[str, Encoding] = MappingProxyType(
    {
        **FEW_BITS,
        **dict.fromkeys(("q4_0", "q4_1", "q4_k_s"), INT4),
        "q4_k_m": Q4_K_M,
        **dict.fromkeys(_KEPT_IN_8_BITS, INT8),
    }
)
"""What weights take in memory, by the names of `--weights` and of GGUF files."""

MAX_FEW_TOKENS = 64
"""Tokens that are multiplied by packed codes; for more, rows are unpacked first."""

UNPACKED_BYTES = 32 << 20
"""Numbers that are unpacked at once."""


def unpacked_rows(num_columns: int, itemsize: int) -> int:
    """Returns how many rows of a matrix are unpacked at once.

    Args:
        num_columns: Its columns.
        itemsize: Bytes of a number.
    """
    return max(UNPACKED_BYTES // (num_columns * itemsize), 1)


def num_unpacked_parts(num_rows: int, num_columns: int, itemsize: int) -> int:
    """Returns in how many parts a matrix is unpacked; arguments as `unpacked_rows`."""
    return -(-num_rows // unpacked_rows(num_columns, itemsize))


def max_few_tokens(capability: Capability) -> int:
    """Returns how many tokens a card multiplies by packed codes.

    Triton multiplies matrices on tensor cores from compute capability 8.0 on; before, codes are
    multiplied by one token only.
    """
    return MAX_FEW_TOKENS if capability.has_tensor_cores else 1
