"""The engine that computes: real layers on a torch device, against paged KV memory."""

import logging
import time
from dataclasses import replace

import torch

from stage_server.compute.blank_batch import blank_batch
from stage_server.compute.devices import precision_on, take_device
from stage_server.compute.divided_steps import DividedSteps
from stage_server.compute.forward_pass import ForwardPass
from stage_server.compute.graph_check import find_graphs
from stage_server.compute.kernel_check import find_kernels
from stage_server.compute.kv_budget import kv_budget, max_num_batched_tokens
from stage_server.core.batch import ForwardBatch, ForwardOutput, SequenceSlice
from stage_server.core.config import StageConfig
from stage_server.core.engine import Launched, finished
from stage_server.core.load_board import Report, no_report
from stage_server.kv_cache.kv_pool import KvPool
from stage_server.kv_cache.slot_tables import SlotTables
from stage_server.model.layer_stack import LayerStack, load_layer_stack
from stagecoach.contract.errors import InsufficientMemoryError
from stagecoach.contract.logits_request import LogitsRequest
from stagecoach.contract.stage_info import StageInfo
from stagecoach.model_files import ModelFiles
from stagecoach.roofline.card_precision import AUTO

_log = logging.getLogger(__name__)


class TorchEngine:
    """Implements `stage_server.core.engine.StageEngine` with torch.

    Args:
        config: The stage's configuration.
        files: The model.
        stack: The stage's layers, loaded.
    """

    def __init__(self, config: StageConfig, files: ModelFiles, stack: LayerStack) -> None:
        """Allocates the KV pool; on CUDA, after running the largest micro-batches.

        Raises:
            InsufficientMemoryError: The KV memory does not fit the device beside a micro-batch, or
                holds no block.
        """
        model = files.config
        max_model_len = min(config.max_model_len or model.max_model_len, model.max_model_len)
        self._stack = stack
        precision = stack.precision
        device_name = _device_name(stack.device)
        budget = kv_budget(config, stack, device_name, max_model_len=max_model_len)
        blocks_per_sequence = -(-max_model_len // config.kv_block_size)
        may_have_graphs = stack.device.type == "cuda" and stack.is_fused
        self._pool = KvPool.within(
            budget.kv_bytes,
            num_layers=len(config.layers),
            block_size=config.kv_block_size,
            num_kv_heads=model.num_kv_heads,
            head_dim=model.head_dim,
            kv_format=precision.kv,
            device=stack.device,
            max_num_blocks=config.max_num_seqs * blocks_per_sequence + may_have_graphs,
            values_are_keys=model.latent is not None,
        )
        # For rows that a step leaves over in its graph; no sequence is ever given it.
        self._has_scratch_block = may_have_graphs and self._pool.num_blocks > 1
        num_blocks = self._pool.num_blocks - self._has_scratch_block
        self._forward_pass = ForwardPass(stack, self._pool)
        self._steps = DividedSteps(self._forward_pass.launch, stack.device)
        self._slots = SlotTables(num_blocks, config.kv_block_size)
        self.activation_bytes = budget.activation_bytes
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
            max_num_batched_tokens=max_num_batched_tokens(config, stack.device),
            max_model_len=max_model_len,
            device=device_name,
            emulated=False,
            weight_bytes=stack.weight_bytes,
            num_weights=stack.num_weights,
            kv_bytes=self._pool.num_bytes,
            weight_digests=files.weight_digests(),
            weights_revision=files.weights_revision(),
            attention="gather" if stack.kernels is None else "kernel",
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
        """Runs a prefill chunk and a decode within one block, so that kernels are chosen.

        On CUDA decode steps are recorded as graphs where that pays.
        """
        num_tokens = min(self._info.kv_block_size, self._info.max_model_len)
        wanted = LogitsRequest(row=0, num_candidates=1)
        for piece in (SequenceSlice(0, 0, num_tokens), SequenceSlice(0, num_tokens - 1, 1)):
            self.forward(blank_batch(self._stack, (piece,), wanted))
        self.free_all_slots()
        if self._has_scratch_block:
            self._find_graphs()

    def _find_graphs(self) -> None:
        about = self._info
        graphs = find_graphs(
            self._forward_pass,
            scratch_block=about.num_kv_blocks,
            max_rows=min(about.max_num_seqs, about.max_num_batched_tokens, about.num_kv_blocks),
            max_num_positions=min(about.max_model_len, about.num_kv_blocks * about.kv_block_size),
        )
        self._forward_pass.graphs = graphs
        if graphs is not None:
            max_seqs = min(graphs.sizes[-1], about.max_num_seqs)
            self._info = replace(about, max_graph_seqs=max_seqs)

    def launch(self, batch: ForwardBatch) -> Launched:
        """Launches one micro-batch; see `StageEngine.launch`."""
        plan = self._slots.apply(batch.slot_ops, batch.slices)
        if not batch.slices:
            return ForwardOutput()
        return self._steps.launch(batch, plan)

    def forward(self, batch: ForwardBatch) -> ForwardOutput:
        """Launches one micro-batch and waits for it; raises as `launch` and its `finish`."""
        return finished(self.launch(batch))

    def free_all_slots(self) -> None:
        """Gives back every slot and checks that the books balance."""
        self._slots.free_all()
        self._slots.check_integrity()


def build_engine(config: StageConfig, files: ModelFiles, report: Report = no_report) -> TorchEngine:
    """Loads the stage's layers and makes its engine. Takes seconds to minutes.

    Args:
        config: The stage's configuration.
        files: The model.
        report: Told how far it is.

    Raises:
        IncompatibleError: The device cannot be used, the model is not supported, its files are
            damaged, the layers do not exist, or weights or KV memory do not fit the device.
    """
    chosen = take_device(config.device)
    device = torch.device(chosen.name)
    if config.threads:
        torch.set_num_threads(config.threads)
    started = time.perf_counter()
    try:
        precision = precision_on(
            chosen,
            config.dtype,
            files.config,
            weights=config.weights,
            own=files.stored_encoding,
            kv_dtype=config.kv_dtype,
        )
        stack = load_layer_stack(
            files,
            config.layers,
            precision=precision,
            device=device,
            keeps_own=config.weights == AUTO,
            find_kernels=lambda blueprint: find_kernels(
                blueprint, config.kv_block_size, precision, device
            ),
            report=report,
        )
        engine = TorchEngine(config, files, stack)
    except torch.OutOfMemoryError as error:
        raise InsufficientMemoryError(
            f"layers {config.layers} do not fit the memory of {_device_name(device)}"
        ) from error
    _log.info(
        "model loaded",
        extra={
            "layers": str(config.layers),
            "device": engine.info.device,
            "attention": engine.info.attention,
            "weight_bytes": stack.weight_bytes,
            "kv_bytes": engine.info.kv_bytes,
            "activation_bytes": engine.activation_bytes,
            "elapsed_s": round(time.perf_counter() - started, 3),
        },
    )
    return engine


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{device} {torch.cuda.get_device_name(device)}"
    return f"cpu ({torch.get_num_threads()} threads)"
