"""Decode graphs without a card: what is recorded is run again, on the same buffers."""

from collections.abc import Callable, Sequence

import torch

from stage_server.compute.decode_graphs import DecodeGraphs, Recording
from stage_server.compute.static_decodes import StaticDecodes
from stage_server.compute.torch_engine import TorchEngine
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
    num_blocks = pool.num_blocks - 1
    engine._slots = SlotTables(num_blocks, pool.block_size)
    static = StaticDecodes(
        engine._stack,
        pool,
        scratch_block=num_blocks,
        max_rows=8,
        max_num_positions=min(info.max_model_len, num_blocks * pool.block_size),
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
