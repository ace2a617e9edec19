"""Outputs as models write them, with the marks that some set around sections."""

from coordinator.dialogue.formats.call_format import CallFormat


def written_output(
    form: CallFormat, *, thought: str = "", content: str = "", calls: str = ""
) -> str:
    """Writes an output.

    Args:
        form: Format of the calls, which knows the marks of content.
        thought: A section of thinking with its own marks; empty: there is none.
        content: What is said; empty: nothing.
        calls: What `written_calls` wrote; empty: there are none.
    """
    framing = form.framing
    if framing is None:
        return thought + content + calls
    sections = [thought] if thought else []
    if content and calls:
        sections.append(f"{framing.lead_begin}{content}{framing.lead_end}")
    elif content:
        sections.append(f"{framing.begin}{content}{framing.end}")
    return framing.joint.join([*sections, *([calls] if calls else [])])
