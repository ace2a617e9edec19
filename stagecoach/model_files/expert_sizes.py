"""How many experts a model has, how wide they are, and in which layers they are."""

from collections.abc import Mapping
from typing import NamedTuple

from stagecoach.contract.errors import ModelFilesError
from stagecoach.model_files.family import Family
from stagecoach.model_files.frozen_json import shown


class ExpertSizes(NamedTuple):
    """Experts of a model; those of all layers are alike."""

    num_experts: int
    """Experts of a layer."""
    num_chosen: int
    """Experts that compute a token."""
    width: int
    """Elements between the matrices of an expert, of one token."""
    shared_width: int
    """The same of what computes every token beside them; 0: nothing does."""
    layers: tuple[bool, ...]
    """For each layer whether it has experts; others have one MLP."""


_FIRST_KEYS = ("first_k_dense_replace", "moe_layer_start_index", "num_dense_layers")


def expert_sizes(
    values: Mapping[str, object], family: Family, num_layers: int
) -> ExpertSizes | None:
    """Reads the sizes from a configuration.

    Args:
        values: Content of `config.json`, whose numbers were checked, and what its absent keys mean.
        family: Family of the model.
        num_layers: Layers of the model.

    Returns:
        The sizes; None of a family without experts.

    Raises:
        ModelFilesError: A number is missing, or more experts are chosen than there are.
    """
    if family.experts is None:
        return None
    says = {**family.reads, **values}
    keys = family.experts.keys
    num_experts, num_chosen = _count(says, keys.num_experts), _count(says, keys.num_chosen)
    if num_chosen > num_experts:
        raise ModelFilesError(
            f"config.json: {keys.num_chosen} is {num_chosen}, must be at most the {num_experts} of "
            f"{keys.num_experts}"
        )
    width = _count(says, keys.width)
    shared_width = 0 if keys.shared_width is None else _count(says, keys.shared_width)
    if keys.num_shared is not None:
        shared_width = width * _count(says, keys.num_shared)
    # A key that the family does not read says nothing, whatever wrote it.
    first_keys = tuple(key for key in _FIRST_KEYS if key in family.reads)
    first = _first_of(says, first_keys, family.experts.num_dense_layers)
    layers = _layers_with_experts(says, num_layers, first)
    return ExpertSizes(num_experts, num_chosen, width, shared_width, layers)


def _layers_with_experts(
    says: Mapping[str, object], num_layers: int, first: int
) -> tuple[bool, ...]:
    """Whether each layer has experts, by the keys that families have for it."""
    kinds = says.get("mlp_layer_types")
    if isinstance(kinds, list | tuple) and len(kinds) >= num_layers:
        return tuple(kind == "sparse" for kind in kinds[:num_layers])
    listed = says.get("mlp_only_layers")
    entries = listed if isinstance(listed, list | tuple) else ()
    dense = {one for one in entries if isinstance(one, int)}
    last = _first_of(says, ("moe_layer_end_index",), -1)
    interval = _first_of(says, ("decoder_sparse_step", "moe_layer_interval"), 1)
    within = range(first, num_layers if last == -1 else last + 1)
    return tuple(
        i in within and (i + 1) % interval == 0 and i not in dense for i in range(num_layers)
    )


def _first_of(says: Mapping[str, object], keys: tuple[str, ...], default: int) -> int:
    found = (says[key] for key in keys if key in says)
    return next((value for value in found if isinstance(value, int)), default)


def _count(says: Mapping[str, object], key: str) -> int:
    value = says.get(key)
    if isinstance(value, list | tuple):  # of each layer
        if len(set(value)) != 1:
            raise ModelFilesError(
                f"config.json: {key} is {shown(value)}, must be the same for all layers"
            )
        value = value[0]
    if value is None:
        raise ModelFilesError(f"config.json does not say {key}")
    assert isinstance(value, int), "it was checked"
    return value
