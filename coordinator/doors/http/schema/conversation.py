"""How a conversation becomes a prompt, in the words of vLLM."""

from pydantic import Field, model_validator

from coordinator.doors.http.schema.base import RequestModel


class ConversationFields(RequestModel):
    """Where the prompt of a conversation ends."""

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
