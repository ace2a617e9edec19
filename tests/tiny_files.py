"""The models of `tests.tiny_models` as files of which only the configuration is there."""

from typing import Any

from stagecoach.model_files.config import parse_config
from tests.shapes_only import ShapesOnly
from tests.tiny_models import FAMILIES


def tiny_files(case: str, **overrides: Any) -> ShapesOnly:
    """A case of `tests.tiny_models`, without weights."""
    config = FAMILIES[case](**overrides)
    return ShapesOnly(case, parse_config(config.to_diff_dict() | {"model_type": config.model_type}))
