"""Time of one product on the CPU by the form of its matrix and the number of tokens.

One matrix of each width of a Llama of 1.1 B, one after another, so that no weight is in a cache
when it is read. The forms take turns. Prints medians in milliseconds for all matrices, and how many
times as fast as float32 each form is.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import NamedTuple

import torch

from benchmarks.report import print_json, print_table
from stage_server.model.coded_rows import quantized
from stage_server.model.cpu_grouped_rows import MAX_FEW_TOKENS, Packed4, Packed8
from stage_server.model.dense_linear import DenseLinear

_SHAPES = ((2560, 2048), (2048, 2048), (11264, 2048), (2048, 5632))
"""Rows and columns of the matrices of a layer."""
_COPIES = 3
"""Layers; in 4 bits they are 84 MB."""

_Multiply = Callable[[torch.Tensor], torch.Tensor]


class Form(NamedTuple):
    """A way to keep matrices and to multiply by them."""

    name: str
    products: list[tuple[int, _Multiply]]
    """Columns of each matrix, and what multiplies by it."""


def forms() -> list[Form]:
    """Makes all matrices in every form."""
    products: dict[str, list[tuple[int, _Multiply]]] = {}
    generator = torch.Generator().manual_seed(0)
    for num_rows, num_columns in _SHAPES * _COPIES:
        weight = torch.randn(num_rows, num_columns, generator=generator) * num_columns**-0.5
        for name, multiply in _ways_to_multiply(weight).items():
            products.setdefault(name, []).append((num_columns, multiply))
    return [Form(name, made) for name, made in products.items()]


def _ways_to_multiply(weight: torch.Tensor) -> dict[str, _Multiply]:
    half = torch.ops.quantized.linear_prepack_fp16(weight, None)
    bfloat16 = DenseLinear(weight.bfloat16(), None)
    num_rows, num_columns = weight.shape
    four = Packed4([quantized(weight, 4)], num_rows, num_columns)
    eight = Packed8([quantized(weight, 8)], num_rows, num_columns)
    return {
        "float32": DenseLinear(weight, None),
        "float16": lambda hidden: torch.ops.quantized.linear_dynamic_fp16(hidden, half),
        "bfloat16": lambda hidden: bfloat16(hidden.bfloat16()),
        "int4 by operator": four.by_operator,
        "int4 unpacked": four.by_unpacking,
        "int8 by operator": eight.by_operator,
        "int8 unpacked": eight.by_unpacking,
    }


def times_ms(found: list[Form], num_tokens: int, repeats: int) -> dict[str, float]:
    """Medians of the time for all matrices, by form."""
    hidden = {columns: torch.randn(num_tokens, columns) for _, columns in _SHAPES}
    taken: dict[str, list[float]] = {form.name: [] for form in found}
    for _ in range(repeats):
        for form in found:
            started = time.perf_counter()
            for num_columns, multiply in form.products:
                multiply(hidden[num_columns])
            taken[form.name].append(1e3 * (time.perf_counter() - started))
    return {name: median(times) for name, times in taken.items()}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 128, 512])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with torch.inference_mode():
        found = forms()
        times = {count: times_ms(found, count, options.repeats) for count in options.tokens}
    if options.json:
        print_json({"threads": options.threads, "ms": times})
        return
    print_table(
        f"Products with {len(_SHAPES) * _COPIES} matrices, {options.threads} threads: ms (times as "
        f"fast as float32); a stage takes the operator up to {MAX_FEW_TOKENS} tokens",
        ["form", *(f"{count} tokens" for count in times)],
        [
            [name, *(f"{ms[name]:.1f} ({ms['float32'] / ms[name]:.2f})" for ms in times.values())]
            for name in next(iter(times.values()))
        ],
    )


if __name__ == "__main__":
    main()
