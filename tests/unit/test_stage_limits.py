"""Message limits cover what a stage serves, and never more than gRPC can count."""

import grpc
import grpc.aio
import pytest

from coordinator.pipeline.link_config import LinkConfig
from coordinator.pipeline.stage_channel import StageChannels
from coordinator.pipeline.stream_opening import StreamOpening
from stage_server.core.config import StageConfig
from stage_server.wire.limits import message_limits
from stagecoach.contract.errors import InvalidArgumentError, UnavailableError
from stagecoach.contract.layer_range import LayerRange
from stagecoach.contract.limits import LOGITS_CEILING_BYTES, max_logits_bytes
from stagecoach.v1 import stage_pb2, tensor_pb2
from tests.stage_infos import create_info

CONFIG = StageConfig(
    model="demo",
    layers=LayerRange(0, 10),
    max_num_seqs=64,
    max_num_batched_tokens=512,
    max_model_len=8192,
)


def test_the_largest_micro_batch_fits_a_request() -> None:
    limits = message_limits(CONFIG, hidden_size=576, vocab_size=49152)
    batch = stage_pb2.MicroBatch(
        slices=[
            stage_pb2.SequenceSlice(kv_slot=2**32 - 1, start_position=2**32 - 1, num_tokens=8)
            for _ in range(64)
        ],
        hidden_states=tensor_pb2.Tensor(shape=[512, 576], data=bytes(512 * 576 * 4)),
        logits=[
            stage_pb2.LogitsRequest(
                row=511,
                num_candidates=64,
                min_mass=0.5,
                min_gap=0.5,
                temperature=1,
                token_ids=range(49152),
            )
            for _ in range(64)
        ],
    )
    assert batch.ByteSize() <= limits.request_bytes


def test_a_full_row_and_a_sum_for_every_sequence_fit_a_response() -> None:
    limits = message_limits(CONFIG, hidden_size=57600, vocab_size=49152)
    result = stage_pb2.MicroBatchResult(
        logits=[
            stage_pb2.LogitsRow(row=i, full=tensor_pb2.Tensor(shape=[49152], data=bytes(49152 * 4)))
            for i in range(64)
        ],
        hidden_sums=[
            stage_pb2.HiddenSum(
                first_row=i, sum=tensor_pb2.Tensor(shape=[57600], data=bytes(57600 * 4))
            )
            for i in range(64)
        ],
    )
    assert result.ByteSize() <= limits.response_bytes


def test_logits_never_take_more_than_their_ceiling() -> None:
    assert max_logits_bytes(max_num_seqs=256, vocab_size=262144) == LOGITS_CEILING_BYTES
    assert max_logits_bytes(max_num_seqs=1024, vocab_size=262144) == LOGITS_CEILING_BYTES
    assert max_logits_bytes(max_num_seqs=2, vocab_size=100) == 800


def test_a_budget_that_grpc_cannot_carry_is_refused_with_the_numbers() -> None:
    config = StageConfig(model="demo", layers=LayerRange(0, 1), max_num_batched_tokens=2**20)
    with pytest.raises(InvalidArgumentError, match="1048576") as caught:
        message_limits(config, hidden_size=5120, vocab_size=32000)
    assert caught.value.field == "max_num_batched_tokens"


class NoChannels(StageChannels):
    """Reaches nothing; keeps the options with which it should have."""

    options: dict[str, int]

    def connect(
        self, credentials: grpc.ChannelCredentials | None, further_options: list[tuple[str, int]]
    ) -> grpc.aio.Channel:
        self.options = dict(further_options)
        raise UnavailableError("not reachable")


async def test_a_coordinator_sends_all_that_the_stage_takes_and_takes_all_that_it_sends() -> None:
    """It once left no room for ids beside hidden states, and lost the stage by what it sent."""
    channels = NoChannels("127.0.0.1:1", config=LinkConfig(), tls=None, is_open=lambda: False)
    info = create_info(
        CONFIG.layers,
        max_num_seqs=64,
        max_num_batched_tokens=512,
        hidden_size=576,
        vocab_size=49152,
    )
    with pytest.raises(UnavailableError, match="not reachable"):
        await StreamOpening(channels, "coordinator").open(info, epoch=1)
    limits = message_limits(CONFIG, hidden_size=576, vocab_size=49152)
    assert channels.options["grpc.max_send_message_length"] == limits.request_bytes
    assert channels.options["grpc.max_receive_message_length"] == limits.response_bytes
