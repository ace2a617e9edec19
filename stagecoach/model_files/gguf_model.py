"""A model in a GGUF file, shown with the names, layout and configuration of Hugging Face."""

import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from stagecoach.contract.errors import ModelFilesError, UnsupportedModelError
from stagecoach.contract.precision import INT8, DType, Encoding, few_bits
from stagecoach.model_files.config import parse_config
from stagecoach.model_files.families import FAMILIES
from stagecoach.model_files.family import GgufNames
from stagecoach.model_files.gguf_blocks import (
    BLOCK_TYPES,
    code_bits,
    grouped_rows,
    has_offsets,
)
from stagecoach.model_files.gguf_file import GgufFile
from stagecoach.model_files.gguf_metadata import GgufFields
from stagecoach.model_files.gguf_parts import GgufParts, model_name
from stagecoach.model_files.grouped_rows import GroupedRows, rounded_rows
from stagecoach.model_files.listing import listed, name_of
from stagecoach.model_files.model_files import (
    ByteReport,
    KeptMatrices,
    ModelFiles,
    TensorInfo,
    TensorReader,
    fingerprint_of,
    no_report,
)
from stagecoach.model_files.numbers import FACTOR, HEAD_DIM, VOCABULARY
from stagecoach.model_files.tokenizer_files import GgufTokenizer
from stagecoach.model_files.weight_digest import EMBEDDING, SampledTensor, part_digest, parts_of

_FAMILIES = {
    family.gguf.architecture: (model_type, family.gguf)
    for model_type, family in FAMILIES.items()
    if family.gguf is not None
}
"""Type in transformers and names of the served families, by `general.architecture`."""

_MAX_SCALE = float(np.finfo(np.float16).max)
"""Largest scale of a group that devices keep; scales of weights are a millionth of it."""

_ROPE_FACTORS = "rope_freqs.weight"
"""Divisors of the rotary frequencies, how llama.cpp stores the scaling of Llama 3."""

_LAYER = re.compile(r"model\.layers\.(\d+)\.")
"""How names of a layer's tensors begin."""

_PLAIN = Encoding.plain(DType.FLOAT16)
"""What plain numbers beside codes take, in either type of 16 bits."""

_OFFSET_BYTES = 2
"""Bytes of an offset, which is kept for each group unless all of them are 0."""

_GLOBAL_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}


class GgufModel(ModelFiles):
    """A model in a GGUF file, or in several parts.

    Args:
        path: The file, or the first part.

    Raises:
        ModelFilesError: A file is missing or damaged, or lacks metadata.
        UnsupportedModelError: Its architecture, or a feature of it, is not served.
    """

    def __init__(self, path: Path) -> None:
        self.model_id = name_of(path.with_name(model_name(path)))
        self._path = path
        with GgufParts(path) as parts:
            self._metadata = parts.metadata
            self._tensors = parts.tensors
            factors = _rope_factors(parts)
        fields = GgufFields(path.name, parts.metadata)
        self.config = parse_config(_hf_config(fields, parts, factors))
        _, self._family = _FAMILIES[fields.architecture]
        self._gguf_names = {
            self._hf_name(name): name for name in self._tensors if name != _ROPE_FACTORS
        }

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over the metadata of the architecture, and all tensors' types and shapes."""
        architecture = self._metadata["general.architecture"]
        fields = {k: v for k, v in self._metadata.items() if k.startswith(f"{architecture}.")}
        tensors = {name: (tensor.type.name, tensor.shape) for name, tensor in self._tensors.items()}
        facts = {"architecture": architecture, "metadata": fields, "tensors": tensors}
        return fingerprint_of(facts)

    def weight_digests(self) -> Mapping[str, bytes]:
        """Samples all parts."""
        with GgufParts(self._path) as parts:

            def sampled(name: str) -> SampledTensor:
                gguf_name = self._gguf_names[name]
                return parts.file_of(gguf_name).sampled(gguf_name)

            return {
                part: part_digest({name: sampled(name) for name in names})
                for part, names in parts_of(self.tensor_names).items()
            }

    @cached_property
    def encoding(self) -> Encoding | None:
        """By the number of their elements."""
        elements: Counter[Encoding | None] = Counter()
        for _, shape, kept in self._matrices():
            elements[kept] += math.prod(shape)
        plain = elements.pop(None, 0)
        most = max(elements, key=lambda kept: elements[kept], default=None)
        return None if plain > elements.total() else most

    @cached_property
    def kept_matrices(self) -> KeptMatrices | None:
        """By the type of each tensor."""
        if self.encoding is None:
            return None
        layers = Counter[int]()
        row_bytes = 0
        for name, shape, kept in self._matrices():
            stored = _PLAIN
            if kept is not None:
                stored = INT8 if name == EMBEDDING else kept
                if not has_offsets(self._tensors[self._gguf_names[name]].type):
                    stored = stored._replace(block_bytes=stored.block_bytes - _OFFSET_BYTES)
            if layer := _LAYER.match(name):
                layers[int(layer[1])] += stored.matrix_bytes(*shape)
            elif name == EMBEDDING:
                row_bytes = stored.row_bytes(shape[1])
        return KeptMatrices(
            self.encoding,
            tuple(layers[index] for index in range(self.config.num_layers)),
            row_bytes,
        )

    def _matrices(self) -> Iterator[tuple[str, tuple[int, int], Encoding | None]]:
        """Name and shape of each matrix, and the few bits in which it is kept, or None."""
        for name, gguf_name in self._gguf_names.items():
            tensor = self._tensors[gguf_name]
            if len(tensor.shape) == 2:
                num_rows, num_columns = tensor.shape
                bits = code_bits(tensor.type)
                yield name, (num_rows, num_columns), None if bits is None else few_bits(bits)

    @property
    def tensor_names(self) -> Collection[str]:
        """Names of all tensors of the model, as Hugging Face spells them."""
        return self._gguf_names.keys()

    @contextmanager
    def open_tensors(
        self, names: Collection[str], *, on_download: ByteReport = no_report
    ) -> Iterator[TensorReader]:
        """Opens the file, or all parts."""
        missing = set(names) - self._gguf_names.keys()
        if missing:
            raise ModelFilesError(f"{self._path.name} has no tensor for {listed(missing)}")
        with GgufParts(self._path) as parts:
            yield _GgufReader(parts, self._gguf_names, self._row_order)

    def tokenizer_files(self) -> GgufTokenizer | None:
        """Reads the metadata of the tokenizer."""
        with GgufFile(self._path, string_lists=True) as file:
            fields = {
                name: value
                for name, value in file.metadata.items()
                if name.startswith("tokenizer.") or name == "general.name"
            }
        return GgufTokenizer(metadata=fields) if "tokenizer.ggml.model" in fields else None

    def _row_order(self, name: str) -> npt.NDArray[np.int64] | None:
        """The stored row of every row of a Hugging Face tensor; None when they are the same.

        llama.cpp interleaves the two halves of each head of Llama's queries and keys for its
        rotary embedding (`LlamaModel.permute` in its converter).
        """
        num_heads = {
            "attn_q": self.config.num_attention_heads,
            "attn_k": self.config.num_kv_heads,
        }.get(name.split(".")[-2])
        if not self._family.interleaves_heads or num_heads is None:
            return None
        num_rows = self._tensors[name].shape[0]
        return np.arange(num_rows).reshape(num_heads, -1, 2).swapaxes(1, 2).reshape(-1)

    def _hf_name(self, name: str) -> str:
        layer = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
        if layer and layer[2] in self._family.layer_names:
            return f"model.layers.{layer[1]}.{self._family.layer_names[layer[2]]}.{layer[3]}"
        stem, _, kind = name.rpartition(".")
        if stem in _GLOBAL_NAMES:
            return f"{_GLOBAL_NAMES[stem]}.{kind}"
        raise UnsupportedModelError(f"{self._path.name}: tensor {name!r} is of no served layout")


class _GgufReader:
    """Implements `TensorReader` over open GGUF files; `read` gives float32."""

    def __init__(
        self,
        files: GgufParts,
        gguf_names: Mapping[str, str],
        row_order: Callable[[str], npt.NDArray[np.int64] | None],
    ) -> None:
        self._files = files
        self._gguf_names = gguf_names
        self._row_order = row_order

    def info(self, name: str) -> TensorInfo:
        tensor = self._files.tensors[self._gguf_names[name]]
        is_matrix = len(tensor.shape) == 2
        return TensorInfo("float32", tensor.shape, code_bits(tensor.type) if is_matrix else None)

    def read(self, name: str, start: int = 0, end: int | None = None) -> npt.NDArray[np.generic]:
        gguf_name = self._gguf_names[name]
        tensor = self._files.tensors[gguf_name]
        wanted = slice(start, tensor.shape[0] if end is None else end)
        if len(tensor.shape) == 1:
            vector = _dequantize_rows(self._files, gguf_name, 0, 1)[0]
            order = self._row_order(gguf_name)
            ordered: npt.NDArray[np.float32] = vector if order is None else vector[order]
            return ordered[wanted]
        first, last, order = self._stored(gguf_name, wanted)
        stored = _dequantize_rows(self._files, gguf_name, first, last)
        return stored if order is None else stored[order]

    def read_groups(self, name: str, start: int, end: int) -> GroupedRows:
        gguf_name = self._gguf_names[name]
        first, last, order = self._stored(gguf_name, slice(start, end))
        file = self._files.file_of(gguf_name)
        kind = BLOCK_TYPES.get(file.tensors[gguf_name].type)
        if kind is None:
            with np.errstate(invalid="ignore"):  # of damaged scales, which are refused below
                groups = rounded_rows(_dequantize_rows(self._files, gguf_name, first, last))
        else:
            groups = grouped_rows(kind, file.read_rows(gguf_name, first, last))
        for numbers in (groups.scales, groups.offsets):
            if numbers is not None and not (np.abs(numbers) <= _MAX_SCALE).all():
                raise ModelFilesError(
                    f"{file.name}: {gguf_name!r} is damaged: a scale is no number up to "
                    f"{_MAX_SCALE:.0f}"
                )
        return groups if order is None else groups.rows(order)

    def _stored(self, name: str, wanted: slice) -> tuple[int, int, npt.NDArray[np.int64] | None]:
        """Which rows of the file hold those wanted, and their order in them."""
        order = self._row_order(name)
        if order is None:
            return wanted.start, wanted.stop, None
        rows = order[wanted]
        first = int(rows.min())
        return first, int(rows.max()) + 1, rows - first


def _dequantize_rows(files: GgufParts, name: str, start: int, end: int) -> npt.NDArray[np.float32]:
    """Float32 rows; a tensor of one dimension is one row."""
    from gguf.quants import dequantize

    file = files.file_of(name)
    kind = file.tensors[name].type
    try:
        values: npt.NDArray[np.float32] = dequantize(file.read_rows(name, start, end), kind)
    except NotImplementedError as error:  # how the library says that it knows no such kind
        raise UnsupportedModelError(
            f"{file.name}: {name!r} is quantized as {kind.name}, which cannot be read"
        ) from error
    return values


def _hf_config(
    fields: GgufFields, parts: GgufParts, rope_factors: list[float] | None
) -> dict[str, object]:
    """Writes the metadata as the config.json that the model was converted from."""
    if fields.architecture not in _FAMILIES:
        raise fields.refuse(
            f"GGUF architecture {fields.architecture!r} (known: {', '.join(_FAMILIES)})"
        )
    model_type, family = _FAMILIES[fields.architecture]
    kind = parts.metadata.get("general.type", "model")
    if kind != "model":
        raise fields.refuse(f"a GGUF file that is no model but of type {kind!r}")
    if fields.number("expert_count", 0):
        raise fields.refuse("a mixture of experts")
    vocab_size = _num_rows_of_embedding(parts, fields.file_name)
    hidden_size = fields.number("embedding_length")
    num_heads = fields.number("attention.head_count")
    head_dim = fields.number("attention.key_length", hidden_size // num_heads)
    HEAD_DIM.check(head_dim, "embedding_length over attention.head_count", fields.file_name)
    for name in ("attention.value_length", "rope.dimension_count"):
        if fields.number(name, head_dim) != head_dim:
            raise fields.refuse(f"{name} {fields.get(name)} beside head size {head_dim}")
    fields.check_keys(head_dim=head_dim)
    if fields.number("vocab_size", vocab_size) != vocab_size:
        raise ModelFilesError(
            f"{fields.file_name}: vocab_size is {fields.get('vocab_size')}, token_embd.weight has "
            f"{vocab_size} rows"
        )
    context_length = fields.number("context_length")
    eos = [fields.token_id("eos_token_id"), fields.token_id("eot_token_id")]
    return {
        **_model_type(fields, model_type, family),
        "num_hidden_layers": fields.number("block_count"),
        "hidden_size": hidden_size,
        "intermediate_size": fields.number("feed_forward_length"),
        "vocab_size": vocab_size,
        "num_attention_heads": num_heads,
        "num_key_value_heads": fields.number("attention.head_count_kv", num_heads),
        "head_dim": head_dim,
        "max_position_embeddings": context_length,
        "rms_norm_eps": fields.number("attention.layer_norm_rms_epsilon"),
        "hidden_act": "silu",
        "rope_theta": fields.number("rope.freq_base", 10000.0),
        "rope_scaling": _rope_scaling(fields, family, context_length, rope_factors),
        "attention_bias": "blk.0.attn_output.bias" in parts.tensors,
        "mlp_bias": "blk.0.ffn_down.bias" in parts.tensors,
        "tie_word_embeddings": "output.weight" not in parts.tensors,
        "bos_token_id": fields.token_id("bos_token_id"),
        "eos_token_id": sorted({token_id for token_id in eos if token_id is not None}),
    }


def _model_type(fields: GgufFields, model_type: str, family: GgufNames) -> dict[str, object]:
    """The family in transformers, which for Llama's layers with a window is Mistral."""
    window = fields.number("attention.sliding_window", 0)
    if not window:
        return {"model_type": model_type}
    if family.windowed_model_type is not None:
        return {"model_type": family.windowed_model_type, "sliding_window": window}
    return {
        "model_type": model_type,
        "use_sliding_window": True,
        "sliding_window": window,
        "max_window_layers": 0,
    }


def _rope_scaling(
    fields: GgufFields, family: GgufNames, context_length: float, factors: list[float] | None
) -> dict[str, object] | None:
    kind = fields.get("rope.scaling.type")
    # As llama.cpp reads it: a factor without a kind is linear, and older files have another key.
    factor = fields.number("rope.scaling.factor", fields.number("rope.scale_linear", 0.0)) or 1.0
    if kind not in (None, "none", "linear", "yarn"):
        raise fields.refuse(f"rope scaling {kind!r}")
    is_scaled = kind == "yarn" or (kind != "none" and factor != 1.0)
    if factors is not None:
        if is_scaled or not family.may_have_rope_factors:
            raise fields.refuse(f"{_ROPE_FACTORS} beside rope scaling {kind!r} by {factor:g}")
        # Frequencies divided by given factors are LongRoPE (arXiv:2402.13753) of one length.
        return {
            "rope_type": "longrope",
            "short_factor": factors,
            "long_factor": factors,
            "attention_factor": 1.0,
            "original_max_position_embeddings": context_length,
        }
    if not is_scaled:
        return None
    if kind != "yarn":
        return {"rope_type": "linear", "factor": factor}
    given = {
        "attention_factor": fields.optional("rope.scaling.yarn_attn_factor"),
        "beta_fast": fields.optional("rope.scaling.yarn_beta_fast"),
        "beta_slow": fields.optional("rope.scaling.yarn_beta_slow"),
    }
    return {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": fields.number(
            "rope.scaling.original_context_length", context_length
        ),
        **{name: value for name, value in given.items() if value is not None},
    }


def _rope_factors(parts: GgufParts) -> list[float] | None:
    if _ROPE_FACTORS not in parts.tensors:
        return None
    factors = [float(one) for one in _dequantize_rows(parts, _ROPE_FACTORS, 0, 1).reshape(-1)]
    for factor in factors:
        FACTOR.check(factor, _ROPE_FACTORS, parts.name)
    return factors


def _num_rows_of_embedding(parts: GgufParts, file_name: str) -> int:
    """Tokens of the vocabulary, as the matrix that embeds them has rows."""
    embedding = parts.tensors.get("token_embd.weight")
    if embedding is None:
        raise ModelFilesError(f"{file_name} has no tensor token_embd.weight")
    if len(embedding.shape) != 2:
        raise ModelFilesError(
            f"{file_name}: token_embd.weight has {len(embedding.shape)} dimensions, must have 2"
        )
    VOCABULARY.check(embedding.shape[0], "the number of rows of token_embd.weight", file_name)
    return embedding.shape[0]
