"""The two ways in which language models spell text as tokens, decoded token by token.

vLLM and text-generation-inference decode a window of tokens again for every token and compare the
texts. These decoders follow the `tokenizers` library's own byte by byte instead: constant time a
token, and exact where a window is not, such as for bytes that are no UTF-8.
"""

import codecs
import json
import re
from collections.abc import Callable
from functools import partial
from typing import Protocol

import tokenizers

from stagecoach.contract.errors import UnsupportedModelError

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_SPACE_SIGN = "\N{LOWER ONE EIGHTH BLOCK}"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class TokenDecoder(Protocol):
    """Makes text of the tokens of one sequence, special ones left out."""

    def push(self, token: str) -> str:
        """Adds a token; returns the text that is certain by now."""
        ...

    def flush(self) -> str:
        """Returns the rest of the text; what is incomplete becomes U+FFFD."""
        ...

    @staticmethod
    def spell(token: str) -> bytes:
        """Returns the UTF-8 bytes that a token stands for inside a text."""
        ...


class ByteLevelDecoder:
    """Byte-level BPE, as GPT-2's: every character of a token stands for one byte."""

    def __init__(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: str) -> str:
        """See `TokenDecoder.push`; holds back an incomplete character."""
        return self._utf8.decode(self.spell(token))

    def flush(self) -> str:
        """See `TokenDecoder.flush`."""
        return self._utf8.decode(b"", final=True)

    @staticmethod
    def spell(token: str) -> bytes:
        """See `TokenDecoder.spell`."""
        try:
            return bytes([_BYTES[char] for char in token])
        except KeyError:  # an added token is spelled as it reads
            return token.encode()


class SentencePieceDecoder:
    """SentencePiece with byte fallback: a token is text, or a single byte spelled `<0xHH>`.

    A run of byte tokens that is not UTF-8 as a whole becomes one U+FFFD a byte, so a run is held
    back until it ends or turns out invalid.
    """

    def __init__(self, *, strips_first_space: bool) -> None:
        """Starts with no token.

        Args:
            strips_first_space: The text loses the space that the tokenizer put before it.
        """
        self._strips_space = strips_first_space
        self._run = bytearray()
        self._utf8 = codecs.getincrementaldecoder("utf-8")("strict")
        self._run_is_valid = True

    def push(self, token: str) -> str:
        """See `TokenDecoder.push`."""
        match = _BYTE_TOKEN.fullmatch(token)
        if match is None:
            text = self._end_run() + token.replace(_SPACE_SIGN, " ")
        else:
            text = self._push_byte(bytes.fromhex(match[1]))
        return self._strip(text)

    def flush(self) -> str:
        """See `TokenDecoder.flush`."""
        return self._strip(self._end_run())

    @staticmethod
    def spell(token: str) -> bytes:
        """See `TokenDecoder.spell`."""
        match = _BYTE_TOKEN.fullmatch(token)
        return (
            token.replace(_SPACE_SIGN, " ").encode() if match is None else bytes.fromhex(match[1])
        )

    def _push_byte(self, byte: bytes) -> str:
        if not self._run_is_valid:
            return _REPLACEMENT
        self._run += byte
        try:
            self._utf8.decode(byte)
        except UnicodeDecodeError:
            self._run_is_valid = False
            return _REPLACEMENT * len(self._run)
        return ""

    def _end_run(self) -> str:
        text = ""
        if self._run_is_valid:
            try:
                text = self._run.decode()
            except UnicodeDecodeError:
                text = _REPLACEMENT * len(self._run)
        self._run.clear()
        self._utf8.reset()
        self._run_is_valid = True
        return text

    def _strip(self, text: str) -> str:
        if not text or not self._strips_space:
            return text
        self._strips_space = False
        return text.removeprefix(" ")


def choose_decoder(backend: tokenizers.Tokenizer) -> Callable[[], TokenDecoder]:
    """Returns what makes the decoders that decode as this tokenizer does.

    Raises:
        UnsupportedModelError: It spells text in another way.
    """
    steps: list[dict[str, object]] = []
    if backend.decoder is not None:
        decoder = json.loads(backend.decoder.__getstate__())
        steps = decoder.get("decoders", [decoder])
    types = [step["type"] for step in steps]
    if types == ["ByteLevel"]:
        return ByteLevelDecoder
    if steps[:3] == _SENTENCE_PIECE and steps[3:] in ([], [_STRIP_FIRST_SPACE]):
        return partial(SentencePieceDecoder, strips_first_space=len(steps) > 3)
    raise UnsupportedModelError(f"the tokenizer's decoder {types} is not supported")


_SENTENCE_PIECE: list[dict[str, object]] = [
    {"type": "Replace", "pattern": {"String": _SPACE_SIGN}, "content": " "},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
]
_STRIP_FIRST_SPACE: dict[str, object] = {"type": "Strip", "content": " ", "start": 1, "stop": 0}


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's table (`bytes_to_unicode` in openai/gpt-2): printable bytes stand for themselves."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {
        **{chr(byte): byte for byte in printable},
        **{chr(256 + index): byte for index, byte in enumerate(others)},
    }


_BYTES = _byte_alphabet()
