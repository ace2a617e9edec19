"""How the layers of a model differ from each other: in their windows, and in who knows positions.

Configurations list it layer by layer, say it by a number, or leave it to their family; transformers
5 writes the lists out. Families are named as in `model_type`.
"""

from collections.abc import Mapping
from types import MappingProxyType

WINDOWS: Mapping[str, int | None] = MappingProxyType(
    {
        "cohere2": 4096,
        "exaone4": 4096,
        "gemma2": 4096,
        "gemma3_text": 4096,
        "ministral": 4096,
        "mistral": 4096,
        "olmo3": 4096,
        "phi3": None,
        "qwen2": 4096,
        "qwen3": 4096,
        "smollm3": None,
        "starcoder2": None,
    }
)
"""Families whose attention may have a window, and the one of a configuration that says none."""

WINDOWED_ON_REQUEST = frozenset({"qwen2", "qwen3", "smollm3"})
"""Families that look at their window only when `use_sliding_window` is true."""

PATTERNS: Mapping[str, int] = MappingProxyType({"cohere2": 4, "exaone4": 4, "gemma3_text": 6})
"""Families with `sliding_window_pattern`: one in that many layers is full; and its default."""

_FIXED_PATTERNS: Mapping[str, int] = MappingProxyType({"gemma2": 2, "olmo3": 4})

_ALIKE = frozenset({"mistral", "phi3", "starcoder2"})
"""Families with a window for all layers, whatever a list says."""

NUM_FULL_LAYERS = 28
"""Default of `max_window_layers`, from which on the layers of a Qwen have the window."""

NO_ROPE_INTERVAL = 4
"""Default of `no_rope_layer_interval`: one in that many layers of a SmolLM3 has no positions."""

FULL, SLIDING = "full_attention", "sliding_attention"


def sliding_window(raw: Mapping[str, object], model_type: str) -> object:
    """Returns how many positions a layer with a window sees; None where no layer has one."""
    if model_type in WINDOWED_ON_REQUEST and not raw.get("use_sliding_window"):
        return None
    return raw.get("sliding_window", WINDOWS.get(model_type))


def layer_types(raw: Mapping[str, object], model_type: str, num_layers: int) -> object:
    """Returns the kind of attention of each layer in a family of `WINDOWS`.

    Returns:
        As the configuration lists it, or `num_layers` of `full_attention` and `sliding_attention`.
        None where all layers have the same window, and where transformers refuses the number that
        should say it.
    """
    if model_type in _ALIKE:
        return None
    if raw.get("layer_types") is not None:
        return raw["layer_types"]
    has_window = sliding_window(raw, model_type) is not None
    match model_type:
        case "ministral":
            is_full = [not has_window] * num_layers
        case "qwen2" | "qwen3":
            first = raw.get("max_window_layers", NUM_FULL_LAYERS)
            if not isinstance(first, int):
                return None
            is_full = [not has_window or i < first for i in range(num_layers)]
        case "smollm3":
            knowing = no_rope_layers(raw, num_layers)
            if not isinstance(knowing, list | tuple):
                return None
            is_full = [not has_window or bool(knows) for knows in knowing[:num_layers]]
        case _:
            every: object = _FIXED_PATTERNS.get(model_type)
            if model_type in PATTERNS:
                every = raw.get("sliding_window_pattern", PATTERNS[model_type])
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
