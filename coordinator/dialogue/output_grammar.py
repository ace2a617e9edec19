"""The grammar of an output that may think, and then answers, calls tools, or both.

One grammar holds the whole output, so that a call is held to its format and its schema from its
first character on, while the text before it stays free: what may follow in free text takes the
grammar engine some 15 us, whatever the size of the vocabulary.
"""

import json
import re
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

from coordinator.core.grammar import Grammar, GrammarKind
from coordinator.core.output_grammar import GrammarPart, OutputGrammar, Spelling
from coordinator.core.tools import ToolMode, ToolUse
from coordinator.dialogue.dialect import Dialect
from coordinator.dialogue.formats.call_format import CALL_ID, CALL_INDEX, CONTROL, Parameters
from coordinator.dialogue.formats.framing import Framing
from coordinator.dialogue.tool_schemas import (
    Parameter,
    not_kept_one_by_one,
    object_schema,
    parameters,
)
from stagecoach.contract.errors import InvalidArgumentError

_META = re.compile(r"[\\.+*?()|\[\]{}^$#&~/-]")
"""Characters of regular expressions that are not themselves."""

MAX_PART_CHARS = 1 << 20
"""Characters of the schemas in one grammar; parameters that are written one by one bring their
definitions each."""

_OPTIONS = '%llguidance {"no_forcing": true}'
"""Where two texts that may follow begin alike, the engine would force tokens for what they share,
and so keep out a token that spells all of one of them."""

_ANY = r"(.|\n)*"
_BLANK = r"/\s{0,4}/"
"""What may stand before a section or a call; without a bound a model could write nothing else."""

_FIELD = re.compile(f"[{CALL_ID}{CALL_INDEX}]")
_FIELDS: Mapping[str, str] = MappingProxyType(
    {CALL_ID: "/[a-zA-Z0-9]{9}/", CALL_INDEX: "/[0-9]{1,3}/"}
)


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
        InvalidArgumentError: The schema of a tool is none of an object, or cannot be kept to.
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
        begin, end = thinking
        end_id = self._token_ids.get(end)
        if end_id is None and not end.startswith(CONTROL):
            self._rules.append(f"thinking[lazy]: /{_ANY}{_escaped(end)}/")
        else:
            limit = "" if max_tokens is None else f"[max_tokens={max_tokens}]"
            mark = self._literal(end) if end_id is None else f"<[{end_id}]>"
            self._rules.append(f"thinking: thought {mark}")
            self._rules.append(f"thought{limit}: THOUGHT")
            self._rules.append(f"THOUGHT: {_free([] if CONTROL in end else [_holds(end)])}")
        framing = self._dialect.calls.framing
        joint = "" if framing is None else self._literal(framing.joint)
        if is_open:
            self._start.insert(0, f"thinking {joint}")
            return
        self._start.insert(0, "thinks?")
        self._rules.append(f"thinks: {_BLANK} {self._literal(begin)} thinking {joint}")
        if CONTROL not in begin:
            self._not_free.append(rf"\s*{_escaped(begin)}{_ANY}")

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
                names = "|".join(_escaped(one.name) for one in use.callable_tools)
                self._not_free.append(
                    f"{_escaped(calls.begin)}({names}){_escaped(calls.name_end)}{_ANY}"
                )
                answers.append("calls")
            else:
                if CONTROL not in calls.opening:
                    self._not_free.append(_holds(calls.opening))
                answers.append(f"{_BLANK} {self._literal(calls.opening)} calls")
        if use is None or use.mode is ToolMode.AUTO:
            if content is None:
                answers.append("FREE")
                answers += self._free_leads(use)
            else:
                self._add_content(content)
                answers.append("@content")
        self._rules.append(f"FREE: {_free(self._not_free)}")
        self._rules.append("answer: " + " | ".join(answers))

    def _add_framed(
        self, framing: Framing, use: ToolUse | None, content: Grammar | None, *, is_open: bool
    ) -> None:
        """An answer in sections that the model marks."""
        answers = []
        may_be_free = use is None or use.mode is ToolMode.AUTO
        section = f"TEXT {self._literal(framing.lead_end)}"
        if not framing.lead_end.startswith(CONTROL):
            section = "section"
            self._rules.append(f"section[lazy]: /{_ANY}{_escaped(framing.lead_end)}/")
        self._rules.append(f"TEXT: /{_ANY}/")
        if use is not None:
            begin = "" if is_open else self._literal(framing.lead_begin)
            self._rules.append(f"lead: {begin} {section} {self._literal(framing.joint)}")
            lead = "lead?" if may_be_free else ""
            if is_open:  # it has to end first
                lead = "lead"
            answers.append(f"{lead} {self._literal(self._dialect.calls.opening)} calls")
        if may_be_free:
            begin = "" if is_open else self._literal(framing.begin)
            text = "TEXT"
            if framing.end:
                text = f"{section} {self._literal(framing.end.removeprefix(framing.lead_end))}"
            if content is not None:
                self._add_content(content, after=framing.begin)
                text = f"@content {self._literal(framing.end)}"
            answers.append(f"{begin} {text}")
        self._rules.append("answer: " + " | ".join(answers))

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

    def _free_leads(self, use: ToolUse | None) -> list[str]:
        """Free text before calls, if any may be there."""
        calls = self._dialect.calls
        if use is None or calls.is_whole_output:
            return []
        if CONTROL in calls.opening:
            return [f"FREE {self._literal(calls.opening)} calls"]
        before = [one for one in self._not_free if one != _holds(calls.opening)]
        self._rules.append("lead[lazy]: LEAD")
        self._rules.append(f"LEAD: {_free(before, _ANY + _escaped(calls.opening))}")
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
        rest = "" if form.is_whole_output else self._literal(form.begin[len(form.opening) :])
        # One text with the name of the first tool: only by that is a call told from free text.
        begin = form.begin if form.is_whole_output else ""
        more = ""
        if form.next is not None and use.allows_several:
            more = f"({self._literal(form.next)} call)*"
        self._rules.append(f"calls: {rest} first {more} {self._literal(form.end)}")
        firsts, alternatives = list[str](), list[str]()
        for index, tool in enumerate(use.tools):
            if tool not in use.callable_tools:
                continue
            field = f"prompt.chat.tools[{index}].parameters"
            schema = object_schema(tool, field)
            is_exact = tool.is_strict or use.mode is ToolMode.REQUIRED
            if isinstance(form.arguments, Parameters):
                arguments = self._parameters(form.arguments, schema, index, field, is_exact)
            else:
                arguments = self._json(f"arguments_{index}", schema, field, is_exact)
                self._json_after.add(form.name_end)
            firsts.append(f"{self._literal(begin + tool.name + form.name_end)} {arguments}")
            alternatives.append(f"{self._literal(tool.name + form.name_end)} {arguments}")
        self._rules.append("first: " + "\n    | ".join(firsts))
        if more:
            self._rules.append("call: " + "\n    | ".join(alternatives))

    def _parameters(
        self, form: Parameters, schema: Mapping[str, Any], tool: int, field: str, is_exact: bool
    ) -> str:
        """Parameters in the order of the schema, those that are required in any case."""
        keyword = not_kept_one_by_one(schema)
        if is_exact and keyword is not None:
            raise InvalidArgumentError(
                f"{field}: {keyword} is not supported where a call is forced or strict, as this"
                " model writes parameters one by one",
                field=field,
            )
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
        self._rules.append(f'rest_{tool}_{len(listed)}: ""')
        self._rules.append(f'more_{tool}_{len(listed)}: ""')
        return f"rest_{tool}_0"

    def _parameter(
        self, form: Parameters, parameter: Parameter, name: str, field: str, is_exact: bool
    ) -> str:
        _check_name(form, parameter.name, field)
        begin = form.begin + parameter.name
        if form.text_name_end is None or not parameter.is_text:
            value = self._json(f"value_{name}", parameter.schema, field, is_exact)
            self._json_after.add(begin + form.name_end)
            return f"{self._literal(begin + form.name_end)} {value} {self._literal(form.end)}"
        before = self._literal(begin + form.text_name_end)
        end = form.text_end
        if end.startswith(CONTROL):
            self._rules.append(f"text_{name}: /{_ANY}/ {self._literal(end)}")
        else:
            self._rules.append(f"text_{name}[lazy]: /{_ANY}{_escaped(end)}/")
        return f"{before} text_{name}"

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
                written.append(_FIELDS.get(piece) or json.dumps(piece, ensure_ascii=False))
        return " ".join(written)


def _check_name(form: Parameters, name: str, field: str) -> None:
    """Refuses a name that could not be told from what follows it."""
    for end in (form.name_end, form.text_name_end or form.name_end):
        if (name + end).index(end) < len(name):
            raise InvalidArgumentError(
                f"{field} has a name with {end!r} in it, by which this model ends names of"
                " parameters",
                field=field,
            )


def _free(excluded: Collection[str], text: str = _ANY) -> str:
    """A terminal that matches a text, but not what is excluded."""
    return " & ".join([f"/{text}/", *(f"~/{one}/" for one in excluded)])


def _holds(text: str) -> str:
    return f"{_ANY}{_escaped(text)}{_ANY}"


def _escaped(text: str) -> str:
    """A text as a regular expression between slashes."""
    return _META.sub(r"\\\g<0>", text).replace("\n", r"\n")
