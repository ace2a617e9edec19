"""Loads and reads quantized checkpoints, with other settings than they were written with."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from stage_server.model.layer_stack import LayerStack, load_layer_stack
from stagecoach.contract.layer_range import LayerRange
from stagecoach.contract.precision import DType, Precision
from stagecoach.model_files import open_model
from tests.tiny_models import NUM_LAYERS

WHOLE = LayerRange(0, NUM_LAYERS)
Q_PROJ = "model.layers.0.self_attn.q_proj"
DOWN_PROJ = "model.layers.0.mlp.down_proj"


def load(path: Path, layers: LayerRange = WHOLE) -> LayerStack:
    files = open_model(str(path))
    precision = Precision.uniform(DType.FLOAT32)
    if files.encoding is not None:
        precision = precision._replace(weights=files.encoding)
    return load_layer_stack(files, layers, precision=precision, device=torch.device("cpu"))


def requantized(path: Path, settings: object, **more: object) -> Path:
    """Writes other settings into a model's configuration."""
    file = path / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "quantization_config": settings, **more}))
    return path


def grouped(*weights: Mapping[str, object], **more: object) -> dict[str, object]:
    groups = {f"group_{index}": {"weights": each} for index, each in enumerate(weights)}
    return {"quant_method": "compressed-tensors", "config_groups": groups, **more}


def read(path: Path, settings: object = None) -> np.ndarray:
    """Reads a matrix, with other settings than the configuration has."""
    name = f"{DOWN_PROJ}.weight"
    if settings is not None:
        requantized(path, settings)
    with open_model(str(path)).open_tensors([name]) as reader:
        if reader.info(name).code_bits is not None:
            reader.read_groups(name, 0, 3)
        return reader.read(name)
