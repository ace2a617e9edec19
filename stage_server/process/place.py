"""Finds the layers that a stage server owns, from the flags of its operator."""

import re

from stage_server.core.config import parse_bytes
from stagecoach.contract.errors import InvalidArgumentError
from stagecoach.contract.layer_range import LayerRange
from stagecoach.model_files import open_model
from stagecoach.roofline.layer_split import split_layers


def own_layers(
    model: str, *, layers: str | None, stage: str | None, stage_memory: str | None
) -> LayerRange:
    """Reads `layers`, or works out the range of the `stage`th part of a model.

    Args:
        model: As `StageConfig.model`; opened only for `stage`.
        layers: START:END, half-open.
        stage: I/N, the Ith of N stages, from 1.
        stage_memory: With `stage`: N sizes, separated by commas.

    Raises:
        InvalidArgumentError: Neither or both are given, or one has another form.
        ModelFilesError: The model cannot be opened.
        InsufficientMemoryError: The weights do not fit the memory of the stages.
        UnsupportedModelError: The cost of this model's layers is not known; name `layers`.
    """
    if (layers is None) == (stage is None):
        raise InvalidArgumentError("give either --layers or --stage", field="layers")
    if layers is not None:
        if stage_memory is not None:
            raise InvalidArgumentError(
                "--stage-memory goes with --stage, not with --layers", field="stage_memory"
            )
        return LayerRange.parse(layers)
    index, num_stages = _place(stage or "")
    memory_bytes = stage_memory and [
        parse_bytes(size, field="stage_memory") for size in stage_memory.split(",")
    ]
    files = open_model(model)
    layers_of_all = split_layers(
        files.config, num_stages, memory_bytes or None, kept=files.kept_matrices
    )
    return layers_of_all[index - 1]


def _place(text: str) -> tuple[int, int]:
    """Reads I/N with 1 <= I <= N."""
    match = re.fullmatch(r"([0-9]{1,4})/([0-9]{1,4})", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise InvalidArgumentError(
            f"stage {text!r} is not I/N with I from 1 to N, such as 2/3", field="stage"
        )
    return int(match[1]), int(match[2])
