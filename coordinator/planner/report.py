"""Everything that `plan` answers, as one value."""

from collections.abc import Sequence
from dataclasses import dataclass

from coordinator.planner.plan import Plan, make_plan
from coordinator.planner.prediction import (
    OVERHEAD_PER_STAGE_S,
    Conditions,
    Prediction,
    predict,
    time_to_first_token_s,
)
from coordinator.planner.what_if import WhatIf, what_if
from stagecoach.contract.precision import Encoding, KvFormat
from stagecoach.model_files.config import ModelConfig
from stagecoach.model_files.model_files import KeptMatrices
from stagecoach.roofline.card_precision import automatic_dtype, dtype_of_all
from stagecoach.roofline.devices import Gpu
from stagecoach.roofline.model_shape import ModelShape, device_precision
from stagecoach.roofline.networks import Network


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanReport:
    """A plan, what was assumed, and what follows."""

    model_id: str
    plan: Plan
    is_automatic_dtype: bool
    """True when `--dtype auto` stands for the plan's dtype on all GPUs; else it must be given."""
    conditions: Conditions
    max_model_len: int
    """Longest sequence that the model was made for and that the cluster has room for."""
    time_to_first_token_s: float
    """Time to the first token of a prompt as long as the sequences, on an idle cluster."""
    predictions: tuple[Prediction, ...]
    """Predictions for each batch size, in the order asked for."""
    what_ifs: tuple[WhatIf, ...]
    """Predictions for other GPUs at the smallest and the largest batch size; empty unless asked
    for."""


def make_report(
    model_id: str,
    config: ModelConfig,
    gpus: Sequence[Gpu],
    *,
    weights: Encoding | None,
    kept: KeptMatrices | None,
    kv_format: KvFormat | None,
    network: Network,
    efficiency: float,
    overhead_s: float | None,
    max_model_len: int | None,
    context_tokens: int,
    batch_sizes: Sequence[int],
    with_what_if: bool,
) -> PlanReport:
    """Plans a cluster and predicts its speed.

    Args:
        model_id: Name of the model, for people.
        config: The model.
        gpus: All are used.
        weights: Few bits in which matrices are kept; None: they have the dtype.
        kept: What matrices take, where they are kept in the bits of their files and these say it.
        kv_format: How keys and values are kept; None: they have the dtype.
        network: What joins them.
        efficiency: Share (0, 1] of their figures that the GPUs reach.
        overhead_s: What the software adds to a step; None: `OVERHEAD_PER_STAGE_S` for each stage.
        max_model_len: Length of a sequence whose KV must fit; None: that of `context_tokens`.
        context_tokens: Tokens that each sequence holds while its speed is predicted.
        batch_sizes: To predict.
        with_what_if: Predict other GPUs too.

    Raises:
        IncompatibleError: The GPUs have no dtype of 16 bits in which the model can be computed.
        InsufficientMemoryError: It does not fit.
        InvalidArgumentError: There are too many GPUs.
        UnsupportedModelError: The cost of the model is not known.
    """
    dtype = dtype_of_all(config, gpus)
    precision = device_precision(dtype)
    if weights is not None:
        precision = precision._replace(weights=weights)
    if kv_format is not None:
        precision = precision._replace(kv=kv_format)
    plan = make_plan(
        ModelShape.of(config, precision, kept),
        gpus,
        context_tokens=context_tokens,
        min_kv_tokens=max(max_model_len or 0, context_tokens),
    )
    conditions = Conditions(
        network=network,
        efficiency=efficiency,
        overhead_s=OVERHEAD_PER_STAGE_S * len(gpus) if overhead_s is None else overhead_s,
        context_tokens=context_tokens,
    )
    asked = sorted({min(batch_sizes), max(batch_sizes)}) if with_what_if else []
    return PlanReport(
        model_id=model_id,
        plan=plan,
        is_automatic_dtype=dtype is automatic_dtype(config),
        conditions=conditions,
        max_model_len=min(max_model_len or config.max_model_len, plan.kv_tokens),
        time_to_first_token_s=time_to_first_token_s(plan, conditions),
        predictions=tuple(predict(plan, size, conditions) for size in batch_sizes),
        what_ifs=tuple(answer for size in asked for answer in what_if(plan, size, conditions)),
    )
