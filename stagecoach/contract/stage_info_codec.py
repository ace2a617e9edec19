"""`StageInfo` <-> `GetInfoResponse`, for stages, coordinators and clients."""

from stagecoach.contract.dtypes import DTYPES, dtype_named
from stagecoach.contract.errors import InvalidArgumentError
from stagecoach.contract.layer_range import LayerRange
from stagecoach.contract.precision import DType, Encoding, KvFormat, Precision
from stagecoach.contract.stage_info import StageInfo
from stagecoach.v1 import stage_pb2


def to_message(info: StageInfo) -> stage_pb2.GetInfoResponse:
    """Writes what a stage says of itself."""
    return stage_pb2.GetInfoResponse(
        protocol_version=info.protocol_version,
        model_id=info.model_id,
        fingerprint=info.fingerprint,
        layers=stage_pb2.LayerRange(start=info.layers.start, end=info.layers.end),
        num_model_layers=info.num_model_layers,
        hidden_size=info.hidden_size,
        vocab_size=info.vocab_size,
        dtype=info.precision.weights.name,
        hidden_states_dtype=dtype_named(info.precision.wire.name),
        kv_block_size=info.kv_block_size,
        num_kv_blocks=info.num_kv_blocks,
        num_free_kv_blocks=info.num_free_kv_blocks,
        max_num_seqs=info.max_num_seqs,
        max_num_batched_tokens=info.max_num_batched_tokens,
        max_model_len=info.max_model_len,
        device=info.device,
        emulated=info.emulated,
        version=info.version,
        pid=info.pid,
        weight_bytes=info.weight_bytes,
        num_weights=info.num_weights,
        kv_bytes=info.kv_bytes,
        weight_digests=info.weight_digests,
        weights_revision=info.weights_revision,
        adds_noise=info.adds_noise,
        answers_prompt_logits=info.answers_prompt_logits,
        answers_hidden_sums=info.answers_hidden_sums,
        attention=info.attention,
        max_graph_seqs=info.max_graph_seqs,
        weights_encoding=stage_pb2.Encoding(**info.precision.weights._asdict()),
        compute_dtype=info.precision.compute,
        kv_dtype=info.precision.kv,
    )


def from_message(message: stage_pb2.GetInfoResponse) -> StageInfo:
    """Reads what a stage says of itself.

    Raises:
        InvalidArgumentError: The layer range is empty, or a dtype or an encoding unknown.
    """
    return StageInfo(
        protocol_version=message.protocol_version,
        model_id=message.model_id,
        fingerprint=message.fingerprint,
        layers=LayerRange(message.layers.start, message.layers.end),
        num_model_layers=message.num_model_layers,
        hidden_size=message.hidden_size,
        vocab_size=message.vocab_size,
        precision=_precision(message),
        kv_block_size=message.kv_block_size,
        num_kv_blocks=message.num_kv_blocks,
        num_free_kv_blocks=message.num_free_kv_blocks,
        max_num_seqs=message.max_num_seqs,
        max_num_batched_tokens=message.max_num_batched_tokens,
        max_model_len=message.max_model_len,
        device=message.device,
        emulated=message.emulated,
        version=message.version,
        pid=message.pid,
        weight_bytes=message.weight_bytes,
        num_weights=message.num_weights,
        kv_bytes=message.kv_bytes,
        weight_digests=dict(message.weight_digests),
        weights_revision=message.weights_revision,
        adds_noise=message.adds_noise,
        answers_prompt_logits=message.answers_prompt_logits,
        answers_hidden_sums=message.answers_hidden_sums,
        attention=message.attention,
        max_graph_seqs=message.max_graph_seqs,
    )


def _precision(message: stage_pb2.GetInfoResponse) -> Precision:
    if message.hidden_states_dtype not in DTYPES:
        raise InvalidArgumentError(
            f"hidden_states_dtype is {message.hidden_states_dtype}", field="hidden_states_dtype"
        )
    wire = DTYPES[message.hidden_states_dtype]
    encoding = message.weights_encoding
    if not message.HasField("weights_encoding"):
        weights = Encoding.plain(DType.named(message.dtype))
    elif encoding.block_size < 1 or encoding.block_bytes < 1:
        raise InvalidArgumentError(
            f"weights_encoding has blocks of {encoding.block_size} numbers and"
            f" {encoding.block_bytes} bytes",
            field="weights_encoding",
        )
    else:
        weights = Encoding(encoding.name, encoding.block_size, encoding.block_bytes)
    return Precision(
        weights=weights,
        compute=DType.named(message.compute_dtype or wire),
        kv=KvFormat.named(message.kv_dtype or wire),
        wire=Encoding.plain(wire),
    )
