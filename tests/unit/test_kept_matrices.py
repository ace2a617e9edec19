"""What a GGUF file of several types is charged is what a card keeps of it, tensor by tensor."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from coordinator.planner.plan import make_plan
from stage_server.core.config import StageConfig
from stage_server.emulation.emulated_engine import EmulatedEngine
from stage_server.model.cuda_grouped_rows import CudaRows
from stage_server.model.grouped_linear import GroupedFormat
from stage_server.model.layer_stack import load_layer_stack
from stage_server.process.place import own_layers
from stagecoach.contract.errors import InsufficientMemoryError
from stagecoach.contract.layer_range import LayerRange
from stagecoach.contract.load_progress import LoadPhase, LoadProgress
from stagecoach.contract.precision import INT4, DType, Precision
from stagecoach.model_files import ModelFiles, open_model
from stagecoach.roofline.devices import gpu_named
from stagecoach.roofline.layer_split import split_layers
from stagecoach.roofline.model_shape import ModelShape
from stagecoach.roofline.stage_cost import StageCost
from tests.few_bits import QType, mix
from tests.tiny_models import NUM_LAYERS, tiny_gguf

CPU = torch.device("cpu")
FILES: dict[str, QType | Callable[[str], QType]] = {
    "Q4_0": mix(QType.Q4_0, QType.Q4_0, ends=QType.Q6_K),
    "Q4_1": QType.Q4_1,
    "Q4_K_M": mix(QType.Q4_K, QType.Q6_K),
    "Q5_K_M": mix(QType.Q5_K, QType.Q6_K),
    "Q8_0": QType.Q8_0,
    "Q4_0 beside F16": mix(QType.Q4_0, QType.F16, ends=QType.F16),
    "Q4_0 beside TQ2_0": mix(QType.Q4_0, QType.TQ2_0),
}
STAGES = [LayerRange(0, 2), LayerRange(1, 4), LayerRange(3, NUM_LAYERS), LayerRange(0, NUM_LAYERS)]


def mixed_file(folder: Path, name: str, *, is_tied: bool = False) -> ModelFiles:
    sizes: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 512}
    sizes["tie_word_embeddings"] = is_tied
    return open_model(str(tiny_gguf("llama", folder, quantization=FILES[name], **sizes)))


def shape_of(files: ModelFiles) -> ModelShape:
    assert files.encoding is not None
    precision = Precision.uniform(DType.FLOAT16)._replace(weights=files.encoding)
    return ModelShape.of(files.config, precision, files.kept_matrices)


@pytest.mark.parametrize("is_tied", [False, True], ids=["", "tied"])
@pytest.mark.parametrize("name", FILES)
def test_a_file_is_charged_at_what_a_card_keeps_of_it(
    name: str, is_tied: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = mixed_file(tmp_path, name, is_tied=is_tied)
    forms = CudaRows(DType.FLOAT16, CPU, has_tensor_cores=True)
    format_ = GroupedFormat(forms, 4 if files.encoding == INT4 else 8, keeps_own=True)
    monkeypatch.setattr("stage_server.model.layer_stack.linear_format", lambda *_, **__: format_)
    monkeypatch.setattr(CudaRows, "packed", CudaRows._kernel_rows)  # which launches nothing
    shape = shape_of(files)
    for layers in STAGES:
        stack = load_layer_stack(files, layers, precision=shape.precision, device=CPU)
        cost = StageCost(model=shape, layers=layers)
        assert cost.weight_bytes == stack.weight_bytes
        assert cost.num_parameters == stack.num_weights


def test_a_plan_and_an_emulated_stage_charge_a_file_of_several_types(tmp_path: Path) -> None:
    files = mixed_file(tmp_path, "Q4_K_M")
    shape = shape_of(files)
    alike = ModelShape.of(files.config, shape.precision)
    assert shape.weight_bytes > 1.05 * alike.weight_bytes
    gpus = [gpu_named("rtx-3060-12gb")] * 3
    plan = make_plan(shape, gpus, context_tokens=64, min_kv_tokens=64)
    assert sum(stage.cost.weight_bytes for stage in plan.stages) == shape.weight_bytes
    for stage in plan.stages:
        layers = stage.cost.layers
        config = StageConfig(
            model=files.model_id,
            layers=layers,
            engine="emulated",
            emulate="rtx-3060-12gb",
            kv_memory_bytes=1 << 20,
        )
        info = EmulatedEngine(config, files).info
        assert info.weight_bytes == stage.cost.weight_bytes
        assert info.num_weights == stage.cost.num_parameters
        rounded = EmulatedEngine(replace(config, weights="int4"), files).info
        assert rounded.weight_bytes == StageCost(model=alike, layers=layers).weight_bytes


def test_a_stage_of_so_many_layers_is_charged_at_the_heaviest(tmp_path: Path) -> None:
    shape = shape_of(mixed_file(tmp_path, "Q4_K_M"))
    for count in range(1, NUM_LAYERS - 1):
        starts = range(1, NUM_LAYERS - count)
        middle = [StageCost(model=shape, layers=LayerRange(i, i + count)) for i in starts]
        charged = StageCost.of_count(shape, count, is_first=False, is_last=False)
        assert charged.weight_bytes == max(stage.weight_bytes for stage in middle)


def test_boxes_are_told_apart_from_too_small_ones_by_what_the_file_takes(tmp_path: Path) -> None:
    files = mixed_file(tmp_path, "Q4_K_M")
    memory = shape_of(files).weight_bytes * 6 // 10
    layers = [
        own_layers(str(tmp_path / "llama.gguf"), layers=None, stage=f"{i}/2", stage_memory=sizes)
        for sizes in [f"{memory},{memory}"]
        for i in (1, 2)
    ]
    assert (layers[0].start, layers[0].end, layers[1].end) == (0, layers[1].start, NUM_LAYERS)
    with pytest.raises(InsufficientMemoryError):
        split_layers(files.config, 2, [memory, memory])


def test_the_bytes_to_load_are_those_of_the_types(tmp_path: Path) -> None:
    files = mixed_file(tmp_path, "Q4_K_M")
    told: list[LoadProgress] = []
    precision = Precision.uniform(DType.FLOAT32)._replace(weights=INT4)
    layers = LayerRange(1, 4)
    load_layer_stack(files, layers, precision=precision, device=CPU, report=told.append)
    loading = [one for one in told if one.phase is LoadPhase.LOADING]
    assert loading[-1].done_bytes == loading[-1].total_bytes
    kept = StageCost(model=shape_of(files), layers=layers).weight_bytes
    assert loading[-1].total_bytes == pytest.approx(kept, rel=0.02)
