"""A model in the Hugging Face layout: config.json beside safetensors shards, here or on a hub."""

import json
import logging
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from model_files.chat_templates import DEFAULT, configured_template
from model_files.config import parse_config
from model_files.folder_content import (
    ADAPTER_CONFIG,
    adapter_beside,
    unread_tokenizer,
    without_config,
    without_weights,
)
from model_files.lfs_pointer import LFS_BEGINNING, refuse_lfs_pointer
from model_files.listing import listed
from model_files.model_files import (
    ByteReport,
    ModelFiles,
    TensorInfo,
    TensorReader,
    fingerprint_of,
    no_report,
)
from model_files.safetensors_file import SafetensorsFile
from model_files.tokenizer_files import HfTokenizerFiles
from model_files.weight_digest import part_digest, parts_of
from protos.errors import ModelFilesError, UnsupportedModelError

_log = logging.getLogger(__name__)

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_TEMPLATE = "chat_template.jinja"
_TEMPLATES = "additional_chat_templates"
"""Folder of templates with other names than the default."""
_PROCESSOR_TEMPLATE = "chat_template.json"
"""Where models of several modalities had their template before `chat_template.jinja`."""

_NOT_ARCHITECTURE = frozenset(
    {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache"}
)
"""Keys of config.json that tools rewrite without changing the model."""


class Folder(Protocol):
    """Files by name, wherever they are."""

    model_id: str
    """Name of the model, for people."""

    def find(self, name: str) -> Path | None:
        """Returns the path of a file, fetching it first if need be; None if there is none."""
        ...

    def find_all(self, names: Sequence[str], on_download: ByteReport) -> dict[str, Path | None]:
        """Finds several files as `find` does, and tells how far their fetching is."""
        ...

    def find_here(self, name: str) -> Path | None:
        """Returns the path of a file if it is on this machine."""
        ...

    def names(self) -> Sequence[str]:
        """Names of what there is, or of what is well known of it; for people."""
        ...

    def names_in(self, subfolder: str) -> Sequence[str]:
        """Names of what there is in a folder inside, in order; in this one for an empty name.

        A name has no folder in it.
        """
        ...

    def checksums(self, names: Sequence[str]) -> Mapping[str, str] | None:
        """Checksums that a hub knows files by; None where there is none or it does not say."""
        ...

    def tensor_types(self, name: str) -> dict[str, tuple[str, tuple[int, ...]]] | None:
        """Reads dtype and shape of all tensors of a safetensors file, without its tensors.

        Returns:
            None if there is no such file.
        """
        ...


class LocalFolder:
    """A folder on this machine."""

    def __init__(self, path: Path) -> None:
        """Remembers the folder."""
        self.model_id = path.resolve().name
        self._path = path

    def find(self, name: str) -> Path | None:
        """Returns the path of a file, or None.

        Raises:
            ModelFilesError: The folder may not be read.
        """
        path = self._path / name
        try:
            return path if path.is_file() else None
        except OSError as error:
            raise ModelFilesError(f"{path} cannot be read: {error.strerror}") from error

    def names(self) -> Sequence[str]:
        """Names of all that is in it."""
        try:
            return sorted(path.name for path in self._path.iterdir())
        except OSError as error:
            raise ModelFilesError(f"{self._path} cannot be read: {error.strerror}") from error

    def names_in(self, subfolder: str) -> Sequence[str]:
        """Names of all that is in a folder inside; none if there is no such folder."""
        path = self._path / subfolder
        try:
            return sorted(path.name for path in path.iterdir()) if path.is_dir() else ()
        except OSError as error:
            raise ModelFilesError(f"{path} cannot be read: {error.strerror}") from error

    def find_all(self, names: Sequence[str], on_download: ByteReport) -> dict[str, Path | None]:
        """Finds several files; nothing is fetched."""
        return {name: self.find(name) for name in names}

    def find_here(self, name: str) -> Path | None:
        """Returns the path of a file, or None."""
        return self.find(name)

    def checksums(self, names: Sequence[str]) -> None:
        """Returns None: there is no hub."""
        return

    def tensor_types(self, name: str) -> dict[str, tuple[str, tuple[int, ...]]] | None:
        """Reads the file's header; None if there is no such file."""
        if self.find(name) is None:
            return None
        with SafetensorsFile(self._path / name) as file:
            return {key: (entry.dtype, entry.shape) for key, entry in file.entries.items()}


class HfFiles(ModelFiles):
    """A model in the Hugging Face layout.

    Args:
        folder: Where the files are.

    Raises:
        ModelFilesError: config.json is missing or damaged.
        UnsupportedModelError: It is not of a plain decoder-only model.
    """

    def __init__(self, folder: Folder) -> None:
        """Reads the configuration."""
        self.model_id = folder.model_id
        self._folder = folder
        raw = self._json("config.json")
        if raw is None:
            raise ModelFilesError(f"{folder.model_id} {without_config(folder.names())}")
        if folder.find(ADAPTER_CONFIG) or folder.find_here("adapter_model.safetensors"):
            raise UnsupportedModelError(adapter_beside(folder.model_id))
        self.config = parse_config(raw, self._json("generation_config.json"))

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over config.json and the names of all tensors.

        A configuration without weights, enough for emulated stages, has no tensors.
        """
        config = {k: v for k, v in self.config.raw.items() if k not in _NOT_ARCHITECTURE}
        return fingerprint_of({"config": config, "tensors": sorted(self._names or ())})

    @property
    def tensor_names(self) -> Collection[str]:
        """Names of all tensors of the model."""
        if self._names is None:
            raise ModelFilesError(f"{self.model_id} {without_weights(self._folder.names())}")
        return self._names

    @contextmanager
    def open_tensors(
        self, names: Collection[str], *, on_download: ByteReport = no_report
    ) -> Iterator[TensorReader]:
        """Opens the shards that hold the named tensors, and no others."""
        missing = set(names) - set(self.tensor_names)
        if missing:
            raise ModelFilesError(f"{self.model_id} has no tensor {listed(missing)}")
        index = self._index or dict.fromkeys(names, _SINGLE)
        shards = {index[name] for name in names}
        paths = self._folder.find_all(sorted(shards), on_download)
        absent = [shard for shard, path in paths.items() if path is None]
        if absent:
            raise ModelFilesError(
                f"{self.model_id} has no file {listed(absent)}, which {_INDEX} names"
            )
        with ExitStack() as stack:
            files = {
                shard: stack.enter_context(SafetensorsFile(path))
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
            yield _ShardReader(owners)

    def weight_digests(self) -> Mapping[str, bytes]:
        """Samples the parts whose files are all here and sound."""
        shards = self._index or dict.fromkeys(self._names or (), _SINGLE)
        with ExitStack() as stack:
            files: dict[str, SafetensorsFile] = {}
            for shard in sorted(set(shards.values())):
                path = self._folder.find_here(shard)
                if path is None:
                    continue
                try:
                    files[shard] = stack.enter_context(SafetensorsFile(path))
                except ModelFilesError as error:
                    # Nobody may need it here: what a stage loads of it, it refuses itself.
                    facts = {"model": self.model_id, "error": error.message}
                    _log.warning("a file of weights is damaged", extra=facts)
            holders = {name: files.get(shard) for name, shard in shards.items()}
            return {
                part: part_digest({name: file.sampled(name) for name, file in tensors.items()})
                for part, names in parts_of(shards).items()
                if len(tensors := _holding(names, holders)) == len(names)
            }

    def weights_revision(self) -> str:
        """Names the files of the weights by their checksums on the hub."""
        checksums = self._folder.checksums(sorted(set(self._index.values()) or {_SINGLE}))
        return "" if checksums is None else fingerprint_of(checksums)

    def tokenizer_files(self) -> HfTokenizerFiles | None:
        """Finds tokenizer.json, its configuration and the chat template."""
        path = self._folder.find("tokenizer.json")
        if path is None:
            unread = unread_tokenizer(self._folder.names_in(""))
            if unread is not None:
                raise UnsupportedModelError(f"{self.model_id} {unread}")
            return None
        config = self._json("tokenizer_config.json") or {}
        return HfTokenizerFiles(
            tokenizer_json=path,
            tokenizer_config=config,
            chat_template=self._chat_template(config),
        )

    def _chat_template(self, tokenizer_config: Mapping[str, object]) -> str | None:
        """The template in a file of its own, or else the tokenizer's or a processor's.

        As for transformers, any file of its own hides those of the configuration.
        """
        templates = self._template_files()
        if templates:
            if DEFAULT not in templates:
                _log.warning(
                    "no chat template is the default one: conversations are refused",
                    extra={"model": self.model_id, "templates": sorted(templates)},
                )
            return templates.get(DEFAULT)
        template = configured_template("tokenizer_config.json", tokenizer_config)
        if template is not None:
            return template
        return configured_template(_PROCESSOR_TEMPLATE, self._json(_PROCESSOR_TEMPLATE) or {})

    def _template_files(self) -> dict[str, str]:
        """Templates in files of their own, by name; a default one in the folder comes first."""
        own = self._text(_TEMPLATE)
        templates = {} if own is None else {DEFAULT: own}
        for name in self._folder.names_in(_TEMPLATES):
            if not name.endswith(".jinja"):
                continue
            text = self._text(f"{_TEMPLATES}/{name}")
            if text is None:
                raise ModelFilesError(f"{_TEMPLATES}/{name} is not a file")
            templates[name.removesuffix(".jinja")] = text
        return templates

    @cached_property
    def _index(self) -> dict[str, str]:
        """Name of the shard of every tensor; empty for a model in a single file."""
        index = self._json(_INDEX)
        if index is None:
            return {}
        shards = index.get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise ModelFilesError(f"{_INDEX}: weight_map is not an object with names")
        for name, shard in shards.items():
            # A name with a folder in it could point anywhere on this machine.
            if not isinstance(shard, str) or not re.fullmatch(r"[\w.-]+\.safetensors", shard):
                raise ModelFilesError(f"{_INDEX}: tensor {name!r} is in {shard!r}, not a file name")
        return shards

    @cached_property
    def _names(self) -> frozenset[str] | None:
        """Names of all tensors; None without weights."""
        tensors = self._index or self._folder.tensor_types(_SINGLE)
        return None if tensors is None else frozenset(tensors)

    def _text(self, name: str) -> str | None:
        path = self._folder.find(name)
        if path is None:
            return None
        text = _read_text(path, name)
        refuse_lfs_pointer(name, text[: len(LFS_BEGINNING)].encode())
        return text

    def _json(self, name: str) -> Mapping[str, object] | None:
        text = self._text(name)
        if text is None:
            return None
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ModelFilesError(f"{name} is not JSON: {_fault(text, error)}") from error
        if not isinstance(content, dict):
            raise ModelFilesError(
                f"{name} is not a JSON object: it begins with {text.strip()[:20]!r}"
            )
        return content


def _holding(
    names: Collection[str], holders: Mapping[str, SafetensorsFile | None]
) -> dict[str, SafetensorsFile]:
    """The files of those tensors that are in the file where they should be."""
    files = {name: holders[name] for name in names}
    return {name: file for name, file in files.items() if file is not None and name in file.entries}


class _ShardReader:
    """Implements `TensorReader` over open shards."""

    def __init__(self, owners: Mapping[str, SafetensorsFile]) -> None:
        self._owners = owners

    def info(self, name: str) -> TensorInfo:
        return self._owners[name].info(name)

    def read(self, name: str, start: int = 0, end: int | None = None) -> npt.NDArray[np.generic]:
        return self._owners[name].read(name, start, end)


def _fault(text: str, error: ValueError | RecursionError) -> str:
    """What is wrong with a text that is not JSON."""
    if not text.strip():
        return "it is empty"
    if isinstance(error, json.JSONDecodeError):
        is_cut = error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated")
        cut = "; it seems to be cut off" if is_cut else ""
        return f"{error.msg.lower()} in line {error.lineno}, column {error.colno}{cut}"
    return "it nests too deep" if isinstance(error, RecursionError) else "a number is too long"


def _read_text(path: Path, name: str) -> str:
    """Reads a text file in UTF-8, of which some editors mark the beginning."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ModelFilesError(f"{name} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ModelFilesError(
            f"{name} is not text in UTF-8: byte {error.start} is {error.object[error.start]}"
        ) from error
