"""Engines on a fake card: real layers of any configuration, with weights that are only shapes."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, cast
from unittest import mock

import torch

from stage_server.compute.blank_batch import blank_batch
from stage_server.compute.torch_engine import TorchEngine
from stage_server.core.batch import ForwardBatch, SequenceSlice
from stage_server.core.config import StageConfig
from stage_server.kernels.kernels import Kernels
from stage_server.model.coded_rows import GROUP_SIZE, CodedRows
from stage_server.model.cuda_grouped_rows import CudaRows
from stage_server.model.grouped_linear import GroupedFormat
from stage_server.model.layer_stack import LayerStack, _blueprint, _layers_type, _weight_plan
from stage_server.model.linear_formats import linear_format
from stage_server.model.weight_loader import WeightLoader
from stage_server.model.weight_plan import WeightPlan
from stage_server.model.weights import Run, WeightSource
from stagecoach.contract.layer_range import LayerRange
from stagecoach.contract.logits_request import LogitsRequest
from stagecoach.contract.precision import FEW_BITS, DType, KvFormat, Precision
from stagecoach.contract.slot_ops import SlotOp
from stagecoach.model_files import ModelFiles, TensorReader, open_model
from stagecoach.roofline.card_precision import AUTO
from tests.gpu.fake_card import CUDA
from tests.shapes_only import ShapesOnly

KERNELS = Kernels(num_processors=28)
"""Those of a card such as the RTX 3060."""

GEMMA2: dict[str, Any] = {
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "sliding_window": 4096,
    "max_position_embeddings": 8192,
}
"""Sizes of Gemma 2 of 2 B, for `tiny_files`: it caps scores."""


def shape_files(name: str) -> ShapesOnly:
    """A model of the table of shapes."""
    return ShapesOnly(name, open_model(f"shape:{name}").config)


class _EmptyWeights(WeightSource):
    """Gives every parameter memory and no values."""

    def __init__(self, plan: WeightPlan) -> None:
        super().__init__(cast("TensorReader", None), plan, max_peek_elements=1 << 22)

    def are_equal(self, first: str, second: str) -> bool:
        return self._made_of(first).tensors == self._made_of(second).tensors

    def load(self, name: str, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        return torch.empty(self.shape(name), dtype=dtype, device=device)

    def runs(self, name: str) -> list[Run]:
        return [Run(0, self.shape(name)[0], None)]

    def peek(self, name: str, start: int, end: int) -> torch.Tensor:
        return torch.empty(end - start, *self.shape(name)[1:])


def fake_stack(
    files: ModelFiles,
    layers: LayerRange,
    *,
    dtype: DType = DType.FLOAT16,
    kv_dtype: str = AUTO,
    weights: str = AUTO,
    lean: bool = True,
    kernels: Kernels | None = None,
) -> LayerStack:
    """Makes the layers of a stage on the card that is in.

    Args:
        files: The model.
        layers: Of the stage.
        dtype: Of everything but KV.
        kv_dtype: As `StageConfig.kv_dtype`.
        weights: auto, int4 or int8, as `StageConfig.weights`.
        lean: False: layers by transformers' modules in any case.
        kernels: Those of the card; None: it has none.
    """
    precision = Precision.uniform(dtype)
    if kv_dtype != AUTO:
        precision = precision._replace(kv=KvFormat.named(kv_dtype))
    format_ = linear_format(precision, CUDA)
    if weights != AUTO:
        precision = precision._replace(weights=FEW_BITS[weights])
        forms = CudaRows(dtype, CUDA, has_tensor_cores=True)
        format_ = GroupedFormat(forms, 4 if weights == "int4" else 8, keeps_own=False)
    with mock.patch.object(torch.nn.Linear, "reset_parameters"):  # slow, and in vain
        blueprint, runs_lean = _blueprint(files, layers, lean=lean)
    layers_type = _layers_type(runs_lean=runs_lean, kernels=kernels)
    source = _EmptyWeights(_weight_plan(blueprint, layers_type))
    loader = WeightLoader(source, format_, precision, CUDA)
    with (
        torch.inference_mode(),
        mock.patch("stage_server.model.grouped_linear._parts", _blank_rows),
    ):
        return LayerStack(blueprint, layers_type, loader, precision, kernels)


def _blank_rows(source: WeightSource, weight: str, run: Run, *_: object) -> Iterator[CodedRows]:
    """Codes of no values, all rows at once: reading and rounding thousands of parts takes long."""
    num_rows, num_columns = run.end - run.start, source.shape(weight)[1]
    scales = torch.empty(num_rows, -(-num_columns // GROUP_SIZE))
    yield CodedRows(torch.empty(num_rows, num_columns, dtype=torch.uint8), scales, scales)


def fake_engine(
    files: ModelFiles,
    layers: LayerRange,
    *,
    lean: bool = True,
    kernels: Kernels | None = None,
    **settings: Any,
) -> TorchEngine:
    """Makes an engine on the card that is in; `settings` are of its configuration."""
    config = StageConfig(model=files.model_id, layers=layers, **settings)
    stack = fake_stack(
        files,
        layers,
        kv_dtype=config.kv_dtype,
        weights=config.weights,
        lean=lean,
        kernels=kernels,
    )
    return TorchEngine(config, files, stack)


def batch_for(
    engine: TorchEngine,
    slices: Sequence[SequenceSlice],
    *,
    slot_ops: Sequence[SlotOp] = (),
    logits: Sequence[LogitsRequest] = (),
) -> ForwardBatch:
    """Makes a micro-batch that the engine's stage can take."""
    blank = blank_batch(engine._stack, slices, LogitsRequest(row=0, num_candidates=1))
    return replace(
        blank, slot_ops=tuple(slot_ops), logits=tuple(logits) if engine.info.is_last else ()
    )
