"""Whether a checkpoint has the tensors of a stage, judged by names alone, before any is read."""

from collections.abc import Collection, Set

from stagecoach.contract.errors import ModelFilesError, UnsupportedModelError
from stagecoach.contract.layer_range import LayerRange
from stagecoach.model_files import ModelConfig, ModelFiles, TensorReader
from stagecoach.model_files.families import FAMILIES
from stagecoach.model_files.listing import listed
from stagecoach.model_files.weight_digest import EMBEDDING, HEAD, is_computed

NORM = "model.norm."
"""What the names of the final norm's tensors begin with."""

_NUM_AHEAD = "num_nextn_predict_layers"
"""Key of how many layers behind the model's own guess at further tokens."""

_AHEAD = "mtp."
"""Beginning of the names of such layers where they have a place of their own."""

_QUANTIZED_SUFFIXES = (
    ".qweight",
    ".weight.absmax",
    ".weight.quant_map",
    ".weight_packed",
    ".weight_scale",
    ".weight_scale_inv",
    ".SCB",
    "_blocks",
)
"""Ends of names of tensors that quantizing tools write."""


def check_names(wanted: Collection[str], files: ModelFiles, layers: LayerRange) -> None:
    """Checks that a model has the tensors of a stage, and no others in its layers.

    Args:
        wanted: Names of the tensors that the stage needs.
        files: The model.
        layers: The stage's range.

    Raises:
        ModelFilesError: Tensors are missing, or there are some that would not be used.
        UnsupportedModelError: The tensors are those of a quantized model.
    """
    names, model_id, config = files.tensor_names, files.model_id, files.config
    prefixes = FAMILIES[config.model_type].names
    head, base = prefixes.in_files(HEAD), f"{prefixes.embedding.partition('.')[0]}."
    missing = set(wanted) - set(names)
    unused = _unused(wanted, files, layers) - files.fillers
    if any(name.endswith(_QUANTIZED_SUFFIXES) for name in unused):
        raise UnsupportedModelError(
            f"{model_id} has quantized weights ({listed(unused)}), which are not served: its "
            "config.json does not say how they were made (quantization_config), or says it of "
            "others; take the model that they were made from, or a GGUF file"
        )
    if missing == {head}:
        raise ModelFilesError(
            f"{model_id} has no tensor {head}, and its config.json does not say that "
            "the head is the embedding (tie_word_embeddings)"
        )
    if missing & {base + name for name in names}:
        raise ModelFilesError(
            f"{model_id} has no tensor {listed(missing)}: the names of its tensors lack "
            f"the '{base}' in front, as those of a model that was saved without its head; save "
            "it with AutoModelForCausalLM"
        )
    if missing:
        raise ModelFilesError(f"{model_id} has no tensor {listed(missing)}")
    if unused:
        raise ModelFilesError(
            f"{model_id} has tensors that a {config.model_type} model with this "
            f"config.json ({config.num_layers} layers) does not use: {listed(unused)}"
        )


def unused_fillers(wanted: Collection[str], files: ModelFiles, layers: LayerRange) -> Set[str]:
    """Returns the names of a stage's tensors that have to be full of zeros, as it has no use for.

    Args:
        wanted: Names of the tensors that the stage needs.
        files: The model.
        layers: The stage's range.
    """
    return _unused(wanted, files, layers) & files.fillers


def check_zeros(reader: TensorReader, names: Collection[str], model_id: str) -> None:
    """Checks tensors that are to be left out.

    Args:
        reader: Open tensors.
        names: Names of these, biases of matrices that are open too.
        model_id: Name of the model, for errors.

    Raises:
        ModelFilesError: One is not full of zeros, or has not an element for each row.
    """
    for name in names:
        shape = reader.info(name).shape
        num_rows, _ = reader.info(f"{name.removesuffix('bias')}weight").shape
        if shape != (num_rows,):
            raise ModelFilesError(
                f"{model_id}: {name} has shape {list(shape)}, must be [{num_rows}]"
            )
        if reader.read(name).any():
            raise ModelFilesError(f"{model_id}: {name} is not 0, and the model has no such bias")


def _unused(wanted: Collection[str], files: ModelFiles, layers: LayerRange) -> Set[str]:
    own = {name for name in files.tensor_names if _is_own(name, files.config, layers)}
    return own - set(wanted)


def _is_own(name: str, config: ModelConfig, layers: LayerRange) -> bool:
    """Whether a stage has to make use of a tensor."""
    family = FAMILIES[config.model_type]
    prefixes = family.names
    if is_computed(name) or name.startswith(_AHEAD):
        return False
    if not name.startswith(prefixes.layers):
        ends = {prefixes.in_files(end) for end in (EMBEDDING, HEAD)}
        if name.startswith(prefixes.positions):
            return layers.start == 0
        of_last = (prefixes.norm, prefixes.head) if family.head_has_bias else prefixes.norm
        is_last = layers.end == config.num_layers
        return name not in ends and (is_last or not name.startswith(of_last))
    number = name.removeprefix(prefixes.layers).split(".")[0]
    num_ahead = config.raw.get(_NUM_AHEAD)
    end = config.num_layers + (num_ahead if isinstance(num_ahead, int) else 0)
    return not number.isdecimal() or int(number) in layers or int(number) >= end
