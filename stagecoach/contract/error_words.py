"""An error in the words of its reader: every field by the name that the reader wrote.

Whoever raises an error names fields as they are called there: the one to blame as `field` of the
details, and a second one that the message names as `other_field`. A door knows what its caller
wrote for each of them. Needs only the standard library.
"""

import re
from collections.abc import Callable

from stagecoach.contract.errors import StagecoachError

_NAMING = ("field", "other_field")
"""Details that name a field of the request or an option."""


def in_words_of(error: StagecoachError, name_of: Callable[[str], str]) -> StagecoachError:
    """Returns an error with the reader's names, in the details and once each in the message.

    Args:
        error: What went wrong; the same is returned when no name changes.
        name_of: The reader's name of a field; the field itself where both call it the same.
    """
    fields = {error.details[kind] for kind in _NAMING if error.details.get(kind)}
    names = {field: name_of(field) for field in fields}
    if all(field == name for field, name in names.items()):
        return error
    told = type(error)(_renamed(error.message, names, other=error.details.get("other_field")))
    told.details.update(error.details)
    told.details.update(
        {kind: names[error.details[kind]] for kind in _NAMING if error.details.get(kind)}
    )
    return told


def _renamed(message: str, names: dict[str, str], *, other: str | None) -> str:
    """Renames each field where it stands first, as a whole name; later ones may be quoted.

    A name that is a plain word may be just that, as in "cannot listen on": it is the field's where
    it begins the message, and where the error says that the message names it.
    """
    waiting = dict(names)

    def name_of(found: re.Match[str]) -> str:
        is_name = found.start() == 0 or not found[0].isalpha() or found[0] == other
        return waiting.pop(found[0], found[0]) if is_name else found[0]

    longest_first = sorted(names, key=len, reverse=True)
    either = "|".join(map(re.escape, longest_first))
    return re.sub(rf"(?<![\w.-])(?:{either})(?![\w-]|\.\w)", name_of, message)
