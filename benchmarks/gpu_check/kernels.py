"""The check of the kernels: each beside its twin in operations of torch, in the shapes of models.

It is the comparison that a stage makes at start, for many models, with the differences as figures.
On a CPU, `run_check` lets them run in Triton's interpreter, which multiplies no bfloat16.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from benchmarks.gpu_check.kernel_shapes import QUICK_SHAPES, SHAPES, KernelShape, dtypes_of
from benchmarks.gpu_check.report import Figure, Limit
from benchmarks.gpu_check.subject import Subject
from stage_server.compute.kernel_check import Comparison, comparisons, tolerance
from stage_server.kernels.kernels import Kernels
from stage_server.model.cuda_grouped_rows import TOLERANCES as PRODUCT_TOLERANCES
from stage_server.model.cuda_grouped_rows import CudaRows
from stage_server.model.module_blueprint import ModuleBlueprint
from stagecoach.contract.layer_range import LayerRange
from stagecoach.contract.precision import DType, KvFormat, Precision
from stagecoach.roofline.kv_memory import KV_BLOCK_SIZE

_LAYERS = LayerRange(2, 4)
"""Neither end of the model; of families that alternate, one layer of each kind."""

_NUM_CPU_PROCESSORS = 4


class _Case(NamedTuple):
    shape: KernelShape
    dtype: DType
    kv: KvFormat

    @property
    def name(self) -> str:
        plain = f"{self.shape.name} {self.dtype}"
        return plain if self.kv.dtype == self.dtype else f"{plain}, KV in {self.kv}"

    @property
    def precision(self) -> Precision:
        return Precision.uniform(self.dtype)._replace(kv=self.kv)


def names(subject: Subject) -> Sequence[str]:
    """Names the rows."""
    return [*(case.name for case in _cases(subject)), *map(_few_bits, _dtypes(subject))]


def figures(subject: Subject) -> Iterator[Figure]:
    """Compares the kernels of one shape after another."""
    where = "" if subject.is_card else ", in Triton's interpreter"
    kernels = (
        Kernels.of(subject.device)
        if subject.is_card
        else Kernels(num_processors=_NUM_CPU_PROCESSORS)
    )
    for case in _cases(subject):
        blueprint = ModuleBlueprint(case.shape.files, _LAYERS)
        found = list(comparisons(kernels, blueprint, KV_BLOCK_SIZE, case.precision, subject.device))
        largest = max(found, key=_rank)
        yield Figure(
            case.name,
            largest.difference,
            "",
            Limit(most=tolerance(case.precision)),
            note=f"{largest.name}, of {len(found)} comparisons{where}",
            group=f"kernels beside their twins, {case.dtype}",
        )
    for of_products in _dtypes(subject):
        forms = CudaRows(
            of_products, subject.device, has_tensor_cores=None if subject.is_card else True
        )
        products = [Comparison(*found) for found in forms.comparisons()]
        largest = max(products, key=_rank)
        yield Figure(
            _few_bits(of_products),
            largest.difference,
            "",
            Limit(most=PRODUCT_TOLERANCES[forms.compute_dtype]),
            note=f"{largest.name}, of {len(products)} comparisons{where}",
            group=f"kernels beside their twins, {of_products}",
        )


def _few_bits(dtype: DType) -> str:
    return f"products in 4 and 8 bits {dtype}"


def _rank(comparison: Comparison) -> tuple[bool, float]:
    """By difference; NaN is above all."""
    is_nan = comparison.difference != comparison.difference
    return is_nan, comparison.difference


def _cases(subject: Subject) -> list[_Case]:
    return [
        _Case(shape, dtype, kv)
        for shape in (QUICK_SHAPES if subject.is_quick else SHAPES)
        for dtype in dtypes_of(shape)
        if _computes(subject, dtype)
        for kv in _kv_formats(dtype)
    ]


def _kv_formats(dtype: DType) -> list[KvFormat]:
    """The dtype's own, and in 16 bits also codes, which are multiplied on tensor cores."""
    own = KvFormat(dtype.value)
    return [own] if dtype is DType.FLOAT32 else [own, KvFormat.INT8]


def _dtypes(subject: Subject) -> list[DType]:
    return [dtype for dtype in DType if _computes(subject, dtype)]


def _computes(subject: Subject, dtype: DType) -> bool:
    """Whether the device has the dtype. What models overflow does not matter here."""
    if dtype is not DType.BFLOAT16:
        return True
    return subject.chosen.card is not None and subject.chosen.card.capability.has_bfloat16
