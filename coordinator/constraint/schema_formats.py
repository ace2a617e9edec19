"""Formats of which the grammar engine allows more than their specifications and validators do."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

_YEAR = "([0-9]{3}[1-9]|[0-9]{2}[1-9]0|[0-9][1-9]00|[1-9]000)"
_LEAP_YEAR = "([0-9]{2}(0[48]|[2468][048]|[13579][26])|(0[48]|[2468][048]|[13579][26])00)"
_DATE = (
    f"({_YEAR}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)"
    f"|02-(0[1-9]|1[0-9]|2[0-8]))|{_LEAP_YEAR}-02-29)"
)
_TIME = (
    r"(([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?"
    "(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9]))"
)
_ATOM = "[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]"
_LABEL = "[A-Za-z0-9](-?[A-Za-z0-9]){0,20}"
"""A part of a name. Two hyphens in a row are left out: some mark a name in another script."""
_FORMATS: Mapping[str, str] = MappingProxyType(
    {
        # The engine takes a leap second at any time of day; RFC 3339 at the end of a day alone.
        "time": f"^{_TIME}$",
        # It also has the year 0, which many languages have not, and February with 29 days.
        "date": f"^{_DATE}$",
        "date-time": f"^{_DATE}T{_TIME}$",
        # The engine bounds no part; RFC 5321 allows 64 characters before the sign.
        "email": rf"^{_ATOM}{{1,16}}(\.{_ATOM}{{1,11}}){{0,3}}@{_LABEL}(\.{_LABEL}){{1,4}}$",
        # The engine bounds no whole name; RFC 1123 has 253 characters.
        "hostname": rf"^{_LABEL}(\.{_LABEL}){{0,5}}$",
    }
)


def rewrite_format(schema: dict[str, Any]) -> bool:
    """Writes the format of a schema as a pattern where the engine's own allows too much.

    Returns:
        True when the schema was changed.
    """
    form = schema.get("format")
    if not isinstance(form, str) or form not in _FORMATS:
        return False
    del schema["format"]
    # The name of a format asks nothing of what is no string, and neither does a pattern.
    if "pattern" in schema:
        both = schema.get("allOf")
        others = both if isinstance(both, list) else []
        schema["allOf"] = [*others, {"pattern": _FORMATS[form]}]
    else:
        schema["pattern"] = _FORMATS[form]
    return True
