"""How a chat template is told whether to think, and how long."""

from collections.abc import Mapping

MAX_EFFORT_CHARS = 64
"""Characters of the word that says how long to think; a template puts it into the prompt."""

THINKING_SWITCHES = ("enable_thinking", "thinking")
"""What chat templates call the switch of thinking; the latter those of DeepSeek and Granite."""


def thinking_arguments(*, thinks: bool | None, effort: str | None) -> Mapping[str, object]:
    """Says to any template whether to think, and how long.

    Args:
        thinks: Whether to think. None: as the effort says, or as the template does by itself.
        effort: How long; `none` is not at all.
    """
    if thinks is None and effort is not None:
        thinks = effort != "none"
    arguments: dict[str, object] = {} if effort is None else {"reasoning_effort": effort}
    return arguments if thinks is None else arguments | dict.fromkeys(THINKING_SWITCHES, thinks)
