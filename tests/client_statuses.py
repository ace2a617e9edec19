"""The state of a cluster, as the SDK gives it, for tests of what is made of it."""

from dataclasses import replace

from stagecoach.client import CoordinatorStatus, ModelStatus, StageState, StageStatus
from stagecoach.contract.layer_range import LayerRange
from stagecoach.contract.precision import DType, Precision
from tests.layer_ranges import split_evenly
from tests.stage_infos import create_info


def create_stage(index: int, layers: LayerRange, device: str) -> StageStatus:
    return StageStatus(
        index=index,
        address=f"h:{index}",
        state=StageState.READY,
        info=create_info(
            layers,
            device=device,
            precision=Precision.uniform(DType.FLOAT16),
            emulated=device.startswith("emulated"),
            vocab_size=32000,
            num_kv_blocks=600,
            num_free_kv_blocks=600,
            kv_bytes=10**10,
        ),
    )


def create_status(
    num_stages: int,
    *,
    device: str = "cpu",
    model_id: str = "m",
    num_layers: int = 40,
    ready: bool = True,
) -> CoordinatorStatus:
    ranges = split_evenly(num_layers, num_stages)
    model = ModelStatus(
        model_id=model_id,
        names=(model_id,),
        ready=ready,
        has_tokenizer=True,
        stages=tuple(create_stage(index, layers, device) for index, layers in enumerate(ranges)),
        num_running=0,
        num_waiting=0,
        max_num_seqs=64,
        num_kv_blocks=600,
        num_free_kv_blocks=600,
        num_cached_kv_blocks=0,
        max_model_len=4096,
        num_finished=0,
        num_generated_tokens=0,
        num_preemptions=0,
        num_prefix_query_tokens=0,
        num_prefix_hit_tokens=0,
        num_draft_tokens=0,
        num_accepted_draft_tokens=0,
        tokens_per_second=0.0,
    )
    return replace(CoordinatorStatus.of([model]), version="1", pid=1)
