"""Models of which only the configuration is there."""

from collections.abc import Collection
from typing import Any

from stagecoach.model_files import ModelConfig, ModelFiles, TokenizerFiles


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
