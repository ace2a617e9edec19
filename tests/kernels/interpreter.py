"""Triton's interpreter, as the tests of kernels use it: in a process with TRITON_INTERPRET=1."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle


def multiply_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the interpreter's matrix product take bfloat16, whose bits it multiplies as integers."""
    multiply = InterpreterBuilder.create_dot

    def wide(handle: Any) -> Any:
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return multiply(self, wide(a), wide(b), *rest)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", create_dot)


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
