"""A CUDA card that is not there: the engine runs on fake tensors, and what it does is counted.

torch's `FakeTensorMode` knows shapes, dtypes, devices and storages, and computes nothing. So the
whole engine runs as on a card: which kernels it launches, what crosses between host and card, how
many bytes live at once. A tensor on the wrong device fails as on a card. Values are zeros and say
nothing, and there are no times.

torch's CUDA build needs nothing for that. A CPU build lacks the guard that switches devices, and
indexing a CUDA tensor asks for one. There, while the card is in, CUDA borrows the guard of the meta
device, which does nothing: one pointer in a table that libc10 exports. That needs no compiler.
"""

import ctypes
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock
from weakref import WeakSet

import torch
import torch.nn.functional as F  # noqa: N812
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from stage_server.compute import noise

CUDA = torch.device("cuda:0")

_GUARDS = "_ZN3c104impl26device_guard_impl_registryE"
"""`c10::impl::device_guard_impl_registry`: a pointer for each type of device, by its number."""
_CUDA_INDEX, _META_INDEX = 1, 14
"""`c10::DeviceType`."""

_ALLOCATION_BYTES = 512
"""What torch's caching allocator rounds up to."""

_LAUNCH_NOTHING = {
    *("empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided"),
    "detach_",
}
"""Take memory, or change nothing on the card."""

WAIT = "wait for an event"

ASIDE = ", on a side stream"
"""Ends the names of copies and events that other work of the card does not delay."""

_GATHERS = {"index_select", "index", "embedding", "gather"}
"""Read as many rows of a tensor as they return."""

_SCATTERS = {"index_fill_", "index_put_", "index_copy_"}
"""Write rows of a KV pool."""

_POOLS = {"keys", "values", "key_scales", "value_scales", "pool", "pool_scales"}
"""Arguments of our kernels that are KV pools."""

_WAITS = {"nonzero", "masked_select", "_unique2", "equal", "is_nonzero"}
"""Operations whose result the host must see before it goes on."""


@dataclass(slots=True)
class Counts:
    """What one piece of work did on the card."""

    launches: Counter[str] = field(default_factory=Counter)
    """Kernels by the name of their operation, copies between host and card among them."""
    moved_bytes: Counter[str] = field(default_factory=Counter)
    """What these kernels read and write at least, by the same names, without KV in its pool."""
    transfers: Counter[str] = field(default_factory=Counter)
    """Copies between host and card, and other waits for the card, by what they are. None of them
    is asynchronous unless it says so."""
    crossings: list[str] = field(default_factory=list)
    """The transfers, and `WAIT` for each event that was waited for, in their order."""
    start_bytes: int = 0
    """That lived before."""
    peak_bytes: int = 0
    """That lived at once, those from before included."""

    @property
    def num_launches(self) -> int:
        """All of them."""
        return self.launches.total()

    @property
    def num_transfers(self) -> int:
        """All of them."""
        return self.transfers.total()

    @property
    def taken_bytes(self) -> int:
        """The most that lived at once beyond what lived before."""
        return self.peak_bytes - self.start_bytes


class FakeCard:
    """A card with so much memory, of which something outside of torch takes a part.

    Args:
        memory_bytes: Of the card.
        used_bytes: What others hold: the driver, a screen, another stage.
        records_graphs: False: CUDA invalidates every recording of a graph.
        ends_recordings: False: as torch without pytorch#180395, the allocator then goes on to
            believe in the recording, until it is told.
    """

    def __init__(
        self,
        *,
        memory_bytes: int = 80 << 30,
        used_bytes: int = 0,
        records_graphs: bool = False,
        ends_recordings: bool = True,
    ) -> None:
        self.records_graphs = records_graphs
        self.stream = self.main_stream = _Stream()
        self.ends_recordings = ends_recordings
        self.memory_bytes = memory_bytes
        self.used_bytes = used_bytes
        self.counts = Counts()
        self._recorded_pool: _GraphPool | None = None
        self._graphs: WeakSet[_Graph] = WeakSet()
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}
        self._live_bytes = 0
        self._peak_bytes = 0
        self._recorded: set[int] = set()

    @property
    def allocated_bytes(self) -> int:
        """What tensors hold now."""
        for key in [key for key, (storage, _) in self._live.items() if storage.expired()]:
            self._live_bytes -= self._live.pop(key)[1]
        return self._live_bytes

    @property
    def pooled_bytes(self) -> int:
        """What graphs hold for what they compute; it stays while one of their pool's is there."""
        return sum(pool.num_bytes for pool in {graph.pool for graph in self._graphs})

    @property
    def free_bytes(self) -> int:
        """What nobody holds."""
        return self.memory_bytes - self.used_bytes - self.allocated_bytes - self.pooled_bytes

    @contextmanager
    def record(self) -> Iterator[Counts]:
        """Counts what is done inside."""
        before, self.counts = self.counts, Counts(start_bytes=self.allocated_bytes)
        self.counts.peak_bytes = self.counts.start_bytes
        try:
            yield self.counts
        finally:
            self.counts = before

    def allocate(self, tensor: torch.Tensor) -> None:
        """Takes note of a tensor that an operation returned.

        Raises:
            torch.OutOfMemoryError: It does not fit.
        """
        storage = tensor.untyped_storage()
        reference = StorageWeakRef(storage)
        if reference.cdata in self._live and not self._live[reference.cdata][0].expired():
            return
        num_bytes = -(-storage.nbytes() // _ALLOCATION_BYTES) * _ALLOCATION_BYTES
        if reference.cdata in self._live:  # a storage that died had the same address
            self._live_bytes -= self._live.pop(reference.cdata)[1]
        self._live[reference.cdata] = (reference, num_bytes)
        self._live_bytes += num_bytes
        # Whatever died in the meantime is looked for only where it matters.
        if self._live_bytes > min(self._peak_bytes, self.counts.peak_bytes):
            live_bytes = self.allocated_bytes
            if live_bytes > self.memory_bytes - self.used_bytes:
                raise torch.OutOfMemoryError(f"CUDA out of memory. {num_bytes} bytes do not fit")
            self._peak_bytes = max(self._peak_bytes, live_bytes)
            self.counts.peak_bytes = max(self.counts.peak_bytes, live_bytes)

    def count_transfer(self, what: str) -> None:
        """Counts a copy between host and card, or another wait for the card."""
        if self.stream is not self.main_stream:
            what += ASIDE
        self.counts.transfers[what] += 1
        self.counts.crossings.append(what)
        self.counts.launches[f"copy, {what}"] += 1

    def check_lifetime(self, tensor: torch.Tensor) -> None:
        """Refuses work of a side stream on a tensor whose memory may be given away before it."""
        assert self.stream is self.main_stream or _storage_key(tensor) in self._recorded, (
            "a side stream reads memory that is not recorded for it"
        )

    @property
    def _to_list(self) -> Callable[[torch.Tensor], Any]:
        def to_list(tensor: torch.Tensor) -> Any:
            if tensor.is_cuda:
                self.count_transfer("card to host")
            return _nested(tuple(tensor.shape), 0.0 if tensor.is_floating_point() else 0)

        return to_list

    @contextmanager
    def _on_stream(self, stream: "_Stream") -> Iterator[None]:
        before, self.stream = self.stream, stream
        try:
            yield
        finally:
            self.stream = before

    @contextmanager
    def _recording(
        self, graph: "_Graph", *, pool: "_GraphPool", stream: "_Stream", **_: object
    ) -> Iterator[None]:
        """What is launched inside is launched by replays alone, and nothing may be waited for."""
        self._empty_cache()
        self._recorded_pool = pool
        before, self.stream = self.stream, stream
        with self.record() as counts:
            yield
        if self.records_graphs or self.ends_recordings:
            self._recorded_pool = None
        if not self.records_graphs:  # the stream is left as torch leaves it
            raise RuntimeError("this card records no graphs")
        self.stream = before
        assert not counts.crossings, "a graph holds no copies between host and card"
        pool.num_bytes = max(pool.num_bytes, counts.taken_bytes)
        graph.pool = pool
        self._graphs.add(graph)

    def _end_allocation(self, _device_index: int, pool: "_GraphPool") -> None:
        if pool is not self._recorded_pool:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        self._recorded_pool = None

    def _empty_cache(self) -> None:
        if self._recorded_pool is not None:
            raise RuntimeError("captures_underway.empty() INTERNAL ASSERT FAILED")

    def _reset_peak(self) -> None:
        self._peak_bytes = self.allocated_bytes

    def __enter__(self) -> "FakeCard":
        """Puts the card in: until the end, torch computes nothing."""
        self._stack = ExitStack()
        # Constants that are kept would be the last card's, and this one's at the end.
        noise._steps.cache_clear()
        self._stack.callback(noise._steps.cache_clear)
        answers = {
            "mem_get_info": lambda *_: (self.free_bytes, self.memory_bytes),
            "memory_allocated": lambda *_: self.allocated_bytes,
            "memory_reserved": lambda *_: self.allocated_bytes,
            "max_memory_allocated": lambda *_: self._peak_bytes,
            "reset_peak_memory_stats": lambda *_: self._reset_peak(),
            "get_device_name": lambda *_: "no card",
            "get_device_capability": lambda *_: (8, 6),
            "synchronize": lambda *_: None,
            "Event": lambda: FakeEvent(self),
            "Stream": lambda *_: _Stream(),
            "current_stream": lambda: self.stream,
            "stream": self._on_stream,
            "graph_pool_handle": _GraphPool,
            "CUDAGraph": lambda: _Graph(self),
            "graph": self._recording,
            "empty_cache": self._empty_cache,
        }
        for name, answer in answers.items():
            self._stack.enter_context(mock.patch.object(torch.cuda, name, answer))
        self._stack.enter_context(
            mock.patch.object(torch._C, "_cuda_endAllocateToPool", self._end_allocation)
        )
        # The first of these would copy number by number, the second has no answer.
        self._stack.enter_context(mock.patch.object(FakeTensor, "tolist", self._to_list))
        self._stack.enter_context(mock.patch.object(torch.Tensor, "data_ptr", _storage_key))
        self._stack.enter_context(
            mock.patch.object(
                torch.Tensor,
                "record_stream",
                lambda tensor, _: self._recorded.add(_storage_key(tensor)),
            )
        )
        self._stack.enter_context(_guarded())
        self._stack.enter_context(FakeTensorMode())
        self._stack.enter_context(_Operations(self))
        self._stack.enter_context(_Functions(self))
        return self

    def __exit__(self, *_: object) -> None:
        """Takes the card out."""
        self._stack.close()


class FakeEvent:
    """Never comes by itself, so that whoever needs it has to wait."""

    def __init__(self, card: FakeCard) -> None:
        self._card = card
        self._is_over = False
        self._stream = card.stream

    def record(self) -> None:
        self._is_over = False
        self._stream = self._card.stream

    def query(self) -> bool:
        return self._is_over

    def synchronize(self) -> None:
        self._is_over = True
        is_aside = self._stream is not self._card.main_stream
        self._card.counts.crossings.append(WAIT + ASIDE if is_aside else WAIT)


class _Stream:
    """All work is in one order."""

    device_index = 0

    def wait_stream(self, _other: "_Stream") -> None:
        pass


class _GraphPool:
    """Memory of graphs that never run at the same time."""

    num_bytes = 0


class _Graph:
    """Launches all that it holds at once."""

    def __init__(self, card: FakeCard) -> None:
        self.pool = _GraphPool()
        self._card = card

    def replay(self) -> None:
        self._card.counts.launches["graph"] += 1


@contextmanager
def _guarded() -> Iterator[None]:
    """Lends CUDA the guard of the meta device where torch has none of its own."""
    guards = (ctypes.c_void_p * (_META_INDEX + 1)).in_dll(_libc10(), _GUARDS)
    own = guards[_CUDA_INDEX]
    if not own:
        guards[_CUDA_INDEX] = guards[_META_INDEX]
    try:
        yield
    finally:
        guards[_CUDA_INDEX] = own


def _libc10() -> ctypes.CDLL:
    return ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))


class _Operations(TorchDispatchMode):
    """Sees every operation, after torch has taken it apart as far as it does by itself."""

    def __init__(self, card: FakeCard) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._card = card

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if _is_taken_apart(func):
            with self:
                return func.decompose(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::")
        inputs = _tensors((args, kwargs))
        if name in _WAITS and any(map(_on_card, inputs)):
            self._card.count_transfer(f"wait for {name}")
            if name == "nonzero":
                return inputs[0].new_empty((0, inputs[0].dim()), dtype=torch.int64)
            assert name in ("equal", "is_nonzero"), f"{name} has a result of unknown size"
            return False
        if name == "_local_scalar_dense":
            if _on_card(inputs[0]):
                self._card.count_transfer("card to host")
            return 1.0 if inputs[0].is_floating_point() else 1
        if name in ("_to_copy", "copy_"):
            return self._copy(func, name, inputs, args, kwargs)
        output = func(*args, **kwargs)
        outputs = _tensors(output)
        if any(map(_on_card, (*inputs, *outputs))):
            self._check_devices(name, inputs, outputs)
            if _launches(func, name, inputs, outputs):
                self._card.counts.launches[name] += 1
                self._card.counts.moved_bytes[name] += _moved_bytes(func, name, args, outputs)
        self._note(outputs)
        return output

    def _copy(
        self, func: Any, name: str, inputs: list[torch.Tensor], args: Any, kwargs: dict[str, Any]
    ) -> Any:
        if name == "copy_":
            target, source = inputs
            device = _device(target)
        else:
            (source,) = inputs
            device = torch.device(kwargs.get("device") or _device(source))
        if _device(source).type == device.type:
            if _on_card(source):
                self._card.counts.launches[name] += 1
                self._card.counts.moved_bytes[name] += 2 * source.nbytes
            output = func(*args, **kwargs)
        else:
            direction = "host to card" if device.type == "cuda" else "card to host"
            if kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2]):
                direction += ", without waiting"
            if _on_card(source):
                self._card.check_lifetime(source)
            self._card.count_transfer(direction)
            output = (
                target
                if name == "copy_"
                else torch.empty(
                    source.shape, dtype=kwargs.get("dtype") or source.dtype, device=device
                )
            )
        self._note(_tensors(output))
        return output

    def _check_devices(
        self, name: str, inputs: list[torch.Tensor], outputs: list[torch.Tensor]
    ) -> None:
        """Refuses what torch would copy to the card on the quiet: indices that lie on the host."""
        apart = [t for t in (*inputs, *outputs) if not _on_card(t) and t.dim()]
        assert not apart, f"{name} has tensors of the host among those of the card"

    def _note(self, tensors: list[torch.Tensor]) -> None:
        for tensor in tensors:
            if _on_card(tensor):
                self._card.allocate(tensor)


class _Functions(TorchFunctionMode):
    """Keeps whole what is one kernel on CUDA, and answers what needs values."""

    def __init__(self, card: FakeCard) -> None:
        super().__init__()
        self._card = card

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        on_card = bool(args) and isinstance(args[0], torch.Tensor) and _on_card(args[0])
        if on_card and func in (F.rms_norm, torch.rms_norm):
            self._card.counts.launches["rms_norm"] += 1
            self._card.counts.moved_bytes["rms_norm"] += 2 * args[0].nbytes
            return torch.empty_like(args[0], memory_format=torch.contiguous_format)
        if on_card and func is F.scaled_dot_product_attention:
            return self._attention(*args, **kwargs)
        return func(*args, **kwargs)

    def _attention(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        *,
        is_causal: bool = False,
        scale: float | None = None,
    ) -> torch.Tensor:
        """What torch 2.13 does on sm_80 and later; read in its `attention.cpp`, `sdp_utils.cpp`.

        Flash takes no mask but a `CausalBias`, which has no elements. With another it is the
        memory-efficient kernel, for which a boolean mask becomes an additive one of the query's
        dtype, and one whose rows are no multiple of 8 is padded: in every call.
        """
        counts = self._card.counts
        length = key.shape[-2]
        if attn_mask is not None and type(attn_mask).__name__ != "CausalBias":
            if attn_mask.dtype == torch.bool:
                counts.launches["scalar_tensor"] += 2
                counts.launches["where"] += 1
                attn_mask = torch.empty(attn_mask.shape, dtype=query.dtype, device=query.device)
            if attn_mask.shape[-1] % 8:
                counts.launches["constant_pad_nd"] += 2
                attn_mask = torch.empty(
                    (*attn_mask.shape[:-1], -(-length // 8) * 8),
                    dtype=query.dtype,
                    device=query.device,
                )
        counts.launches["attention"] += 1
        counts.moved_bytes["attention"] += 2 * query.nbytes + key.nbytes + value.nbytes
        *batch, num_tokens, head_dim = query.shape
        # The kernels write `[batch, tokens, heads, head_dim]`.
        order = (*batch[:-1], num_tokens, batch[-1], head_dim)
        return torch.empty(order, dtype=query.dtype, device=query.device).transpose(-3, -2)


@cache
def _is_taken_apart(func: Any) -> bool:
    """Whether torch has no kernel for an operation, and makes it of others."""
    return func.namespace == "aten" and torch._C._dispatch_has_kernel_for_dispatch_key(
        func.name(), "CompositeImplicitAutograd"
    )


def _launches(
    func: Any, name: str, inputs: list[torch.Tensor], outputs: list[torch.Tensor]
) -> bool:
    """Whether an operation runs a kernel: unless it only takes memory or looks at it otherwise."""
    if name in _LAUNCH_NOTHING:
        return False
    if func._schema.is_mutable:
        return True
    held = {_storage_key(tensor) for tensor in inputs}
    return any(_storage_key(tensor) not in held for tensor in outputs)


def _moved_bytes(func: Any, name: str, args: Any, outputs: list[torch.Tensor]) -> int:
    """Bytes of everything that an operation reads and writes, but for KV where it lies."""
    if name in _GATHERS:
        return 2 * sum(tensor.nbytes for tensor in outputs)
    if name in _SCATTERS:
        return 0
    moved: dict[int, torch.Tensor] = {}
    for argument, value in zip(func._schema.arguments, args, strict=False):
        if func.namespace != "stagecoach" or argument.name not in _POOLS:
            moved |= {id(tensor): tensor for tensor in _tensors(value)}
    moved |= {id(tensor): tensor for tensor in outputs}
    return sum(tensor.nbytes for tensor in moved.values())


def _storage_key(tensor: torch.Tensor) -> int:
    """Tells the memory of one tensor from that of another, as an address would."""
    key: int = StorageWeakRef(tensor.untyped_storage()).cdata
    return key


def _device(tensor: torch.Tensor) -> torch.device:
    """Where a tensor lies; to ask a fake one by `device` would be an operation of its own."""
    return tensor.fake_device if isinstance(tensor, FakeTensor) else tensor.device


def _on_card(tensor: torch.Tensor) -> bool:
    return _device(tensor).type == "cuda"


def _tensors(tree: Any) -> list[torch.Tensor]:
    """All that are in arguments or in results, in their order."""
    if isinstance(tree, torch.Tensor):
        return [tree]
    if isinstance(tree, dict):
        tree = tree.values()
    elif not isinstance(tree, tuple | list):
        return []
    return [tensor for part in tree for tensor in _tensors(part)]


def _nested(shape: tuple[int, ...], value: float) -> Any:
    if not shape:
        return value
    return [_nested(shape[1:], value) for _ in range(shape[0])]
