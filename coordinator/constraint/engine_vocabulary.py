"""What the tokens of a model spell, as the grammar engine takes it; in sandboxed processes."""

import json
from collections.abc import Mapping
from typing import Any

import llguidance
import tokenizers

from coordinator.constraint.vocabulary import Vocabulary


def build_vocabulary(vocabulary: Vocabulary) -> llguidance.LLTokenizer:
    """Makes a vocabulary known to the grammar engine; takes seconds for a large one.

    Raises:
        ValueError: What the tokens spell cannot be told, or none of them ends an output.
    """
    backend = tokenizers.Tokenizer.from_str(vocabulary.tokenizer)
    ids = backend.get_vocab(with_added_tokens=True)
    num_tokens = max(ids.values()) + 1
    eos_token_ids = sorted(set(vocabulary.eos_token_ids) & set(ids.values()))
    if not eos_token_ids:
        raise ValueError("the model has no end token, which a grammar ends with")
    has_holes = len(ids) < num_tokens
    return llguidance.LLTokenizer(
        _filled(vocabulary.tokenizer, ids) if has_holes else vocabulary.tokenizer,
        n_vocab=max(vocabulary.num_logits, num_tokens),
        eos_token=eos_token_ids,
    )


def _filled(tokenizer: str, ids: Mapping[str, int]) -> str:
    """Gives the ids that stand for nothing tokens that no text contains and no grammar allows.

    The engine counts tokens where others look at the highest id. Each token is named in the model's
    own vocabulary too, so that all keep their ids.
    """
    content: dict[str, Any] = json.loads(tokenizer)
    taken = set(ids.values())
    fillers = {
        f"<\x00unused {token_id}>": token_id
        for token_id in range(max(taken))
        if token_id not in taken
    }
    content["model"]["vocab"] = {**ids, **fillers}
    content["added_tokens"] += [
        {
            "id": token_id,
            "content": text,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for text, token_id in fillers.items()
    ]
    return json.dumps(content)
