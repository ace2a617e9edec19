"""Formats, each as the grammar engine keeps to it.

It allows more for some than their specifications and validators do, and does not know others: those
that a validator looks at are written as patterns, which may have less than the whole format. Any
other format is a note to whoever reads the schema, such as `password`, and is not kept to.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from coordinator.constraint.schema_keywords import add_conditions

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
_EMAIL = rf"^{_ATOM}{{1,16}}(\.{_ATOM}{{1,11}}){{0,3}}@{_LABEL}(\.{_LABEL}){{1,4}}$"
_HOST = rf"^{_LABEL}(\.{_LABEL}){{0,5}}$"
_BASE64 = "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"
_POINTER = "(/([A-Za-z0-9 _.:@$-]|~[01])*)*"
_PLAIN = "[A-Za-z0-9._~-]"
"""Characters that may stand anywhere in a URI."""
_WEB_ADDRESS = rf"https?://{_LABEL}(\.{_LABEL}){{0,4}}(:[1-9][0-9]{{0,3}})?(/{_PLAIN}*)*"
_REFERENCE = (
    rf"^({_WEB_ADDRESS}"
    rf"|/?({_PLAIN}+(/{_PLAIN}*)*)?)(\?({_PLAIN}|[/&=+])*)?(#{_PLAIN}*)?$"
)
_BYTE = "(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_TEMPLATE = rf"^({_PLAIN}|[/:?&=#]|\{{[a-z][A-Za-z0-9_]{{0,20}}\}})*$"
_EXPRESSION_ITEM = (
    r"([A-Za-z0-9_ ,:;=@-]|\.|\\[dDwWsS.*+?()|^$]|\[\^?(a-z|A-Z|0-9|[A-Za-z0-9_.,@])+\])[*+?]?"
)
_GROUP = rf"\(({_EXPRESSION_ITEM}|\|)*\)[*+?]?"
_FORMATS: Mapping[str, str] = MappingProxyType(
    {
        # The engine takes a leap second at any time of day; RFC 3339 at the end of a day alone.
        "time": f"^{_TIME}$",
        # It also has the year 0, which many languages have not, and February with 29 days.
        "date": f"^{_DATE}$",
        "date-time": f"^{_DATE}T{_TIME}$",
        # The engine bounds no part; RFC 5321 allows 64 characters before the sign.
        "email": _EMAIL,
        # The engine bounds no whole name; RFC 1123 has 253 characters.
        "hostname": _HOST,
        # What the engine does not know, but a validator does.
        "idn-email": _EMAIL,
        "idn-hostname": _HOST,
        "host-name": _HOST,
        "uri-reference": _REFERENCE,
        "iri-reference": _REFERENCE,
        "uri-template": _TEMPLATE,
        "json-pointer": f"^{_POINTER}$",
        "relative-json-pointer": f"^(0|[1-9][0-9]{{0,2}})(#|{_POINTER})$",
        "regex": rf"^\^?({_EXPRESSION_ITEM}|{_GROUP}|\|)*\$?$",
        "color": "^#[0-9A-Fa-f]{6}$",
        "byte": _BASE64,
        "base64": _BASE64,
        **{
            f"uuid{version}": f"^[0-9a-f]{{8}}-[0-9a-f]{{4}}-{version}[0-9a-f]{{3}}"
            "-[89ab][0-9a-f]{3}-[0-9a-f]{12}$"
            for version in range(1, 9)
        },
    }
)
_OTHER_NAMES = MappingProxyType({"iri": "uri", "url": "uri", "ip-address": "ipv4"})
"""Formats that have all that one of the engine has."""
_FOR_ENGINE = frozenset({"uri", "ipv4", "ipv6", "uuid", "duration"})
"""Formats that the engine has right."""

_FOR_KEYS: Mapping[str, str] = MappingProxyType(
    {
        **_FORMATS,
        "uri": rf"^{_WEB_ADDRESS}(\?({_PLAIN}|[/&=+])*)?(#{_PLAIN}*)?$",
        "ipv4": rf"^{_BYTE}(\.{_BYTE}){{3}}$",
        "uuid": "^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$",
    }
)
"""Patterns of formats, of those too that the engine has for values."""


def pattern_of_format(form: str) -> str | None:
    """A pattern of texts that have a format; None for a format that every text has.

    Raises:
        ValueError: There is none.
    """
    own = _OTHER_NAMES.get(form, form)
    if own in _FOR_ENGINE and own not in _FOR_KEYS:
        raise ValueError(f"format {form} is not supported for the keys of an object")
    return _FOR_KEYS.get(own)


def rewrite_format(schema: dict[str, Any]) -> bool:
    """Writes the format of a schema as the engine keeps to it.

    Returns:
        True when the schema was changed.
    """
    form = schema.get("format")
    if not isinstance(form, str) or form in _FOR_ENGINE:
        return False
    del schema["format"]
    if form in _OTHER_NAMES:
        schema["format"] = _OTHER_NAMES[form]
    elif form in _FORMATS:
        # A format asks nothing of what is no string, and neither does a pattern.
        if "pattern" in schema:
            add_conditions(schema, {"pattern": _FORMATS[form]})
        else:
            schema["pattern"] = _FORMATS[form]
    return True
