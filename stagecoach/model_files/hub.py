"""Files of a model on a Hugging Face hub, fetched one by one when they are asked for.

Honours `HF_ENDPOINT`, `HF_HOME`, `HF_HUB_OFFLINE` and `HF_TOKEN`, as `huggingface_hub` does.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path

from huggingface_hub import (
    _CACHED_NO_EXIST,
    HfApi,
    constants,
    get_cached_repo_tree,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    CachedRepoTreeNotFoundError,
    EntryNotFoundError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
)
from huggingface_hub.utils.tqdm import tqdm

from stagecoach.contract.errors import ModelFilesError, StagecoachError
from stagecoach.model_files.checksum import check_download
from stagecoach.model_files.folder_content import KNOWN_NAMES, without_config
from stagecoach.model_files.hub_errors import in_words, offline
from stagecoach.model_files.model_files import ByteReport
from stagecoach.model_files.safetensors_file import SafetensorsFile

_log = logging.getLogger(__name__)


class HubFolder:
    """A model repository on a hub, pinned to one commit.

    Args:
        repo_id: `organisation/name`.
        revision: Branch, tag or commit; None is the main branch.

    Raises:
        ModelFilesError: There is no such repository or revision, or the hub cannot be reached.
    """

    def __init__(self, repo_id: str, revision: str | None) -> None:
        self.model_id = repo_id
        self._revision = revision
        config = self.find("config.json")
        if config is None:
            if constants.is_offline_mode():
                raise ModelFilesError(offline(repo_id, revision, "config.json"))
            raise ModelFilesError(f"{repo_id} {without_config(self.names())}")
        self._revision = config.parent.name  # .../snapshots/<commit>/config.json

    def find(self, name: str, *, on_bytes: Callable[[int], None] = lambda _: None) -> Path | None:
        """Returns the path of a file, downloading it if need be; None if there is none.

        Offline, what is not in the cache is not found either; see `unknown`. What is downloaded is
        compared with the hub's checksum.

        Args:
            name: Name of the file.
            on_bytes: Told how many more bytes have arrived; less than none when some are lost.

        Raises:
            ModelFilesError: The hub cannot be reached, or refuses, or the file arrived damaged.
        """
        known = self._cached(name)
        path = self._fetch(name, on_bytes)
        if path is not None and path != known:
            check_download(path)
        return path

    def _fetch(self, name: str, on_bytes: Callable[[int], None]) -> Path | None:
        with self._hub_errors(name):
            try:
                return Path(
                    hf_hub_download(
                        self.model_id,
                        name,
                        revision=self._revision,
                        tqdm_class=_counting_bar(on_bytes),
                    )
                )
            except LocalEntryNotFoundError:
                # Offline on request, nothing is fetched. Otherwise the network is at fault.
                if constants.is_offline_mode():
                    return None
                raise
            except EntryNotFoundError:
                return None

    def find_all(self, names: Sequence[str], on_download: ByteReport) -> dict[str, Path | None]:
        """Finds several files, downloading those that are not in the cache.

        Raises:
            ModelFilesError: As `find`.
        """
        sizes = {name: self._size_bytes(name) for name in names if self._cached(name) is None}
        total_bytes = sum(sizes.values())
        done_bytes = 0

        def count(num_bytes: int) -> None:
            nonlocal done_bytes
            done_bytes += num_bytes
            on_download(min(done_bytes, total_bytes), total_bytes)

        paths = {name: self.find(name, on_bytes=count) for name in names}
        if constants.is_offline_mode():
            for name, path in paths.items():
                if path is None:
                    raise ModelFilesError(offline(self.model_id, self._revision, name))
        return paths

    def names(self) -> Sequence[str]:
        """Well-known names that the repository has."""
        return [name for name in KNOWN_NAMES if self._size_bytes(name)]

    def names_in(self, subfolder: str) -> Sequence[str]:
        """Names of all that is in a folder inside; offline, of what the cache has of it.

        Raises:
            ModelFilesError: The hub cannot be reached, or refuses.
        """
        if constants.is_offline_mode():
            path = self._cached("config.json")
            kept = path.parent / subfolder if path else None
            return sorted(one.name for one in kept.iterdir()) if kept and kept.is_dir() else ()
        with self._hub_errors(subfolder):
            try:
                tree = list(
                    HfApi().list_repo_tree(
                        self.model_id, subfolder or None, revision=self._revision
                    )
                )
            except HfHubHTTPError as error:
                if error.response.status_code == HTTPStatus.NOT_FOUND:  # or a hub without lists
                    return ()
                raise
        return sorted(entry.path.rpartition("/")[2] for entry in tree)

    def find_here(self, name: str) -> Path | None:
        """Returns the path of a file in the cache, or None."""
        return self._cached(name)

    def unknown(self, name: str) -> str | None:
        """Says why nobody knows whether there is a file that was not found.

        Returns:
            None if there is no such file: the hub said so, now or when this machine asked it last
            for this file or for the list of all.
        """
        if not constants.is_offline_mode():
            return None
        with self._hub_errors(name):
            known = try_to_load_from_cache(self.model_id, name, revision=self._revision)
            if known is _CACHED_NO_EXIST:
                return None
            try:
                tree = get_cached_repo_tree(self.model_id, revision=self._revision)
            except CachedRepoTreeNotFoundError:
                return offline(self.model_id, self._revision, name)
        is_listed = any(entry.path == name for entry in tree)
        return offline(self.model_id, self._revision, name) if is_listed else None

    def checksums(self, names: Sequence[str]) -> Mapping[str, str] | None:
        """Checksums of files, in the cache or not; None where the hub is needed and silent."""
        try:
            return {name: self._checksum(name) for name in names}
        except ModelFilesError as error:
            _log.info(
                "the hub does not say which weights these are", extra={"error": error.message}
            )
            return None

    def tensor_types(self, name: str) -> dict[str, tuple[str, tuple[int, ...]]] | None:
        """Reads the header of a safetensors file, from the cache or with a ranged request.

        Returns:
            None if there is no such file; offline, also if it is not in the cache.

        Raises:
            ModelFilesError: The file is damaged, or the hub cannot be reached.
        """
        path = self._cached(name)
        if path is not None:
            with SafetensorsFile(path) as file:
                return {key: (entry.dtype, entry.shape) for key, entry in file.entries.items()}
        if constants.is_offline_mode():
            return None
        with self._hub_errors(name):
            try:
                header = HfApi().parse_safetensors_file_metadata(
                    self.model_id, name, revision=self._revision
                )
            except LocalEntryNotFoundError:
                raise
            except EntryNotFoundError:
                return None
        return {key: (info.dtype, tuple(info.shape)) for key, info in header.tensors.items()}

    def _size_bytes(self, name: str) -> int:
        """Asks for the size of a file; 0 if there is none."""
        with self._hub_errors(name):
            try:
                file = hf_hub_download(self.model_id, name, revision=self._revision, dry_run=True)
            except LocalEntryNotFoundError:
                if constants.is_offline_mode():
                    return 0
                raise
            except EntryNotFoundError:
                return 0
        return file.file_size or 0

    def _checksum(self, name: str) -> str:
        path = self._cached(name)
        if path is not None:
            return path.resolve().name
        url = hf_hub_url(self.model_id, name, revision=self._revision)
        with self._hub_errors(name):
            return get_hf_file_metadata(url).etag or ""

    def _cached(self, name: str) -> Path | None:
        with self._hub_errors(name):
            try:
                path = hf_hub_download(
                    self.model_id, name, revision=self._revision, local_files_only=True
                )
            except LocalEntryNotFoundError:
                return None
        return Path(path)

    @contextmanager
    def _hub_errors(self, name: str) -> Iterator[None]:
        """Turns what `huggingface_hub` raises into one clear line."""
        try:
            yield
        except StagecoachError:
            raise
        except Exception as error:  # of the library, its proxies, its codecs, and this machine
            raise ModelFilesError(
                in_words(error, repo_id=self.model_id, revision=self._revision, name=name)
            ) from error


def _counting_bar(on_bytes: Callable[[int], None]) -> type[tqdm]:
    """A progress bar for `huggingface_hub` that shows nothing and passes its steps on."""

    class CountingBar(tqdm):
        def __init__(self, *args: object, initial: int = 0, **options: object) -> None:
            # Resumed downloads begin with what is there.
            settings = {**options, "initial": initial, "disable": True}
            super().__init__(*args, **settings)  # type: ignore[no-untyped-call]
            on_bytes(initial)

        def update(self, n: float | None = 1) -> bool | None:
            on_bytes(int(n or 0))
            return None

        def update_transfer(self, n: float | None = 1) -> None:
            """What came over the network before it was put together; not counted twice."""

    return CountingBar
