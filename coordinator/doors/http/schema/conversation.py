"""How a conversation becomes a prompt, in the words of vLLM."""

from typing import Annotated

from pydantic import Field, JsonValue, model_validator

from coordinator.doors.http.schema.base import NONE_IF_EMPTY, RequestModel
from coordinator.doors.http.schema.tools import ToolChoice, Tools
from coordinator.doors.thinking_arguments import MAX_EFFORT_CHARS


class ConversationFields(RequestModel):
    """What a chat template is given beside the messages, and where the prompt ends."""

    tools: Tools | None = Field(None, description="Functions that the model may call.")
    tool_choice: ToolChoice | None = Field(
        None,
        description="Whether tools are called: `none`, `auto` (the default with tools), `required`,"
        " or which. A call that is forced conforms to its schema.",
    )
    reasoning_effort: Annotated[str | None, NONE_IF_EMPTY] = Field(
        None,
        max_length=MAX_EFFORT_CHARS,
        description="Given to the chat template as `reasoning_effort`, and as `enable_thinking`: "
        "false for `none`, else true.",
    )
    enable_thinking: bool | None = Field(None, description="Given to the chat template.")
    chat_template_kwargs: dict[str, JsonValue] | None = Field(
        None, description="Given to the chat template by name."
    )

    add_generation_prompt: bool | None = Field(
        None,
        description="End with what the assistant's next message begins with. Default true, or "
        "false with `continue_final_message`.",
    )
    continue_final_message: bool | None = Field(
        None,
        description="End inside the last message, so that the output goes on with it. Not together "
        "with `add_generation_prompt`. Default false.",
    )

    @model_validator(mode="after")
    def _check_end(self) -> "ConversationFields":
        if self.continue_final_message and self.add_generation_prompt:
            raise ValueError(
                "continue_final_message and add_generation_prompt are both true: the output either"
                " goes on with the last message or begins a new one"
            )
        return self

    @property
    def begins_message(self) -> bool:
        """Whether the output is a message of its own."""
        if self.add_generation_prompt is None:
            return not self.continue_final_message
        return self.add_generation_prompt
