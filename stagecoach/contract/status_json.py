"""The state of a coordinator as one JSON object, as every door and command shows it."""

from stagecoach.contract.cluster_status import CoordinatorStatus, ModelStatus, StageStatus


def status_json(status: CoordinatorStatus) -> dict[str, object]:
    """Writes the state as plain data."""
    return {
        **_identity_json(status),
        "version": status.version,
        "pid": status.pid,
        **_load_json(status),
        "models": [{**_identity_json(model), **_load_json(model)} for model in status.models],
    }


def _identity_json(status: ModelStatus) -> dict[str, object]:
    return {
        "model": status.model_id,
        "names": status.names,
        "ready": status.ready,
        "state": status.state,
        "problem": status.problem or None,
        "has_tokenizer": status.has_tokenizer,
    }


def _load_json(status: ModelStatus) -> dict[str, object]:
    return {
        "stages": [_stage_json(stage) for stage in status.stages],
        "running": status.num_running,
        "waiting": status.num_waiting,
        "max_num_seqs": status.max_num_seqs,
        "kv_blocks_total": status.num_kv_blocks,
        "kv_blocks_free": status.num_free_kv_blocks,
        "kv_blocks_cached": status.num_cached_kv_blocks,
        "max_model_len": status.max_model_len,
        "finished": status.num_finished,
        "generated_tokens": status.num_generated_tokens,
        "preemptions": status.num_preemptions,
        "prefix_query_tokens": status.num_prefix_query_tokens,
        "prefix_hit_tokens": status.num_prefix_hit_tokens,
        "draft_tokens": status.num_draft_tokens,
        "accepted_draft_tokens": status.num_accepted_draft_tokens,
        "tokens_per_s": status.tokens_per_second,
    }


def _stage_json(stage: StageStatus) -> dict[str, object]:
    bits = stage.bits_per_weight
    return {
        "index": stage.index,
        "address": stage.address,
        "layers": stage.layers,
        "state": stage.state,
        "device": stage.device,
        "dtype": stage.dtype,
        "bits_per_weight": None if bits is None else round(bits, 3),
        "kv_dtype": stage.kv_dtype,
        "emulated": stage.emulated,
        "version": stage.version,
        "pid": stage.pid,
        "kv_block_size": stage.kv_block_size,
        "kv_blocks_total": stage.num_kv_blocks,
        "kv_blocks_free": stage.num_free_kv_blocks,
        "kv_blocks_cached": stage.num_cached_kv_blocks,
        "weight_bytes": stage.weight_bytes,
        "kv_bytes": stage.kv_bytes,
        "pipeline": stage.pipeline,
    }
