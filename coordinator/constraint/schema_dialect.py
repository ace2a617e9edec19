"""The draft of JSON Schema that a schema is written in, by what it says in `$schema`."""

import re
from typing import Any

from coordinator.constraint.refused_keyword import refuse

_DRAFT = re.compile(
    r"https?://json-schema\.org/(?:draft-0(?P<number>[0-7])|draft/(?P<year>2019-09|2020-12))/schema#?"
)
_OLDEST = 4
"""Before it, `required` was a keyword of a property, and others had other names."""


def uses_old_names(document: object) -> bool:
    """True when a document names its schemas by `id`, as before draft 6."""
    return isinstance(document, dict) and _number(document.get("$schema")) == _OLDEST


def rewrite_dialect(schema: dict[str, Any], path: str) -> bool:
    """Writes `$schema` of one schema as the engine knows it.

    A name that is no draft's, such as that of OpenAPI, is removed: then the newest draft counts, as
    it does for validators.

    Args:
        schema: It alone, not those in it.
        path: To it.

    Returns:
        True when the schema was changed.

    Raises:
        ValueError: The draft has another meaning of keywords; says where it is asked for.
    """
    named = schema.get("$schema")
    if not isinstance(named, str):
        return False
    number = _number(named)
    if number is not None and number < _OLDEST:
        refuse("$schema", named, f"{path}/$schema", f"drafts from {_OLDEST} on are")
    found = _DRAFT.fullmatch(named)
    if found is None:
        del schema["$schema"]
        return True
    draft = f"draft/{found['year']}" if number is None else f"draft-{number:02}"
    written = f"http{'s' if number is None else ''}://json-schema.org/{draft}/schema"
    if named.removesuffix("#") == written:
        return False
    schema["$schema"] = written
    return True


def _number(named: object) -> int | None:
    """Number of a draft that had one; draft 5 is the fourth without its hyper-schema."""
    found = _DRAFT.fullmatch(named) if isinstance(named, str) else None
    if found is None or found["number"] is None:
        return None
    return _OLDEST if found["number"] == "5" else int(found["number"])
