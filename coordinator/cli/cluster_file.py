"""The file of `coordinator-cli serve --config`: several models, and options of the process.

Its keys are the flags of `serve`, with underscores. What stands beside `models` holds for the
process, and for every model that does not say otherwise itself.
"""

import difflib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from coordinator.cli.shared.text_file import decode_text, read_file
from stagecoach.contract.errors import InvalidArgumentError

MODELS = "models"
"""Key of the list of models."""

OF_MODEL = (
    *("model", "stage", "served_model_name", "tls_ca", "tls_cert", "tls_key"),
    *("max_num_batched_tokens", "max_num_seqs", "max_model_len", "num_micro_batches"),
    "max_thinking_tokens",
    *(
        "max_num_waiting",
        "prefix_cache",
        "prompt_lookup",
        "draft_acceptance",
        "connect_timeout_s",
        "stage_wait_s",
    ),
)
"""Parameters of `serve` that each model may have for itself."""

OF_ONE_MODEL = ("model", "stage", "served_model_name")
"""Parameters that cannot hold for several models."""

_NOT_IN_FILE = ("context", "config", "json_output", "exit_with_parent")
_SPELLINGS = {"stage": "stages"}
"""Keys that are not spelled as their flags: a list has several."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterFile:
    """What a file says, by the parameters of `serve`; none is None."""

    name: str
    """Name of the file, for people."""
    options: Mapping[str, Any]
    """Values of the process, and of every model that has no own."""
    models: tuple[Mapping[str, Any], ...]
    """Values of each model; at least one."""

    def place(self, parameter: str, model: int) -> str:
        """Says where in the file a model's value of a parameter stands, or should."""
        if parameter in self.options and parameter not in self.models[model]:
            return self.place_of_all(parameter)
        return f"{MODELS}[{model}].{key_of(parameter)}"

    def place_of_all(self, parameter: str) -> str:
        """Says that a value stands beside the models."""
        return f"{key_of(parameter)} in {self.name}"


def key_of(parameter: str) -> str:
    """The key of a parameter of `serve`."""
    return _SPELLINGS.get(parameter, parameter)


def keys_of(command: Callable[..., object]) -> dict[str, str]:
    """The key of every parameter that a file may give, those of a model first.

    Args:
        command: `serve`.
    """
    others = (name for name in _parameters(command) if name not in OF_MODEL)
    return {name: key_of(name) for name in (*OF_MODEL, *others)}


def read_cluster_file(path: Path, command: Callable[..., object]) -> ClusterFile:
    """Reads a file.

    Args:
        path: File in YAML, or in JSON, which is YAML.
        command: Whose parameters the keys are: `serve`.

    Raises:
        OSError: It cannot be read.
        InvalidArgumentError: It is not such a file; names the place in it.
    """
    content = _mapping(_loaded(path), path.name)
    kinds = _parameters(command)
    models = content.pop(MODELS, None)
    top = _Level(
        kinds={name: kind for name, kind in kinds.items() if name not in OF_ONE_MODEL},
        others={key_of(name): "each of the models" for name in OF_ONE_MODEL},
        more=(MODELS,),
    )
    options = dict(top.options(content, ""))
    if not isinstance(models, list) or not models:
        raise InvalidArgumentError(
            f"{MODELS} in {path.name} is missing, or no list of one model or more", field=MODELS
        )
    of_model = _Level(
        kinds={name: kinds[name] for name in OF_MODEL},
        others={
            key_of(name): f"the process, beside {MODELS}" for name in kinds if name not in OF_MODEL
        },
    )
    places = [f"{MODELS}[{index}]" for index in range(len(models))]
    return ClusterFile(
        name=path.name,
        options=options,
        models=tuple(
            dict(of_model.options(_mapping(model, at), f"{at}."))
            for model, at in zip(models, places, strict=True)
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Level:
    """What may stand at one level of a file."""

    kinds: Mapping[str, object]
    """Type of each parameter whose key may."""
    others: Mapping[str, str]
    """Keys that may not, and what they belong to."""
    more: tuple[str, ...] = ()
    """Further keys, which were read already."""

    def options(self, content: Mapping[object, object], at: str) -> Iterator[tuple[str, Any]]:
        """Reads what stands there; what is null is not given.

        Args:
            content: By its keys.
            at: What comes before a key in its place.

        Raises:
            InvalidArgumentError: A key may not stand there, or has no such value.
        """
        parameters = {key_of(name): name for name in self.kinds}
        for key, value in content.items():
            place = f"{at}{key}"
            if key not in parameters:
                raise InvalidArgumentError(
                    f"{place} is no option here{self._hint(str(key))}", field=place
                )
            if value is not None:
                parameter = parameters[str(key)]
                yield parameter, _read(value, self.kinds[parameter], place)

    def _hint(self, key: str) -> str:
        if key in self.others:
            return f": it belongs to {self.others[key]}"
        known = sorted([*map(key_of, self.kinds), *self.more])
        near = difflib.get_close_matches(key, known, n=1)
        return f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}"


class _Loader(yaml.SafeLoader):
    """Makes nothing but plain data, and takes no key twice, of which YAML keeps the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue  # which is no key of a mapping in Python, as it will be told
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key.value!r} is given twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _loaded(path: Path) -> object:
    text = decode_text(read_file(path, "--config"), f"config {path}", "config")
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = "" if mark is None else f", line {mark.line + 1}, column {mark.column + 1}"
        raise InvalidArgumentError(
            f"config {path.name}{place}: {error.problem}", field="config"
        ) from error
    except yaml.YAMLError as error:
        raise InvalidArgumentError(f"config {path.name}: {error}", field="config") from error
    finally:
        loader.dispose()


def _mapping(value: object, at: str) -> dict[object, object]:
    if not isinstance(value, dict):
        raise InvalidArgumentError(f"{at} has no keys and values, such as model: demo", field=at)
    return dict(value)


def _read(value: object, kind: object, place: str) -> object:
    """Reads a value as the type of its parameter."""
    if kind == list[str] | None:
        items = value if isinstance(value, list) else [value]
        return [
            _text(item, f"{place}[{index}]" if item is not value else place)
            for index, item in enumerate(items)
        ]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is bool:
        return _checked(value, isinstance(value, bool), "true or false", place)
    if kind == int | None or kind is int:
        return _checked(value, is_number and isinstance(value, int), "a whole number", place)
    if kind is float:
        return _checked(value, is_number, "a number", place)
    text = _text(value, place)
    return Path(text) if kind == Path | None else text


def _text(value: object, place: str) -> str:
    return str(_checked(value, isinstance(value, str), "text, in quotes if need be", place))


def _checked(value: object, is_good: bool, wanted: str, place: str) -> object:
    if not is_good:
        raise InvalidArgumentError(f"{place} is {value!r}, must be {wanted}", field=place)
    return value


def _parameters(command: Callable[..., object]) -> dict[str, object]:
    """The type of each parameter that may stand in a file."""
    hints = get_type_hints(command)
    return {
        name: kind for name, kind in hints.items() if name != "return" and name not in _NOT_IN_FILE
    }
