"""What gives modules their weights, each in the form that it is computed in."""

import torch
from torch import nn

from stage_server.core.torch_dtypes import torch_dtype
from stage_server.model.embeddings import Embedding
from stage_server.model.experts import (
    BIAS,
    DOWN,
    GATE_UP,
    Experts,
    are_experts,
    router_paths,
    takes_turns,
)
from stage_server.model.latent_attention import expanding_paths
from stage_server.model.linear_format import Linear, LinearFormat
from stage_server.model.weights import WeightSource
from stagecoach.contract.precision import Precision


class WeightLoader:
    """Loads parameters by name.

    Args:
        source: Where the weights are.
        linear_format: Form of the matrices.
        precision: Precision of everything else.
        device: Where the weights are to live.
    """

    def __init__(
        self,
        source: WeightSource,
        linear_format: LinearFormat,
        precision: Precision,
        device: torch.device,
    ) -> None:
        self.source = source
        self.linear_format = linear_format
        self.device = device
        self._precision = precision

    def within(self, prefix: str) -> "WeightLoader":
        """Returns a loader of the names below `prefix`, such as `model.layers.12.`."""
        source = self.source.within(prefix)
        return WeightLoader(source, self.linear_format, self._precision, self.device)

    def linear(self, name: str) -> Linear:
        """Loads a linear layer, with its bias where the plan has one."""
        bias = f"{name}.bias"
        return self.linear_format.load(
            self.source, f"{name}.weight", bias if bias in self.source else None
        )

    def experts(self, name: str) -> list[Linear]:
        """Loads a parameter `[num_experts, out_features, in_features]`, a matrix for each.

        With a bias for each, where the plan has one.
        """
        num_experts = self.source.shape(name)[0]
        bias = name + BIAS if name + BIAS in self.source else None
        return [
            self.linear_format.load(self.source.of_expert(expert), name, bias)
            for expert in range(num_experts)
        ]

    def embedding(self, name: str) -> Embedding:
        """Loads a matrix `[vocab_size, hidden_size]` whose rows are looked up."""
        return self.linear_format.embedding(self.source, name)

    def other(self, name: str) -> torch.Tensor:
        """Loads a parameter that no linear layer has, in the compute dtype."""
        return self.source.load(name, torch_dtype(self._precision.compute), self.device)

    def fill(self, module: nn.Module) -> None:
        """Gives a module of transformers, on the meta device, its weights.

        Linear layers and experts in it are replaced by those of the format. What chooses experts
        stays in plain numbers: it has few, and they decide what is computed. So does what is taken
        apart for latent attention.
        """
        plain = router_paths(module) | expanding_paths(module)
        for path, child in list(module.named_modules()):
            prefix = f"{path}." if path else ""
            if are_experts(child):
                gate_up, down = (self.experts(prefix + name) for name in (GATE_UP, DOWN))
                is_divided = self.source.num_parts_of_expert(prefix + GATE_UP) > 1
                interleaves = is_divided and takes_turns(child)
                experts = Experts(child, gate_up, down, interleaves=interleaves)
                module.set_submodule(path, experts)
                continue
            if type(child) is nn.Linear and path not in plain:
                module.set_submodule(path, self.linear(path))
                continue
            for name in dict(child.named_parameters(recurse=False)):
                loaded = self.other(f"{prefix}{name}")
                setattr(child, name, nn.Parameter(loaded, requires_grad=False))
            for name, buffer in child.named_buffers(recurse=False):
                if prefix + name in self.source:
                    setattr(child, name, self.source.load(prefix + name, buffer.dtype, self.device))
        module.eval()
        on_meta = [name for name, buffer in module.named_buffers() if buffer.is_meta]
        assert not on_meta, f"a served family has buffers that nothing fills: {on_meta}"
