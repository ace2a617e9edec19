"""Compiled grammars, kept for the next request that sends the same text."""

import asyncio
from collections import OrderedDict
from dataclasses import dataclass, field

from coordinator.constraint.messages import OutputState
from coordinator.constraint.output_group import OutputGroup
from coordinator.core.grammar import Grammar
from coordinator.sandbox import SandboxProcess

MAX_TEMPLATES = 64
MAX_TEMPLATE_BYTES = 256 << 20
"""Memory that all templates together hold, beyond what they share."""


@dataclass(slots=True, eq=False)
class Template:
    """One compiled grammar, and the processes that follow its outputs."""

    process: SandboxProcess
    """Process at the start of an output; those that follow outputs are forked from it."""
    state: OutputState
    """What may follow at the start."""
    own_bytes: int
    """Memory that its process holds, beyond what it shares."""
    relaxed_fields: tuple[str, ...] = ()
    """Fields of the request with schemas that outputs are not held to."""
    is_shared: bool = True
    """False once a process that followed several outputs failed, and was not just killed: each has
    its own from then on."""
    _groups: list[OutputGroup] = field(default_factory=list)
    _joining: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def group(self, memory_bytes: int) -> OutputGroup:
        """A process with room for one more output, which joins it at once.

        Raises:
            SandboxError: There is none, and none could be started.
        """
        if not self.is_shared:
            return await self.fork_group(memory_bytes)
        async with self._joining:  # so that those who come together find one process
            self._groups = [group for group in self._groups if group.is_alive]
            for group in self._groups:
                if group.has_room:
                    return group
            group = await self.fork_group(memory_bytes)
            self._groups.append(group)
            return group

    async def fork_group(self, memory_bytes: int) -> OutputGroup:
        """A new process, which no other output has found yet.

        Raises:
            SandboxError: None could be started.
        """
        return OutputGroup(await self.process.fork(memory_bytes=memory_bytes))


class TemplateCache:
    """The templates that were used last."""

    def __init__(self) -> None:
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
