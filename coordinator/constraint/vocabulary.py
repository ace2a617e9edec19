"""A model's vocabulary on its way to the grammar engine."""

import json
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """What the tokens of a model spell, and which of them end an output."""

    tokenizer: str
    """Text of a `tokenizer.json`."""
    num_logits: int
    """Logits in a row: a model may have more than its tokenizer has tokens, or fewer."""
    eos_token_ids: tuple[int, ...]

    def encode(self) -> bytes:
        """Writes it."""
        fields = (self.tokenizer, self.num_logits, self.eos_token_ids)
        return json.dumps(fields).encode()

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Reads what `encode` wrote."""
        tokenizer, num_logits, eos_token_ids = json.loads(data)
        return cls(tokenizer=tokenizer, num_logits=num_logits, eos_token_ids=tuple(eos_token_ids))
