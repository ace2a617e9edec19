"""The grammar of an output that may think, and then answers, calls tools, or both.

One grammar holds the whole output, so that a call is held to its format and its schema from its
first character on, while the text before it stays free: what may follow in free text takes the
grammar engine some 15 us, whatever the size of the vocabulary.
"""

from collections.abc import Iterator, Mapping

from coordinator.core.grammar import Grammar, GrammarKind
from coordinator.core.output_grammar import CONTENT_PART, GrammarPart, OutputGrammar
from coordinator.core.tools import Tool, ToolMode, ToolUse
from coordinator.dialogue.dialect import Dialect
from coordinator.dialogue.formats.call_format import CONTROL, NAME, Parameters
from coordinator.dialogue.formats.framing import Framing
from coordinator.dialogue.lark_rules import LarkRules, behind_fields
from coordinator.dialogue.lark_texts import ANY, EMPTY, escaped, free, holds
from coordinator.dialogue.parameter_rules import WrittenTool, parameters_rule
from coordinator.dialogue.tool_schemas import call_schema, object_schema
from stagecoach.contract.errors import InvalidArgumentError

_OPTIONS = '%llguidance {"no_forcing": true}'
"""Where two texts that may follow begin alike, the engine would force tokens for what they share,
and so keep out a token that spells all of one of them."""

_BLANK = r"/\s{0,4}/"
"""What may stand before a section or a call; without a bound a model could write nothing else."""


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
        self._lark = LarkRules(dialect, token_ids)
        self._start = ["answer"]
        self._opening = ""
        self._begins_with_json = False
        self._call_beginnings: list[str] = []
        self._not_free: list[str] = []
        """Regular expressions of what free text is not."""

    def grammar(self) -> OutputGrammar:
        """What was written."""
        return OutputGrammar(
            lark="\n".join([_OPTIONS, f"start: {' '.join(self._start)}", *self._lark.rules]),
            parts=tuple(self._lark.parts),
            opening=self._lark.spelling(self._opening),
            begins_with_json=self._begins_with_json,
            call_beginnings=tuple(self._call_beginnings),
            json_after=tuple(
                self._lark.spelling(behind_fields(one)) for one in sorted(self._lark.json_after)
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
            self._lark.add(f"thinking[lazy]: /{ANY}{escaped(end)}/")
        else:
            limit = "" if max_tokens is None else f"[max_tokens={max_tokens}]"
            mark = self._lark.literal(end) if end_id is None else f"<[{end_id}]>"
            self._lark.add(f"thinking: thought {mark}")
            self._lark.add(f"thought{limit}: THOUGHT")
            self._lark.add(f"THOUGHT: {free([] if CONTROL in end else [holds(end)])}")
        framing = self._dialect.calls.framing
        joint = "" if framing is None else self._lark.literal(framing.joint)
        if is_open:
            self._start.insert(0, f"thinking {joint}")
            return
        self._start.insert(0, "thinks?")
        nothing = f" | {self._lark.literal(end)}" if may_end_at_once else ""
        self._lark.add(f"thinks: {_BLANK} {self._lark.literal(begin)} thinking {joint}{nothing}")
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
        is_free = use is None or use.mode is ToolMode.AUTO
        if use is not None:
            self._opening = "{" if calls.is_json_document else calls.opening
            if calls.is_whole_output and content is not None and is_free:
                self._add_calls_beside(use, content)
            else:
                self._add_calls(use)
        if calls.framing is not None:
            self._add_framed(calls.framing, use, content, is_open=is_open)
            return
        if use is not None:
            if calls.is_whole_output:
                beginnings = "|".join(map(self._any_beginning, use.callable_tools))
                self._not_free.append(f"({beginnings}){ANY}")
                answers.append("calls")
            else:
                if CONTROL not in calls.opening:
                    self._not_free.append(holds(calls.opening))
                answers.append(f"{_BLANK} {self._lark.literal(calls.opening)} calls")
        if is_free:
            if content is None:
                answers.append(f"FREE{self._content_end()}")
                answers += self._free_leads(use)
            else:
                self._add_content(content)
                answers.append(f"@content{self._content_end()}")
        self._lark.add(f"FREE: {free(self._not_free)}")
        self._lark.add("answer: " + " | ".join(answers))

    def _add_framed(
        self, framing: Framing, use: ToolUse | None, content: Grammar | None, *, is_open: bool
    ) -> None:
        """An answer in sections that the model marks."""
        answers = []
        has_named_lead = False
        may_be_free = use is None or use.mode is ToolMode.AUTO
        section = f"TEXT {self._lark.literal(framing.lead_end)}"
        if not framing.lead_end.startswith(CONTROL):
            section = "section"
            self._lark.add(f"section[lazy]: /{ANY}{escaped(framing.lead_end)}/")
        if use is not None:
            form = self._dialect.calls
            self._check_names(framing, use)
            opening = "" if form.is_known_by_name else self._lark.literal(form.opening)
            lead = f"{section} {self._lark.literal(framing.joint)} {opening} calls"
            has_named_lead = form.is_known_by_name and not framing.joint
            if has_named_lead:
                lead = self._named_lead(framing, use)
            if may_be_free or is_open:  # what is open has to end first
                begin = "" if is_open else self._lark.literal(framing.lead_begin)
                answers.append(f"{begin} {lead}")
            if not is_open:
                answers.append(f"{opening} calls")
        if may_be_free:
            begin = "" if is_open else self._lark.literal(framing.begin)
            text = "TEXT"
            if framing.end:
                text = f"{section} {self._lark.literal(framing.end.removeprefix(framing.lead_end))}"
            if content is not None:
                self._add_content(content, after=framing.begin)
                text = f"@content {self._lark.literal(framing.end)}"
            answers.append(f"{begin} {text}")
            if has_named_lead and content is None:
                answers.append(f"{begin} section more_text* LAST")
        self._lark.add(f"TEXT: {free(self._not_free)}")
        self._lark.add("answer: " + " | ".join(answers))

    def _named_lead(self, framing: Framing, use: ToolUse) -> str:
        """Content before calls, whose mark is text where no name of a tool follows."""
        form = self._dialect.calls
        names = "|".join(escaped(form.beginning(one.name)) for one in use.callable_tools)
        no_name, up_to_mark = f"({names}){ANY}", ANY + escaped(framing.lead_end)
        self._not_free.append(holds(framing.lead_end))
        self._lark.rules += [
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
        self._lark.parts.append(GrammarPart.of(content, CONTENT_PART))
        if content.kind in (GrammarKind.JSON_SCHEMA, GrammarKind.JSON_OBJECT):
            self._opening = ""
            self._begins_with_json = True
            if after:
                self._lark.json_after.add(after)
            elif self._dialect.thinking is not None:
                self._lark.json_after.add(self._dialect.thinking.end)

    def _content_end(self) -> str:
        """What may stand behind content that no call follows."""
        end = self._dialect.calls.content_end
        return f" ({self._lark.literal(end)})?" if end.startswith(CONTROL) else ""

    def _free_leads(self, use: ToolUse | None) -> list[str]:
        """Free text before calls, if any may be there."""
        calls = self._dialect.calls
        if use is None or calls.is_whole_output:
            return []
        if CONTROL in calls.opening:
            return [f"FREE {self._lark.literal(calls.opening)} calls"]
        before = [one for one in self._not_free if one != holds(calls.opening)]
        self._lark.add("lead[lazy]: LEAD")
        self._lark.add(f"LEAD: {free(before, ANY + escaped(calls.opening))}")
        return ["lead calls"]

    def _add_calls_beside(self, use: ToolUse, content: Grammar) -> None:
        """Calls that begin an output, beside content that keeps to a schema.

        Where both begin with the same token of JSON, the engine's lexer tells them apart only if
        both are made of such tokens: so a call that is a JSON document has a schema as a whole.

        Raises:
            InvalidArgumentError: What the content keeps to is no schema.
        """
        if content.kind is not GrammarKind.JSON_SCHEMA:
            raise InvalidArgumentError(
                f"{content.field}: this model's calls of tools are JSON from the first character"
                " on, and beside tools only a JSON schema can be told from them: give one, or set"
                " prompt.chat.tool_choice to none or required",
                field=content.field,
                other_field="prompt.chat.tool_choice",
            )
        form = self._dialect.calls
        if not form.is_json_document:
            self._add_calls(use, is_beside_content=True)
            return
        calls = []
        for tool, written in _callable(use):
            keys = form.beginning_tokens(tool.name)
            schema = call_schema(keys, object_schema(tool, written.field))
            anything = call_schema(keys, {"type": "object"})
            name = f"call_{written.place}"
            calls.append(
                self._lark.json(name, schema, written.field, written.is_exact, otherwise=anything)
            )
            self._call_beginnings.append("".join(keys))
        self._lark.add("calls: " + " | ".join(calls))

    def _any_beginning(self, tool: Tool) -> str:
        """A regular expression of what a call begins with, in any spacing."""
        form = self._dialect.calls
        if not form.is_json_document:
            return escaped(form.beginning(tool.name))
        return "".join(rf"\s*{escaped(token)}" for token in form.beginning_tokens(tool.name))

    def _add_calls(self, use: ToolUse, *, is_beside_content: bool = False) -> None:
        """Calls from behind their opening on; or whole, where nothing comes before them.

        Args:
            use: The tools.
            is_beside_content: Whether content that keeps to a schema may stand in their place.
        """
        form = self._dialect.calls
        rest = "" if form.is_known_by_name else form.begin[len(form.opening) :]
        if is_beside_content:
            rest = form.begin
        more = ""
        if form.next is not None and use.allows_several:
            more = f"({self._lark.literal(form.next)} call)*"
        end = rf"/\s{{0,4}}{escaped(form.end)}/"
        behind = f"{more} {end if form.is_json_document else self._lark.literal(form.end)}".strip()
        self._lark.add(f"calls: {self._lark.literal(rest)} first behind")
        self._lark.add(f"behind: {behind or EMPTY}")
        firsts, alternatives = list[str](), list[str]()
        for tool, written in _callable(use):
            schema = object_schema(tool, written.field)
            head = tool.name + form.name_end.replace(NAME, tool.name)
            first, before_json = self._lark.literal(head), form.name_end
            if form.is_json_document:
                *tokens, _ = form.beginning_tokens(tool.name)
                first = f"/{''.join(map(_spaced, [*tokens, ':']))}/"
                before_json = f"{tokens[-1]}:"
            elif form.is_known_by_name:  # by one text that holds it, beside free text
                before_json = head
                if not is_beside_content:
                    first = self._lark.literal(form.beginning(tool.name))
            if isinstance(form.arguments, Parameters):
                arguments = parameters_rule(self._lark, form.arguments, schema, written)
            else:
                name = f"arguments_{written.place}"
                arguments = self._lark.json(name, schema, written.field, written.is_exact)
                self._lark.json_after.add(before_json)
            firsts.append(f"{first} {arguments}")
            alternatives.append(f"{self._lark.literal(head)} {arguments}")
        self._lark.add("first: " + "\n    | ".join(firsts))
        if more:
            self._lark.add("call: " + "\n    | ".join(alternatives))


def _callable(use: ToolUse) -> Iterator[tuple[Tool, WrittenTool]]:
    """The tools that may be called, and how their arguments are held."""
    names = {tool.name for tool in use.callable_tools}
    for place, tool in enumerate(use.tools):
        if tool.name in names:
            is_exact = tool.is_strict or use.mode is ToolMode.REQUIRED
            field = f"prompt.chat.tools[{place}].parameters"
            yield tool, WrittenTool(place, field, is_exact)


def _spaced(token: str) -> str:
    """A regular expression of a token of JSON, behind which there may be a blank."""
    return escaped(token) + (r"\s{0,4}" if token in "{:," else "")
