"""Models of which only the configuration is there."""

from collections.abc import Collection
from typing import Any

from stagecoach.model_files import ModelConfig, ModelFiles, TokenizerFiles
from stagecoach.model_files.config import parse_config
from tests.tiny_models import FAMILIES


class ShapesOnly(ModelFiles):
    """A configuration, as if its weights were there."""

    def __init__(self, model_id: str, config: ModelConfig) -> None:
        self.model_id = model_id
        self.config = config

    @property
    def fingerprint(self) -> str:
        return self.model_id

    @property
    def tensor_names(self) -> Collection[str]:
        return ()

    def open_tensors(self, names: Collection[str], **_: object) -> Any:
        raise AssertionError("there are no weights")

    def tokenizer_files(self) -> TokenizerFiles | None:
        return None


def tiny_files(case: str, **overrides: Any) -> ShapesOnly:
    """A case of `tests.tiny_models`, without weights."""
    config = FAMILIES[case](**overrides)
    return ShapesOnly(case, parse_config(config.to_diff_dict() | {"model_type": config.model_type}))
