"""The interface of an opened model, whatever its format."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Set
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from stagecoach.contract.precision import Encoding
from stagecoach.model_files.config import ModelConfig
from stagecoach.model_files.families import FAMILIES
from stagecoach.model_files.family import ExpertLayout
from stagecoach.model_files.frozen_json import thawed
from stagecoach.model_files.grouped_rows import GroupedRows
from stagecoach.model_files.tokenizer_files import TokenizerFiles

ByteReport = Callable[[int, int], None]
"""Told how many bytes are done, and of how many."""


def no_report(_done_bytes: int, _total_bytes: int) -> None:
    """Ignores progress, for callers who do not want to know it."""


class TensorInfo(NamedTuple):
    """What `TensorReader.read` gives for a tensor."""

    dtype: str
    """float32, float16 or bfloat16."""
    shape: tuple[int, ...]
    code_bits: int | None = None
    """Bits of a code, where the file keeps groups that `TensorReader.read_groups` gives."""


class TensorReader(Protocol):
    """Reads tensors, whole or a few rows at a time, into memory of the caller's own."""

    def info(self, name: str) -> TensorInfo:
        """Type and shape of a tensor."""
        ...

    def read(self, name: str, start: int = 0, end: int | None = None) -> npt.NDArray[np.generic]:
        """Reads rows `[start, end)` of a tensor, all by default.

        Files are read, not mapped: a file that shrinks raises instead of killing the process, and
        its pages do not count as the process's memory.

        Returns:
            A writable array of its own memory; float32 or float16, or int16 holding the bits of
            bfloat16, which numpy does not have.

        Raises:
            ModelFilesError: The file ends before the tensor does.
        """
        ...

    def read_groups(self, name: str, start: int, end: int) -> GroupedRows:
        """Reads rows `[start, end)` of a matrix as the file keeps them.

        Args:
            name: A tensor with `code_bits`.
            start: Its first row.
            end: The row after its last.

        Raises:
            ModelFilesError: The file ends before the tensor does, or a scale is no finite number.
        """
        ...


class KeptMatrices(NamedTuple):
    """What matrices take in memory where stages keep them in the bits of their files."""

    encoding: Encoding
    """In which few bits most of them are."""
    layers: tuple[int, ...]
    """Bytes of all matrices of each layer. Plain numbers take 16 bits."""
    embedding_row: int
    """Bytes of one row of the embedding."""


class ModelFiles(ABC):
    """A model whose headers were read and checked; see `open_model`."""

    model_id: str
    """Name for people: the hub id, or the name of the folder or file."""
    config: ModelConfig

    @property
    def experts(self) -> ExpertLayout | None:
        """How its files name experts; None where there are none, or the family is not served."""
        family = FAMILIES.get(self.config.model_type)
        return None if family is None else family.experts

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """sha256, in hex, of the architecture and the names of tensors.

        Equal for everyone who opened the same model, however its tensors lie in files, also where
        only some of them are present. Weights of one shape share it; see `weight_digests`.
        """

    @property
    def encoding(self) -> Encoding | None:
        """In which few bits most matrices are; None: they are plain numbers.

        Read from what describes the weights, without opening or asking a hub for anything.
        """
        return None

    @property
    def kept_matrices(self) -> KeptMatrices | None:
        """What matrices take in memory, tensor by tensor, where `encoding` is that of most of them.

        None where all are plain numbers, and where that cannot be said without opening weights.
        """
        return None

    @property
    def stored_encoding(self) -> Encoding | None:
        """As `encoding`, by names of tensors too, so that all boxes that load them choose alike."""
        return self.encoding

    @property
    @abstractmethod
    def tensor_names(self) -> Collection[str]:
        """Names of all tensors of the model, as Hugging Face spells them."""

    @property
    def fillers(self) -> Set[str]:
        """Names of tensors that tools add, full of zeros, also to models that have none such."""
        return frozenset()

    @abstractmethod
    def open_tensors(
        self, names: Collection[str], *, on_download: ByteReport = no_report
    ) -> AbstractContextManager[TensorReader]:
        """Opens the files that hold the named tensors, fetching those not yet on this machine.

        Args:
            names: Names of the tensors.
            on_download: Told how far the fetching is; not called when there is none.

        Raises:
            ModelFilesError: Tensors or files are missing, or a file is damaged; says which.
        """

    def weight_digests(self) -> Mapping[str, bytes]:
        """Samples the weights that are on this machine; see `weight_digest`.

        Returns:
            Digests by the name of a part. A part of which a file is missing or damaged is left out.
        """
        return {}

    def weights_revision(self) -> str:
        """Names the content of all weights where a hub says it, also of those not on this machine.

        Returns:
            A digest that only another one from a hub compares with; empty where it is not known.
        """
        return ""

    @abstractmethod
    def tokenizer_files(self) -> TokenizerFiles | None:
        """Returns where the tokenizer is, or None for a model without one.

        Raises:
            UnsupportedModelError: It is there only in a form that is not read.
            ModelFilesError: A file beside it is damaged.
        """


def fingerprint_of(facts: Mapping[str, object]) -> str:
    """Hashes facts as canonical JSON, frozen or not; sha256 in hex."""
    text = json.dumps(thawed(facts), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
