"""How one output is held to its form and read, as far as its request alone decides it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from coordinator.core.grammar import Grammar
from coordinator.core.tools import ToolUse
from coordinator.dialogue.dialect import Dialect
from coordinator.dialogue.output_grammar import output_grammar
from coordinator.dialogue.tool_schemas import text_parameters


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedOutput:
    """What decides it; requests that are alike in this have one plan."""

    tools: ToolUse | None
    content: Grammar | None
    """What the content must match; None: anything."""
    is_thinking: bool
    """Whether the prompt ends inside a section of thinking."""
    is_answering: bool
    """Whether it ends inside one of content; for models that mark it."""
    has_thought: bool
    """Whether the prompt ends such a section itself, so that no other one follows."""
    max_thinking_tokens: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputPlan:
    """The grammar of an output, and what its reader needs to know of the tools."""

    grammar: Grammar | None
    """What the whole output must match; None: anything."""
    text_parameters: Mapping[str, frozenset[str]] | None
    """The parameters of each tool whose values are written as they are; None: no tool is called."""


def plan_output(dialect: Dialect, token_ids: Mapping[str, int], wanted: WantedOutput) -> OutputPlan:
    """Makes the plan, which takes a moment where tools have long schemas.

    Args:
        dialect: Bound to the model's special tokens.
        token_ids: Ids of the tokens that were added to the vocabulary.
        wanted: What decides it.

    Raises:
        InvalidArgumentError: The schema of a tool is none of an object, or too long.
    """
    grammar = output_grammar(
        dialect_of(dialect, wanted),
        token_ids,
        use=wanted.tools,
        content=wanted.content,
        starts_in_reasoning=wanted.is_thinking,
        starts_in_content=wanted.is_answering,
        max_thinking_tokens=wanted.max_thinking_tokens,
    )
    parameters = None
    if wanted.tools is not None:
        parameters = {tool.name: text_parameters(tool) for tool in wanted.tools.callable_tools}
    return OutputPlan(grammar=grammar, text_parameters=parameters)


def dialect_of(dialect: Dialect, wanted: WantedOutput) -> Dialect:
    """The dialect of one output."""
    has_thought = wanted.has_thought or wanted.is_answering
    return replace(dialect, thinking=None) if has_thought else dialect
