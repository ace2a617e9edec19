"""Reads what a model writes: from text as it comes to content, thinking and calls of tools.

Calls are held to their format by a grammar (`coordinator.dialogue.output_grammar`), so that each
text of a format is expected to the letter. The result does not depend on how the text is cut.
"""

import json
import re
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from typing import TypeVar

from coordinator.core.output_parts import (
    ArgumentsPart,
    CallBegins,
    CallEnds,
    ContentPart,
    OutputPart,
    ReasoningPart,
)
from coordinator.dialogue.dialect import Dialect
from coordinator.dialogue.formats.call_format import (
    CALL_ID,
    CALL_INDEX,
    CONTROL,
    NAME,
    Parameters,
)
from coordinator.dialogue.formats.framing import Framing
from coordinator.dialogue.json_scanner import JsonScanner
from coordinator.dialogue.marks import divided, first_place, json_place, num_begun

_FIELD = re.compile(f"({CALL_ID}|{CALL_INDEX})")
_BEHIND_NAME = re.compile(f"[{CALL_ID}{CALL_INDEX}{NAME}]")

_T = TypeVar("_T")
_Reading = Generator[None, None, _T]
"""Yields when more text is needed, and is resumed when there is some, or at the end of all."""


class _EndedError(Exception):
    """No more text comes."""


class _NoCallError(Exception):
    """What was opened as a call is none."""


class OutputReader:
    """Reads one output. Not thread-safe.

    Args:
        dialect: Bound to the model's special tokens; see `Dialect.bound`.
        tools: Names of the tools that may be called, and of each the parameters whose values are
            written as they are. None: no call is looked for.
        starts_in_reasoning: Whether the prompt ends inside a section of thinking.
        starts_in_content: Whether it ends inside one of content; for models that mark it.
        new_id: Makes the id of a call.
    """

    def __init__(
        self,
        dialect: Dialect,
        *,
        tools: Mapping[str, Collection[str]] | None,
        starts_in_reasoning: bool,
        starts_in_content: bool = False,
        new_id: Callable[[], str],
    ) -> None:
        self.is_reasoning = starts_in_reasoning
        """Whether what comes next is thinking, as far as is known."""
        self.num_calls = 0
        """Calls whose arguments are whole."""
        self._thinking = dialect.thinking
        self._format = dialect.calls
        self._tools = tools
        self._starts_in_content = starts_in_content
        self._new_id = new_id
        self._controls = dialect.controls
        self._stray = re.compile("|".join(CONTROL + re.escape(one) for one in self._controls))
        self._text = ""
        """What was not taken yet."""
        self._is_ended = False
        self._parts: list[OutputPart] = []
        self._reading = self._output()

    def push(self, text: str, *, is_control: bool = False) -> list[OutputPart]:
        """Takes what follows.

        Args:
            text: New text, or what a special token spells.
            is_control: Whether it is a special token. One that is no part of the dialect is left
                out.

        Returns:
            What is known of the output from now on.
        """
        if is_control:
            if text not in self._controls:
                return []
            text = CONTROL + text
        self._text += text
        return self._go_on() if text else []

    def flush(self) -> list[OutputPart]:
        """Takes the end; returns what was held back. A call that is cut has no `CallEnds`."""
        self._is_ended = True
        return self._go_on()

    def _go_on(self) -> list[OutputPart]:
        next(self._reading, None)
        parts, self._parts = self._parts, []
        return parts

    def _output(self) -> _Reading[None]:
        try:
            if self.is_reasoning or (yield from self._begins_thinking()):
                yield from self._reasoning()
                yield from self._skip_whitespace()
            if self._format.framing is None:
                yield from self._answer()
            else:
                yield from self._sections(self._format.framing)
        except _EndedError:
            return

    def _begins_thinking(self) -> _Reading[bool]:
        """Whether the output begins with a section of thinking; takes its mark if so."""
        if self._thinking is None:
            return False
        begin = self._thinking.begin.lstrip()
        marks = [begin, self._thinking.end] if self._thinking.may_end_at_once else [begin]
        while True:
            start = self._text.lstrip()
            found = next((one for one in marks if start.startswith(one)), None)
            if found is not None:
                self._text = start[len(found) :]
                self.is_reasoning = found == begin
                return self.is_reasoning
            if self._is_ended or not any(one.startswith(start) for one in marks):
                return False
            yield

    def _reasoning(self) -> _Reading[None]:
        assert self._thinking is not None, "it is known by its marks"
        yield from self._skip_whitespace()
        yield from self._show_until([self._thinking.end], ReasoningPart)
        self._take(self._thinking.end)
        self.is_reasoning = False

    def _sections(self, framing: Framing) -> _Reading[None]:
        """An answer in sections, of which the first may have begun."""
        tools = self._tools
        beginnings = self._beginnings()
        if self._starts_in_content:
            yield from self._content(framing)
        while True:
            yield from self._begins_with(framing.joint)
            self._text = self._text.removeprefix(framing.joint)
            mark = yield from self._one_of([framing.begin, framing.lead_begin, *beginnings])
            if mark is None:  # the rest of the mark that ends the last section
                return
            if tools is not None and mark in beginnings:
                yield from self._calls_or_text(tools)
                return
            self._take(mark)
            yield from self._content(framing)

    def _beginnings(self) -> list[str]:
        """What begins the calls of an output, one of several."""
        form = self._format
        if self._tools is None:
            return []
        if form.is_known_by_name:
            return [_FIELD.split(form.beginning(tool))[0] for tool in self._tools]
        return [form.opening]

    def _content(self, framing: Framing) -> _Reading[None]:
        ends = [framing.lead_end]
        if self._format.is_known_by_name and not framing.joint:  # the mark alone is text
            ends = [framing.lead_end + one for one in self._beginnings()]
        yield from self._show_until(ends, ContentPart)
        self._take(framing.lead_end)

    def _one_of(self, marks: Sequence[str]) -> _Reading[str | None]:
        """The mark that follows, once that is known; None where none does."""
        while True:
            found = next((one for one in marks if self._text.startswith(one)), None)
            if found is not None:
                return found
            if self._is_ended or not any(one.startswith(self._text) for one in marks):
                return None
            yield

    def _answer(self) -> _Reading[None]:
        tools = self._tools
        if tools is None:
            yield from self._show_all()
        elif not self._format.is_whole_output:
            yield from self._show_until([self._format.opening], ContentPart)
            yield from self._calls_or_text(tools)
        elif (yield from self._is_whole_call(tools)):
            yield from self._calls_or_text(tools)
        else:
            yield from self._show_all()

    def _is_whole_call(self, tools: Collection[str]) -> _Reading[bool]:
        """Whether the output begins as a call of one of the tools does."""
        form = self._format
        if not form.is_json_document:
            return (yield from self._one_of(self._beginnings())) is not None
        while True:
            places = {tool: json_place(self._text, form.beginning_tokens(tool)) for tool in tools}
            for tool, place in places.items():
                if place:
                    self._text = form.beginning(tool) + self._text[place:]
                    return True
            if self._is_ended or all(place is None for place in places.values()):
                return False
            yield

    def _calls_or_text(self, tools: Mapping[str, Collection[str]]) -> _Reading[None]:
        """Calls; what departs from their format, where no grammar holds it, is content."""
        try:
            yield from self._calls(tools)
        except _NoCallError:
            yield from self._show_all()

    def _calls(self, tools: Mapping[str, Collection[str]]) -> _Reading[None]:
        form = self._format
        shared, next_only = divided(form.end, form.next or "")
        has_ids = CALL_ID in form.begin + form.name_end  # else they follow the arguments
        fields = yield from self._literal(form.begin)
        while True:
            name = yield from self._name(tools, _BEHIND_NAME.split(form.name_end)[0] or "<")
            fields |= yield from self._literal(form.name_end.replace(NAME, name))
            written_id = fields.get(CALL_ID) if has_ids else None
            self._parts.append(CallBegins(self.num_calls, written_id or self._new_id(), name))
            if isinstance(form.arguments, Parameters):
                yield from self._parameters(form.arguments, tools.get(name, ()))
            else:
                if form.is_json_document:
                    yield from self._skip_whitespace()
                yield from self._json()
            self._parts.append(CallEnds(self.num_calls))
            self.num_calls += 1
            if form.is_json_document:
                yield from self._skip_whitespace()
            fields = yield from self._literal(shared)
            if not next_only or not (yield from self._begins_with(_FIELD.split(next_only)[0])):
                return
            fields |= yield from self._literal(next_only)

    def _name(self, tools: Collection[str], end: str) -> _Reading[str]:
        """The name of a tool, which may hold what ends it: the longest known one counts."""
        for name in sorted(tools, key=len, reverse=True):
            if (yield from self._begins_with(name + end)):
                self._take(name)
                return name
        return (yield from self._until(end))

    def _parameters(self, form: Parameters, as_they_are: Collection[str]) -> _Reading[None]:
        """The arguments of a call, as a JSON object.

        Args:
            form: How they are written.
            as_they_are: Names of those whose values are no JSON.
        """
        name_ends = {form.name_end, form.text_name_end or form.name_end}
        may_be_text = form.text_name_end is not None
        self._show_arguments("{")
        separator = ""
        while (yield from self._has_parameter(form, is_first=not separator)):
            name, name_end = yield from self._until_any(name_ends)
            self._take(name_end)
            self._show_arguments(f"{separator}{json.dumps(name, ensure_ascii=False)}: ")
            separator = ", "
            says_so = name_end == form.text_name_end if len(name_ends) > 1 else name in as_they_are
            if may_be_text and says_so:
                yield from self._text_value(form.of(name))
            else:
                yield from self._json()
                yield from self._literal(form.of(name).end)
        self._show_arguments("}")

    def _text_value(self, form: Parameters) -> _Reading[None]:
        """A string that is written as it is, up to the end of its parameter."""
        begin, end = form.block
        is_block = bool(begin) and (yield from self._begins_with(begin))
        if is_block:
            self._take(begin)
        ends = end + form.text_end if is_block else form.text_end
        self._show_arguments('"')
        yield from self._show_until([ends], self._in_string, trims=False)
        self._take(ends)
        self._show_arguments('"')

    def _has_parameter(self, form: Parameters, *, is_first: bool) -> _Reading[bool]:
        """Whether one more parameter follows; takes what stands before its name if so."""
        begin = form.begin if is_first else form.separator + form.begin
        end = divided(self._format.end, self._format.next or self._format.end)[0]
        if end.startswith(begin):
            follows = not (yield from self._begins_with(end))
        else:
            follows = yield from self._begins_with(begin)
        if follows:
            self._take(begin)
        return follows

    def _json(self) -> _Reading[None]:
        """A JSON value, in pieces as they come."""
        scanner = JsonScanner()
        while True:
            num_chars = scanner.push(self._text)
            self._show_arguments(self._text[:num_chars])
            self._text = self._text[num_chars:]
            if scanner.is_done:
                return
            yield from self._wait()

    def _show_all(self) -> _Reading[None]:
        """Shows all that comes as content."""
        while True:
            text, self._text = self._text, ""
            self._show(text, ContentPart)
            yield from self._wait()

    def _show_until(
        self, ends: Sequence[str], part: Callable[[str], OutputPart], *, trims: bool = True
    ) -> _Reading[None]:
        """Shows text up to the first of some marks, which stays; what may become one waits.

        Args:
            ends: The marks.
            part: Makes the part that shows a text.
            trims: Leave out whitespace before the mark.
        """
        while (place := first_place(self._text, ends)) is None:
            num_shown = len(self._text)
            if not (self._is_ended and trims):  # what is cut may have been the mark
                num_shown -= num_begun(self._text, ends)
            if not self._is_ended and trims:
                num_shown = len(self._text[:num_shown].rstrip())
            text, self._text = self._text[:num_shown], self._text[num_shown:]
            self._show(text, part)
            yield from self._wait()
        text, self._text = self._text[:place], self._text[place:]
        self._show(text.rstrip() if trims else text, part)

    def _show(self, text: str, part: Callable[[str], OutputPart]) -> None:
        shown = self._stray.sub("", text) if CONTROL in text else text
        if shown:
            self._parts.append(part(shown))

    def _show_arguments(self, text: str) -> None:
        self._show(text, lambda shown: ArgumentsPart(self.num_calls, shown))

    def _in_string(self, text: str) -> ArgumentsPart:
        return ArgumentsPart(self.num_calls, json.dumps(text, ensure_ascii=False)[1:-1])

    def _skip_whitespace(self) -> _Reading[None]:
        while not self._text.strip():
            yield from self._wait()
        self._text = self._text.lstrip()

    def _begins_with(self, wanted: str) -> _Reading[bool]:
        """Whether a text follows, once that is known."""
        while len(self._text) < len(wanted) and wanted.startswith(self._text):
            yield from self._wait()
        return self._text.startswith(wanted)

    def _literal(self, text: str) -> _Reading[dict[str, str]]:
        """Takes a text of the format; returns what stands in the place of its fields."""
        fields: dict[str, str] = {}
        pieces = _FIELD.split(text)
        for place, piece in enumerate(pieces):
            if _FIELD.fullmatch(piece):
                fields[piece] = yield from self._until(pieces[place + 1])
            elif (yield from self._begins_with(piece)):
                self._take(piece)
            else:
                raise _NoCallError
        return fields

    def _until(self, end: str) -> _Reading[str]:
        text, _ = yield from self._until_any([end])
        return text

    def _until_any(self, ends: Collection[str]) -> _Reading[tuple[str, str]]:
        """Takes the text before the first of several marks; returns both."""
        while True:
            places = [place for end in ends if (place := self._text.find(end)) >= 0]
            rest = self._text[min(places, default=0) :]
            # One may begin as another does, which may still come.
            if places and not any(len(rest) < len(end) and end.startswith(rest) for end in ends):
                text, self._text = self._text[: min(places)], rest
                return text, max((end for end in ends if rest.startswith(end)), key=len)
            yield from self._wait()

    def _take(self, text: str) -> None:
        assert self._text.startswith(text), "it was looked for"
        self._text = self._text[len(text) :]

    def _wait(self) -> _Reading[None]:
        """Returns when there is more text."""
        if self._is_ended:
            raise _EndedError
        yield
