"""Outputs that follow schemas and grammars in this process, by tokens given or drawn at random."""

import random
from collections.abc import Callable, Collection, Iterable, Sequence

import numpy as np

from coordinator.constraint import grammar_job
from coordinator.constraint.messages import (
    NewTokens,
    OutputState,
    Standing,
    decode_compiled,
    decode_states,
    encode_grammar,
    encode_tokens,
)
from coordinator.constraint.vocabulary import Vocabulary
from coordinator.core.grammar import GrammarKind
from coordinator.text.gguf_tokenizer import build_gguf_tokenizer
from coordinator.text.gguf_vocabulary import GgufVocabulary
from coordinator.text.token_decoders import ByteLevelDecoder
from tests.text_models import BYTE_TOKENS

ESCAPES = [
    f"\\u{code}" for code in ("0061", "0022", "005C", "002f", "000a", "001B", "007F", "00e9")
]
"""Of characters that some test names a key by."""

TOKENS = [
    *BYTE_TOKENS[:-2],
    *(str(number) for number in range(10, 1000, 7)),
    "00000",
    *ESCAPES,
    "</s>",
]
EOS = len(TOKENS) - 1
SPELLED = [ByteLevelDecoder.spell(token) for token in TOKENS]
_BLANK = {index for index, spelled in enumerate(SPELLED) if not spelled.strip()}
MAX_TOKENS = 400

LIKELY = frozenset(token.encode() for token in [*'"}],:.-0159e', "00000"])
"""What numbers, and the ends of values, are spelled with."""

Output = Callable[[bytes], bytes]


def output_maker(special_tokens: Sequence[str] = ()) -> Callable[[], Output]:
    """Makes outputs, in this process, as one is made in each sandboxed one.

    Args:
        special_tokens: Special tokens beside the end token, whose ids follow `EOS`.
    """
    vocabulary = GgufVocabulary.parse(
        {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.tokens": [*TOKENS, *special_tokens],
            "tokenizer.ggml.token_type": [1] * EOS + [3] * (1 + len(special_tokens)),
            "tokenizer.ggml.merges": [],
        }
    )
    payload = Vocabulary(
        tokenizer=build_gguf_tokenizer(vocabulary).to_str(),
        num_logits=len(TOKENS) + len(special_tokens),
        eos_token_ids=(EOS,),
    ).encode()
    return lambda: grammar_job.prepare(payload)


def start(output: Output, text: str, kind: GrammarKind = GrammarKind.JSON_SCHEMA) -> OutputState:
    """What may follow at the start of an output, or why its grammar was refused."""
    return decode_compiled(output(encode_grammar(kind, text))).state


def allowed_ids(state: OutputState) -> list[int]:
    """Tokens that may follow, rising."""
    bits = np.unpackbits(np.frombuffer(state.mask, dtype=np.uint8), bitorder="little")
    ids: list[int] = np.flatnonzero(bits).tolist()
    return ids


def walk(
    output: Output,
    schema: str,
    generator: random.Random,
    likely_tokens: Collection[bytes] = LIKELY,
    kind: GrammarKind = GrammarKind.JSON_SCHEMA,
) -> str | None:
    """One document of random tokens; None when it did not end by itself, or was refused."""
    likely_ids = {index for index, spelled in enumerate(SPELLED) if spelled in likely_tokens}
    state = start(output, schema, kind)
    assert state.standing is not Standing.BROKEN or kind is GrammarKind.JSON_SCHEMA, state.error
    document = b""
    end_share = generator.choice([0.0, 0.1, 0.5])
    for _ in range(MAX_TOKENS):
        if state.standing is not Standing.OPEN:
            break
        allowed = allowed_ids(state)
        if EOS in allowed and (len(allowed) == 1 or generator.random() < end_share):
            return document.decode()
        choices = [one for one in allowed if one != EOS and one not in _BLANK] or allowed
        likely = [one for one in choices if one in likely_ids]
        token_id = generator.choice(likely if likely and generator.random() < 0.7 else choices)
        if token_id == EOS:
            return document.decode()
        document += SPELLED[token_id]
        (state,) = decode_states(output(encode_tokens([NewTokens(0, (token_id,))])), 1)
    return document.decode() if state.standing is Standing.COMPLETE else None


def accepts(
    output: Output, text: str, document: str, kind: GrammarKind = GrammarKind.JSON_SCHEMA
) -> bool:
    """True when a document may be written byte by byte, and end there; of a new output."""
    token_ids = [SPELLED.index(bytes([byte])) for byte in document.encode()]
    return accepts_tokens(output, text, token_ids, kind)


def accepts_tokens(output: Output, text: str, token_ids: Sequence[int], kind: GrammarKind) -> bool:
    """True when some tokens may be written, and end there; of a new output."""
    state = start(output, text, kind)
    assert state.standing is not Standing.BROKEN, state.error
    for token_id in token_ids:
        if state.standing is not Standing.OPEN or not _allows(state, token_id):
            return False
        (state,) = decode_states(output(encode_tokens([NewTokens(0, (token_id,))])), 1)
    return state.standing is Standing.COMPLETE or _allows(state, EOS)


def assert_takes(
    make_output: Callable[[], Output], text: str, taken: Iterable[str], refused: Iterable[str]
) -> None:
    """Checks which documents may be written."""
    for document in taken:
        assert accepts(make_output(), text, document), document
    for document in refused:
        assert not accepts(make_output(), text, document), document


def _allows(state: OutputState, token_id: int) -> bool:
    return state.standing is Standing.OPEN and bool(state.mask[token_id // 8] >> token_id % 8 & 1)
