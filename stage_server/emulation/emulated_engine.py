"""The engine that waits instead of computing: as long as the real one would take on a GPU.

It serves to size a cluster before it is bought, and to measure everything except the GPU. On the
wire an emulated stage cannot be told from a real one: it sends the same messages of the same sizes,
keeps the same slots and blocks, raises the same errors, and its tokens depend on the whole
sequence. It needs no weights.
"""

import logging
import time
from typing import NamedTuple

import torch

from stage_server.core.batch import ForwardBatch, ForwardOutput
from stage_server.core.config import StageConfig
from stage_server.core.engine import Launched
from stage_server.core.torch_dtypes import torch_dtype
from stage_server.emulation.deadline import SPIN_NS, wait_until
from stage_server.emulation.hidden_sums import HashedHidden
from stage_server.emulation.logits import HashedLogits
from stage_server.emulation.prefix_hashes import (
    MIN_HIDDEN_SIZE,
    PrefixHashes,
    agreed,
    read_rows,
    write_rows,
)
from stage_server.kv_cache.slot_tables import SlotTables
from stagecoach.contract.errors import UnsupportedModelError
from stagecoach.contract.precision import FEW_BITS, KvFormat
from stagecoach.contract.stage_info import StageInfo
from stagecoach.model_files import ModelFiles
from stagecoach.roofline.card_precision import AUTO, card_precision
from stagecoach.roofline.devices import Gpu, gpu_named
from stagecoach.roofline.kv_memory import (
    default_num_batched_tokens,
    kv_memory_bytes,
    num_kv_blocks,
)
from stagecoach.roofline.model_shape import ModelShape
from stagecoach.roofline.stage_cost import StageCost
from stagecoach.roofline.step_time import step_time
from stagecoach.roofline.work import Work

_log = logging.getLogger(__name__)


class EmulatedEngine:
    """Implements `stage_server.core.engine.StageEngine` by `stagecoach.roofline.step_time`.

    Args:
        config: The stage's configuration; names the GPU.
        files: The model, of which only the configuration is read.
    """

    def __init__(self, config: StageConfig, files: ModelFiles) -> None:
        """Counts what would be allocated.

        Raises:
            IncompatibleError: The GPU has no such dtype, or the model overflows in it.
            InsufficientMemoryError: Weights or KV memory would not fit the GPU.
            UnsupportedModelError: The cost of the model is not known.
        """
        assert config.emulate is not None, "the configuration was checked"
        torch.set_num_threads(config.threads or 1)
        model = files.config
        if model.hidden_size < MIN_HIDDEN_SIZE:
            raise UnsupportedModelError(
                f"hidden size {model.hidden_size} is too small for an emulated stage: it must be "
                f"at least {MIN_HIDDEN_SIZE}"
            )
        self._gpu = gpu_named(config.emulate)
        precision = card_precision(
            config.dtype, model, card=self._gpu.name, capability=self._gpu.capability
        )
        own = files.encoding if config.dtype == config.weights == AUTO else None
        weights = FEW_BITS.get(config.weights, own)
        if weights is not None:
            precision = precision._replace(weights=weights)
        if config.kv_dtype != AUTO:
            precision = precision._replace(kv=KvFormat.named(config.kv_dtype))
        max_model_len = min(config.max_model_len or model.max_model_len, model.max_model_len)
        self._efficiency = config.efficiency
        kept = None if own is None else files.kept_matrices
        self._cost = StageCost(model=ModelShape.of(model, precision, kept), layers=config.layers)
        self._dtype = torch_dtype(precision.wire)
        num_tokens = config.max_num_batched_tokens or default_num_batched_tokens(
            self._gpu.memory_bytes
        )
        num_blocks = min(
            num_kv_blocks(
                self._cost,
                kv_memory_bytes(
                    self._cost,
                    self._gpu,
                    config.kv_memory_bytes,
                    max_num_batched_tokens=num_tokens,
                    max_num_seqs=config.max_num_seqs,
                    max_model_len=max_model_len,
                ),
                config.kv_block_size,
            ),
            config.max_num_seqs * -(-max_model_len // config.kv_block_size),
        )
        self._slots = SlotTables(num_blocks, config.kv_block_size)
        self._hashes = PrefixHashes(num_blocks, config.kv_block_size)
        self._logits = HashedLogits(model.vocab_size)
        self._hidden = HashedHidden(model.hidden_size)
        self._free_ns = 0
        self._info = StageInfo(
            model_id=files.model_id,
            fingerprint=files.fingerprint,
            layers=config.layers,
            num_model_layers=model.num_layers,
            hidden_size=model.hidden_size,
            vocab_size=model.vocab_size,
            precision=precision,
            kv_block_size=config.kv_block_size,
            num_kv_blocks=num_blocks,
            num_free_kv_blocks=num_blocks,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=num_tokens,
            max_model_len=max_model_len,
            device=_device(self._gpu, self._efficiency),
            emulated=True,
            weight_bytes=self._cost.weight_bytes,
            num_weights=self._cost.num_parameters,
            kv_bytes=num_blocks * config.kv_block_size * self._cost.kv_bytes_per_token,
        )
        _log.info(
            "emulating",
            extra={
                "gpu": self._gpu.name,
                "efficiency": self._efficiency,
                "layers": str(config.layers),
                "weight_bytes": self._info.weight_bytes,
                "kv_bytes": self._info.kv_bytes,
            },
        )

    @property
    def info(self) -> StageInfo:
        """What this engine is."""
        return self._info

    @property
    def num_free_kv_blocks(self) -> int:
        """Free blocks, as a snapshot."""
        return self._slots.num_free_blocks

    @property
    def num_held_kv_slots(self) -> int:
        """Slots that hold tokens, as a snapshot."""
        return self._slots.num_held_slots

    def warm_up(self) -> None:
        """Does nothing: the first forward is as fast as any."""

    def launch(self, batch: ForwardBatch) -> Launched:
        """Gives the card one micro-batch, behind those that it has; see `StageEngine.launch`."""
        launched_ns = time.perf_counter_ns()
        plan = self._slots.apply(batch.slot_ops, batch.slices)
        if not batch.slices:
            return ForwardOutput()
        self._hashes.prepare(plan)
        if batch.token_ids is not None:
            token_ids = batch.token_ids.tolist()
            hashes = self._hashes.extend(batch.slices, plan, token_ids)
        else:
            assert batch.hidden_states is not None, "the servicer checked the inputs"
            token_ids, received = read_rows(batch.hidden_states)
            hashes = agreed(received, self._hashes.extend(batch.slices, plan, token_ids))
        output = self._output(batch, token_ids, hashes)
        self._free_ns = max(self._free_ns, launched_ns) + self._duration_ns(batch)
        return EmulatedForward(output, self._free_ns)

    def free_all_slots(self) -> None:
        """Gives back every slot and checks that the books balance."""
        self._slots.free_all()
        self._slots.check_integrity()

    def _output(
        self, batch: ForwardBatch, token_ids: list[int], hashes: list[int]
    ) -> ForwardOutput:
        if not self._info.is_last:
            rows = write_rows(token_ids, hashes, self._info.hidden_size, self._dtype)
            return ForwardOutput(hidden_states=rows)
        return ForwardOutput(
            logits=tuple(
                self._logits.reduce(hashes[request.row], request) for request in batch.logits
            ),
            prompt_logits=tuple(
                self._logits.reduce_prompt(hashes[request.first_row : request.end_row], request)
                for request in batch.prompt_logits
            ),
            hidden_sums=tuple(
                self._hidden.add_up(hashes[request.first_row : request.end_row], request)
                for request in batch.hidden_sums
            ),
        )

    def _duration_ns(self, batch: ForwardBatch) -> int:
        num_logit_rows = len(batch.logits) + sum(len(one.token_ids) for one in batch.prompt_logits)
        work = Work.of(
            ((piece.start_position, piece.num_tokens) for piece in batch.slices), num_logit_rows
        )
        time_s = step_time(self._cost, work, self._gpu, efficiency=self._efficiency).total_s
        return round(time_s * 1e9)


class EmulatedForward(NamedTuple):
    """What a card that is not there has until its end."""

    output: ForwardOutput
    end_ns: int
    """`time.perf_counter_ns()`."""

    def due_in_s(self) -> float:
        """Seconds until shortly before the end: `finish` is exact, and whoever asks is not."""
        return max(0, self.end_ns - SPIN_NS - time.perf_counter_ns()) / 1e9

    def finish(self) -> ForwardOutput:
        """Waits until the end."""
        wait_until(self.end_ns)
        return self.output


def _device(gpu: Gpu, efficiency: float) -> str:
    """Names the device; whoever wants to know how fast it can be reads it from there."""
    return f"emulated {gpu.name}" + ("" if efficiency == 1 else f" at efficiency {efficiency:g}")
