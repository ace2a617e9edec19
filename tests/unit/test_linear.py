"""Matrices: the form that they have, and that a row alone is what it is among others."""

import pytest
import torch

from stage_server.model.dense_linear import DenseFormat, DenseLinear
from stage_server.model.embeddings import PlainEmbedding
from stage_server.model.fbgemm_linear import FbgemmFormat
from stage_server.model.grouped_linear import GroupedFormat
from stage_server.model.linear_format import LinearFormat
from stage_server.model.linear_formats import linear_format
from stagecoach.contract.errors import InvalidArgumentError
from stagecoach.contract.precision import INT4, INT8, DType, Encoding, KvFormat, Precision

CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")


@pytest.mark.parametrize(
    ("precision", "device", "expected"),
    [
        (Precision.of("float32", on_cpu=True), CPU, DenseFormat),
        (Precision.of("bfloat16", on_cpu=True), CPU, DenseFormat),
        (Precision.of("float16", on_cpu=True), CPU, FbgemmFormat),
        (Precision.of("float16", on_cpu=False), CUDA, DenseFormat),
        (Precision.uniform(DType.FLOAT16)._replace(kv=KvFormat.FLOAT32), CUDA, DenseFormat),
        (Precision.uniform(DType.FLOAT32)._replace(weights=INT4), CPU, GroupedFormat),
        (Precision.uniform(DType.FLOAT32)._replace(weights=INT8), CPU, GroupedFormat),
    ],
)
def test_each_precision_has_its_form(
    precision: Precision, device: torch.device, expected: type[LinearFormat]
) -> None:
    assert isinstance(linear_format(precision, device), expected)


@pytest.mark.parametrize(
    ("weights", "compute", "device"),
    [
        (Encoding("q4_0", 32, 18), DType.FLOAT16, CUDA),
        (INT4, DType.BFLOAT16, CPU),
        (Encoding.plain(DType.FLOAT16), DType.FLOAT32, CUDA),
        (Encoding.plain(DType.BFLOAT16), DType.FLOAT32, CPU),
    ],
)
def test_a_precision_that_nothing_computes_in_is_refused_by_name(
    weights: Encoding, compute: DType, device: torch.device
) -> None:
    precision = Precision.uniform(compute)._replace(weights=weights)
    with pytest.raises(InvalidArgumentError) as caught:
        linear_format(precision, device)
    assert caught.value.field == "weights"
    assert caught.value.message == (
        f"weights in {weights.name} cannot be computed in {compute} on {device.type}"
    )


def test_a_head_shares_the_embedding_where_both_have_one_form() -> None:
    embedding = PlainEmbedding(torch.randn(7, 4))
    shared = linear_format(Precision.uniform(DType.FLOAT32), CPU).sharing(embedding)
    assert isinstance(shared, DenseLinear)
    assert shared.weight.data_ptr() == embedding.weight.data_ptr()
    packed = linear_format(Precision.of("float16", on_cpu=True), CPU)
    assert packed.sharing(embedding) is None


@pytest.mark.parametrize("in_features", [64, 1536, 4096])
@pytest.mark.parametrize("leading", [(), (1,)])
def test_in_bfloat16_a_lone_row_is_what_it_is_beside_another(
    in_features: int, leading: tuple[int, ...]
) -> None:
    """A kernel for one row rounded some elements differently, and seeds gave other texts."""
    generator = torch.Generator().manual_seed(0)
    scale = in_features**-0.5
    weight = (scale * torch.randn(96, in_features, generator=generator)).bfloat16()
    bias = torch.randn(96, generator=generator).bfloat16()
    linear = DenseLinear(weight, bias)
    rows = torch.randn(128, in_features, generator=generator).bfloat16()
    for first, second in rows.view(-1, 2, in_features):
        alone = linear(first.view(*leading, 1, in_features))
        assert alone.shape == (*leading, 1, 96)
        assert torch.equal(alone.view(96), linear(torch.stack([first, second]))[0])
