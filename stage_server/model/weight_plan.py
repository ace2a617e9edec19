"""From which tensors of a checkpoint each parameter of a stage is made.

Tensors have the names of the files, as Hugging Face spells them; parameters have the names of the
modules that compute. What a stage needs, the shapes that it expects and how it loads them all
follow from the plan.
"""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, Self

from torch import nn

from stagecoach.contract.errors import ModelFilesError
from stagecoach.contract.precision import Encoding
from stagecoach.model_files import TensorReader

Shape = tuple[int, ...]


class CheckpointTensor(NamedTuple):
    """A tensor of the files, as it has to be there, or the part of it that is one expert's."""

    name: str
    file_shape: Shape
    """Shape in the files."""
    expert: int | None = None
    """Which part along the first dimension of the files is meant; None: the whole tensor."""
    is_transposed: bool = False
    """Whether rows and columns of that part change places."""

    @property
    def shape(self) -> Shape:
        """Shape of what is meant; its first dimension is called rows."""
        part = self.file_shape if self.expert is None else self.file_shape[1:]
        return part[::-1] if self.is_transposed else part

    @property
    def num_rows(self) -> int:
        """Rows of what is meant; a single number is one."""
        return self.shape[0] if self.shape else 1


class ParameterSource(NamedTuple):
    """What one parameter is made of: the rows of its tensors, one after another."""

    tensors: tuple[CheckpointTensor, ...]
    """Tensors that make up the parameter, at least one; alike in all dimensions but the first."""
    num_experts: int | None = None
    """Experts to which the rows belong in equal shares. The parameter has one more dimension for
    them, its first. None: there are no experts."""

    @classmethod
    def one(cls, name: str, shape: Shape) -> Self:
        """A parameter that is a tensor."""
        return cls((CheckpointTensor(name, shape),))

    @classmethod
    def rows(cls, parts: Iterable[Self]) -> Self:
        """A parameter that has the rows of several, such as the matrix of query, key and value."""
        return cls(tuple(tensor for part in parts for tensor in part.tensors))

    @classmethod
    def experts(cls, experts: Sequence[Self]) -> Self:
        """A parameter of all experts of a layer, by what it is made of for each; alike in shape."""
        assert len({expert.shape for expert in experts}) == 1, "experts have one shape"
        return cls.rows(experts)._replace(num_experts=len(experts))

    def renamed(self, in_files: Callable[[str], str]) -> Self:
        """The same of tensors whose names are those of the files.

        Args:
            in_files: Returns the name in files of a tensor, by its usual name.
        """
        tensors = tuple(tensor._replace(name=in_files(tensor.name)) for tensor in self.tensors)
        return self._replace(tensors=tensors)

    def of_expert(self, expert: int) -> Self:
        """What the share of one expert is made of."""
        assert self.num_experts is not None, "there are experts"
        per_expert = len(self.tensors) // self.num_experts
        start = expert * per_expert
        return type(self)(self.tensors[start : start + per_expert])

    @property
    def num_rows(self) -> int:
        """Rows of all tensors."""
        return sum(tensor.num_rows for tensor in self.tensors)

    @property
    def row_shape(self) -> Shape:
        """Shape of one row."""
        return self.tensors[0].shape[1:]

    @property
    def shape(self) -> Shape:
        """Shape of the parameter."""
        if not self.tensors[0].shape:
            return ()
        if self.num_experts is None:
            return (self.num_rows, *self.row_shape)
        return (self.num_experts, self.num_rows // self.num_experts, *self.row_shape)


Sources = Mapping[str, ParameterSource]
"""What each parameter is made of, by the parameter's name."""


class WeightPlan:
    """What the parameters of a stage are made of.

    Args:
        sources: Sources of each parameter. Two parameters may be made of one tensor.
    """

    def __init__(self, sources: Sources) -> None:
        self._sources = MappingProxyType(dict(sources))
        self._shapes = {
            tensor.name: tensor.file_shape
            for source in sources.values()
            for tensor in source.tensors
        }

    def __contains__(self, parameter: str) -> bool:
        return parameter in self._sources

    def source(self, parameter: str) -> ParameterSource:
        """Returns what a parameter of the plan is made of."""
        return self._sources[parameter]

    @property
    def tensor_names(self) -> Collection[str]:
        """Names of all tensors that are needed, each once."""
        return self._shapes.keys()

    @property
    def num_elements(self) -> int:
        """Elements of all tensors that are needed."""
        return sum(map(math.prod, self._shapes.values()))

    def num_bytes(self, encoding_of: Callable[[str], Encoding]) -> int:
        """Bytes of all tensors.

        Args:
            encoding_of: Says by the name of a tensor how it is kept.
        """
        return sum(
            encoding_of(name).matrix_bytes(math.prod(shape[:-1]), math.prod(shape[-1:]))
            for name, shape in self._shapes.items()
        )

    def check_shapes(self, reader: TensorReader, model_id: str) -> None:
        """Checks that every tensor has the shape that its parameter takes.

        Raises:
            ModelFilesError: One has another; names it and both shapes.
        """
        for name, shape in self._shapes.items():
            found = reader.info(name).shape
            if found != shape:
                raise ModelFilesError(
                    f"{model_id}: {name} has shape {list(found)}, must be {list(shape)}"
                )


def module_sources(module: nn.Module, prefix: str) -> dict[str, ParameterSource]:
    """Plans a module as transformers defines it, whose names are those of the files.

    Args:
        module: May be on the meta device.
        prefix: Before all names.
    """
    return {
        f"{prefix}{name}": ParameterSource.one(f"{prefix}{name}", tuple(tensor.shape))
        for name, tensor in module.state_dict().items()
    }


def transposed_sources(
    sources: dict[str, ParameterSource], names: Sequence[str]
) -> dict[str, ParameterSource]:
    """Returns sources of which some are matrices that files have with inputs as rows.

    Args:
        sources: Sources of parameters, each of which is one tensor.
        names: Parameters of those matrices.
    """
    transposed = {
        name: ParameterSource(
            (CheckpointTensor(name, sources[name].shape[::-1], is_transposed=True),)
        )
        for name in names
    }
    return {**sources, **transposed}


def stack_linears(sources: dict[str, ParameterSource], stacked: str, parts: Sequence[str]) -> None:
    """Makes one linear layer of several that have the same input, in place.

    Args:
        sources: Sources of the layers' weights and biases; either all have a bias, or none has.
        stacked: Name of the new layer, to which its outputs come in the order of the parts.
        parts: Names of the layers.
    """
    for kind in ("weight", "bias"):
        taken = [sources.pop(name) for part in parts if (name := f"{part}.{kind}") in sources]
        assert len(taken) in (0, len(parts)), "stacked matrices have biases alike"
        if taken:
            sources[f"{stacked}.{kind}"] = ParameterSource.rows(taken)
