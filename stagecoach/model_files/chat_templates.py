"""Which of the chat templates that a model's files hold is its own, as transformers chooses."""

from collections.abc import Mapping

from stagecoach.contract.errors import ModelFilesError

DEFAULT = "default"


def configured_template(file_name: str, config: Mapping[str, object]) -> str | None:
    """Returns the chat template of a configuration file.

    Args:
        file_name: Name of the configuration's file, for errors.
        config: Its content. `chat_template` is a template, or several by name: a list of objects
            with `name` and `template`, or one object. Of several the one called `default` counts.

    Returns:
        None if there is no template, or none of several is called `default`.

    Raises:
        ModelFilesError: `chat_template` has another form.
    """
    value = config.get("chat_template")
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list):
        return dict(_named(file_name, index, entry) for index, entry in enumerate(value)).get(
            DEFAULT
        )
    if isinstance(value, dict):
        template = value.get(DEFAULT)
        if template is None or isinstance(template, str):
            return template
        raise ModelFilesError(
            f"{file_name}: chat_template.{DEFAULT} is {_kind(template)}, must be a string"
        )
    raise ModelFilesError(
        f"{file_name}: chat_template is {_kind(value)}, must be a string or a list of named ones"
    )


def _named(file_name: str, index: int, entry: object) -> tuple[str, str]:
    if isinstance(entry, dict):
        name, template = entry.get("name"), entry.get("template")
        if isinstance(name, str) and isinstance(template, str):
            return name, template
        found = f"has name {name!r:.40} and a template that is {_kind(template)}"
    else:
        found = f"is {_kind(entry)}"
    raise ModelFilesError(
        f"{file_name}: chat_template[{index}] {found}; it must be an object whose name and template"
        " are strings"
    )


def _kind(value: object) -> str:
    if value is None:
        return "null"
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "a switch"}
    return kinds.get(type(value), "a number")
