"""What the undisturbed greedy run of a model is, from transformers, unsplit."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from stage_server.model.coded_rows import quantized
from tests.tiny_models import VOCAB_SIZE, reference_model

NUM_STARTS = 24
START_TOKENS = 8
CLEAR_GAP = 5e-4
"""Distance of the best two logits from which float32 noise cannot change their order."""
NEAR = 0.5
"""Distance of the best logit, in standard deviations of a row, that rounding to bfloat16 makes up
for. The best one is three away from the mean."""


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

    def goes_on_with(self, num_prompt_tokens: int, token_ids: tuple[int, ...]) -> bool:
        """Whether these tokens are what follows the beginning."""
        return token_ids == self.output(num_prompt_tokens, len(token_ids))


@dataclass(frozen=True, slots=True)
class NearContinuation(Continuation):
    """One for stages whose rounding depends on what they compute at once.

    They may take a token that is nearly as good as the best, and then the rest is another text.
    """

    model: PreTrainedModel

    @torch.inference_mode()
    def goes_on_with(self, num_prompt_tokens: int, token_ids: tuple[int, ...]) -> bool:
        """Whether each of these tokens is nearly the best after all that come before it."""
        row = torch.tensor([*self.prompt(num_prompt_tokens), *token_ids])
        logits = self.model(input_ids=row[None]).logits[0, num_prompt_tokens - 1 : -1]
        taken = logits.gather(1, row[num_prompt_tokens:, None])[:, 0]
        return bool((logits.amax(1) - taken <= NEAR * logits.std(1)).all())


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


def near_continuations(model_path: Path, *, num_tokens: int, count: int) -> list[NearContinuation]:
    """As `continuations`, of which each token may be another that is nearly as good."""
    model = reference_model(model_path)
    exact = continuations(model_path, num_tokens=num_tokens, count=count)
    return [NearContinuation(one.token_ids, model) for one in exact]


def rounded_copy(model_path: Path, folder: Path) -> Path:
    """Copies a model, with the numbers that `--weights int4` makes of its weights.

    So what transformers computes in float32 is what stages compute, but for their arithmetic.
    """
    target = Path(shutil.copytree(model_path, folder / model_path.name))
    path = target / "model.safetensors"
    tensors = load_file(path)
    for name, tensor in tensors.items():
        if name == "lm_head.weight":
            tensors[name] = tensor.half().float()
        elif tensor.dim() == 2:
            num_bits = 8 if name == "model.embed_tokens.weight" else 4
            tensors[name] = quantized(tensor, num_bits).values(1 << (num_bits - 1))
    save_file(tensors, path, metadata={"format": "pt"})
    return target
