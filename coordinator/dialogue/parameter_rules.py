"""Rules of arguments that a model writes one by one."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from coordinator.dialogue.formats.call_format import CONTROL, Parameters
from coordinator.dialogue.lark_rules import LarkRules
from coordinator.dialogue.lark_texts import ANY, EMPTY, escaped
from coordinator.dialogue.tool_schemas import Parameter, not_kept_one_by_one, parameters
from stagecoach.contract.errors import InvalidArgumentError


class WrittenTool(NamedTuple):
    """A tool whose arguments are written."""

    place: int
    """Its place among the tools."""
    field: str
    """Field of the request that holds its schema, for errors."""
    is_exact: bool
    """Whether a schema that cannot be kept to is refused."""


def parameters_rule(
    lark: LarkRules, form: Parameters, schema: Mapping[str, Any], tool: WrittenTool
) -> str:
    """Parameters in the order of the schema, those that are required in any case.

    Args:
        lark: Gets the rules.
        form: How they are written.
        schema: Schema that `object_schema` made.
        tool: Whose they are.

    Returns:
        The name of their rule.

    Raises:
        InvalidArgumentError: The schemas are too long together, or one cannot be kept to.
    """
    keyword = not_kept_one_by_one(schema)
    if tool.is_exact and keyword is not None:
        raise InvalidArgumentError(
            f"{tool.field}: {keyword} is not supported where a call is forced or strict, as this"
            " model writes parameters one by one",
            field=tool.field,
        )
    listed = parameters(schema)
    # rest_I: what follows where nothing was written yet; more_I: where something was.
    for index, one in enumerate(listed):
        name = f"{tool.place}_{index}"
        value = _parameter(lark, form, one, name, tool)
        following = f"more_{tool.place}_{index + 1}"
        skipped = "" if one.is_required else f" | rest_{tool.place}_{index + 1}"
        lark.add(f"rest_{name}: {value} {following}{skipped}")
        skipped = "" if one.is_required else f" | {following}"
        lark.add(f"more_{name}: {lark.literal(form.separator)} {value} {following}{skipped}")
    lark.add(f"rest_{tool.place}_{len(listed)}: {EMPTY}")
    lark.add(f"more_{tool.place}_{len(listed)}: {EMPTY}")
    return f"rest_{tool.place}_0"


def _parameter(
    lark: LarkRules, form: Parameters, parameter: Parameter, name: str, tool: WrittenTool
) -> str:
    begin = form.begin + parameter.name
    form = form.of(parameter.name)
    field = f"{tool.field}.properties.{parameter.name}"
    _check_name(form, parameter.name, field)
    if form.text_name_end is None or not parameter.is_text:
        value = lark.json(f"value_{name}", parameter.schema, field, tool.is_exact)
        lark.json_after.add(begin + form.name_end)
        return f"{lark.literal(begin + form.name_end)} {value} {lark.literal(form.end)}"
    before = lark.literal(begin + form.text_name_end)
    lark.add(_text(lark, f"text_{name}", form))
    if not form.not_plain:
        return f"{before} text_{name}"
    block = replace(form, text_end=form.block[1] + form.text_end, not_plain="")
    lark.add(_text(lark, f"block_{name}", block))
    return f"{before} (text_{name} | {lark.literal(form.block[0])} block_{name})"


def _check_name(form: Parameters, name: str, field: str) -> None:
    """Refuses a name that could not be told from what follows it."""
    for end in (form.name_end, form.text_name_end or form.name_end):
        if (name + end).index(end) < len(name):
            raise InvalidArgumentError(
                f"{field} has a name with {end!r} in it, by which this model ends names of"
                " parameters",
                field=field,
            )


def _text(lark: LarkRules, rule: str, form: Parameters) -> str:
    """A rule of a string that is written as it is, and its end."""
    text = f"[^{escaped(form.not_plain)}]*" if form.not_plain else ANY
    if form.text_end.startswith(CONTROL):
        return f"{rule}: /{text}/ {lark.literal(form.text_end)}"
    return f"{rule}[lazy]: /{text}{escaped(form.text_end)}/"
