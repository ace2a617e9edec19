'''How a message of several lines is typed: a backslash at the end of a line, or `"""` around it.

Pure; the same rules for a terminal and for a pipe.
'''

_QUOTES = '"""'


def is_complete(text: str) -> bool:
    """True when Enter after this text sends it; False when it asks for one more line."""
    stripped = text.strip()
    if stripped.startswith(_QUOTES):
        return len(stripped) >= 2 * len(_QUOTES) and stripped.endswith(_QUOTES)
    return not text.endswith("\\")


def message_of(text: str) -> str:
    """The message that complete text stands for: without the quotes, or the backslashes."""
    stripped = text.strip()
    if stripped.startswith(_QUOTES):
        return stripped.removeprefix(_QUOTES).removesuffix(_QUOTES).strip("\n")
    return text.replace("\\\n", "\n").removesuffix("\\").strip()
