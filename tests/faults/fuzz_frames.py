"""Coverage-guided fuzzing of everything that a stage does with a frame before it computes.

    python -m tests.faults.fuzz_frames [libFuzzer options]

Bytes become a `ForwardRequest`, and a micro-batch of one a `ForwardBatch`, or are refused with
`InvalidArgumentError`; anything else that is raised is a finding. `make fuzz` runs it for a minute.
"""

import random
import sys
import tempfile
from pathlib import Path

import atheris
from google.protobuf.message import DecodeError

with atheris.instrument_imports(
    include=[
        "stage_server.wire.micro_batch",
        "stage_server.wire.answer",
        "stagecoach.contract.tensor_codec",
    ]
):
    from stage_server.wire.answer import parse_request
    from stage_server.wire.micro_batch import parse_micro_batch
    from stagecoach.contract.errors import InvalidArgumentError

from stage_server.core.batch import ForwardBatch
from stagecoach.contract.layer_range import LayerRange
from stagecoach.contract.precision import DType, Precision
from stagecoach.contract.stage_info import StageInfo
from stagecoach.v1 import stage_pb2
from tests.faults.malformed import malformed_frame, mutate
from tests.faults.stage_wire import HIDDEN_SIZE, MAX_NUM_BATCHED_TOKENS, MAX_NUM_SEQS

NUM_SEEDS = 500
SECONDS = 60
MAX_FRAME_BYTES = 4096
MEMORY_LIMIT_MB = 1024


def _info(layers: LayerRange) -> StageInfo:
    return StageInfo(
        model_id="fuzzed",
        fingerprint="f" * 64,
        layers=layers,
        num_model_layers=6,
        hidden_size=HIDDEN_SIZE,
        vocab_size=128,
        precision=Precision.uniform(DType.FLOAT32),
        kv_block_size=16,
        num_kv_blocks=64,
        num_free_kv_blocks=64,
        max_num_seqs=MAX_NUM_SEQS,
        max_num_batched_tokens=MAX_NUM_BATCHED_TOKENS,
        max_model_len=256,
        device="cpu",
        emulated=False,
        weight_bytes=0,
        kv_bytes=0,
    )


STAGES = (_info(LayerRange(0, 2)), _info(LayerRange(2, 4)), _info(LayerRange(2, 6)))
"""One that takes token ids, one in the middle, one that answers with logits."""


def check_frame(data: bytes) -> None:
    """Gives a frame to a stage of each kind; raises what none of them may raise."""
    try:
        request = parse_request(data)
    except InvalidArgumentError:
        return
    if request.WhichOneof("payload") != "micro_batch":
        return
    for info in STAGES:
        try:
            batch = parse_micro_batch(request.micro_batch, info)
        except InvalidArgumentError:
            continue
        _check_batch(batch, info)


def _check_batch(batch: ForwardBatch, info: StageInfo) -> None:
    """Asserts what the engine relies on."""
    assert batch.num_tokens <= info.max_num_batched_tokens
    assert all(piece.end_position <= info.max_model_len for piece in batch.slices)
    if batch.token_ids is not None:
        assert batch.token_ids.shape == (batch.num_tokens,)
        assert int(batch.token_ids.max()) < info.vocab_size
    if batch.hidden_states is not None:
        assert batch.hidden_states.shape == (batch.num_tokens, info.hidden_size)
    assert all(request.row < batch.num_tokens for request in batch.logits)


def mutated(data: bytes, max_size: int, seed: int) -> bytes:
    """Changes a frame, half of the time by its fields and else by its bytes."""
    chance = random.Random(seed)
    try:
        request = stage_pb2.ForwardRequest.FromString(data)
    except DecodeError:
        return bytes(atheris.Mutate(data, max_size))
    if chance.random() < 0.5:
        return bytes(atheris.Mutate(data, max_size))
    mutate(request.micro_batch, chance)
    return request.SerializeToString()[:max_size]


def main() -> None:
    """Fuzzes from a corpus of malformed frames."""
    with tempfile.TemporaryDirectory() as corpus:
        for seed in range(NUM_SEEDS):
            Path(corpus, str(seed)).write_bytes(malformed_frame(seed))
        options = [
            f"-max_total_time={SECONDS}",
            f"-max_len={MAX_FRAME_BYTES}",
            f"-rss_limit_mb={MEMORY_LIMIT_MB}",
            "-print_final_stats=1",
        ]
        atheris.Setup(
            [sys.argv[0], *options, *sys.argv[1:], corpus], check_frame, custom_mutator=mutated
        )
        atheris.Fuzz()


if __name__ == "__main__":
    main()
