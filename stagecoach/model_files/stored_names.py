"""Under which names the tensors of a model are in its files."""

from collections.abc import Iterable

from stagecoach.model_files.config import ModelConfig
from stagecoach.model_files.families import FAMILIES
from stagecoach.model_files.family import USUAL_NAMES
from stagecoach.model_files.weight_digest import EMBEDDING, HEAD


def stored_names(names: Iterable[str], config: ModelConfig) -> dict[str, str]:
    """Returns the name in the files of each tensor, by its usual one.

    Args:
        names: All names in the files.
        config: The model. Where it ties embedding and head, both have the name of the one that is
            there.
    """
    family = FAMILIES.get(config.model_type)
    prefixes = USUAL_NAMES if family is None else family.names
    stored = {prefixes.usual(name): name for name in names}
    if config.tie_word_embeddings:
        for name, other in ((HEAD, EMBEDDING), (EMBEDDING, HEAD)):
            if other in stored:
                stored.setdefault(name, stored[other])
    return stored
