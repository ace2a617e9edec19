"""What the undisturbed greedy run of a model is, from transformers, unsplit."""

from dataclasses import dataclass
from pathlib import Path

import torch

from tests.tiny_models import VOCAB_SIZE, reference_model

NUM_STARTS = 24
START_TOKENS = 8
CLEAR_GAP = 5e-4
"""Distance of the best two logits from which float32 noise cannot change their order."""


@dataclass(frozen=True, slots=True)
class Continuation:
    """A sequence that greedy decoding makes; its every beginning is a prompt for the rest."""

    token_ids: tuple[int, ...]

    def prompt(self, num_tokens: int) -> tuple[int, ...]:
        """The beginning, at least `START_TOKENS` long."""
        assert START_TOKENS <= num_tokens < len(self.token_ids)
        return self.token_ids[:num_tokens]

    def output(self, num_prompt_tokens: int, num_tokens: int) -> tuple[int, ...]:
        """What follows the beginning."""
        end = num_prompt_tokens + num_tokens
        assert end <= len(self.token_ids)
        return self.token_ids[num_prompt_tokens:end]


@torch.inference_mode()
def continuations(model_path: Path, *, num_tokens: int, count: int) -> list[Continuation]:
    """Decodes random beginnings and returns those whose every token is decided most clearly.

    Args:
        model_path: A tiny model.
        num_tokens: Length of each, beginning and output.
        count: How many.
    """
    torch.set_num_threads(1)  # more only wait for each other at this size
    model = reference_model(model_path)
    generator = torch.Generator().manual_seed(0)
    shape = (NUM_STARTS, START_TOKENS)
    pieces = [torch.randint(3, VOCAB_SIZE, shape, generator=generator)]
    gaps, cache = [], None
    for _ in range(num_tokens - START_TOKENS):
        out = model(input_ids=pieces[-1], past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        best = out.logits[:, -1].topk(2)
        gaps.append(best.values[:, 0] - best.values[:, 1])
        pieces.append(best.indices[:, :1])
    least = torch.stack(gaps, dim=1).amin(dim=1)
    chosen = least.argsort(descending=True)[:count]
    assert least[chosen].min() > CLEAR_GAP, "a token of the reference is decided by noise"
    return [Continuation(tuple(row)) for row in torch.cat(pieces, dim=1)[chosen].tolist()]
