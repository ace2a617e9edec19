"""Boxes that divide a model alike: by speed when they are alike, by memory when it is told."""

from itertools import pairwise

import pytest
from typer.testing import CliRunner

from stage_server.process.command import app
from stage_server.process.place import own_layers
from stagecoach.contract.errors import InsufficientMemoryError, InvalidArgumentError
from stagecoach.contract.layer_range import LayerRange
from stagecoach.model_files import open_model
from stagecoach.roofline.layer_split import split_layers
from stagecoach.roofline.model_shape import ModelShape
from stagecoach.roofline.stage_cost import StageCost

LLAMA_13B = open_model("shape:llama-2-13b").config
GIB = 2**30


def filled(memory_bytes: list[int]) -> list[float]:
    """Share of each stage's memory that its weights fill."""
    shape = ModelShape.of(LLAMA_13B)
    layers = split_layers(LLAMA_13B, len(memory_bytes), memory_bytes)
    weights = [StageCost(model=shape, layers=piece).weight_bytes for piece in layers]
    return [weight / memory for weight, memory in zip(weights, memory_bytes, strict=True)]


@pytest.mark.parametrize("name", ["llama-160m", "llama-2-13b", "llama-3.1-70b"])
@pytest.mark.parametrize("num_stages", [1, 2, 3, 5, 12])
def test_the_parts_are_the_whole_model_in_order(name: str, num_stages: int) -> None:
    config = open_model(f"shape:{name}").config
    layers = split_layers(config, num_stages)
    assert len(layers) == num_stages
    assert (layers[0].start, layers[-1].end) == (0, config.num_layers)
    assert all(before.end == after.start for before, after in pairwise(layers))


def test_the_last_stage_has_fewer_layers_where_the_head_is_large() -> None:
    """The head of llama-160m takes as long as three and a half of its layers."""
    layers = split_layers(open_model("shape:llama-160m").config, 3)
    assert [len(piece) for piece in layers] == [5, 5, 2]


def test_weights_fill_a_like_share_of_unequal_memory() -> None:
    shares = filled([8 * GIB, 12 * GIB, 12 * GIB])
    layer_share = ModelShape.of(LLAMA_13B).layer_matrix_bytes[0] / (8 * GIB)
    assert max(shares) - min(shares) < layer_share


def test_what_cannot_be_is_refused_with_numbers() -> None:
    with pytest.raises(InsufficientMemoryError, match=r"26031728640 bytes .* 25769803776 bytes"):
        split_layers(LLAMA_13B, 3, [8 * GIB] * 3)
    with pytest.raises(InvalidArgumentError, match="40 layers cannot be split over 41 stages"):
        split_layers(LLAMA_13B, 41)
    with pytest.raises(InvalidArgumentError, match="stage_memory has 2 sizes"):
        split_layers(LLAMA_13B, 3, [GIB, GIB])


def test_each_box_finds_its_own_part() -> None:
    parts = [
        own_layers(
            "shape:llama-2-13b", layers=None, stage=f"{index}/3", stage_memory="8GiB,12GiB,12GiB"
        )
        for index in (1, 2, 3)
    ]
    assert parts == split_layers(LLAMA_13B, 3, [8 * GIB, 12 * GIB, 12 * GIB])
    assert own_layers("demo", layers="3:9", stage=None, stage_memory=None) == LayerRange(3, 9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give either --layers or --stage"),
        (("--layers", "0:1", "--stage", "1/3"), "give either --layers or --stage"),
        (("--layers", "0:1", "--stage-memory", "8GiB"), "--stage-memory goes with --stage"),
        (("--stage", "0/3"), "'0/3' is not I/N"),
        (("--stage", "4/3"), "'4/3' is not I/N"),
        (("--stage", "2"), "'2' is not I/N"),
        (("--stage", "1/3", "--stage-memory", "8GiB,x,8GiB"), "'x' is not a size"),
    ],
)
def test_a_place_that_makes_no_sense_is_refused(arguments: tuple[str, ...], message: str) -> None:
    result = CliRunner().invoke(app, ["--model", "shape:llama-2-13b", *arguments])
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
