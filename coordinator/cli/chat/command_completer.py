"""Tab in a chat: the names of commands, of settings for `/set`, and of files for `/save`."""

from collections.abc import Iterable

from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document

from coordinator.cli.chat.commands import USES, Verb
from coordinator.cli.chat.settings import NAMES


class CommandCompleter(Completer):
    """Completes lines that begin with a slash, and no others."""

    def __init__(self) -> None:
        self._paths = PathCompleter(expanduser=True)

    def get_completions(
        self, document: Document, complete_event: CompleteEvent
    ) -> Iterable[Completion]:
        """What could stand at the cursor."""
        verb, space, argument = document.text_before_cursor.partition(" ")
        if not verb.startswith("/"):
            return
        if not space:
            for known in Verb:
                if known.startswith(verb[1:]):
                    yield Completion(f"/{known}", -len(verb), display_meta=USES[known].does)
        elif verb == f"/{Verb.SET}":
            for name in NAMES:
                if name.startswith(argument):
                    yield Completion(name, -len(argument))
        elif verb == f"/{Verb.SAVE}":
            yield from self._paths.get_completions(Document(argument), complete_event)
