"""Which tensors of a quantized checkpoint are those of the plain model that it was made from."""

from collections.abc import Collection, Mapping, Set
from functools import partial

from stagecoach.contract.errors import ModelFilesError
from stagecoach.model_files.packed_form import ExpertForm, PackedForm, Quantization


class PackedNames:
    """The tensors of a quantized checkpoint, by the names that a plain one has for them.

    Args:
        stored: Names of all stored tensors.
        quantization: How the checkpoint is quantized.
        num_experts: Experts of a layer; 0: there are none.

    Raises:
        ModelFilesError: A matrix is stored twice, or one of experts has no scales.
    """

    def __init__(
        self, stored: Collection[str], quantization: Quantization, *, num_experts: int = 0
    ) -> None:
        names = set(stored)
        taken = {name for name in names if name.endswith(quantization.not_read)}
        matrices: dict[str, tuple[PackedForm, Mapping[str, str]]] = {}
        for form in quantization.forms:
            for module in _modules(names - taken, form.matrix):
                parts = {
                    end: name
                    for end in (form.matrix, *form.markers, *form.beside)
                    if (name := f"{module}.{end}") in names
                }
                if not form.markers or parts.keys() & set(form.markers):
                    weight = f"{module}.weight"
                    if weight in matrices or (weight in names and weight != parts[form.matrix]):
                        raise ModelFilesError(
                            f"there are {weight} and {parts[form.matrix]}, must be one of them"
                        )
                    matrices[weight] = (form, parts)
                    taken.update(parts.values())
        of_experts = _of_experts(names, quantization.expert_form, num_experts)
        self.experts = None
        """What the packed matrices of experts are called; None: there are none."""
        if quantization.expert_form is not None and of_experts:
            self.experts = quantization.expert_form.layout
        matrices |= of_experts
        taken.update(name for _, parts in of_experts.values() for name in parts.values())
        self.matrices: Mapping[str, tuple[PackedForm, Mapping[str, str]]] = matrices
        """Form of each packed matrix, and its stored tensors by what their names end in."""
        self._plain = names - taken

    @property
    def all(self) -> Collection[str]:
        """Names of all tensors."""
        return self.matrices.keys() | self._plain

    @property
    def fillers(self) -> Set[str]:
        """Biases of packed matrices, which some tools give to models that have none."""
        biases = {f"{name.removesuffix('weight')}bias" for name in self.matrices}
        return biases & self._plain

    def stored(self, names: Collection[str]) -> Collection[str]:
        """Names of the stored tensors of which the named ones are made."""
        found = set(names) - self.matrices.keys()
        for name in self.matrices.keys() & set(names):
            _, parts = self.matrices[name]
            found.update(parts.values())
        return found


def _of_experts(
    names: Collection[str], form: ExpertForm | None, num_experts: int
) -> dict[str, tuple[PackedForm, Mapping[str, str]]]:
    """Form and stored tensors of each expert's matrices, by the names that plain ones have."""
    found: dict[str, tuple[PackedForm, Mapping[str, str]]] = {}
    if form is None:
        return found
    for name in names:
        if not name.endswith(form.matrix):
            continue
        parameter = name.removesuffix(form.matrix)
        module, _, leaf = parameter.rpartition(".")
        parts = {form.matrix: name, form.scales: parameter + form.scales}
        if parts[form.scales] not in names:
            raise ModelFilesError(f"there is {name}, and no tensor {parts[form.scales]}")
        for expert in range(num_experts):
            opened = PackedForm(form.matrix, (), (form.scales,), partial(form.open, expert))
            found[f"{module}.{expert}.{leaf}.weight"] = (opened, parts)
    return found


def _modules(names: Collection[str], matrix: str) -> Collection[str]:
    """Names of the modules that have a tensor of this name."""
    return [name.removesuffix(f".{matrix}") for name in names if name.endswith(f".{matrix}")]
