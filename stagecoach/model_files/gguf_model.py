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
from stagecoach.model_files.family import ExpertLayout
from stagecoach.model_files.gguf_blocks import code_bits, has_offsets
from stagecoach.model_files.gguf_config import hf_config, served_architecture
from stagecoach.model_files.gguf_file import GgufFile
from stagecoach.model_files.gguf_metadata import GgufFields
from stagecoach.model_files.gguf_parts import GgufParts, model_name
from stagecoach.model_files.gguf_reader import GgufReader, StoredTensor
from stagecoach.model_files.gguf_rope import LONG_FACTORS, ROPE_FACTORS, SHORT_FACTORS
from stagecoach.model_files.listing import listed, name_of
from stagecoach.model_files.model_files import (
    ByteReport,
    KeptMatrices,
    ModelFiles,
    TensorReader,
    fingerprint_of,
    no_report,
)
from stagecoach.model_files.tokenizer_files import GgufTokenizer
from stagecoach.model_files.weight_digest import EMBEDDING, SampledTensor, part_digest, parts_of

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
    "position_embd": "model.embed_positions",
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
            fields = GgufFields(path.name, parts.metadata)
            self.config = parse_config(hf_config(fields, parts))
        self._architecture = served_architecture(fields)
        self._num_blocks = int(fields.number("block_count"))
        self._names = FAMILIES[self.config.model_type].names
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
    def experts(self) -> ExpertLayout | None:
        """By the file's architecture."""
        return self._architecture.experts or super().experts

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
            yield GgufReader(
                parts,
                self._stored,
                self._row_order,
                norm_shift=1.0 if self._architecture.shifts_norms else 0.0,
            )

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
        rotary embedding (`LlamaModel.permute` in its converter), and puts all queries of a GPT-NeoX
        before all keys (`GPTNeoXModel.modify_tensors`).
        """
        num_rows = self._tensors[name].shape[0]
        if self._architecture.joins_heads and name.split(".")[-2] == "attn_qkv":
            of_parts = np.arange(num_rows).reshape(3, self.config.num_attention_heads, -1)
            return of_parts.swapaxes(0, 1).reshape(-1)
        num_heads = {
            "attn_q": self.config.num_attention_heads,
            "attn_k": self.config.num_kv_heads,
        }.get(name.split(".")[-2])
        if not self._architecture.interleaves_heads or num_heads is None:
            return None
        return np.arange(num_rows).reshape(num_heads, -1, 2).swapaxes(1, 2).reshape(-1)

    def _named(self) -> Iterator[tuple[str, StoredTensor]]:
        """Names of Hugging Face, and what they are in the file."""
        for name, tensor in self._tensors.items():
            if name in (ROPE_FACTORS, SHORT_FACTORS, LONG_FACTORS) or self._is_ahead(name):
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

    def _is_ahead(self, name: str) -> bool:
        """Whether a tensor is of a layer behind the model's own, which guesses ahead."""
        block = re.match(r"blk\.(\d+)\.", name)
        return block is not None and self.config.num_layers <= int(block[1]) < self._num_blocks

    def _hf_name(self, name: str) -> str:
        names = self._architecture.layer_names
        stem, _, kind = name.rpartition(".")
        layer = re.fullmatch(r"blk\.(\d+)\.(\w+)", stem)
        if layer:
            prefix = f"{self._names.layers}{layer[1]}."
            if (whole := names.get(f"{layer[2]}.{kind}")) is not None:
                return prefix + whole
            if layer[2] in names and kind in ("weight", "bias"):
                return f"{prefix}{names[layer[2]]}.{kind}"
        if stem in _GLOBAL_NAMES:
            return self._names.in_files(f"{_GLOBAL_NAMES[stem]}.{kind}")
        raise UnsupportedModelError(f"{self._path.name}: tensor {name!r} is of no served layout")
