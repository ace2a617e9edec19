"""Which tokens end a text or a turn, by what they are called.

Files often name one end token where a model has several: that of a text, while each turn of a
conversation ends with another. The names are those that llama.cpp goes by (`src/llama-vocab.cpp`).
"""

from collections.abc import Collection

# ruff: noqa: RUF001 - bars that look like others are in real tokens

_NAMES = frozenset(
    {
        "<|eot_id|>",
        "<|eom_id|>",
        "<|im_end|>",
        "<|end|>",
        "<|return|>",
        "<|call|>",
        "<|calls|>",
        "<|flush|>",
        "<|eot|>",
        "<|eom|>",
        "<end_of_turn>",
        "<turn|>",
        "<|tool_response>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<|END_OF_TURN_TOKEN|>",
        "<EOT>",
        "_<EOT>",
        "[EOT]",
        "[EOS]",
        "<eos>",
        "<end_of_utterance>",
        "<｜end▁of▁sentence｜>",
        "[e~[",
        # What follows a piece of code that was filled in.
        "<|fim_pad|>",
        "<fim-pad>",
        "<fim_pad>",
        "<PAD>",
        "[PAD]",
        "<|fim_repo|>",
        "<|repo_name|>",
        "<fim-repo>",
        "<REPO>",
        "<reponame>",
        "<|file_sep|>",
    }
)

_ENDS_IF_SPECIAL = frozenset({"</s>"})
"""Ordinary text in some vocabularies, where HTML may hold it."""


def end_tokens(tokens: Collection[str], special: Collection[str]) -> frozenset[str]:
    """Returns those of a vocabulary that end a text or a turn.

    Args:
        tokens: All of them.
        special: Tokens that are no ordinary text.
    """
    found = (_NAMES & set(tokens)) | (_ENDS_IF_SPECIAL & set(special))
    # Where a whole answer has ends of its own, this one only ends a part of it.
    if {"<|return|>", "<|call|>"} <= found or (
        "<|flush|>" in found and found & {"<|call|>", "<|calls|>"}
    ):
        found -= {"<|end|>"}
    if found & {"<|tool_response>"}:
        found -= _ENDS_IF_SPECIAL
    return frozenset(found)
