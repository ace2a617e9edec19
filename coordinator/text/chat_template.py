"""Renders a conversation as the model was trained to read it.

Templates come from model files, never from requests, and run in jinja2's sandbox. The environment
is that of transformers (`utils/chat_template_utils.py`), so that a template gives the same text.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from functools import cached_property
from types import MappingProxyType
from typing import NoReturn

import jinja2
from jinja2 import meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from coordinator.core.request_spec import ChatMessage
from coordinator.core.tools import Tool
from coordinator.dialogue.dialect import Dialect
from coordinator.text.control_tokens import unguessable_tag
from coordinator.text.taken_turns import Turn
from coordinator.text.tool_turns import CallTurns, ToolTurns, found_call_turns
from stagecoach.contract.errors import InvalidArgumentError, ModelFilesError


class ChatTemplate:
    """A compiled chat template. Thread-safe."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        """Compiles the template.

        Args:
            source: Jinja source.
            special_tokens: Tokens by the name that templates use, such as `bos_token`.

        Raises:
            ModelFilesError: The source is not valid.
        """
        self.source = source
        self.special_tokens = dict(special_tokens)
        self.dialect = Dialect.of(source)
        """How the model that it belongs to writes."""
        self._known_call_turns: dict[bool, CallTurns] = {}
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise ModelFilesError(
                f"the model's chat template is not valid: line {error.lineno}: {error.message}"
            ) from error

    def render(
        self,
        messages: Sequence[ChatMessage],
        *,
        tools: Sequence[Tool] = (),
        arguments: Mapping[str, object] = MappingProxyType({}),
        add_generation_prompt: bool = True,
    ) -> str:
        """Returns the text of a conversation.

        Args:
            messages: Oldest first.
            tools: Tools that the model is shown.
            arguments: What else the template is given, by name; what is named here otherwise wins.
            add_generation_prompt: End with what the assistant's next message begins with.

        Raises:
            InvalidArgumentError: The template refuses these messages, such as roles in this order.
        """

        def render(turns: Sequence[Turn], described: Sequence[Mapping[str, object]] | None) -> str:
            return self._render(turns, described, arguments, add_generation_prompt)

        shows_tools = self.dialect.knows_tools and "tools" in self.variables
        turns = ToolTurns(self.dialect, render, self._call_turns, shows_tools=shows_tools)
        return turns.render(messages, tools)

    def _call_turns(self, has_tools: bool) -> CallTurns:
        """How the template takes turns that call tools; found once, as it takes some renderings."""
        if has_tools not in self._known_call_turns:
            self._known_call_turns[has_tools] = found_call_turns(
                self.dialect,
                lambda turns, tools: self._render(turns, tools, {}, True),
                has_tools=has_tools,
            )
        return self._known_call_turns[has_tools]

    def _render(
        self,
        turns: Sequence[Turn],
        tools: Sequence[Mapping[str, object]] | None,
        arguments: Mapping[str, object],
        add_generation_prompt: bool,
    ) -> str:
        try:
            return self._template.render(
                **{
                    **arguments,
                    "messages": turns,
                    "tools": tools,
                    "documents": None,
                    "add_generation_prompt": add_generation_prompt,
                    **self.special_tokens,
                }
            )
        except MemoryError:
            raise
        except Exception as error:  # a template is a program and may raise anything
            raise InvalidArgumentError(
                f"prompt.chat.messages: the model's chat template refuses them: {error}",
                field="prompt.chat.messages",
            ) from error

    @cached_property
    def variables(self) -> frozenset[str]:
        """Names that the template looks for in what it is given."""
        return frozenset(meta.find_undeclared_variables(_environment().parse(self.source)))

    @cached_property
    def sought(self) -> frozenset[str]:
        """Strings that the template looks for, or takes away, such as `</think>`."""
        tree = _environment().parse(self.source)
        methods = (
            call for call in tree.find_all(nodes.Call) if isinstance(call.node, nodes.Getattr)
        )
        values = [value for one in methods for value in one.args]
        values += [value for one in tree.find_all((nodes.Filter, nodes.Test)) for value in one.args]
        for compare in tree.find_all(nodes.Compare):
            values += [compare.expr, *(operand.expr for operand in compare.ops)]
        return frozenset(
            value.value
            for value in values
            if isinstance(value, nodes.Const) and isinstance(value.value, str)
        )

    def turn_marks(self) -> str:
        """Returns what the template writes around and between turns that say next to nothing."""
        turns = [ChatMessage(role=role, content="0") for role in ("user", "assistant", "user")]
        marks = []
        for messages in (turns, [ChatMessage(role="system", content="0"), *turns]):
            with suppress(InvalidArgumentError):  # not every template knows every role
                marks.append(self.render(messages, add_generation_prompt=False))
        return "\n".join(marks)

    def render_unfinished(
        self,
        messages: Sequence[ChatMessage],
        *,
        tools: Sequence[Tool] = (),
        arguments: Mapping[str, object] = MappingProxyType({}),
    ) -> str:
        """Returns the text of a conversation up to where its last message ends.

        The place is found by a tag at the end of that message, as transformers finds it: spaces
        there are kept where the template keeps them.

        Args:
            messages: Oldest first; at least one.
            tools: As for `render`.
            arguments: As for `render`.

        Raises:
            InvalidArgumentError: The template refuses these messages, or leaves out the last one.
        """
        *earlier, last = messages
        tag = unguessable_tag()
        tagged = replace(last, content=f"{last.content}{tag} ")
        text = self.render(
            [*earlier, tagged], tools=tools, arguments=arguments, add_generation_prompt=False
        )
        before, found, after = text.rpartition(tag)
        if not found or last.content.strip() not in text:
            raise InvalidArgumentError(
                "prompt.chat.continue_final_message is true, but the model's chat template leaves"
                " out the last message or a part of it, so that the output cannot go on with it",
                field="prompt.chat.continue_final_message",
            )
        return before if after.startswith(" ") else before.rstrip()


class _GenerationTag(Extension):
    """`{% generation %}` marks what the assistant said, for training; here it has no effect."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


class _Namespace(jinja2.utils.Namespace):
    """Refuses names through which a template could reach the interpreter."""

    def __init__(*args: object, **kwargs: object) -> None:
        attributes = dict(*args[1:], **kwargs)
        for name in attributes:
            _check_name(name)
        jinja2.utils.Namespace.__init__(args[0], attributes)

    def __setitem__(self, name: str, value: object) -> None:
        """Sets an attribute."""
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: str) -> None:
    if name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace cannot hold {name!r}")


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    environment.globals["namespace"] = _Namespace
    environment.globals["dict"] = _make_dict
    return environment


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Writes JSON as json.dumps does: jinja2's own filter escapes HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _make_dict(*args: Iterable[tuple[str, object]], **kwargs: object) -> dict[str, object]:
    """Stands for the class `dict`, whose attributes a template has no need of."""
    return dict(*args, **kwargs)
