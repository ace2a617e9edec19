"""What the tokens of a model spell, as the grammar engine takes it; in sandboxed processes.

The engine gets a list of bytes rather than the model's tokenizer. It asks for tokens only where a
grammar leaves one text to go on with, and then allows no other; the tokenizer alone would make
special tokens of such a text, compose its characters, or put a space before it.
"""

import json
from typing import Any

import llguidance
import tokenizers

from coordinator.constraint.vocabulary import Vocabulary
from coordinator.text.token_decoders import choose_decoder


def build_vocabulary(vocabulary: Vocabulary) -> llguidance.LLTokenizer:
    """Makes a vocabulary known to the grammar engine; takes seconds for a large one.

    Raises:
        ValueError: None of the tokens ends an output.
    """
    speller = _Speller(vocabulary)
    wrapper = llguidance.TokenizerWrapper(speller)
    speller.engine = llguidance.LLTokenizer(wrapper, eos_token=speller.eos_token_ids)
    return speller.engine


class _Speller:
    """Says what each token spells, and which tokens spell a text; named as the engine asks."""

    bos_token_id = None
    engine: llguidance.LLTokenizer
    """Knows the same tokens."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._backend = tokenizers.Tokenizer.from_str(vocabulary.tokenizer)
        _put_nothing_before(self._backend)
        self._backend.encode_special_tokens = True  # as the text that they are
        tokens = {
            token_id: token
            for token, token_id in self._backend.get_vocab(with_added_tokens=True).items()
        }
        self.eos_token_ids = sorted(set(vocabulary.eos_token_ids) & set(tokens))
        if not self.eos_token_ids:
            raise ValueError("the model has no end token, which a grammar ends with")
        self.eos_token_id = self.eos_token_ids[0]
        special = {
            token_id
            for token_id, token in self._backend.get_added_tokens_decoder().items()
            if token.special
        }
        special.update(self.eos_token_ids)
        spell = choose_decoder(self._backend)().spell
        num_tokens = max(vocabulary.num_logits, 1 + max(tokens))
        self.tokens = [
            spell(tokens[token_id])
            if token_id in tokens and token_id not in special
            else b"special %d" % token_id
            for token_id in range(num_tokens)
        ]
        # No text contains these, and no grammar allows them.
        self.special_token_ids = sorted(special | set(range(num_tokens)).difference(tokens))
        self._special = frozenset(self.special_token_ids)

    def __call__(self, text: str) -> list[int]:
        """The model's own tokens for a text, or any others that spell exactly it."""
        token_ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        spelled = b"".join(self.tokens[token_id] for token_id in token_ids)
        if spelled == text.encode() and self._special.isdisjoint(token_ids):
            return token_ids
        return self.engine.greedy_tokenize(text)


def _put_nothing_before(backend: tokenizers.Tokenizer) -> None:
    """Lets a tokenizer put no space before a text: one that goes on has its own."""
    content = json.loads(tokenizers.Tokenizer(tokenizers.models.BPE()).to_str())
    for field, parts in (("normalizer", "normalizers"), ("pre_tokenizer", "pretokenizers")):
        step = getattr(backend, field)
        if step is not None:
            content[field] = _without_first_space(json.loads(step.__getstate__()), parts)
    bare = tokenizers.Tokenizer.from_str(json.dumps(content))
    backend.normalizer = bare.normalizer
    backend.pre_tokenizer = bare.pre_tokenizer


def _without_first_space(step: dict[str, Any], parts: str) -> dict[str, Any]:
    steps = [one for one in step.get(parts, [step]) if one["type"] != "Prepend"]
    for one in steps:
        if "add_prefix_space" in one:
            one["add_prefix_space"] = False
        if one["type"] == "Metaspace":
            one["prepend_scheme"] = "never"
    return {"type": "Sequence", parts: steps}
