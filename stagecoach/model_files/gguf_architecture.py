"""What there is to know of an architecture of GGUF files: its family, its names, its numbers."""

from collections.abc import Mapping
from typing import NamedTuple

from stagecoach.model_files.family import NOTHING, ExpertLayout, Keys


class GgufArchitecture(NamedTuple):
    """How the files of one `general.architecture` say what `config.json` and safetensors say.

    What a file must have for `config.json` to be complete, and what it may have, is this and what
    all architectures have: sizes, the rotary embedding, the norms' epsilon, the window.
    """

    model_type: str
    """The family in transformers."""
    layer_names: Mapping[str, str]
    """Names of a layer's modules in checkpoints of transformers, by those in the file; or whole
    names of tensors, with `.weight` or `.bias` in the file's name. `{}` stands for the number of an
    expert, of which the file has all in one tensor."""
    windowed_model_type: str | None = None
    """Family of files with a window; None: the same."""
    expert_model_type: str | None = None
    """Family of files with experts; None: the same, or there are none."""
    says: Keys = NOTHING
    """Keys of `config.json` that all its files mean, unless they say otherwise."""
    keys: Mapping[str, str] = NOTHING
    """Keys of `config.json`, by those of the metadata that say the same."""
    tensors_say: Mapping[str, str] = NOTHING
    """Keys of `config.json` that are true exactly if the first layer has a tensor, and its name."""
    gating: int = 1
    """What `expert_gating_func` may say: 1 for softmax, 2 for sigmoid."""
    experts: ExpertLayout | None = None
    """Names of experts, where a file divides them otherwise than a checkpoint of transformers."""
    interleaves_heads: bool = False
    """Rows of the two halves of each query and key head alternate, as llama.cpp rotates them."""
    joins_heads: bool = False
    """Rows of the joined queries, keys and values are not by heads, as transformers has them, but
    all queries come first."""
    shifts_norms: bool = False
    """Weights of norms are one more than in checkpoints of transformers."""
    rotates_part: bool = False
    """A part of each head may be rotated, which `rope.dimension_count` says."""
    may_guess_ahead: bool = False
    """Layers that guess ahead may come behind the model's own, which `nextn_predict_layers` says;
    they are left out."""
    yarn_says: Keys = NOTHING
    """Keys of a scaling by YaRN that all its files mean."""
    may_have_rope_factors: bool = False
    """A tensor may say divisors of the rotary frequencies."""
