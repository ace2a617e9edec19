"""Triton's interpreter, as the tests of kernels use it: in a process with TRITON_INTERPRET=1."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle


def compute_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the interpreter multiply bfloat16, and make it of integers.

    It multiplies its bits as integers, and writes numpy's integers where bits are asked for.
    """
    multiply, convert = InterpreterBuilder.create_dot, InterpreterBuilder.create_si_to_fp

    def wide(handle: Any) -> Any:
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return multiply(self, wide(a), wide(b), *rest)

    def create_si_to_fp(self: Any, source: Any, target: Any) -> Any:
        if target.scalar != tl.bfloat16:
            return convert(self, source, target)
        bits = source.data.astype(np.float32).view(np.uint32)
        assert not (bits & 0xFFFF).any(), "bfloat16 would round these"
        return TensorHandle((bits >> 16).astype(np.uint16), tl.bfloat16)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)
    monkeypatch.setattr(InterpreterBuilder, "create_si_to_fp", create_si_to_fp)


class Traffic:
    """Bytes that kernels load and store by their own index arithmetic."""

    num_bytes = 0


@contextmanager
def counted_traffic() -> Iterator[Traffic]:
    """Counts what kernels load and store inside; what a mask leaves out costs nothing."""
    traffic = Traffic()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("create_masked_load", "create_masked_store"):
            access = getattr(InterpreterBuilder, name)
            of_mask = 1 if name == "create_masked_load" else 2

            def counting(
                self: Any, *args: Any, access: Any = access, of_mask: int = of_mask
            ) -> Any:
                bits = args[0].dtype.scalar.element_ty.primitive_bitwidth
                traffic.num_bytes += int(args[of_mask].data.sum()) * bits // 8
                return access(self, *args)

            patch.setattr(InterpreterBuilder, name, counting)
        yield traffic
