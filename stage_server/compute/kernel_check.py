"""Decides at start whether a stage runs by kernels of ours: each is compiled, run and compared.

Triton needs a C compiler on the machine, and a card may compute what nobody has tested. So every
kernel that the stage's layers need runs once on small random data, beside its twin in operations
of torch. Where one fails or differs, the stage says so and computes by the twins.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch

from stage_server.core.batch import SequenceSlice
from stage_server.core.torch_dtypes import torch_dtype
from stage_server.kernels import kernels as fused
from stage_server.kernels import twins
from stage_server.kernels.kernels import Kernels
from stage_server.kv_cache.coded_heads import MAX_CODE, decoded
from stage_server.kv_cache.kv_pool import KvPool, KvViews, NewKv
from stage_server.kv_cache.paged_attention import PagedAttention
from stage_server.kv_cache.slot_tables import SlotTables
from stage_server.kv_cache.step_indices import StepIndices
from stage_server.model.blueprint import AttentionTraits, Blueprint, layer_prefix
from stage_server.model.lean_layers import is_lean, residual_scale
from stagecoach.contract.precision import KvFormat, Precision

_TOLERANCES = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 8e-2}
"""Largest `difference` of what is taken for the same, by compute dtype."""

_CODE = 1.01 / MAX_CODE
"""A little more than two neighbouring codes of 8 bits differ by, as a share of the largest number:
sums that are taken in another order may be rounded to either."""

_LENGTHS = (300, 9)
"""Lengths of the sequences whose KV the pool holds."""

_STEPS = (
    ("decode attention", (SequenceSlice(0, 2, 1),)),
    ("decode attention", (SequenceSlice(0, 299, 1), SequenceSlice(1, 8, 1))),
    ("attention of chunks", (SequenceSlice(0, 260, 40), SequenceSlice(1, 0, 9))),
)
"""What is attended: within one part; in several, some empty; behind a context and without."""

_MAX_WINDOW = 100
"""What a window is cut to, so that those sequences are longer."""

_NUM_TOKENS = 3

_log = logging.getLogger(__name__)

_Pair = tuple[str, torch.Tensor, torch.Tensor]
"""What was computed, by a kernel and by its twin."""


class Comparison(NamedTuple):
    """What a kernel computed beside its twin."""

    name: str
    """Name of what was computed, for people."""
    difference: float
    """The largest of any element, as a share of the largest element or of 1; may be NaN."""


_MAX_HEAD_DIM = 256
"""Most elements of a head that kernels of attention take: more do not fit the registers."""


def find_kernels(
    blueprint: Blueprint, block_size: int, precision: Precision, device: torch.device
) -> Kernels | None:
    """Returns the kernels that the stage's layers run by; None: there are none, or they fail.

    Takes seconds the first time on a machine, as Triton compiles and keeps what it has compiled.

    Args:
        blueprint: What the layers are.
        block_size: Tokens of a KV block.
        precision: The formats of its numbers.
        device: Where they run.

    Raises:
        torch.OutOfMemoryError: The device has no memory left.
        torch.AcceleratorError: The device is lost.
    """
    if device.type != "cuda":
        return None
    if any(traits.head_dim > _MAX_HEAD_DIM for traits in blueprint.traits):
        _log.info("attention gathers: there are no kernels for heads so wide")
        return None
    kernels = Kernels.of(device)
    failure = failure_of(kernels, blueprint, block_size, precision, device)
    if failure is None:
        return kernels
    _log.warning(
        "kernels cannot be used: attention gathers, which is slower",
        extra={"device": str(device), "reason": failure},
    )
    return None


@torch.inference_mode()
def failure_of(
    kernels: Kernels,
    blueprint: Blueprint,
    block_size: int,
    precision: Precision,
    device: torch.device,
) -> str | None:
    """Runs every kernel that the layers need; returns what is wrong, or None.

    Raises:
        torch.OutOfMemoryError: The device has no memory left.
        torch.AcceleratorError: The device is lost.
    """
    try:
        for name, differs_by in comparisons(kernels, blueprint, block_size, precision, device):
            if not differs_by <= tolerance(precision):  # a NaN differs too
                return f"{name} differs from its twin by {differs_by:.2g}"
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except Exception as error:  # Triton and what it calls raise errors of every class
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return None


def tolerance(precision: Precision) -> float:
    """Returns the largest `difference` of what is taken for the same."""
    of_arithmetic = _TOLERANCES[torch_dtype(precision.compute)]
    return of_arithmetic if precision.kv.dtype is not None else max(of_arithmetic, _CODE)


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Returns the largest difference, as a share of the largest expected element or of 1."""
    scale = max(1.0, float(expected.abs().max()))
    return float((found - expected).abs().max()) / scale


@torch.inference_mode()
def comparisons(
    kernels: Kernels,
    blueprint: Blueprint,
    block_size: int,
    precision: Precision,
    device: torch.device,
) -> Iterator[Comparison]:
    """Runs every kernel that the layers need beside its twin, on small random data.

    Args:
        kernels: Kernels of the device.
        blueprint: What the layers are.
        block_size: Tokens of a KV block.
        precision: The formats of its numbers.
        device: Where they run: CUDA, or the CPU for Triton's interpreter.

    Raises:
        Exception: Triton, or what it calls, fails; of any class.
    """
    for name, found, expected in _pairs(kernels, blueprint, block_size, precision, device):
        yield Comparison(name, difference(found, expected))


def _pairs(
    kernels: Kernels,
    blueprint: Blueprint,
    block_size: int,
    precision: Precision,
    device: torch.device,
) -> Iterator[_Pair]:
    generator = torch.Generator().manual_seed(0)
    dtype = torch_dtype(precision.compute)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    num_heads = blueprint.config.num_attention_heads
    for traits in _kinds(blueprint.traits):
        pool = KvPool(
            num_layers=1,
            num_blocks=sum(-(-length // block_size) for length in _LENGTHS),
            block_size=block_size,
            num_kv_heads=traits.num_kv_heads,
            head_dim=traits.head_dim,
            kv_format=precision.kv,
            device=device,
        )
        slots = torch.arange(pool.num_blocks * block_size, device=device)
        shape = len(slots), traits.num_kv_heads, traits.head_dim
        pool.layer(0).store(slots, NewKv(random(*shape), random(*shape)))
        for name, slices in _STEPS:
            num_tokens = sum(piece.num_tokens for piece in slices)
            query = random(num_tokens, num_heads, traits.head_dim)
            new = random(2, num_tokens, traits.num_kv_heads, traits.head_dim)
            found, expected = (
                _attention(pool, slices, choice).attend(
                    0,
                    query,
                    new[0],
                    new[1],
                    scaling=traits.scaling,
                    sliding_window=traits.sliding_window,
                    softcap=traits.softcap,
                    sinks=random(num_heads) if traits.has_sinks else None,
                )
                for choice in (kernels, None)
            )
            yield name, found, expected
    if is_lean(blueprint):
        yield from _lean_pairs(blueprint, precision.kv, random)


def _lean_pairs(
    blueprint: Blueprint, kv_format: KvFormat, random: Callable[..., torch.Tensor]
) -> Iterator[_Pair]:
    sources, prefix = blueprint.layer_sources()[0], layer_prefix(blueprint.range.start)
    eps = blueprint.norm_eps
    num_kv_heads, head_dim = blueprint.traits[0].num_kv_heads, blueprint.traits[0].head_dim
    num_rotated = blueprint.config.num_attention_heads + num_kv_heads
    heads = random(_NUM_TOKENS, num_rotated + num_kv_heads, head_dim)
    cos, swapped_sin, _ = random(_NUM_TOKENS, 3, head_dim).unbind(1)
    head_norm = None
    if f"{prefix}self_attn.q_norm.weight" in sources:
        head_norm = random(num_rotated, head_dim)
    pool = KvPool(
        num_layers=1,
        num_blocks=1,
        block_size=_NUM_TOKENS,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        kv_format=kv_format,
        device=heads.device,
    )
    keys, values = pool.layer(0)
    slots = torch.arange(_NUM_TOKENS, device=heads.device).flip(0)
    query = fused.rotate_and_store(
        heads,
        cos,
        swapped_sin,
        head_norm=head_norm,
        eps=eps,
        slots=slots,
        keys=keys.rows,
        values=values.rows,
        key_scales=keys.scales,
        value_scales=values.scales,
    )
    rotated = twins.rotate(
        heads, cos, swapped_sin, head_norm=head_norm, eps=eps, num_kv_heads=num_kv_heads
    )
    yield "rotation of queries", query, rotated.queries
    yield "rotation of keys", _numbers(keys, heads.dtype), rotated.keys.flip(0)
    yield "storage of values", _numbers(values, heads.dtype), rotated.values.flip(0)
    gate_up = random(_NUM_TOKENS, 2 * sources[f"{prefix}mlp.gate_proj.weight"].num_rows)
    yield "gate", fused.silu_and_mul(gate_up), twins.silu_and_mul(gate_up)
    hidden, update = random(2, _NUM_TOKENS, blueprint.config.hidden_size)
    weight = random(blueprint.config.hidden_size)
    scale = residual_scale(blueprint)
    found = fused.add_rms_norm(hidden, update, weight, scale=scale, eps=eps)
    expected = twins.add_rms_norm(hidden, update, weight, scale=scale, eps=eps)
    yield "residual", found[0], expected[0]
    yield "norm of the residual", found[1], expected[1]


def _numbers(cache: KvViews, dtype: torch.dtype) -> torch.Tensor:
    """`[num_slots, num_kv_heads, head_dim]`."""
    return cache.rows if cache.scales is None else decoded(cache.rows, cache.scales, dtype)


def _kinds(layers: Sequence[AttentionTraits]) -> set[AttentionTraits]:
    """The layers' traits, each once, with windows that the sequences of the check fill."""
    return {
        traits._replace(
            sliding_window=traits.sliding_window and min(traits.sliding_window, _MAX_WINDOW)
        )
        for traits in layers
    }


def _attention(
    pool: KvPool, slices: Sequence[SequenceSlice], kernels: Kernels | None
) -> PagedAttention:
    """Attention of sequences that the pool holds as far as the slices begin."""
    tables = SlotTables(pool.num_blocks, pool.block_size)
    tables.apply(
        [],
        [
            SequenceSlice(piece.kv_slot, 0, piece.start_position)
            for piece in slices
            if piece.start_position
        ],
    )
    plan = tables.apply([], slices)
    indices = StepIndices.of(
        slices,
        plan,
        torch.empty(0),
        block_size=pool.block_size,
        device=pool.device,
        max_gathered_tokens=None if kernels is not None else pool.max_gathered_tokens,
    )
    return PagedAttention(pool, slices, plan, indices, kernels)
