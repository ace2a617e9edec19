"""A text that a grammar leaves no choice about comes out whole, whatever the tokenizer makes of it.

With the tokenizers of real models, and with ones that have what those of others have beside.
"""

import json
from collections.abc import Callable
from typing import Any

import pytest
import tokenizers

from coordinator.constraint import grammar_job
from coordinator.constraint.messages import (
    NewTokens,
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
from coordinator.text.token_decoders import choose_decoder
from coordinator.text.tokenizer_files import load_tokenizer
from stagecoach.model_files import open_model
from tests.json_outputs import allowed_ids
from tests.llama2 import llama2_backend

ENDS = ("</s>", "<|im_end|>", "<|endoftext|>")
SPELLED = [
    *(
        "</s>",
        "<s>x</s>",
        "<unk>",
        "<|im_end|>",
        "a<|im_start|>b",
        " <|endoftext|> ",
        "<repo_name>",
    ),
    *("<think>", "</think>", "a <pad> b", "<eot>", "<0x0A>", "<[7]>"),
]
"""What some tokenizer has as a special or added token, or this program calls one."""
RESHAPED = [
    "e\u0301",
    "\u212b",
    "\ufb01",
    "\u2581",
    "a\u2581b",
    " a",
    "a  ",
    "\u00a0x",
    "\U0001f600",
]
"""What some tokenizer composes, replaces, or puts something before."""


def demo() -> tokenizers.Tokenizer:
    tokenizer = load_tokenizer(open_model("demo"))
    assert tokenizer is not None
    return tokenizers.Tokenizer.from_str(tokenizer.serialized())


def changed_demo(
    *, added: dict[str, dict[str, bool]] | None = None, **fields: Any
) -> tokenizers.Tokenizer:
    """The demo's with other steps, or more added tokens."""
    backend = tokenizers.Tokenizer.from_str(json.dumps(json.loads(demo().to_str()) | fields))
    for token, options in (added or {}).items():
        backend.add_tokens([tokenizers.AddedToken(token, **options)])
    return backend


def like_qwen() -> tokenizers.Tokenizer:
    """Composes characters, and has added tokens that are no special ones."""
    return changed_demo(
        normalizer={"type": "NFC"}, added={"<think>": {}, "</think>": {"normalized": True}}
    )


def like_phi() -> tokenizers.Tokenizer:
    """Added tokens take the spaces around them."""
    added = {"<eot>": {"rstrip": True, "special": True}, "<pad>": {"rstrip": True, "lstrip": True}}
    return changed_demo(added=added)


def with_first_space() -> tokenizers.Tokenizer:
    steps = [{"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}]
    return changed_demo(pre_tokenizer={"type": "Sequence", "pretokenizers": steps})


def llama2_with_metaspace() -> tokenizers.Tokenizer:
    content = json.loads(llama2_backend().to_str())
    content["normalizer"] = None
    content["pre_tokenizer"] = {
        **{"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always"},
        "split": False,
    }
    return tokenizers.Tokenizer.from_str(json.dumps(content))


def sentence_piece_of_gguf() -> tokenizers.Tokenizer:
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", "ab"]
    return build_gguf_tokenizer(
        GgufVocabulary.parse(
            {
                "tokenizer.ggml.model": "llama",
                "tokenizer.ggml.tokens": tokens,
                "tokenizer.ggml.scores": [-float(index) for index in range(len(tokens))],
                "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1, 1],
            }
        )
    )


@pytest.mark.parametrize(
    "create",
    [
        *(demo, like_qwen, like_phi, with_first_space),
        *(llama2_backend, llama2_with_metaspace, sentence_piece_of_gguf),
    ],
)
@pytest.mark.parametrize("kind", [GrammarKind.JSON_SCHEMA, GrammarKind.LARK])
def test_forced_text_comes_out_whole(
    create: Callable[[], tokenizers.Tokenizer], kind: GrammarKind
) -> None:
    """After its number no text has another beside it."""
    backend = create()
    added = [token.content for token in backend.get_added_tokens_decoder().values()]
    texts = dict.fromkeys([*SPELLED, *RESHAPED, *added[:20]])
    numbered = [f"{10 + number}{text}" for number, text in enumerate(texts)]
    quoted = [json.dumps(text, ensure_ascii=False) for text in numbered]
    if kind is GrammarKind.LARK:
        writer = Writer(backend, kind, "start: " + " | ".join(quoted))
        assert [writer.write(text) for text in numbered] == numbered
    else:
        writer = Writer(backend, kind, json.dumps({"enum": numbered}))
        assert [writer.write(text) for text in quoted] == quoted


@pytest.mark.parametrize("create", [demo, llama2_backend])
def test_forced_text_is_made_of_the_tokens_that_the_model_knows_it_by(
    create: Callable[[], tokenizers.Tokenizer],
) -> None:
    backend = create()
    text = "- The stagecoach left at dawn, as it did every <day> of 1849."
    writer = Writer(backend, GrammarKind.LARK, f"start: {json.dumps(text)}")
    tokens = [backend.id_to_token(token_id) for token_id in writer.token_ids(text)]
    assert tokens == backend.encode(f"a\n{text}").tokens[-len(tokens) :]


class Writer:
    """Writes texts that follow a grammar with the longest token allowed, as far as it may."""

    def __init__(self, backend: tokenizers.Tokenizer, kind: GrammarKind, grammar: str) -> None:
        vocabulary = backend.get_vocab()
        added = backend.get_added_tokens_decoder()
        special = {token_id for token_id, token in added.items() if token.special}
        spell = choose_decoder(backend)().spell
        self._spelled = {
            token_id: spell(token)
            for token, token_id in vocabulary.items()
            if token_id not in special
        }
        self._ends = {vocabulary[token] for token in ENDS if token in vocabulary}
        payload = Vocabulary(
            tokenizer=backend.to_str(), num_logits=1, eos_token_ids=tuple(self._ends)
        ).encode()
        self._output = grammar_job.prepare(payload)
        self._start = decode_compiled(self._output(encode_grammar(kind, grammar))).state
        self._num_outputs = 0

    def write(self, text: str) -> str:
        """As much of a text as the grammar allows."""
        return b"".join(self._spelled[token_id] for token_id in self.token_ids(text)).decode()

    def token_ids(self, text: str) -> list[int]:
        """The tokens that it is written with; all of it is allowed, or less comes out."""
        self._num_outputs += 1
        state = self._start
        rest = text.encode()
        token_ids: list[int] = []
        while state.standing is Standing.OPEN:
            allowed = set(allowed_ids(state))
            if not rest:
                assert allowed & self._ends, f"{text!a} may not end"
                break
            fitting = [
                (len(spelled), token_id)
                for token_id in allowed
                if (spelled := self._spelled.get(token_id)) and rest.startswith(spelled)
            ]
            if not fitting:
                break
            length, token_id = max(fitting)
            token_ids.append(token_id)
            rest = rest[length:]
            (state,) = decode_states(
                self._output(encode_tokens([NewTokens(self._num_outputs, (token_id,))])), 1
            )
        return token_ids
