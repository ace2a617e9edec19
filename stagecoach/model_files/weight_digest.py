"""Tells weights of one shape apart without reading them whole.

A model's tensors fall into parts: the embedding, each layer, the final norm and the head. The
digest of a part is a hash of names, types, shapes and a few windows of each tensor's bytes, so it
is the same however the tensors lie in files. Training and merging change nearly every element of
what they change, so it shows; a change of single rows or elements between the windows does not.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

WINDOW_BYTES = 1024
_NUM_WINDOWS = 4
"""Pieces that are read of a tensor in a layer: all layers of a 13B model are 1500 short reads."""

_NUM_END_WINDOWS = 64
"""Pieces that are read of the embedding and the head, whose rows are what people change one by
one."""

_DIGEST_BYTES = 16

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
"""What every model has, and what one with tied embeddings has in the other."""

HEAD_BIAS = "lm_head.bias"
POSITIONS = "model.embed_positions.weight"
"""What some families have."""

_COMPUTED_SUFFIXES = (
    *(f"rotary_emb.{name}" for name in ("inv_freq", "cos_cached", "sin_cached")),
    # The causal masks of a GPT-NeoX and of a GPT-2.
    *(f".{name}.{kind}" for name in ("attention", "attn") for kind in ("bias", "masked_bias")),
)


_PARTS = {
    "embed_tokens": "embedding",
    "embed_positions": "embedding",
    "norm": "norm",
    "lm_head": "head",
}


class SampledTensor(NamedTuple):
    """One tensor, as its file stores it."""

    type: str
    shape: tuple[int, ...]
    num_bytes: int
    read: Callable[[int, int], bytes]
    """Reads `length` bytes from `offset` on, both within the tensor."""


def part_of(name: str) -> str | None:
    """The part that a tensor, by its Hugging Face name, belongs to; None: it is of no model."""
    stem, _, rest = name.removeprefix("model.").partition(".")
    if stem == "layers":
        return f"layer {rest.partition('.')[0]}"
    return _PARTS.get(stem)


def is_computed(name: str) -> bool:
    """Whether a tensor follows from the configuration; old checkpoints have some."""
    return name.endswith(_COMPUTED_SUFFIXES)


def parts_of(names: Collection[str]) -> Mapping[str, list[str]]:
    """Sorts the names of tensors by the part that they belong to."""
    parts = defaultdict(list)
    for name in sorted(names):
        part = part_of(name)
        if part is not None and not is_computed(name):
            parts[part].append(name)
    return parts


def part_digest(tensors: Mapping[str, SampledTensor]) -> bytes:
    """Digest of one part.

    Args:
        tensors: All its tensors by name.

    Raises:
        ModelFilesError: A file ends before a tensor does.
    """
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(json.dumps([name, tensor.type, list(tensor.shape)]).encode())
        num_windows = _NUM_WINDOWS if part_of(name) not in ("embedding", "head") else None
        for offset, length in windows(tensor.num_bytes, num_windows or _NUM_END_WINDOWS):
            found.update(tensor.read(offset, length))
    return found.digest()[:_DIGEST_BYTES]


def windows(num_bytes: int, num_windows: int) -> list[tuple[int, int]]:
    """Offsets and lengths of what is read of a tensor: all of a small one, else from end to end."""
    if num_bytes <= num_windows * WINDOW_BYTES:
        return [(0, num_bytes)]
    last = num_bytes - WINDOW_BYTES
    return [(last * i // (num_windows - 1), WINDOW_BYTES) for i in range(num_windows)]
