"""A GGUF model in one file, or in several as `llama-gguf-split` divides them.

The first part has all metadata and says how many parts there are; each has a share of the tensors.
"""

import re
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from stagecoach.contract.errors import ModelFilesError, UnsupportedModelError
from stagecoach.model_files.gguf_file import GgufFile, GgufTensor

_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<ending>(?i:\.gguf))")
_COUNT, _NUMBER, _TENSORS = "split.count", "split.no", "split.tensors.count"


def model_name(path: Path) -> str:
    """Name of the file without ending and number of the part."""
    part = _PART.fullmatch(path.name)
    return path.stem if part is None else part["stem"]


class GgufParts:
    """The open files of a model; a context manager that closes them.

    Args:
        path: The file, or the first of several.

    Raises:
        ModelFilesError: A file is missing, cannot be opened or is damaged, or is no part of the
            model that the first one says.
        UnsupportedModelError: The file is a later part, or as for `GgufFile`.
    """

    def __init__(self, path: Path) -> None:
        with ExitStack() as opened:
            first = opened.enter_context(GgufFile(path))
            self.name = first.name
            self.metadata: Mapping[str, object] = first.metadata
            files = [first]
            for number, part in enumerate(_further_parts(path, first.metadata), start=1):
                file = opened.enter_context(GgufFile(part))
                _check_part(file, number, first)
                files.append(file)
            self.tensors: dict[str, GgufTensor] = {}
            self._files: dict[str, GgufFile] = {}
            for file in files:
                twice = file.tensors.keys() & self.tensors.keys()
                if twice:
                    raise ModelFilesError(
                        f"{file.name}: {min(twice)!r} is in {self._files[min(twice)].name} too"
                    )
                self.tensors |= file.tensors
                self._files |= dict.fromkeys(file.tensors, file)
            self._check_number_of_tensors()
            self._opened = opened.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._opened.close()

    def file_of(self, name: str) -> GgufFile:
        """The file that holds a tensor."""
        return self._files[name]

    def _check_number_of_tensors(self) -> None:
        expected = self.metadata.get(_TENSORS, len(self.tensors))
        if _is_split(self.metadata) and expected != len(self.tensors):
            raise ModelFilesError(
                f"{self.name}: {_TENSORS} is {expected}, all parts have {len(self.tensors)}"
            )


def _is_split(metadata: Mapping[str, object]) -> bool:
    count = metadata.get(_COUNT)
    return isinstance(count, int) and count > 1


def _further_parts(path: Path, metadata: Mapping[str, object]) -> list[Path]:
    """The other files of a model whose first part is given."""
    if not _is_split(metadata):
        return []
    count, number = metadata[_COUNT], metadata.get(_NUMBER)
    name = _PART.fullmatch(path.name)
    if not isinstance(number, int):
        raise ModelFilesError(f"{path.name} is one of {count} parts and has no {_NUMBER}")
    if number != 0:
        first = "the first"
        if name is not None:
            first = f"the first, {name['stem']}-00001-of-{name['count']}{name['ending']}"
        raise UnsupportedModelError(
            f"{path.name} is not the first of {count} parts of a model: open {first}"
        )
    if name is None or (int(name["number"]), int(name["count"])) != (1, count):
        raise ModelFilesError(
            f"{path.name} is the first of {count} parts, which are found by its name: it must end "
            f"in -00001-of-{count:05}.gguf"
        )
    assert isinstance(count, int), "it is split"
    return [
        path.with_name(f"{name['stem']}-{part:05}-of-{name['count']}{name['ending']}")
        for part in range(2, count + 1)
    ]


def _check_part(file: GgufFile, number: int, first: GgufFile) -> None:
    found = file.metadata.get(_NUMBER), file.metadata.get(_COUNT)
    expected = number, first.metadata[_COUNT]
    if found != expected:
        raise ModelFilesError(
            f"{file.name} is no part of {first.name}: its {_NUMBER} and {_COUNT} are "
            f"{found[0]} and {found[1]}, must be {expected[0]} and {expected[1]}"
        )
