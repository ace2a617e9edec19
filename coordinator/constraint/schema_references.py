"""References of a JSON schema, each made to lead to a schema of the same document, or refused.

What a keyword holds as data may look like a schema, and would be followed like one that nobody has
prepared. So a pointer is taken step by step, and written anew as the grammar engine takes it: with
no name of a document in it, so that there is one way to read it. In sandboxed processes.
"""

from typing import Any, NamedTuple, NoReturn
from urllib.parse import quote, unquote, urljoin

from coordinator.constraint.refused_keyword import escaped, refuse
from coordinator.constraint.schema_dialect import uses_old_names
from coordinator.constraint.schema_keywords import DATA, LISTS, MAPS, SINGLES

_SAFE = "/~!$&'()*+,;=:@"
"""Characters of a fragment that need no percent sign, beside letters, digits and `-._`."""


class Target(NamedTuple):
    """A schema that is referred to."""

    schema: object
    path: str
    """Path from `#`, which is the whole document."""
    base: str
    """Path of the schema that its own references start from."""


class Resolved(NamedTuple):
    """What became of some references."""

    targets: list[Target]
    is_changed: bool
    """True when a schema was."""


class _Reference(NamedTuple):
    schema: dict[str, Any]
    """Holds the reference."""
    base: str
    path: str


class References:
    """References, and the names that they may use.

    Args:
        document: The whole schema.
    """

    def __init__(self, document: object) -> None:
        self._document = document
        self._id = "id" if uses_old_names(document) else "$id"
        self._unresolved: list[_Reference] = []
        self._named: list[dict[str, Any]] = []
        self._bases = {"": "#"}
        """Paths of the schemas that have names of their own, by these, which are whole."""
        self._names = {"#": ""}
        """The names by the paths."""
        self._anchors: dict[tuple[str, str], str] = {}
        """Paths by the path of the base and the anchor."""

    def add(self, schema: dict[str, Any], path: str, base: str) -> str:
        """Takes a schema with its names and its reference.

        Args:
            schema: Changed later, when it is referred to.
            path: Where it is.
            base: Path of the schema that references around it start from.

        Returns:
            That of the references inside it.
        """
        name = schema.get(self._id)
        if isinstance(name, str):
            document, _, fragment = name.partition("#")
            if document:
                whole = _joined(self._names[base], document)
                base = path
                self._bases.setdefault(whole, path)
                self._names[path] = whole
            if fragment:  # until draft 7 an anchor was written so
                self._anchors.setdefault((base, fragment), path)
        anchor = schema.get("$anchor")
        if isinstance(anchor, str):
            self._anchors.setdefault((base, anchor), path)
        if {"$id", "id", "$anchor"} & schema.keys():
            self._named.append(schema)
        if isinstance(schema.get("$ref"), str):
            self._unresolved.append(_Reference(schema, base, path))
        return base

    def resolve(self) -> Resolved:
        """Rewrites the references added since the last call.

        Raises:
            ValueError: One leads to no schema of the document; says which and where.
        """
        unresolved, self._unresolved = self._unresolved, []
        is_changed = self._forget_names()
        targets: list[Target] = []
        for schema, base, path in unresolved:
            target = self._target(schema["$ref"], base, f"{path}/$ref")
            written = "#" + quote(target.path[1:], safe=_SAFE)
            is_changed |= schema["$ref"] != written
            schema["$ref"] = written
            targets.append(target)
        return Resolved(targets, is_changed)

    def schema_at(self, reference: str) -> object:
        """What a reference leads to that was rewritten."""
        return self._target(reference, "#", "#").schema

    def _forget_names(self) -> bool:
        """Removes the names of schemas, which would change what the engine takes `#` for.

        Nor need they be as the engine wants them.
        """
        is_changed = False
        for schema in self._named:
            for keyword in ("$id", "id", "$anchor"):
                is_changed |= isinstance(schema.pop(keyword, None), str)
        self._named = []
        return is_changed

    def _target(self, reference: str, base: str, where: str) -> Target:
        name, _, fragment = reference.partition("#")
        fragment = unquote(fragment)
        start = base if not name else self._bases.get(_joined(self._names[base], name))
        if start is None:
            refuse("$ref", reference, where, "it leads out of the schema")
        if not fragment.startswith("/") and fragment:
            anchored = self._anchors.get((start, fragment))
            if anchored is None:
                refuse("$ref", reference, where, "there is no such anchor")
            start, fragment = anchored, ""
        steps = [_unescaped(step) for step in (start + fragment).split("/")[1:]]
        return self._walk(steps, reference, where)

    def _walk(self, steps: list[str], reference: str, where: str) -> Target:
        """Goes from the document to a schema; each step but the last leads to what may hold one."""

        def refuse_step(why: str) -> NoReturn:
            refuse("$ref", reference, where, why)

        value = self._document
        path = base = "#"
        holds = "schema"
        for step in steps:
            if holds in ("schema", "anything") and step in DATA:
                refuse_step(f"it leads into {step}, which holds no schema")
            if isinstance(value, dict) and step in value:
                value = value[step]
            elif isinstance(value, list) and step.isdecimal() and str(int(step)) == step:
                if int(step) >= len(value):
                    refuse_step("it leads nowhere")
                value = value[int(step)]
            else:
                refuse_step("it leads nowhere")
            path = f"{path}/{escaped(step)}"
            if path in self._names:
                base = path
            holds = _held_by(step, value, holds)
        if holds not in ("schema", "anything") or not isinstance(value, dict | bool):
            refuse_step("it leads to no schema")
        return Target(value, path, base)


def _joined(base: str, name: str) -> str:
    """A name as a whole one, read from that of the schema around it."""
    try:
        return urljoin(base, name)
    except ValueError:  # it is no URI: then it is what it is called by
        return name


def _held_by(step: str, value: object, holder: str) -> str:
    """What a value is: a schema, a map or a list of some, or anything in an unknown keyword."""
    if holder in ("map", "list"):
        return "schema"
    if holder == "anything":
        return "anything"
    if step in MAPS:
        return "map"
    if step in LISTS and isinstance(value, list):
        return "list"
    if step in SINGLES:
        return "schema"
    return "anything"


def _unescaped(step: str) -> str:
    return step.replace("~1", "/").replace("~0", "~")
