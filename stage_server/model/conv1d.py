"""Linear layers that store their matrices with inputs as rows, as GPT-2's."""

from torch import nn
from transformers.pytorch_utils import Conv1D


def linears_of_conv1d(layer: nn.Module) -> list[str]:
    """Puts linear layers in the place of a layer's `Conv1D`, on the default device.

    Returns:
        Names of the matrices, which have rows as columns in files.
    """
    replaced = [path for path, child in layer.named_modules() if isinstance(child, Conv1D)]
    for path in replaced:
        num_inputs, num_outputs = layer.get_parameter(f"{path}.weight").shape
        layer.set_submodule(path, nn.Linear(num_inputs, num_outputs))
    return [f"{path}.weight" for path in replaced]
