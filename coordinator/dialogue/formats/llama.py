"""Llama 3.1 to 3.3: one JSON object that is the whole output.

Specified by Meta's prompt guide for Llama 3.1.
"""

from coordinator.dialogue.formats.call_format import CallFormat

LLAMA_JSON = CallFormat(
    label="llama_json",
    signs=("<|start_header_id|>", "ipython", '"parameters": '),
    opening='{"name": "',
    begin='{"name": "',
    name_end='", "parameters": ',
    end="}",
    is_known_by_name=True,
    is_whole_output=True,
    is_json_document=True,
)
