"""EleutherAI's lm_eval against the HTTP door, unchanged; its figures against transformers.

It brings ninety packages, pyarrow and scipy among them, which nothing else here needs. So it has an
environment of its own, which `make test-lm-eval` makes, and `make test` leaves it out. What it
sends is in `tests/contract/client_bodies` too, which `make test` reads.
"""

import json
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.byte_models import byte_backend, byte_model
from tests.clusters import running_engine
from tests.contract.http_door import in_background, serving_http
from tests.layer_ranges import split_evenly
from tests.tiny_models import reference_model

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / "build" / "lm-eval" / "bin" / "python"
MODEL = "llama"
BEGIN, END = 1, 2
CHOICES = {
    "The opposite of hot is": [" cold", " seven", " a"],
    "Caf\u00e9 cr\u00e8me \N{GRINNING FACE}:": [" noir", " \u00e9t\u00e9"],
}
TEXTS = ["The stagecoach left at dawn.", "Na\u00efve caf\u00e9 \N{GRINNING FACE}."]
QUESTIONS = ["1 2 3", "a b c d"]
MAX_NEW_TOKENS = 8

pytestmark = pytest.mark.lm_eval


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return byte_model(tmp_path_factory.mktemp("model"))


@asynccontextmanager
async def serving(model: Path) -> AsyncIterator[str]:
    async with (
        running_engine(model, split_evenly(6, 3), max_num_batched_tokens=24) as engine,
        serving_http(engine) as address,
    ):
        yield address


@pytest.fixture(scope="module")
def address(model: Path) -> Iterator[str]:
    with in_background(serving(model)) as found:
        yield found


def evaluate(address: str, kind: str, **options: Any) -> dict[str, Any]:
    done = subprocess.run(
        [
            *(str(PYTHON), str(Path(__file__).with_name("evaluate.py"))),
            *(f"http://{address}", MODEL, kind, json.dumps({"max_length": 256, **options})),
        ],
        env={
            **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
            "OPENAI_API_KEY": "none",
            "HF_DATASETS_OFFLINE": "1",
            "HF_HUB_OFFLINE": "1",
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def logits_of(model: Path, token_ids: list[int]) -> torch.Tensor:
    reference: Any = reference_model(model)
    with torch.no_grad():
        logits: torch.Tensor = reference(torch.tensor([token_ids])).logits[0].double()
    return logits


def ids_of(text: str) -> list[int]:
    ids: list[int] = byte_backend().encode(text).ids
    return ids


def likelihood(model: Path, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    """The log-likelihood of a continuation, and whether it is the greedy one."""
    rows = logits_of(model, [*context, *continuation])[len(context) - 1 : -1]
    logprobs = torch.log_softmax(rows, dim=1)
    total = sum(row[i].item() for row, i in zip(logprobs, continuation, strict=True))
    return total, rows.argmax(dim=1).tolist() == continuation


def continued(model: Path, prompt: list[int]) -> str:
    """The greedy continuation."""
    token_ids = list(prompt)
    for _ in range(MAX_NEW_TOKENS):
        token_id = int(logits_of(model, token_ids)[-1].argmax())
        if token_id == END:
            break
        token_ids.append(token_id)
    text: str = byte_backend().decode(token_ids[len(prompt) :])
    return text


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 1},
        {"batch_size": 4},
        {"batch_size": 2, "num_concurrent": 3},
    ],
    ids=["one by one", "in batches", "batches at once"],
)
def test_local_completions_gives_what_transformers_gives(
    model: Path, address: str, options: dict[str, Any]
) -> None:
    found = evaluate(address, "completions", tokenizer_backend="remote", **options)
    for answers, (question, choices) in zip(found["choices"], CHOICES.items(), strict=True):
        for [[total, is_greedy]], choice in zip(answers, choices, strict=True):
            expected = likelihood(model, ids_of(question), ids_of(choice))
            assert (total, is_greedy) == (pytest.approx(expected[0], abs=1e-2), expected[1])
    for [[total]], text in zip(found["texts"], TEXTS, strict=True):
        assert total == pytest.approx(likelihood(model, [BEGIN], ids_of(text))[0], abs=1e-2)
    assert found["questions"] == [[[continued(model, ids_of(one))]] for one in QUESTIONS]


def test_texts_are_continued_without_a_tokenizer_of_its_own(model: Path, address: str) -> None:
    found = evaluate(address, "completions", tokenizer_backend=None, batch_size=2)
    assert found["questions"] == [[[continued(model, ids_of(one))]] for one in QUESTIONS]


def test_local_chat_completions_continues_conversations(model: Path, address: str) -> None:
    found = evaluate(address, "chat")
    prompts = [ids_of(f"user: {one}\nassistant:") for one in QUESTIONS]
    assert found["questions"] == [[[continued(model, one)]] for one in prompts]
