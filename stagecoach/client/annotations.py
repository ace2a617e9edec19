"""From the annotations of a function to JSON schemas, and from JSON to what they ask for. No I/O.

Known are str, int, float, bool, None, Any, Literal, unions, lists, mappings of text, enumerations,
dataclasses and typed dictionaries, also inside each other, and descriptions by `Annotated`.
"""

import dataclasses
import enum
import inspect
import types
from collections.abc import Callable, Iterable, Mapping, MutableMapping, MutableSequence, Sequence
from typing import (
    Annotated,
    Any,
    Literal,
    NamedTuple,
    NotRequired,
    Required,
    TypeAlias,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from stagecoach.contract.errors import InvalidArgumentError

Annotation: TypeAlias = Any
"""What a function or a class says of a value; Python has no type for it."""

Schema = dict[str, object]
"""A JSON schema, as `json.loads` reads it."""

_LISTS = (list, Sequence, MutableSequence, Iterable)
_MAPPINGS = (dict, Mapping, MutableMapping)
_NO_DEFAULT = inspect.Parameter.empty


class UnreadableError(ValueError):
    """A value is not what its annotation asks for."""


class Form(NamedTuple):
    """One annotation."""

    schema: Schema
    """What its values are in JSON."""
    read: Callable[[object, str], object]
    """Makes of a JSON value what the annotation asks for; raises `UnreadableError`, with the path
    that it is given."""


class Property(NamedTuple):
    """One of several values with names: a parameter, or a field."""

    name: str
    annotation: Annotation
    """As `get_type_hints` gives it; `inspect.Parameter.empty` where there is none."""
    is_required: bool
    default: object = _NO_DEFAULT
    description: str = ""


def object_form(properties: Iterable[Property], owner: str, outer: tuple[type, ...] = ()) -> Form:
    """The form of an object; it reads dictionaries by name.

    Args:
        properties: What it has.
        owner: What has them, for errors: an argument, a colon, and words.
        outer: Classes that it stands in, none of which may stand in it again.

    Raises:
        InvalidArgumentError: An annotation has no JSON schema, or is missing.
    """
    forms: dict[str, Form] = {}
    required: list[str] = []
    schemas: Schema = {}
    for one in properties:
        forms[one.name] = form = _form(one.annotation, f"{owner}: {one.name}", outer)
        notes: Schema = {}
        if one.description and "description" not in form.schema:
            notes["description"] = one.description
        if _is_json(one.default):
            notes["default"] = one.default
        schemas[one.name] = {**form.schema, **notes}
        if one.is_required:
            required.append(one.name)
    schema: Schema = {"type": "object", "properties": schemas}
    if required:
        schema["required"] = required
    schema["additionalProperties"] = False

    def read(value: object, path: str) -> dict[str, object]:
        if not isinstance(value, dict):
            raise UnreadableError(f"{path} must be an object")
        for name in required:
            if name not in value:
                raise UnreadableError(f"{path} has no {name}")
        for name in value:
            if name not in forms:
                raise UnreadableError(
                    f"{path} has {name!r:.80}, which is none of {', '.join(forms)}"
                )
        return {name: forms[name].read(one, f"{path}.{name}") for name, one in value.items()}

    return Form(schema, read)


def _form(annotation: Annotation, owner: str, outer: tuple[type, ...]) -> Form:
    origin: Annotation = get_origin(annotation)
    args = get_args(annotation)
    if origin is Annotated:
        form = _form(args[0], owner, outer)
        texts = [one for one in args[1:] if isinstance(one, str)]
        return form._replace(schema={**form.schema, "description": texts[0]}) if texts else form
    if type(annotation).__hash__ is None:
        raise _unknown(annotation, owner, "which is no type")
    if annotation in _PLAIN:
        return _plain_form(annotation)
    if origin in (Required, NotRequired):
        return _form(args[0], owner, outer)
    if origin is Literal:
        return _choice_form({one.value if isinstance(one, enum.Enum) else one: one for one in args})
    if origin in (Union, types.UnionType):
        return _union_form([_form(one, owner, outer) for one in args])
    if (origin or annotation) in _LISTS:
        return _list_form(_form(args[0], owner, outer) if args else _plain_form(Any))
    if (origin or annotation) in _MAPPINGS:
        if args and args[0] is not str:
            raise _unknown(annotation, owner, "JSON has text alone as keys")
        return _mapping_form(_form(args[1], owner, outer) if args else _plain_form(Any))
    if hasattr(annotation, "__supertype__"):  # typing.NewType
        return _form(annotation.__supertype__, owner, outer)
    if hasattr(annotation, "__value__"):  # `type X = ...`
        return _form(annotation.__value__, owner, outer)
    if isinstance(annotation, type):
        if issubclass(annotation, enum.Enum):
            return _choice_form({one.value: one for one in annotation})
        if dataclasses.is_dataclass(annotation) or is_typeddict(annotation):
            return _class_form(annotation, owner, outer)
    if annotation is _NO_DEFAULT:
        raise InvalidArgumentError(f"{owner} has no annotation", field=owner.partition(":")[0])
    raise _unknown(annotation, owner, "which has no JSON schema")


def _unknown(annotation: Annotation, owner: str, why: str) -> InvalidArgumentError:
    name = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    return InvalidArgumentError(
        f"{owner} is annotated {name:.100}: {why}", field=owner.partition(":")[0]
    )


_PLAIN: Mapping[Any, str | None] = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
    None: "null",
    type(None): "null",
    Any: None,
    object: None,
}
"""Annotations that have a type of JSON; None: any."""


def _plain_form(annotation: Annotation) -> Form:
    kind = _PLAIN[annotation]
    if kind is None:
        return Form({}, lambda value, _: value)

    def read(value: object, path: str) -> object:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if annotation is float and isinstance(value, int) and is_number:
            return float(value)
        if annotation is int and isinstance(value, float) and value.is_integer():
            return int(value)
        wanted = type(None) if annotation is None else annotation
        if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
            raise UnreadableError(f"{path} must be of the type {kind}")
        return value

    return Form({"type": kind}, read)


def _choice_form(values: Mapping[Any, object]) -> Form:
    def read(value: object, path: str) -> object:
        for known, meant in values.items():
            if value == known and isinstance(value, bool) == isinstance(known, bool):
                return meant
        raise UnreadableError(f"{path} must be one of {', '.join(map(repr, values))}")

    return Form({"enum": list(values)}, read)


def _union_form(forms: Sequence[Form]) -> Form:
    def read(value: object, path: str) -> object:
        problems = []
        for form in forms:
            try:
                return form.read(value, path)
            except UnreadableError as error:
                problems.append(str(error))
        raise UnreadableError("; or ".join(problems))

    return Form({"anyOf": [form.schema for form in forms]}, read)


def _list_form(item: Form) -> Form:
    def read(value: object, path: str) -> object:
        if not isinstance(value, list):
            raise UnreadableError(f"{path} must be an array")
        return [item.read(one, f"{path}[{index}]") for index, one in enumerate(value)]

    return Form({"type": "array", "items": item.schema}, read)


def _mapping_form(item: Form) -> Form:
    def read(value: object, path: str) -> object:
        if not isinstance(value, dict):
            raise UnreadableError(f"{path} must be an object")
        return {name: item.read(one, f"{path}.{name}") for name, one in value.items()}

    return Form({"type": "object", "additionalProperties": item.schema}, read)


def _class_form(kind: Annotation, owner: str, outer: tuple[type, ...]) -> Form:
    if kind in outer:
        raise _unknown(kind, owner, "it stands in itself")
    hints = hints_of(kind, owner)
    if is_typeddict(kind):
        properties = [
            Property(name, one, name in kind.__required_keys__) for name, one in hints.items()
        ]
        return object_form(properties, owner, (*outer, kind))
    properties = [
        Property(
            field.name,
            hints[field.name],
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING,
            _NO_DEFAULT if field.default is dataclasses.MISSING else field.default,
        )
        for field in dataclasses.fields(kind)
        if field.init
    ]
    form = object_form(properties, owner, (*outer, kind))

    def read(value: object, path: str) -> object:
        return kind(**_named(form.read(value, path)))

    return Form(form.schema, read)


def _named(values: object) -> dict[str, Any]:
    assert isinstance(values, dict), "forms of objects read dictionaries"
    return values


def hints_of(owned: Annotation, owner: str) -> dict[str, Annotation]:
    """The annotations of a class or function, with those that are text resolved.

    Args:
        owned: The class or function.
        owner: What it is, for errors, as for `object_form`.

    Raises:
        InvalidArgumentError: One cannot be resolved.
    """
    try:
        return get_type_hints(owned, include_extras=True)
    except (NameError, TypeError, AttributeError, SyntaxError) as error:
        raise InvalidArgumentError(
            f"{owner} has an annotation that cannot be resolved: {error}",
            field=owner.partition(":")[0],
        ) from error


def _is_json(value: object) -> bool:
    """Whether a default can stand in a schema; of an absent one it says no."""
    if isinstance(value, list | tuple):
        return all(map(_is_json, value))
    return value is None or isinstance(value, str | int | float | bool)
