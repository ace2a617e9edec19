"""GGUF files whose matrices are in few bits, as llama.cpp's programs mix them."""

from collections.abc import Callable

import gguf
import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from stagecoach.model_files.gguf_blocks import BLOCK_TYPES

QType = GGMLQuantizationType


def mix(main: QType, more: QType, *, ends: QType | None = None) -> Callable[[str], QType]:
    """Most matrices in one type, half of the values and of the last matrices in more bits.

    So llama.cpp makes its files named M: `llama_tensor_get_type` in `src/llama-quant.cpp`.

    Args:
        main: Type of most.
        more: Type of the others.
        ends: Type of embedding and head; None: `more`.
    """

    def kind(name: str) -> QType:
        if name.startswith(("token_embd", "output")):
            return more if ends is None else ends
        layer = int(name.split(".")[1])
        return more if layer % 2 and ("attn_v" in name or "ffn_down" in name) else main

    return kind


def quantized_as(values: np.ndarray, kind: QType) -> np.ndarray:
    """Bytes of a matrix in a type; those that gguf-py only reads are of random codes.

    Args:
        values: float32 `[num_rows, num_columns]`.
        kind: The type.
    """
    try:
        data: np.ndarray = gguf.quants.quantize(values, kind)
    except NotImplementedError:  # how the library says that it only reads such a kind
        return _random_blocks(values, kind)
    return data


def _random_blocks(values: np.ndarray, kind: QType) -> np.ndarray:
    """Blocks of random codes, whose numbers spread about 0 as the values do."""
    block_size, block_bytes = GGML_QUANT_SIZES[kind]
    rng = np.random.default_rng(int.from_bytes(values[0].tobytes()[:8]))
    row_bytes = values.shape[1] // block_size * block_bytes
    data = rng.integers(0, 256, (len(values), row_bytes), np.uint8)
    blocks = data.view(BLOCK_TYPES[kind].block)

    def numbers(scale: float, minimum: float) -> np.ndarray:
        blocks["scale"] = scale
        if "min" in (blocks.dtype.fields or {}):
            blocks["min"] = minimum
        found: np.ndarray = gguf.quants.dequantize(data, kind)
        return found

    has_minima = numbers(0, 1).any()
    minimum = -numbers(1, 0).mean() / numbers(0, 1).mean() if has_minima else 0
    factor = values.std() / numbers(1, minimum).std()
    numbers(factor, factor * minimum)
    return data
