"""Sizes of multi-head latent attention (DeepSeek-V2, arXiv:2405.04434).

Keys and values of all heads are made of one compressed row a token. That row, and a part that is
rotated and that all heads share, is what is kept.
"""

from collections.abc import Mapping
from typing import NamedTuple

from stagecoach.contract.errors import ModelFilesError
from stagecoach.model_files.family import Family
from stagecoach.model_files.frozen_json import shown

_KEYS = ("kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim")


class LatentSizes(NamedTuple):
    """Elements of the parts of a layer's attention."""

    kv_rank: int
    """The compressed row of keys and values."""
    rope_dim: int
    """The rotated part of a query, and of the one key."""
    nope_dim: int
    """The part of a head's query that is not rotated."""
    value_dim: int
    """The value of a head."""
    query_rank: int | None
    """The compressed row of queries; None: queries are not compressed."""

    @property
    def row(self) -> int:
        """What is kept of a token: the compressed row, and the rotated part."""
        return self.kv_rank + self.rope_dim

    @property
    def query_dim(self) -> int:
        """A head's query."""
        return self.nope_dim + self.rope_dim


def latent_sizes(values: Mapping[str, object], family: Family | None) -> LatentSizes | None:
    """Reads the sizes from a configuration.

    Args:
        values: Content of `config.json`, whose numbers were checked.
        family: Family of the model.

    Returns:
        None of a family that has no latent attention.

    Raises:
        ModelFilesError: A size is null, or `head_dim` is another than that of the rotated part.
    """
    if family is None or not family.is_latent:
        return None
    says = {**family.reads, **values}
    kv_rank, rope_dim, nope_dim, value_dim = (_size(says, key) for key in _KEYS)
    if says.get("head_dim") not in (None, rope_dim):  # transformers writes it out
        raise ModelFilesError(
            f"config.json: head_dim is {shown(says['head_dim'])}, must be the {rope_dim} of "
            "qk_rope_head_dim"
        )
    query_rank = says["q_lora_rank"]
    return LatentSizes(
        kv_rank,
        rope_dim,
        nope_dim,
        value_dim,
        query_rank if isinstance(query_rank, int) else None,
    )


def _size(says: Mapping[str, object], key: str) -> int:
    size = says[key]
    if not isinstance(size, int):
        raise ModelFilesError(f"config.json does not say {key}")
    return size
