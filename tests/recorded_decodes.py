"""Decode graphs without a card: what is recorded is run again, on the same buffers."""

from collections.abc import Callable, Sequence

import torch

from stage_server.compute.decode_graphs import DecodeGraphs, Recording
from stage_server.compute.static_decodes import StaticDecodes
from stage_server.compute.torch_engine import TorchEngine
from stage_server.kernels.kernels import Kernels
from stage_server.kv_cache.slot_tables import SlotTables


class Rerun:
    """Implements `Recorder`: a replay runs the same callable, and writes the same output."""

    def __init__(self) -> None:
        self.replays: list[int] = []
        """Rows of each."""

    def record(self, run: Callable[[], torch.Tensor]) -> Recording:
        with torch.inference_mode():
            output = run()

        def replay() -> None:
            self.replays.append(len(output))
            output.copy_(run())

        return Recording(replay, output)


def graphs_of(engine: TorchEngine, recorder: Rerun) -> DecodeGraphs:
    """Graphs of an engine that holds nothing; takes its last block from its books."""
    info, pool = engine.info, engine._pool
    engine._slots = SlotTables(pool.num_blocks - 1, pool.block_size)
    static = StaticDecodes(
        engine._stack,
        pool,
        scratch_block=pool.num_blocks - 1,
        max_rows=8,
        max_num_positions=min(info.max_model_len, pool.num_blocks * pool.block_size),
    )
    return DecodeGraphs(static, recorder)


def add_graphs(engine: TorchEngine, *, sizes: Sequence[int]) -> Rerun:
    """Lets an engine run its decode steps by recordings."""
    recorder = Rerun()
    graphs = graphs_of(engine, recorder)
    for size in sizes:
        graphs.record(size)
    engine._forward_pass.graphs = graphs
    return recorder


class ObviousKernels(Kernels):
    """Decode attention in operations of torch, one sequence after the other."""

    def decode(  # type: ignore[override]
        self,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        *,
        rows: torch.Tensor,
        tables: torch.Tensor,
        lengths: torch.Tensor,
        block_size: int,
        scaling: float,
        sliding_window: int | None,
        softcap: float | None,
        output: torch.Tensor,
    ) -> None:
        group = query.shape[1] // keys.shape[1]
        for row, table, length in zip(rows.tolist(), tables, lengths.tolist(), strict=True):
            if length == 0:
                output[row] = 0
                continue
            first = 0 if sliding_window is None else max(0, length - sliding_window)
            positions = torch.arange(first, length)
            slots = table[positions // block_size] * block_size + positions % block_size
            # [num_heads, num_positions, head_dim]
            key, value = (
                part[slots].repeat_interleave(group, 1).transpose(0, 1) for part in (keys, values)
            )
            scores = (key @ query[row, :, :, None]).squeeze(2) * scaling
            if softcap is not None:
                scores = softcap * torch.tanh(scores / softcap)
            output[row] = (scores.softmax(1)[:, None] @ value).squeeze(1)
