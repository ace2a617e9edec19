"""A model in the Hugging Face layout: config.json beside safetensors shards, here or on a hub."""

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Set
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path

from stagecoach.contract.errors import ModelFilesError, UnsupportedModelError
from stagecoach.contract.precision import Encoding
from stagecoach.model_files.canonical_config import canonical_config
from stagecoach.model_files.config import parse_config
from stagecoach.model_files.families import FAMILIES
from stagecoach.model_files.family import ExpertLayout
from stagecoach.model_files.folder import Folder
from stagecoach.model_files.folder_content import (
    ADAPTER_CONFIG,
    adapter_beside,
    without_config,
    without_weights,
)
from stagecoach.model_files.folder_text import FolderText
from stagecoach.model_files.hf_tokenizer import find_tokenizer
from stagecoach.model_files.listing import listed
from stagecoach.model_files.model_files import (
    ByteReport,
    ModelFiles,
    TensorReader,
    fingerprint_of,
    no_report,
)
from stagecoach.model_files.packed_form import Quantization
from stagecoach.model_files.packed_names import PackedNames
from stagecoach.model_files.packed_reader import PackedReader
from stagecoach.model_files.quantization import (
    FILES,
    has_old_names,
    quantization_beside,
    quantization_in,
)
from stagecoach.model_files.safetensors_file import SafetensorsFile
from stagecoach.model_files.shard_reader import ShardReader
from stagecoach.model_files.stored_names import stored_names
from stagecoach.model_files.text_file import json_object, read_text
from stagecoach.model_files.text_part import text_config, text_name
from stagecoach.model_files.tokenizer_files import HfTokenizerFiles
from stagecoach.model_files.weight_digest import (
    SampledTensor,
    is_computed,
    part_digest,
    parts_of,
)

_log = logging.getLogger(__name__)

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_GENERATION = "generation_config.json"


class HfFiles(ModelFiles):
    """A model in the Hugging Face layout.

    Args:
        folder: Where the files are.

    Raises:
        ModelFilesError: config.json is missing or damaged.
        UnsupportedModelError: It is not of a plain decoder-only model.
    """

    def __init__(self, folder: Folder) -> None:
        self.model_id = folder.model_id
        self._folder = folder
        self._texts = FolderText(folder)
        raw = self._texts.json("config.json")
        if raw is None:
            raise ModelFilesError(f"{folder.model_id} {without_config(folder.names())}")
        if folder.find(ADAPTER_CONFIG) or folder.find_here("adapter_model.safetensors"):
            raise UnsupportedModelError(adapter_beside(folder.model_id))
        generation = self._texts.json(_GENERATION)
        if generation is None:
            self._texts.warn_of_unknown(_GENERATION)
        text = text_config(raw)
        self._name_of: Callable[[str], str | None] = str if text is None else text_name
        self.config = parse_config(raw if text is None else text, generation)
        if text is not None:
            _log.info(
                "the language model of a model that takes more than text is served",
                extra={"model": self.model_id, "type": raw["model_type"]},
            )

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over what of config.json a stage computes with, and the names of its tensors.

        A configuration without weights, enough for emulated stages, has no tensors.
        """
        names = {name for name in self._stored if not is_computed(name)}
        facts = {"config": canonical_config(self.config), "tensors": sorted(names)}
        if self.quantization is not None:
            facts["quantization"] = self.quantization.says
        return fingerprint_of(facts)

    @cached_property
    def quantization(self) -> Quantization | None:
        """How the checkpoint is quantized; None: it is plain, or its family is not served.

        Raises:
            UnsupportedModelError: The weights are in a form that is not served.
            ModelFilesError: A setting is of no use.
        """
        found = self._said_quantization
        if found is None and self._is_served and has_old_names(self._found_shards or ()):
            return self._quantization_beside(self._folder.find)
        return found

    @property
    def encoding(self) -> Encoding | None:
        """As the configuration says it, or else an old file of settings that is on this machine."""
        found = self._said_quantization
        if found is None and self._is_served:
            found = self._quantization_beside(self._folder.find_here)
        return None if found is None else found.encoding

    @property
    def stored_encoding(self) -> Encoding | None:
        """As the configuration says it, or else an old file of settings for tensors such as it."""
        return None if self.quantization is None else self.quantization.encoding

    @property
    def _is_served(self) -> bool:
        """Whether the model's family is; of others nothing is said but that."""
        return self.config.model_type in FAMILIES

    @cached_property
    def _said_quantization(self) -> Quantization | None:
        """How the checkpoint is quantized, as the configuration says it."""
        return quantization_in(self.config.raw) if self._is_served else None

    def _quantization_beside(self, find: Callable[[str], Path | None]) -> Quantization | None:
        """Reads the first of the old files of settings that is found."""
        for name in FILES:
            path = find(name)
            if path is not None:
                return quantization_beside(json_object(read_text(path, name), name), name)
        return None

    @property
    def tensor_names(self) -> Collection[str]:
        """Names of all tensors of the model; of packed matrices, those that plain ones have."""
        names = self._packed_names
        return self._sharded.keys() if names is None else names.all

    @property
    def experts(self) -> ExpertLayout | None:
        """By the names of packed experts, where there are any."""
        names = self._packed_names
        return super().experts if names is None or names.experts is None else names.experts

    @property
    def fillers(self) -> Set[str]:
        """Biases of packed matrices, which AutoGPTQ gave to all."""
        names = self._packed_names
        return set() if names is None else names.fillers

    @contextmanager
    def open_tensors(
        self, names: Collection[str], *, on_download: ByteReport = no_report
    ) -> Iterator[TensorReader]:
        """Opens the shards that hold the named tensors, and no others."""
        missing = set(names) - set(self.tensor_names)
        if missing:
            raise ModelFilesError(f"{self.model_id} has no tensor {listed(missing)}")
        packed = self._packed_names
        if packed is None:
            with self._open_stored(names, on_download) as reader:
                yield reader
            return
        with self._open_stored(packed.stored(names), on_download) as reader:
            self._warn_of_settings()
            yield PackedReader(reader, packed.matrices)

    @contextmanager
    def _open_stored(
        self, names: Collection[str], on_download: ByteReport
    ) -> Iterator[ShardReader]:
        """Opens the shards that hold tensors, by the names under which they are stored."""
        index = self._sharded
        shards = {index[name] for name in names}
        paths = self._folder.find_all(sorted(shards), on_download)
        absent = [shard for shard, path in paths.items() if path is None]
        if absent:
            raise ModelFilesError(
                f"{self.model_id} has no file {listed(absent)}, which {_INDEX} names"
            )
        with ExitStack() as stack:
            files = {
                shard: stack.enter_context(SafetensorsFile(path, self._name_of))
                for shard, path in paths.items()
                if path is not None
            }
            owners = {name: files[index[name]] for name in names}
            astray = [name for name, file in owners.items() if name not in file.entries]
            if astray:
                raise ModelFilesError(
                    f"{self.model_id}: the index names a file for {listed(astray)} "
                    "that does not hold it"
                )
            yield ShardReader(owners)

    def weight_digests(self) -> Mapping[str, bytes]:
        """Samples the parts whose files are all here and sound."""
        shards = self._shards or {}
        stored = self._stored
        with ExitStack() as stack:
            files: dict[str, SafetensorsFile] = {}
            for shard in sorted(set(shards.values())):
                try:
                    path = self._folder.find_here(shard)
                    if path is not None:
                        files[shard] = stack.enter_context(SafetensorsFile(path, self._name_of))
                except ModelFilesError as error:
                    # Nobody may need it here: what a stage loads of it, it refuses itself.
                    facts = {"model": self.model_id, "error": error.message}
                    _log.warning("a file of weights is damaged", extra=facts)
            holders = {name: files.get(shard) for name, shard in shards.items()}
            return {
                part: part_digest(tensors)
                for part, names in parts_of(stored).items()
                if len(tensors := _sampled({name: stored[name] for name in names}, holders))
                == len(names)
            }

    def weights_revision(self) -> str:
        """Names the files of the weights by their checksums on the hub."""
        checksums = self._folder.checksums(sorted(set(self._sharded.values())))
        return "" if checksums is None else fingerprint_of(checksums)

    def tokenizer_files(self) -> HfTokenizerFiles | None:
        """Finds tokenizer.json, what is beside it, and the chat template."""
        return self._tokenizer_files

    @cached_property
    def _tokenizer_files(self) -> HfTokenizerFiles | None:
        return find_tokenizer(self._folder)

    @property
    def _sharded(self) -> Mapping[str, str]:
        """Name of the file of every tensor, of a model that must have weights."""
        if self._shards is None:
            raise ModelFilesError(f"{self.model_id} {without_weights(self._folder.names())}")
        return self._shards

    @cached_property
    def _shards(self) -> Mapping[str, str] | None:
        """Name of the file of every tensor; None without weights."""
        if self._found_shards is None:
            self._texts.refuse_unknown(_SINGLE)
            self._texts.refuse_unknown(_INDEX)
        return self._found_shards

    @cached_property
    def _found_shards(self) -> Mapping[str, str] | None:
        """As `_shards`; None also where weights may exist that were not found.

        As for transformers, a single file hides an index: a model that is saved in one file into
        the folder of an older one leaves the index of that.
        """
        tensors = self._folder.tensor_types(_SINGLE)
        shards = self._index() if tensors is None else dict.fromkeys(tensors, _SINGLE)
        if shards is None:
            return None
        named = ((self._name_of(name), shard) for name, shard in shards.items())
        return {name: shard for name, shard in named if name is not None}

    @cached_property
    def _packed_names(self) -> PackedNames | None:
        """The tensors of a quantized checkpoint; None for a plain one."""
        if self.quantization is None:
            return None
        experts = self.config.experts
        return PackedNames(
            self._sharded.keys(),
            self.quantization,
            num_experts=0 if experts is None else experts.num_experts,
        )

    @cached_property
    def _stored(self) -> Mapping[str, str]:
        """Name under which each tensor is in the files, by its usual one."""
        return stored_names(self._shards or (), self.config)

    def _index(self) -> Mapping[str, str] | None:
        """Name of the shard of every tensor, as the index says; None without an index."""
        index = self._texts.json(_INDEX)
        if index is None:
            return None
        shards = index.get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise ModelFilesError(f"{_INDEX}: weight_map is not an object with names")
        for name, shard in shards.items():
            fault = _fault_of_shard(shard)
            if fault is not None:
                raise ModelFilesError(f"{_INDEX}: tensor {name!r} is in {shard!r:.80}, {fault}")
        return shards

    def _warn_of_settings(self) -> None:
        """Names what of a quantized checkpoint is not quantized here."""
        if self.quantization is not None and self.quantization.not_applied:
            _log.warning(
                "only weights are quantized: activations and KV stay in the dtype of the stage",
                extra={
                    "model": self.model_id,
                    "method": self.quantization.method,
                    "not_applied": list(self.quantization.not_applied),
                },
            )


def _fault_of_shard(shard: object) -> str | None:
    """Why something is not the name of a file of weights beside the index; None: it is one."""
    if not isinstance(shard, str) or not shard.endswith(".safetensors"):
        return "not the name of a safetensors file"
    # A name with a folder in it could point anywhere on this machine.
    if "/" in shard:
        return "in another folder, which is not served: put it beside the index"
    return None if shard.isprintable() else "not a file name"


def _sampled(
    stored: Mapping[str, str], holders: Mapping[str, SafetensorsFile | None]
) -> dict[str, SampledTensor]:
    """Describes the tensors that are in the file where they should be.

    Args:
        stored: Their names, and those under which the files have them.
        holders: The files by the latter.
    """
    return {
        name: file.sampled(stored_name)
        for name, stored_name in stored.items()
        if (file := holders[stored_name]) is not None and stored_name in file.entries
    }
