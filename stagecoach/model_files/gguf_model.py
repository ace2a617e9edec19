"""A model in a GGUF file, shown with the names, layout and configuration of Hugging Face."""

import math
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
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
from stagecoach.model_files.gguf_blocks import code_bits, has_offsets
from stagecoach.model_files.gguf_file import GgufFile
from stagecoach.model_files.gguf_metadata import GgufFields
from stagecoach.model_files.gguf_parts import GgufParts, model_name
from stagecoach.model_files.gguf_reader import GgufReader, StoredTensor, dequantized_rows
from stagecoach.model_files.listing import listed, name_of
from stagecoach.model_files.model_files import (
    ByteReport,
    KeptMatrices,
    ModelFiles,
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
        self._stored = dict(self._named())

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
                gguf_name = self._stored[name].name
                return parts.file_of(gguf_name).sampled(gguf_name)

            # A tensor of all experts goes by the name of the first.
            whole = [name for name, stored in self._stored.items() if not stored.expert]
            return {
                part: part_digest({name: sampled(name) for name in names})
                for part, names in parts_of(whole).items()
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
                if not has_offsets(self._tensors[self._stored[name].name].type):
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
        for name, stored in self._stored.items():
            tensor, shape = self._tensors[stored.name], stored.shape
            if len(shape) == 2:
                num_rows, num_columns = shape
                bits = code_bits(tensor.type)
                yield name, (num_rows, num_columns), None if bits is None else few_bits(bits)

    @property
    def tensor_names(self) -> Collection[str]:
        """Names of all tensors of the model, as Hugging Face spells them."""
        return self._stored.keys()

    @contextmanager
    def open_tensors(
        self, names: Collection[str], *, on_download: ByteReport = no_report
    ) -> Iterator[TensorReader]:
        """Opens the file, or all parts."""
        missing = set(names) - self._stored.keys()
        if missing:
            raise ModelFilesError(f"{self._path.name} has no tensor for {listed(missing)}")
        with GgufParts(self._path) as parts:
            yield GgufReader(parts, self._stored, self._row_order)

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

    def _named(self) -> Iterator[tuple[str, StoredTensor]]:
        """Names of Hugging Face, and what they are in the file."""
        for name, tensor in self._tensors.items():
            if name == _ROPE_FACTORS:
                continue
            hf_name, shape = self._hf_name(name), tensor.shape
            if "{}" not in hf_name:
                yield hf_name, StoredTensor(name, shape, None)
                continue
            experts = self.config.experts
            if len(shape) != 3 or experts is None or shape[0] != experts.num_experts:
                raise ModelFilesError(
                    f"{self._path.name}: {name!r} has shape {list(shape)}, must have a matrix for "
                    f"each of {experts.num_experts if experts else 0} experts"
                )
            for expert in range(shape[0]):
                yield hf_name.format(expert), StoredTensor(name, shape[1:], expert)

    def _hf_name(self, name: str) -> str:
        layer = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
        if layer and layer[2] in self._family.layer_names:
            return f"model.layers.{layer[1]}.{self._family.layer_names[layer[2]]}.{layer[3]}"
        stem, _, kind = name.rpartition(".")
        if stem in _GLOBAL_NAMES:
            return f"{_GLOBAL_NAMES[stem]}.{kind}"
        raise UnsupportedModelError(f"{self._path.name}: tensor {name!r} is of no served layout")


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
    experts = _experts(fields, model_type, family)
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
        **experts,
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
        **family.says,
        "rope_theta": fields.number("rope.freq_base", 10000.0),
        "rope_scaling": _rope_scaling(fields, family, context_length, rope_factors),
        "attention_bias": "blk.0.attn_output.bias" in parts.tensors,
        "mlp_bias": "blk.0.ffn_down.bias" in parts.tensors,
        "tie_word_embeddings": "output.weight" not in parts.tensors,
        "bos_token_id": fields.token_id("bos_token_id"),
        "eos_token_id": sorted({token_id for token_id in eos if token_id is not None}),
    }


def _model_type(fields: GgufFields, model_type: str, family: GgufNames) -> dict[str, object]:
    """The family in transformers: Llama's layers are Mistral's with a window, or Mixtral's."""
    window = fields.number("attention.sliding_window", 0)
    if family.expert_model_type is not None and fields.number("expert_count", 0):
        return {"model_type": family.expert_model_type, "sliding_window": window or None}
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


def _experts(fields: GgufFields, model_type: str, family: GgufNames) -> dict[str, object]:
    """What the metadata says of experts, by the keys of their family in transformers."""
    num_experts = fields.number("expert_count", 0)
    num_chosen = fields.optional("expert_used_count")
    width = fields.optional("expert_feed_forward_length")
    shared_width = fields.optional("expert_shared_feed_forward_length")
    if not num_experts:
        return {}
    layout = FAMILIES[family.expert_model_type or model_type].experts
    if layout is None:
        raise fields.refuse("a mixture of experts")
    if num_chosen is None:
        raise ModelFilesError(
            f"{fields.file_name} does not say {fields.architecture}.expert_used_count"
        )
    keys = layout.keys
    found = {
        keys.num_experts: num_experts,
        keys.num_chosen: num_chosen,
        keys.width: width,
        keys.shared_width: shared_width,
    }
    return {key: value for key, value in found.items() if key and value is not None}


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
    factors = [float(one) for one in dequantized_rows(parts, _ROPE_FACTORS, 0, 1).reshape(-1)]
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
