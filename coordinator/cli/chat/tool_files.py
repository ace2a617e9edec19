"""Functions of the user's own files, which the model may ask for in a chat."""

import importlib.util
import sys
from collections.abc import Iterable, Sequence
from inspect import isfunction
from pathlib import Path
from types import ModuleType

from stagecoach.client.function_tool import FunctionTool, ToolFunction
from stagecoach.contract.errors import InvalidArgumentError

_FIELD = "tool"


def read_tools(named: Iterable[str]) -> Sequence[ToolFunction]:
    """Loads the functions that `--tool` names; their files are run.

    Args:
        named: Each `FILE.py:FUNCTION`, or `FILE.py` for all functions of the file whose names do
            not begin with an underscore.

    Raises:
        InvalidArgumentError: A file cannot be run, has no such function, or one that no model can
            call.
    """
    modules: dict[Path, ModuleType] = {}
    functions: list[ToolFunction] = []
    for text in named:
        file, name = _parted(text)
        if file not in modules:
            modules[file] = _run(file, len(modules))
        functions += _functions(modules[file], name, text)
    for function in functions:
        FunctionTool.of(function, _FIELD)
    return functions


def _parted(text: str) -> tuple[Path, str]:
    """The file, and the function that is named; empty for all."""
    file, colon, name = text.rpartition(":")
    if not colon or name.endswith(".py"):
        file, name = text, ""
    path = Path(file)
    if path.suffix != ".py" or not path.is_file():
        raise InvalidArgumentError(
            f"tool {text[:200]!r} names no file: it is FILE.py:FUNCTION, or FILE.py for all"
            " functions of the file",
            field=_FIELD,
        )
    return path.resolve(), name


def _run(file: Path, number: int) -> ModuleType:
    """Runs a file, which may import those beside it."""
    name = f"stagecoach_chat_tools_{number}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None, "a file whose name ends in .py has a loader"
    assert spec.loader is not None, "a file whose name ends in .py has a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look for their module there
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the user's program may raise anything
        raise InvalidArgumentError(
            f"tool {file} cannot be run: {type(error).__name__}: {error}", field=_FIELD
        ) from error
    return module


def _functions(module: ModuleType, name: str, text: str) -> Sequence[ToolFunction]:
    if name:
        function = getattr(module, name, None)
        if not callable(function):
            raise InvalidArgumentError(f"tool {text[:200]!r}: there is no {name}()", field=_FIELD)
        return [function]
    found = [
        value
        for key, value in vars(module).items()
        if isfunction(value) and value.__module__ == module.__name__ and not key.startswith("_")
    ]
    if not found:
        raise InvalidArgumentError(f"tool {text[:200]!r} has no functions", field=_FIELD)
    return found
