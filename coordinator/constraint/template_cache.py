"""Compiled grammars, kept for the next request that sends the same text."""

from collections import OrderedDict
from typing import NamedTuple

from coordinator.constraint.messages import OutputState
from coordinator.core.grammar import Grammar
from coordinator.sandbox import SandboxProcess

MAX_TEMPLATES = 64
MAX_TEMPLATE_BYTES = 256 << 20
"""Memory that all templates together hold, beyond what they share."""


class Template(NamedTuple):
    """One compiled grammar."""

    process: SandboxProcess
    """At the start of an output; outputs are forked from it."""
    state: OutputState
    """What may follow at the start."""
    own_bytes: int
    """Memory that its process holds, beyond what it shares."""


class TemplateCache:
    """The templates that were used last."""

    def __init__(self) -> None:
        """Holds none."""
        self._templates: OrderedDict[Grammar, Template] = OrderedDict()

    def get(self, grammar: Grammar) -> Template | None:
        """The template of a grammar; None when there is none that lives."""
        template = self._templates.get(grammar)
        if template is None:
            return None
        if not template.process.is_alive:
            del self._templates[grammar]
            return None
        self._templates.move_to_end(grammar)
        return template

    def put(self, grammar: Grammar, template: Template) -> None:
        """Takes over a template; lets those go that were not used for longest.

        One that is larger than all may be together stays until the next comes.
        """
        self._templates[grammar] = template
        num_bytes = sum(one.own_bytes for one in self._templates.values())
        while len(self._templates) > 1 and (
            len(self._templates) > MAX_TEMPLATES or num_bytes > MAX_TEMPLATE_BYTES
        ):
            _, oldest = self._templates.popitem(last=False)
            num_bytes -= oldest.own_bytes
            oldest.process.close()

    def clear(self) -> None:
        """Ends all templates; outputs that were forked from them go on."""
        for template in self._templates.values():
            template.process.close()
        self._templates.clear()
