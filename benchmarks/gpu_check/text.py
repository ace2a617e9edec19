"""The check of real text: the demo model over three stages against transformers, greedily."""

from collections.abc import Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from benchmarks.gpu_check.local_cluster import cluster_on
from benchmarks.gpu_check.models import text_model
from benchmarks.gpu_check.report import Figure, Limit
from benchmarks.gpu_check.subject import Subject
from stagecoach.client import Client
from tests.demo_model import demo_gguf, read_with_transformers
from tests.tiny_models import reference_model, unsplit_tokens

_PROMPT = "The stagecoach left the inn at dawn and"
_NUM_TOKENS = 48
_NUM_STAGES = 3

_FLOAT32 = "float32: first tokens that are those of transformers"
_AUTO = "auto: furthest a token is below the best of transformers"

_MOST_BELOW = 0.25
"""Of logits that reach 20 and more: what 16 bits round comes to a tenth of it, and a token that is
chosen wrongly is below by several."""


class _Output(NamedTuple):
    """What the cluster generated."""

    prompt_ids: list[int]
    token_ids: list[int]
    text: str
    dtype: str


def names(_: Subject) -> Sequence[str]:
    """Names the rows."""
    return [_FLOAT32, _AUTO]


def figures(subject: Subject) -> Iterator[Figure]:
    """Generates in float32 and in the dtype that the device has by itself."""
    model = text_model(subject)
    reference: PreTrainedModel = (
        reference_model(Path(model)) if subject.is_quick else read_with_transformers(demo_gguf())
    )
    exact = _generate(subject, model, "float32")
    expected = unsplit_tokens(reference, exact.prompt_ids, _NUM_TOKENS)
    pairs = zip(exact.token_ids, expected, strict=True)
    num_equal = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    limit = Limit(least=_NUM_TOKENS)
    yield Figure(_FLOAT32, num_equal, f"of {_NUM_TOKENS}", limit, note=repr(exact.text))
    by_itself = _generate(subject, model, "auto")
    below = _furthest_below(reference, by_itself)
    note = f"{by_itself.dtype}: {by_itself.text!r}"
    yield Figure(_AUTO, below, "", Limit(most=_MOST_BELOW), note=note)


def _generate(subject: Subject, model: str, dtype: str) -> _Output:
    with (
        cluster_on(subject, model, num_stages=_NUM_STAGES, dtype=dtype) as address,
        Client(address) as client,
    ):
        prompt_ids = client.tokenize(_PROMPT)
        done = client.complete(prompt_ids, max_tokens=_NUM_TOKENS, ignore_eos=True)
        used = client.status().stages[0].dtype
    return _Output(list(prompt_ids), list(done.token_ids), done.text, used or "unknown")


@torch.inference_mode()
def _furthest_below(reference: PreTrainedModel, output: _Output) -> float:
    """How far, at most, the logit of a token is below the best one for the same beginning."""
    token_ids = torch.tensor([[*output.prompt_ids, *output.token_ids]])
    start = len(output.prompt_ids) - 1
    logits = reference(token_ids).logits[0, start:-1]  # [num_tokens, vocab_size]
    chosen = logits.gather(1, torch.tensor(output.token_ids)[:, None])[:, 0]
    return float((logits.amax(dim=1) - chosen).max())
