"""A model split over stages computes what transformers computes with the whole of it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from stage_server.model.layer_stack import LayerStack, load_layer_stack
from stagecoach.contract.precision import DType, Precision
from stagecoach.model_files import open_model
from stagecoach.model_files.families import FAMILIES as SERVED
from tests.layer_ranges import split_evenly
from tests.tiny_models import FAMILIES, VOCAB_SIZE, reference_model, tiny_model, unsplit_tokens

CPU = torch.device("cpu")
FLOAT32 = Precision.uniform(DType.FLOAT32)
PROMPT = [1, *(7 * i % (VOCAB_SIZE - 3) + 3 for i in range(13))]
NUM_GENERATED = 12

torch.set_num_threads(1)


class ListAttention:
    """The slow obvious attention: one sequence, its keys and values in lists, row by row."""

    def __init__(self, num_layers: int) -> None:
        self._keys: list[list[torch.Tensor]] = [[] for _ in range(num_layers)]
        self._values: list[list[torch.Tensor]] = [[] for _ in range(num_layers)]

    def attend(
        self,
        layer_index: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        scaling: float,
        sliding_window: int | None,
        softcap: float | None,
        sinks: torch.Tensor | None = None,
    ) -> torch.Tensor:
        keys, values = self._keys[layer_index], self._values[layer_index]
        outputs = []
        for row in range(query.shape[0]):
            keys.append(key[row])
            values.append(value[row])
            first = max(len(keys) - sliding_window, 0) if sliding_window else 0
            group = query.shape[1] // key.shape[1]
            seen_keys = torch.stack(keys[first:]).repeat_interleave(group, dim=1)
            seen_values = torch.stack(values[first:]).repeat_interleave(group, dim=1)
            scores = torch.einsum("hd,thd->ht", query[row], seen_keys) * scaling
            if softcap is not None:
                scores = torch.tanh(scores / softcap) * softcap
            if sinks is not None:
                scores = torch.cat((sinks[:, None], scores), dim=1)
                nothing = torch.zeros_like(seen_values[:1])
                seen_values = torch.cat((nothing, seen_values))
            outputs.append(torch.einsum("ht,thd->hd", scores.softmax(dim=-1), seen_values))
        return torch.stack(outputs)


class SplitModel:
    """Stages in a row, and the KV of one sequence."""

    def __init__(self, stacks: Sequence[LayerStack]) -> None:
        self._stacks = stacks
        self._attentions = [ListAttention(len(stack.layers)) for stack in stacks]
        self._num_tokens = 0

    @torch.inference_mode()
    def logits(self, token_ids: list[int]) -> torch.Tensor:
        positions = torch.arange(self._num_tokens, self._num_tokens + len(token_ids))
        self._num_tokens += len(token_ids)
        hidden = self._stacks[0].embed(torch.tensor(token_ids), positions)
        for stack, attention in zip(self._stacks, self._attentions, strict=True):
            before = hidden.clone()
            output = stack.forward(hidden, positions, self._num_tokens, attention)
            assert torch.equal(hidden, before), "a stage changed its input"
            hidden = output
        return self._stacks[-1].logits(hidden)


def load_split(
    path: Path, num_stages: int, *, precision: Precision = FLOAT32, lean: bool = True
) -> list[LayerStack]:
    files = open_model(str(path))
    return [
        load_layer_stack(files, layers, precision=precision, device=CPU, lean=lean)
        for layers in split_evenly(files.config.num_layers, num_stages)
    ]


def generate(stacks: Sequence[LayerStack]) -> tuple[list[int], torch.Tensor]:
    """Prefills in two chunks, then decodes greedily; the tokens and the logits of every row."""
    split = SplitModel(stacks)
    rows = [split.logits(PROMPT[:5]), split.logits(PROMPT[5:])]
    token_ids = [int(rows[-1][-1].argmax())]
    while len(token_ids) < NUM_GENERATED:
        rows.append(split.logits(token_ids[-1:]))
        token_ids.append(int(rows[-1][-1].argmax()))
    return token_ids, torch.cat(rows)


@pytest.fixture(scope="module", params=FAMILIES)
def model_path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(request.param, tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def expected(model_path: Path) -> tuple[list[int], torch.Tensor]:
    """What transformers generates, and its logits of every row."""
    model: Any = reference_model(model_path)
    token_ids = unsplit_tokens(model, PROMPT, NUM_GENERATED)
    with torch.inference_mode():
        logits = model(torch.tensor([[*PROMPT, *token_ids[:-1]]])).logits[0]
    return token_ids, logits


@pytest.mark.parametrize("num_stages", [1, 2, 3, 5])
def test_split_model_generates_what_transformers_generates(
    model_path: Path, expected: tuple[list[int], torch.Tensor], num_stages: int
) -> None:
    token_ids, logits = generate(load_split(model_path, num_stages))
    torch.testing.assert_close(logits, expected[1], rtol=1e-4, atol=1e-4)
    assert token_ids == expected[0]
    assert len(set(token_ids)) > 2, "a model that repeats itself shows nothing"


def test_transformers_own_modules_agree_with_the_lean_layers(
    model_path: Path, expected: tuple[list[int], torch.Tensor]
) -> None:
    token_ids, logits = generate(load_split(model_path, 2, lean=False))
    torch.testing.assert_close(logits, expected[1], rtol=1e-4, atol=1e-4)
    assert token_ids == expected[0]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 0.01), ("bfloat16", 0.08)])
def test_narrow_weights_are_close_to_float32(
    model_path: Path, expected: tuple[list[int], torch.Tensor], dtype: str, tolerance: float
) -> None:
    files = open_model(str(model_path))
    split = SplitModel(load_split(model_path, 2, precision=Precision.of(dtype, on_cpu=True)))
    logits = split.logits(PROMPT)
    right = expected[1][: len(PROMPT)]
    error = (logits - right).norm() / right.norm()
    if SERVED[files.config.model_type].experts:  # rounding chooses where two are as good
        error = ((logits - right).norm(dim=1) / right.norm(dim=1)).median()
    assert error < tolerance


def test_every_served_family_has_a_case() -> None:
    assert SERVED.keys() == {make().model_type for make in FAMILIES.values()}
