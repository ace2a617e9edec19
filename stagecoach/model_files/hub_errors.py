"""What `huggingface_hub` raises, in one line that says what to do about it."""

import errno

import httpx2
from huggingface_hub import constants, get_token
from huggingface_hub.errors import (
    EntryNotFoundError,
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    SafetensorsParsingError,
)

from stagecoach.contract import unexpected

_TOKEN = "the token of an account that may, as HF_TOKEN or with hf auth login"
_CACHE_FAULTS = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST})


def in_words(error: BaseException, *, repo_id: str, revision: str | None, name: str) -> str:
    """Says why a file could not be fetched.

    Args:
        error: Whatever fetching it raised.
        repo_id: Hub id of the model.
        revision: Wanted one; None: the main branch.
        name: Name of the file.
    """
    endpoint = constants.ENDPOINT
    match error:
        case HFValidationError():
            return f"{repo_id!r} is no hub id: {' '.join(str(error).split())}"
        case RevisionNotFoundError():
            return f"{repo_id} has no revision {revision!r}"
        case GatedRepoError():
            return _gated(repo_id)
        case RepositoryNotFoundError():
            return (
                f"{repo_id} does not exist on {endpoint}, or is private: check its name, and give"
                f" this machine {_TOKEN}"
            )
        case LocalEntryNotFoundError() if error.__cause__ is not None:
            return in_words(error.__cause__, repo_id=repo_id, revision=revision, name=name)
        case OfflineModeIsEnabled() | LocalEntryNotFoundError():
            return offline(repo_id, revision, name)
        case EntryNotFoundError():
            return f"{repo_id} has no file {name}"
        case SafetensorsParsingError():
            return f"{repo_id}: the header of {name} is damaged"
        case HfHubHTTPError():
            return _refused(error.response.status_code, repo_id, name)
        case FileMetadataError():
            return f"{repo_id}: {endpoint} does not answer as a hub does: a proxy, or HF_ENDPOINT"
        case httpx2.InvalidURL() | httpx2.UnsupportedProtocol():
            return (
                f"{repo_id}: {name} cannot be fetched from {endpoint}: HF_ENDPOINT or a proxy of "
                f"the environment is no URL: {error}"
            )
        case ImportError():
            return (
                f"{repo_id}: {name} cannot be fetched from {endpoint} with what is installed "
                f"here, maybe for a proxy of the environment: {error}"
            )
        case UnicodeEncodeError():
            return (
                f"{repo_id}: {name} cannot be fetched from {endpoint}: the token of this machine "
                "(HF_TOKEN), or a proxy of the environment, has a character that HTTP cannot send"
            )
        case httpx2.ConnectError() | httpx2.ProxyError() | httpx2.TimeoutException():
            return f"{repo_id}: {name} is not in the cache and {endpoint} cannot be reached"
        case OSError() if error.errno == errno.ENOSPC:
            return f"{repo_id}: there is no space left for {name} in {constants.HF_HUB_CACHE}"
        case OSError() if error.errno in _CACHE_FAULTS:
            return (
                f"{repo_id}: {name} cannot be kept in {constants.HF_HUB_CACHE}: {error.strerror};"
                " HF_HOME names another place"
            )
        case _:
            reason = unexpected.in_words(error)
            return f"{repo_id}: {name} cannot be fetched from {endpoint}: {reason}"


def offline(repo_id: str, revision: str | None, name: str) -> str:
    """Says that a file is not on this machine, which shall not ask for it."""
    wanted = repo_id if revision is None else f"{repo_id}@{revision}"
    return (
        f"{wanted}: {name} is not in the cache {constants.HF_HUB_CACHE}, and the hub is offline for"
        " this machine (HF_HUB_OFFLINE)"
    )


def _gated(repo_id: str) -> str:
    page = f"{constants.ENDPOINT}/{repo_id}"
    if get_token() is None:
        return f"{repo_id} is gated: accept its terms on {page}, and give this machine {_TOKEN}"
    return (
        f"{repo_id} is gated, and the token of this machine may not read it: accept its terms on "
        f"{page} with the account of that token"
    )


def _refused(status: int, repo_id: str, name: str) -> str:
    endpoint = constants.ENDPOINT
    if status == 401:
        return f"{repo_id}: {endpoint} does not know the token of this machine (HF_TOKEN)"
    if status == 403:
        return f"{repo_id}: the token of this machine may not read {name}; give it {_TOKEN}"
    if status == 429:
        return f"{repo_id}: {endpoint} gets too many requests from here; try again later"
    return f"{repo_id}: {name} cannot be fetched, {endpoint} answered with {status}"
