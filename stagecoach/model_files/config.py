"""The shape of a model, parsed once from its configuration; `raw` keeps what only layers read."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from stagecoach.contract.errors import ModelFilesError, UnsupportedModelError
from stagecoach.contract.precision import DType
from stagecoach.model_files.expert_sizes import ExpertSizes, expert_sizes
from stagecoach.model_files.families import FAMILIES
from stagecoach.model_files.family import USUAL_ROPE, Family
from stagecoach.model_files.frozen_json import frozen, shown
from stagecoach.model_files.latent_sizes import LatentSizes, latent_sizes
from stagecoach.model_files.not_served import not_served
from stagecoach.model_files.numbers import MAX_POSITIONS, SIZES, TOKEN_ID, check_numbers
from stagecoach.model_files.rope_parameters import ORIGINAL, rope_parameters


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """What the system needs to know of a decoder-only model."""

    model_type: str
    """Family, as transformers names it."""
    num_layers: int
    hidden_size: int
    vocab_size: int
    """Rows of the embedding, which may be more than the tokenizer knows."""
    num_attention_heads: int
    num_kv_heads: int
    head_dim: int
    latent: LatentSizes | None
    """Sizes of latent attention, of which one row a token is kept: as `head_dim` elements of the
    one head of keys, which are the values too. None: keys and values are kept by heads."""
    intermediate_size: int | None
    """Width of an MLP; None when the configuration leaves it to its family."""
    num_mlp_matrices: int
    """Three of a gated MLP, two of another."""
    experts: ExpertSizes | None
    """What there is of experts, of which a token uses some; None: each layer has one MLP."""
    max_model_len: int
    """Positions that the model was made for."""
    tie_word_embeddings: bool
    """True when the output head is the embedding."""
    checkpoint_dtype: DType | None
    """Dtype of the weights as they were published; None when the configuration names none that is
    served, as in a GGUF file."""
    eos_token_ids: tuple[int, ...]
    """Tokens that end a generation; may be empty."""
    raw: Mapping[str, object]
    """The whole Hugging Face configuration as its file says it; see `frozen_json`. Keys have the
    names that they have in most families."""

    @property
    def num_kv_rows(self) -> int:
        """Rows of `head_dim` elements that are kept of a token in one layer."""
        return 1 if self.latent else 2 * self.num_kv_heads


def parse_config(
    raw: Mapping[str, object], generation: Mapping[str, object] | None = None
) -> ModelConfig:
    """Parses a Hugging Face configuration.

    Args:
        raw: Content of `config.json`.
        generation: Content of `generation_config.json`; its end-of-sequence tokens win.

    Raises:
        UnsupportedModelError: It is not of a plain decoder-only model.
        ModelFilesError: A value has the wrong type or range.
    """
    model_type = raw.get("model_type")
    if not isinstance(model_type, str):
        raise ModelFilesError(
            f"config.json: model_type is {shown(model_type)}, must be the name of a model family"
        )
    family = FAMILIES.get(model_type)
    if family is not None:
        check_numbers(raw, family, "config.json")
        usual = _by_usual_keys(raw, family)
        values = {**family.sizes._asdict(), **usual}
        return _parse(values, model_type, family, usual, generation or {})
    try:
        check_numbers(raw, None, "config.json")
        return _parse(raw, model_type, None, raw, generation or {})
    except (ModelFilesError, UnsupportedModelError) as error:
        # What is odd about a configuration of another family is that family.
        raise not_served(model_type, raw) from error


def _parse(
    values: Mapping[str, object],
    model_type: str,
    family: Family | None,
    raw: Mapping[str, object],
    generation: Mapping[str, object],
) -> ModelConfig:
    """Parses `values`, which are those of `raw` and what its absent keys mean."""
    _check_scaling(values)
    num_layers = _size(values, "num_hidden_layers")
    num_heads = _size(values, "num_attention_heads")
    hidden_size = _size(values, "hidden_size")
    num_kv_heads = _size(values, "num_key_value_heads", num_heads)
    latent = latent_sizes(values, family)
    if family is not None and family.one_kv_head is not None:
        is_one = values.get(family.one_kv_head, family.reads[family.one_kv_head])
        num_kv_heads = 1 if is_one else num_heads
    widening = None if family is None else family.mlp_widening
    if values.get("intermediate_size") is None and widening is not None:
        values = {**values, "intermediate_size": widening * hidden_size}
    if num_heads % num_kv_heads:
        raise UnsupportedModelError(
            f"config.json: num_key_value_heads is {num_kv_heads}, must divide the {num_heads} of "
            "num_attention_heads"
        )
    return ModelConfig(
        model_type=model_type,
        num_layers=num_layers,
        hidden_size=hidden_size,
        vocab_size=_size(values, "vocab_size"),
        num_attention_heads=num_heads,
        num_kv_heads=1 if latent else num_kv_heads,
        head_dim=latent.row if latent else _size(values, "head_dim", hidden_size // num_heads),
        latent=latent,
        intermediate_size=(
            None if values.get("intermediate_size") is None else _size(values, "intermediate_size")
        ),
        num_mlp_matrices=3 if family is None or family.has_gate else 2,
        experts=None if family is None else expert_sizes(values, family, num_layers),
        max_model_len=_max_model_len(values, family),
        tie_word_embeddings=_flag(values, "tie_word_embeddings"),
        checkpoint_dtype=_checkpoint_dtype(raw),
        eos_token_ids=(
            _token_ids(values, "eos_token_id", "config.json")
            or (family.end_tokens if family is not None else ())
            if generation.get("eos_token_id") is None
            else _token_ids(generation, "eos_token_id", "generation_config.json")
        ),
        raw=MappingProxyType({name: frozen(value) for name, value in raw.items()}),
    )


def _by_usual_keys(raw: Mapping[str, object], family: Family) -> Mapping[str, object]:
    """Returns a configuration whose keys have the names that they have in most families."""
    found = {name: value for name, value in raw.items() if name not in family.other_keys}
    for name, usual in family.other_keys.items():
        if name in raw and found.setdefault(usual, raw[name]) != raw[name]:
            raise ModelFilesError(
                f"config.json: {name} is {shown(raw[name])}, and {usual}, which is another name of "
                f"it, is {shown(found[usual])}"
            )
    return found


def _max_model_len(values: Mapping[str, object], family: Family | None) -> int:
    """Positions that the model was made for, as far as its rotary embedding stays the same.

    LongRoPE (arXiv:2402.13753) changes the frequencies of all positions once a sequence grows
    beyond the original length, which would make the KV computed before wrong. YaRN
    (arXiv:2309.00071) is switched on by a few keys that say how far it reaches.
    """
    max_positions = _size(values, "max_position_embeddings")
    if family is not None and family.first_position is not None:
        return max_positions
    reach = max_positions
    usual = USUAL_ROPE if family is None else family.rope
    for rope in rope_parameters(values, usual, max_positions).values():
        if rope["rope_type"] == "longrope":
            return min(max_positions, _size(rope, ORIGINAL, max_positions))
        if rope["rope_type"] == "yarn":
            original, factor = rope[ORIGINAL], rope.get("factor")
            if isinstance(original, int | float) and isinstance(factor, int | float):
                reach = max(reach, int(original * factor))
    return min(reach, MAX_POSITIONS)


def _size(raw: Mapping[str, object], name: str, default: int | None = None) -> int:
    value = raw.get(name)
    if value is None:
        value = default
    if value is None:
        raise ModelFilesError(f"config.json does not say {name}")
    SIZES[name].check(value, name, "config.json")
    assert isinstance(value, int), "a size is a whole number"
    return value


def _flag(raw: Mapping[str, object], name: str) -> bool:
    value = raw.get(name)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise ModelFilesError(f"config.json: {name} is {shown(value)}, must be true or false")
    return value


def _checkpoint_dtype(raw: Mapping[str, object]) -> DType | None:
    """Reads the dtype under its present name, else under that of transformers before 4.56."""
    name = raw.get("dtype") or raw.get("torch_dtype")
    return next((dtype for dtype in DType if dtype == name), None)


def _check_scaling(raw: Mapping[str, object]) -> None:
    """Refuses a rotary embedding that is named and not described."""
    for name in ("rope_scaling", "rope_parameters"):
        value = raw.get(name)
        if value and not isinstance(value, Mapping):
            raise ModelFilesError(f"config.json: {name} is {shown(value)}, must be an object")


def _token_ids(raw: Mapping[str, object], name: str, file_name: str) -> tuple[int, ...]:
    value = raw.get(name)
    ids = []
    for token_id in value if isinstance(value, list) else [value]:
        if isinstance(token_id, bool) or not isinstance(token_id, int | None):
            raise ModelFilesError(f"{file_name}: {name} has {shown(token_id)}, must be token ids")
        if token_id is not None and token_id >= 0:
            TOKEN_ID.check(token_id, name, file_name)
            ids.append(token_id)
    return tuple(ids)
