"""How the layers of a model differ from each other: in their windows, and in who knows positions.

Configurations list it layer by layer, say it by a number, or leave it to their family; transformers
5 writes the lists out.
"""

from collections.abc import Mapping

from stagecoach.model_files.family import WindowedLayers, Windows

NO_ROPE_INTERVAL = 4
"""Default of `no_rope_layer_interval`: one in that many layers of a SmolLM3 has no positions."""

FULL, SLIDING = "full_attention", "sliding_attention"


def sliding_window(raw: Mapping[str, object], family: Windows) -> object:
    """Returns how many positions a layer with a window sees; None where no layer has one."""
    if family.on_request and not raw.get("use_sliding_window"):
        return None
    return raw.get("sliding_window", family.default)


def layer_types(raw: Mapping[str, object], family: Windows, num_layers: int) -> object:
    """Returns the kind of attention of each layer.

    Args:
        raw: The configuration.
        family: Family of the model.
        num_layers: Layers of the model.

    Returns:
        As the configuration lists it, or `num_layers` of `full_attention` and `sliding_attention`.
        None where all layers have the same window, and where transformers refuses the number that
        should say it.
    """
    if family.layers is WindowedLayers.ALL:
        return None
    if raw.get("layer_types") is not None:
        return raw["layer_types"]
    has_window = sliding_window(raw, family) is not None
    match family.layers:
        case WindowedLayers.ALL_UNLESS_LISTED:
            is_full = [not has_window] * num_layers
        case WindowedLayers.FROM_MAX_WINDOW_LAYERS | WindowedLayers.EVEN_TO_MAX_WINDOW_LAYERS:
            limit = raw.get("max_window_layers", family.max_window_layers)
            if not isinstance(limit, int):
                return None
            is_full = [not has_window or i < limit for i in range(num_layers)]
            if family.layers is WindowedLayers.EVEN_TO_MAX_WINDOW_LAYERS:
                is_full = [not has_window or i >= limit or i % 2 == 1 for i in range(num_layers)]
        case WindowedLayers.FIXED_PATTERN_FROM_FULL:
            assert family.every is not None, "a fixed pattern has a length"
            is_full = [i % family.every == 0 for i in range(num_layers)]
        case WindowedLayers.ROTATED:
            knowing = no_rope_layers(raw, num_layers)
            if not isinstance(knowing, list | tuple):
                return None
            is_full = [not has_window or bool(knows) for knows in knowing[:num_layers]]
        case _:
            every: object = family.every
            if family.layers is WindowedLayers.PATTERN:
                every = raw.get(family.pattern_key, every)
            if not isinstance(every, int) or every < 1:
                return None
            is_full = [(i + 1) % every == 0 for i in range(num_layers)]
    return tuple(FULL if full else SLIDING for full in is_full)


def no_rope_layers(raw: Mapping[str, object], num_layers: int) -> object:
    """Returns for each layer of a SmolLM3 whether it knows positions, as 1 or 0.

    The name is that of the key, which says the opposite.
    """
    given = raw.get("no_rope_layers")
    if given is not None:
        return given
    every = raw.get("no_rope_layer_interval", NO_ROPE_INTERVAL)
    if not isinstance(every, int) or every < 1:
        return None
    return tuple(int((i + 1) % every != 0) for i in range(num_layers))


def has_sliding(kinds: object) -> bool:
    """Whether any of the layers has a window."""
    return isinstance(kinds, list | tuple) and SLIDING in kinds
