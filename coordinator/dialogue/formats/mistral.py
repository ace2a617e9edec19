"""Mistral: a list of JSON objects up to v7, later a name and JSON for each call.

Specified by mistral-common's instruct tokenizers.
"""

from coordinator.dialogue.formats.call_format import CALL_ID, CallFormat, IdForm

MISTRAL_LIST = CallFormat(
    label="mistral_list",
    signs=("[TOOL_CALLS]",),
    opening="[TOOL_CALLS]",
    begin='[TOOL_CALLS][{"name": "',
    name_end='", "arguments": ',
    next=f', "id": "{CALL_ID}"}}, {{"name": "',
    end=f', "id": "{CALL_ID}"}}]',
    id_form=IdForm.NINE,
)

MISTRAL_NAMES = CallFormat(
    label="mistral_names",
    signs=("[TOOL_CALLS]", "[ARGS]"),
    opening="[TOOL_CALLS]",
    begin="[TOOL_CALLS]",
    name_end="[ARGS]",
    next="[TOOL_CALLS]",
    end="",
    id_form=IdForm.NINE,
)

MISTRAL_IDS = CallFormat(
    label="mistral_ids",
    signs=("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"),
    opening="[TOOL_CALLS]",
    begin="[TOOL_CALLS]",
    name_end=f"[CALL_ID]{CALL_ID}[ARGS]",
    next="[TOOL_CALLS]",
    end="",
    id_form=IdForm.NINE,
)
