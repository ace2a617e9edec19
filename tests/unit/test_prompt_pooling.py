"""From sums of hidden states to embeddings, beside the obvious way."""

import numpy as np
import pytest

from coordinator.core.embedding import EmbeddingParams, Pooling
from coordinator.sampling.prompt_pooling import PromptPooling, check_finite
from stagecoach.contract.errors import InternalError

STATES = np.random.default_rng(3).normal(size=(37, 16)).astype(np.float32)


def pooled(params: EmbeddingParams, num_rows: int) -> list[float]:
    """What is made of the states, so many rows at a time."""
    pooling = PromptPooling(params, len(STATES))
    for start in range(params.first_position(len(STATES)), len(STATES), num_rows):
        pooling.add(STATES[start : start + num_rows].sum(axis=0).data)
    found = pooling.embedding()
    assert found is not None
    assert np.asarray(found).dtype == np.float32
    return list(found)


@pytest.mark.parametrize("num_rows", [1, 5, 37])
@pytest.mark.parametrize("pooling", Pooling)
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("dimensions", [None, 1, 7, 16])
def test_chunks_give_what_all_rows_at_once_give(
    pooling: Pooling, normalize: bool, dimensions: int | None, num_rows: int
) -> None:
    params = EmbeddingParams(pooling=pooling, normalize=normalize, dimensions=dimensions)
    states = STATES.astype(np.float64)
    expected = (states[-1] if pooling is Pooling.LAST else states.mean(axis=0))[:dimensions]
    if normalize:
        expected = expected / np.sqrt((expected**2).sum())
    assert pooled(params, num_rows) == pytest.approx(expected.tolist(), rel=1e-5, abs=1e-6)


def test_a_vector_of_zeros_has_no_length_that_could_be_made_one() -> None:
    pooling = PromptPooling(EmbeddingParams(), 3)
    pooling.add(np.zeros(4, np.float32).data)
    assert list(pooling.embedding() or ()) == [0.0] * 4


def test_nothing_is_made_of_nothing() -> None:
    assert PromptPooling(EmbeddingParams(), 3).embedding() is None


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_sum_that_is_not_finite_is_an_error(bad: float) -> None:
    check_finite(np.array([1.0, 2.0], np.float32).data)
    with pytest.raises(InternalError, match="NaN or infinite hidden states"):
        check_finite(np.array([1.0, bad], np.float32).data)
