"""The grammar of an output that may think, and then answers, calls tools, or both.

One grammar holds the whole output, so that a call is held to its format and its schema from its
first character on, while the text before it stays free: what may follow in free text takes the
grammar engine some 15 us, whatever the size of the vocabulary.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from coordinator.core.grammar import Grammar, GrammarKind
from coordinator.core.output_grammar import GrammarPart, OutputGrammar, Spelling
from coordinator.core.tools import ToolMode, ToolUse
from coordinator.dialogue.dialect import Dialect
from coordinator.dialogue.formats.call_format import (
    CALL_ID,
    CALL_INDEX,
    CONTROL,
    NAME,
    IdForm,
    Parameters,
)
from coordinator.dialogue.formats.framing import Framing
from coordinator.dialogue.lark_texts import ANY, EMPTY, escaped, free, holds
from coordinator.dialogue.tool_schemas import Parameter, object_schema, parameters
from stagecoach.contract.errors import InvalidArgumentError

MAX_PART_CHARS = 1 << 20
"""Characters of the schemas in one grammar; parameters that are written one by one bring their
definitions each."""

_OPTIONS = '%llguidance {"no_forcing": true}'
"""Where two texts that may follow begin alike, the engine would force tokens for what they share,
and so keep out a token that spells all of one of them."""

_BLANK = r"/\s{0,4}/"
"""What may stand before a section or a call; without a bound a model could write nothing else."""

_FIELD = re.compile(f"[{CALL_ID}{CALL_INDEX}]")
_INDEX = "/[0-9]{1,3}/"
_IDS: Mapping[IdForm, str] = MappingProxyType(
    {
        IdForm.CALL: "/[a-zA-Z0-9]{9}/",
        IdForm.NINE: "/[a-zA-Z0-9]{9}/",
        IdForm.TEN: "/[a-z0-9]{10}/",
    }
)
"""Ids of calls where a model writes them."""


def output_grammar(
    dialect: Dialect,
    token_ids: Mapping[str, int],
    *,
    use: ToolUse | None = None,
    content: Grammar | None = None,
    starts_in_reasoning: bool = False,
    starts_in_content: bool = False,
    max_thinking_tokens: int | None = None,
) -> Grammar | None:
    """Makes the grammar.

    Args:
        dialect: Bound to the model's special tokens.
        token_ids: Ids of these, and of the other tokens that were added to its vocabulary, by what
            they spell.
        use: Tools that may or must be called; None: none.
        content: What the content must match; None: anything.
        starts_in_reasoning: Whether the prompt ends inside a section of thinking.
        starts_in_content: Whether it ends inside one of content; for models that mark it.
        max_thinking_tokens: Tokens after which thinking ends; None: no limit.

    Returns:
        None where any output will do.

    Raises:
        InvalidArgumentError: The schema of a tool is none of an object.
    """
    if dialect.calls.framing is None:
        if dialect.thinking is None and use is None:
            return content
        if use is None and content is None and max_thinking_tokens is None:
            return None
    writer = _Writer(dialect, token_ids)
    if dialect.thinking is not None:
        writer.add_thinking(is_open=starts_in_reasoning, max_tokens=max_thinking_tokens)
    writer.add_answer(use, content, is_open=starts_in_content)
    return Grammar(kind=GrammarKind.OUTPUT, text=writer.grammar().to_json())


class _Writer:
    """Writes one grammar in Lark, as llguidance reads it."""

    def __init__(self, dialect: Dialect, token_ids: Mapping[str, int]) -> None:
        self._dialect = dialect
        self._token_ids = token_ids
        names = sorted(map(re.escape, dialect.controls), key=len, reverse=True)
        self._pieces = re.compile(
            f"({CONTROL}(?:{'|'.join(names) or '(?!)'})|{CALL_ID}|{CALL_INDEX})"
        )
        self._fields = {CALL_ID: _IDS[dialect.calls.id_form], CALL_INDEX: _INDEX}
        self._start = ["answer"]
        self._rules: list[str] = []
        self._parts: list[GrammarPart] = []
        self._json_after: set[str] = set()
        self._num_chars = 0
        self._opening = ""
        self._begins_with_json = False
        self._not_free: list[str] = []
        """Regular expressions of what free text is not."""

    def grammar(self) -> OutputGrammar:
        """What was written."""
        return OutputGrammar(
            lark="\n".join([_OPTIONS, f"start: {' '.join(self._start)}", *self._rules]),
            parts=tuple(self._parts),
            opening=self._spelling(self._opening),
            begins_with_json=self._begins_with_json,
            json_after=tuple(
                self._spelling(_FIELD.split(one)[-1]) for one in sorted(self._json_after)
            ),
        )

    def add_thinking(self, *, is_open: bool, max_tokens: int | None) -> None:
        """A section of thinking before the answer.

        Args:
            is_open: It has begun already; else it may begin.
            max_tokens: Its longest length.
        """
        thinking = self._dialect.thinking
        assert thinking is not None, "the model marks what it thinks"
        begin, end, may_end_at_once = thinking
        end_id = self._token_ids.get(end)
        if end_id is None and not end.startswith(CONTROL):
            self._rules.append(f"thinking[lazy]: /{ANY}{escaped(end)}/")
        else:
            limit = "" if max_tokens is None else f"[max_tokens={max_tokens}]"
            mark = self._literal(end) if end_id is None else f"<[{end_id}]>"
            self._rules.append(f"thinking: thought {mark}")
            self._rules.append(f"thought{limit}: THOUGHT")
            self._rules.append(f"THOUGHT: {free([] if CONTROL in end else [holds(end)])}")
        framing = self._dialect.calls.framing
        joint = "" if framing is None else self._literal(framing.joint)
        if is_open:
            self._start.insert(0, f"thinking {joint}")
            return
        self._start.insert(0, "thinks?")
        nothing = f" | {self._literal(end)}" if may_end_at_once else ""
        self._rules.append(f"thinks: {_BLANK} {self._literal(begin)} thinking {joint}{nothing}")
        for mark in (begin, end) if may_end_at_once else (begin,):
            if CONTROL not in mark:
                self._not_free.append(rf"\s*{escaped(mark)}{ANY}")

    def add_answer(self, use: ToolUse | None, content: Grammar | None, *, is_open: bool) -> None:
        """Content, calls of tools, or both.

        Args:
            use: Tools that may or must be called; None: none.
            content: What the content must match; None: anything.
            is_open: A section of content has begun already.
        """
        answers = []
        calls = self._dialect.calls
        if use is not None:
            self._opening = calls.opening
            self._add_calls(use)
        if calls.framing is not None:
            self._add_framed(calls.framing, use, content, is_open=is_open)
            return
        if use is not None:
            if calls.is_whole_output:
                self._check_alone(use, content)
                self._not_free += [
                    escaped(calls.beginning(one.name)) + ANY for one in use.callable_tools
                ]
                answers.append("calls")
            else:
                if CONTROL not in calls.opening:
                    self._not_free.append(holds(calls.opening))
                answers.append(f"{_BLANK} {self._literal(calls.opening)} calls")
        if use is None or use.mode is ToolMode.AUTO:
            if content is None:
                answers.append(f"FREE{self._content_end()}")
                answers += self._free_leads(use)
            else:
                self._add_content(content)
                answers.append(f"@content{self._content_end()}")
        self._rules.append(f"FREE: {free(self._not_free)}")
        self._rules.append("answer: " + " | ".join(answers))

    def _add_framed(
        self, framing: Framing, use: ToolUse | None, content: Grammar | None, *, is_open: bool
    ) -> None:
        """An answer in sections that the model marks."""
        answers = []
        has_named_lead = False
        may_be_free = use is None or use.mode is ToolMode.AUTO
        section = f"TEXT {self._literal(framing.lead_end)}"
        if not framing.lead_end.startswith(CONTROL):
            section = "section"
            self._rules.append(f"section[lazy]: /{ANY}{escaped(framing.lead_end)}/")
        if use is not None:
            form = self._dialect.calls
            self._check_names(framing, use)
            opening = "" if form.is_known_by_name else self._literal(form.opening)
            lead = f"{section} {self._literal(framing.joint)} {opening} calls"
            has_named_lead = form.is_known_by_name and not framing.joint
            if has_named_lead:
                lead = self._named_lead(framing, use)
            if may_be_free or is_open:  # what is open has to end first
                begin = "" if is_open else self._literal(framing.lead_begin)
                answers.append(f"{begin} {lead}")
            if not is_open:
                answers.append(f"{opening} calls")
        if may_be_free:
            begin = "" if is_open else self._literal(framing.begin)
            text = "TEXT"
            if framing.end:
                text = f"{section} {self._literal(framing.end.removeprefix(framing.lead_end))}"
            if content is not None:
                self._add_content(content, after=framing.begin)
                text = f"@content {self._literal(framing.end)}"
            answers.append(f"{begin} {text}")
            if has_named_lead and content is None:
                answers.append(f"{begin} section more_text* LAST")
        self._rules.append(f"TEXT: {free(self._not_free)}")
        self._rules.append("answer: " + " | ".join(answers))

    def _named_lead(self, framing: Framing, use: ToolUse) -> str:
        """Content before calls, whose mark is text where no name of a tool follows."""
        form = self._dialect.calls
        names = "|".join(escaped(form.beginning(one.name)) for one in use.callable_tools)
        no_name, up_to_mark = f"({names}){ANY}", ANY + escaped(framing.lead_end)
        self._not_free.append(holds(framing.lead_end))
        self._rules += [
            "behind_mark: first behind | more_text behind_mark",
            "more_text[lazy]: MORE",
            f"MORE: {free([no_name], up_to_mark)}",
            f"LAST: {free([no_name, *self._not_free])}",
        ]
        return "section behind_mark"

    def _check_names(self, framing: Framing, use: ToolUse) -> None:
        """Refuses tools whose names are those of sections."""
        form, thinking = self._dialect.calls, self._dialect.thinking
        marks = [framing.begin, framing.lead_begin, *([thinking.begin] if thinking else [])]
        for index, tool in enumerate(use.tools if form.is_known_by_name else ()):
            if form.beginning(tool.name).startswith(tuple(marks)):
                raise InvalidArgumentError(
                    f"prompt.chat.tools[{index}].name is {tool.name}, as this model calls its own"
                    " text",
                    field=f"prompt.chat.tools[{index}].name",
                )

    def _add_content(self, content: Grammar, *, after: str = "") -> None:
        """What the content must match.

        Args:
            content: The grammar.
            after: The mark before it; empty where it may begin the output.
        """
        self._parts.append(GrammarPart.of(content, "content"))
        if content.kind in (GrammarKind.JSON_SCHEMA, GrammarKind.JSON_OBJECT):
            self._opening = ""
            self._begins_with_json = True
            if after:
                self._json_after.add(after)
            elif self._dialect.thinking is not None:
                self._json_after.add(self._dialect.thinking.end)

    def _content_end(self) -> str:
        """What may stand behind content that no call follows."""
        end = self._dialect.calls.content_end
        return f" ({self._literal(end)})?" if end.startswith(CONTROL) else ""

    def _free_leads(self, use: ToolUse | None) -> list[str]:
        """Free text before calls, if any may be there."""
        calls = self._dialect.calls
        if use is None or calls.is_whole_output:
            return []
        if CONTROL in calls.opening:
            return [f"FREE {self._literal(calls.opening)} calls"]
        before = [one for one in self._not_free if one != holds(calls.opening)]
        self._rules.append("lead[lazy]: LEAD")
        self._rules.append(f"LEAD: {free(before, ANY + escaped(calls.opening))}")
        return ["lead calls"]

    def _check_alone(self, use: ToolUse, content: Grammar | None) -> None:
        """Refuses what cannot be told from calls when an output begins."""
        if content is not None and use.mode is ToolMode.AUTO:
            raise InvalidArgumentError(
                f"{content.field}: this model's calls of tools are JSON from the first character"
                " on, which a grammar beside tools could not be told from: set"
                " prompt.chat.tool_choice to none or required",
                field=content.field,
                other_field="prompt.chat.tool_choice",
            )

    def _add_calls(self, use: ToolUse) -> None:
        """Calls from behind their opening on; or whole, where nothing comes before them."""
        form = self._dialect.calls
        rest = "" if form.is_known_by_name else self._literal(form.begin[len(form.opening) :])
        more = ""
        if form.next is not None and use.allows_several:
            more = f"({self._literal(form.next)} call)*"
        self._rules.append(f"calls: {rest} first behind")
        behind = f"{more} {self._literal(form.end)}".strip()
        self._rules.append(f"behind: {behind or EMPTY}")
        firsts, alternatives = list[str](), list[str]()
        for index, tool in enumerate(use.tools):
            if tool not in use.callable_tools:
                continue
            field = f"prompt.chat.tools[{index}].parameters"
            schema = object_schema(tool, field)
            is_exact = tool.is_strict or use.mode is ToolMode.REQUIRED
            head = tool.name + form.name_end.replace(NAME, tool.name)
            # One text with the name of the first tool, where only by that a call is known.
            first = form.beginning(tool.name) if form.is_known_by_name else head
            if isinstance(form.arguments, Parameters):
                arguments = self._parameters(form.arguments, schema, index, field, is_exact)
            else:
                arguments = self._json(f"arguments_{index}", schema, field, is_exact)
                self._json_after.add(head if form.is_known_by_name else form.name_end)
            firsts.append(f"{self._literal(first)} {arguments}")
            alternatives.append(f"{self._literal(head)} {arguments}")
        self._rules.append("first: " + "\n    | ".join(firsts))
        if more:
            self._rules.append("call: " + "\n    | ".join(alternatives))

    def _parameters(
        self, form: Parameters, schema: Mapping[str, Any], tool: int, field: str, is_exact: bool
    ) -> str:
        """Parameters in the order of the schema, those that are required in any case."""
        listed = parameters(schema)
        # rest_I: what follows where nothing was written yet; more_I: where something was.
        for index, one in enumerate(listed):
            name = f"{tool}_{index}"
            value = self._parameter(form, one, name, f"{field}.properties.{one.name}", is_exact)
            following = f"more_{tool}_{index + 1}"
            skipped = "" if one.is_required else f" | rest_{tool}_{index + 1}"
            self._rules.append(f"rest_{name}: {value} {following}{skipped}")
            skipped = "" if one.is_required else f" | {following}"
            self._rules.append(
                f"more_{name}: {self._literal(form.separator)} {value} {following}{skipped}"
            )
        self._rules.append(f"rest_{tool}_{len(listed)}: {EMPTY}")
        self._rules.append(f"more_{tool}_{len(listed)}: {EMPTY}")
        return f"rest_{tool}_0"

    def _parameter(
        self, form: Parameters, parameter: Parameter, name: str, field: str, is_exact: bool
    ) -> str:
        begin = form.begin + parameter.name
        form = form.of(parameter.name)
        if form.text_name_end is None or not parameter.is_text:
            value = self._json(f"value_{name}", parameter.schema, field, is_exact)
            self._json_after.add(begin + form.name_end)
            return f"{self._literal(begin + form.name_end)} {value} {self._literal(form.end)}"
        before = self._literal(begin + form.text_name_end)
        self._rules.append(self._text(f"text_{name}", form))
        if not form.not_plain:
            return f"{before} text_{name}"
        block = replace(form, text_end=form.block[1] + form.text_end, not_plain="")
        self._rules.append(self._text(f"block_{name}", block))
        return f"{before} (text_{name} | {self._literal(form.block[0])} block_{name})"

    def _text(self, rule: str, form: Parameters) -> str:
        """A rule of a string that is written as it is, and its end."""
        text = f"[^{escaped(form.not_plain)}]*" if form.not_plain else ANY
        if form.text_end.startswith(CONTROL):
            return f"{rule}: /{text}/ {self._literal(form.text_end)}"
        return f"{rule}[lazy]: /{text}{escaped(form.text_end)}/"

    def _json(self, name: str, schema: Mapping[str, Any] | bool, field: str, is_exact: bool) -> str:
        text = json.dumps(schema, ensure_ascii=False)
        self._num_chars += len(text)
        if self._num_chars > MAX_PART_CHARS:
            raise InvalidArgumentError(
                f"{field}: the schemas of all parameters have more than {MAX_PART_CHARS} characters"
                " with the definitions that they refer to",
                field=field,
            )
        self._parts.append(
            GrammarPart(
                name=name, kind=GrammarKind.JSON_SCHEMA, text=text, field=field, is_exact=is_exact
            )
        )
        return f"@{name}"

    def _spelling(self, text: str) -> Spelling:
        return tuple(
            self._token_ids[piece[1:]] if piece.startswith(CONTROL) else piece
            for piece in self._pieces.split(text)
            if piece
        )

    def _literal(self, text: str) -> str:
        """A text of the format in Lark."""
        written = []
        for piece in self._spelling(text):
            if isinstance(piece, int):
                written.append(f"<[{piece}]>")
            else:
                written.append(self._fields.get(piece) or json.dumps(piece, ensure_ascii=False))
        return " ".join(written)
