"""`coordinator-cli perplexity` against a real cluster, and transformers over the same windows."""

import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from coordinator.perplexity.windows import WindowPlan
from stagecoach.client import Client
from stagecoach.contract.errors import InvalidArgumentError
from tests.byte_models import byte_backend, byte_model
from tests.clusters import running_engine
from tests.contract.echo_engine import serving
from tests.contract.http_door import in_background
from tests.layer_ranges import split_evenly
from tests.tiny_models import reference_model

TEXT = "The stage\u00a0coach left at dawn,\nwith nine passengers \N{GRINNING FACE}.\n" * 5
MAX_MODEL_LEN = 128
CONTEXT, STRIDE = 64, 20


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return byte_model(tmp_path_factory.mktemp("model"), max_model_len=MAX_MODEL_LEN)


@asynccontextmanager
async def cluster(model: Path) -> AsyncIterator[str]:
    # Serving ends with the engine, whose stages hold no prefixes from then on.
    no_cache = {"prefix_cache": False}
    async with (
        running_engine(
            model, split_evenly(6, 3), coordinator=no_cache, max_num_batched_tokens=24
        ) as engine,
        serving(engine) as address,
    ):
        yield address


@pytest.fixture(scope="module")
def address(model: Path) -> Iterator[str]:
    with in_background(cluster(model)) as found:
        yield found


def run(
    address: str, *arguments: str, stdin: bytes | None = None, command: str = "perplexity"
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "coordinator.cli", command, *arguments],
        env=os.environ | {"STAGECOACH_COORDINATOR": address},
        input=stdin,
        capture_output=True,
        timeout=120,
        check=False,
    )


def expected(model: Path, context: int, stride: int, limit: int | None = None) -> list[float]:
    """Negative log-likelihoods by transformers, one window after the other."""
    token_ids = byte_backend().encode(TEXT).ids[:limit]
    reference: Any = reference_model(model)
    found: list[float] = []
    for start, first, end in WindowPlan(context=context, stride=stride, num_begin_tokens=0).windows(
        len(token_ids)
    ):
        ids = torch.tensor(token_ids[start:end])
        with torch.no_grad():
            logprobs = torch.log_softmax(reference(ids[None]).logits[0].double(), dim=1)
        found += (-logprobs[i - 1, ids[i]].item() for i in range(first - start, end - start))
    return found


@pytest.mark.parametrize(
    ("options", "context", "stride", "limit"),
    [
        ((), MAX_MODEL_LEN, MAX_MODEL_LEN // 2, None),
        (("--context", "64", "--stride", "20", "--concurrency", "1"), CONTEXT, STRIDE, None),
        (("--context", "64", "--stride", "20", "--limit", "90"), CONTEXT, STRIDE, 90),
    ],
)
def test_the_figures_are_those_of_transformers(
    options: tuple[str, ...],
    context: int,
    stride: int,
    limit: int | None,
    model: Path,
    address: str,
    tmp_path: Path,
) -> None:
    file = tmp_path / "text"
    file.write_text(TEXT)
    done = run(address, str(file), "--json", *options)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    surprise = expected(model, context, stride, limit)
    mean = statistics.mean(surprise)
    error = statistics.stdev(surprise) / math.sqrt(len(surprise))
    assert found["tokens"] == len(surprise)
    assert (found["context"], found["stride"]) == (context, stride)
    assert found["mean_nll"] == pytest.approx(mean, rel=1e-5)
    assert found["mean_nll_error"] == pytest.approx(error, rel=1e-4)
    assert found["perplexity"] == pytest.approx(math.exp(mean), rel=1e-4)
    assert found["standard_error"] == pytest.approx(math.exp(mean) * error, rel=1e-3)
    assert found["bits_per_byte"] == pytest.approx(mean / math.log(2), rel=1e-5)  # a byte a token
    assert b"tokens: perplexity" in done.stderr


def test_people_get_two_lines_of_what_is_piped_in(address: str) -> None:
    done = run(address, "-", stdin=TEXT.encode())
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.decode().splitlines()
    assert first.startswith("perplexity ")
    assert " +/- " in first
    assert second.startswith(f"{len(TEXT.encode()) - 1} tokens in windows of 128 every 64; ")


def test_one_token_has_no_standard_error(address: str) -> None:
    done = run(address, "-", "--json", stdin=b"ab")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout, parse_constant=pytest.fail)
    assert found["tokens"] == 1
    assert (found["standard_error"], found["mean_nll_error"]) == (None, None)
    assert found["perplexity"] == pytest.approx(math.exp(found["mean_nll"]))
    lines = run(address, "-", "--limit", "2", stdin=TEXT.encode()).stdout.decode().splitlines()
    assert "+/-" not in lines[0]
    assert lines[1].startswith("1 token in windows of ")


@pytest.mark.parametrize(
    ("data", "options", "code", "words"),
    [
        (b"", (), 2, "is empty"),
        (b"a", (), 2, "the text has 1 tokens, must have at least 2"),
        (b"a\xff", (), 2, "is not UTF-8 text: invalid start byte at byte 1"),
        (b"abc", ("--context", "129"), 2, "--context is 129, the cluster takes 128 tokens"),
        (b"abc", ("--context", "8", "--stride", "8"), 2, "--stride is 8, must be from 1 to 7"),
        (None, (), 1, "cannot read file"),
    ],
)
def test_what_cannot_be_measured_is_said_in_one_line(
    data: bytes | None,
    options: tuple[str, ...],
    code: int,
    words: str,
    address: str,
    tmp_path: Path,
) -> None:
    file = tmp_path / "text"
    if data is not None:
        file.write_bytes(data)
    done = run(address, str(file), *options)
    assert done.returncode == code
    assert done.stdout == b""
    [line] = done.stderr.decode().splitlines()
    assert line.startswith("coordinator-cli: ")
    assert words in line


def test_the_sdk_brings_log_probabilities_of_a_prompt(model: Path, address: str) -> None:
    token_ids = byte_backend().encode(TEXT).ids[:100]
    surprise = expected(model, MAX_MODEL_LEN, 1, 100)
    with Client(address) as client:
        done = client.complete(token_ids, max_tokens=2, prompt_logprobs=3, ignore_eos=True)
        bare = client.complete(token_ids, max_tokens=0, prompt_logprobs=0)
        alone = client.complete(token_ids[:1], max_tokens=0, prompt_logprobs=0)
        none = client.complete(token_ids[:1], max_tokens=1)
    assert len(done.token_ids) == 2
    assert bare.token_ids == ()
    assert bare.usage.num_completion_tokens == 0
    assert alone.prompt_logprobs == (None,)
    assert none.prompt_logprobs == ()
    for completion, num_top in ((done, 3), (bare, 0)):
        first, *others = completion.prompt_logprobs
        assert first is None
        assert len(others) == len(surprise)
        for one, loss in zip(others, surprise, strict=True):
            assert one is not None
            assert one.logprob == pytest.approx(-loss, abs=1e-4)
            assert len(one.top) == num_top
            assert one.rank >= 1
            if num_top and one.rank <= num_top:
                assert one.top[one.rank - 1][1] == one.logprob


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"prompt_logprobs": 21}, "prompt_logprobs"),
        ({"prompt_logprobs": "x"}, "prompt_logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
    ],
)
def test_the_sdk_names_what_is_refused(options: dict[str, Any], field: str, address: str) -> None:
    with Client(address) as client, pytest.raises(InvalidArgumentError) as caught:
        client.complete("ab", **options)
    assert caught.value.field == field


def test_generate_prints_them_with_a_completion(address: str) -> None:
    done = run(
        address, "abc", "--prompt-logprobs", "1", "--max-tokens", "1", "--json", command="generate"
    )
    assert done.returncode == 0, done.stderr
    first, *others = json.loads(done.stdout)["prompt_logprobs"]
    assert first is None
    assert len(others) == 2
    for one in others:
        assert set(one) == {"logprob", "rank", "top"}
        assert (one["top"][0]["logprob"] == one["logprob"]) == (one["rank"] == 1)
