"""The windows of a text, and what is made of the log-probabilities of its tokens."""

import json
import math
import statistics
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.perplexity.measure import Measured
from coordinator.perplexity.report import print_json
from coordinator.perplexity.result import Perplexity
from coordinator.perplexity.text_tokens import pieces, text_tokens
from coordinator.perplexity.windows import WindowPlan
from stagecoach.client import AsyncClient
from stagecoach.contract.errors import InvalidArgumentError


@st.composite
def plans(draw: st.DrawFn) -> WindowPlan:
    num_begin_tokens = draw(st.integers(0, 2))
    context = draw(st.integers(num_begin_tokens + 2, 40))
    stride = draw(st.integers(1, context - num_begin_tokens - 1))
    return WindowPlan(context=context, stride=stride, num_begin_tokens=num_begin_tokens)


@given(plans(), st.integers(0, 200))
def test_every_token_is_counted_once_with_enough_before_it(plan: WindowPlan, count: int) -> None:
    counted: list[int] = []
    for window in plan.windows(count):
        assert 0 <= window.start < window.end <= count
        assert window.end - window.start + plan.num_begin_tokens <= plan.context
        new = range(window.first_counted, window.end)
        assert new
        assert new.start - window.start + plan.num_begin_tokens >= 1
        if window.start:
            assert new.start - window.start >= plan.num_text_tokens - plan.stride
        counted += new
    assert counted == list(range(0 if plan.num_begin_tokens else 1, count))


@pytest.mark.parametrize(
    ("context", "stride", "num_begin_tokens", "field"),
    [(2, 1, 1, "context"), (8, 8, 0, "stride"), (8, 7, 1, "stride"), (8, 0, 0, "stride")],
)
def test_windows_without_anything_before_a_token_are_refused(
    context: int, stride: int, num_begin_tokens: int, field: str
) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        WindowPlan(context=context, stride=stride, num_begin_tokens=num_begin_tokens)
    assert caught.value.field == field


def test_the_figures_are_those_of_the_textbook() -> None:
    logprobs = [-0.5, -2.0, -1.25, -4.0]
    found = Perplexity.of(logprobs, tokens_per_byte=0.25)
    surprise = [-one for one in logprobs]
    assert found.num_tokens == 4
    assert found.mean_nll == pytest.approx(statistics.mean(surprise))
    assert found.mean_nll_error == pytest.approx(statistics.stdev(surprise) / 2)
    assert found.perplexity == pytest.approx(statistics.geometric_mean(map(math.exp, surprise)))
    assert found.mean_nll_error is not None
    assert found.standard_error == pytest.approx(found.perplexity * found.mean_nll_error)
    assert found.bits_per_byte == pytest.approx(math.log2(found.perplexity) / 4)
    assert Perplexity.of([-1.0], tokens_per_byte=1.0).mean_nll_error is None


@pytest.mark.parametrize("logprobs", [[-1.0], [-1.0, -math.inf], [-800.0, -801.0]])
def test_the_json_is_json_whatever_came_out(
    logprobs: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    print_json(
        Measured(
            model_id="m",
            windows=WindowPlan(context=8, stride=4, num_begin_tokens=0),
            perplexity=Perplexity.of(logprobs, tokens_per_byte=1.0),
        )
    )
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert found["tokens"] == len(logprobs)
    assert (found["perplexity"] is None) == (sum(logprobs) < -700)


@given(st.text(alphabet="ab\n", max_size=60), st.integers(1, 10))
def test_pieces_of_a_text_are_the_text_and_end_with_lines(text: str, max_chars: int) -> None:
    found = list(pieces(text, max_chars))
    assert "".join(found) == text
    for piece in found:
        assert 1 <= len(piece) <= max_chars
    for piece in found[:-1]:
        assert piece.endswith("\n") or (len(piece) == max_chars and "\n" not in piece)


class BytesClient:
    """Every byte is a token."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    async def tokenize(
        self, prompt: str, *, model: str | None, add_special_tokens: bool = True
    ) -> list[int]:
        self.asked.append(len(prompt))
        return [1, *prompt.encode()] if add_special_tokens else list(prompt.encode())


@pytest.mark.parametrize(("limit", "longest"), [(None, 32_768), (64, 1024)])
async def test_no_more_of_a_long_line_is_tokenized_at_once_than_is_wanted(
    limit: int | None, longest: int
) -> None:
    client = BytesClient()
    found = await text_tokens(
        cast("AsyncClient", client), "x" * 160_000, max_model_len=1 << 20, num_wanted=limit
    )
    assert max(client.asked) == longest
    assert found.begin_ids == [1]
    assert found.num_bytes == len(found.token_ids) == (160_000 if limit is None else 1024)
