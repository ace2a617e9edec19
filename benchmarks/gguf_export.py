"""Writes a Llama-shaped Hugging Face folder as GGUF, so that llama.cpp runs the same model."""

import json
from pathlib import Path

import numpy as np
from gguf import GGUFWriter, LlamaFileType
from safetensors.numpy import load_file

_LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def export_gguf(folder: Path) -> Path:
    """Returns the GGUF file of a model without a tokenizer, beside its weights; made when missing.

    Matrices keep their float16; norms are float32, as llama.cpp wants them.

    Args:
        folder: With `config.json` of a Llama and `model.safetensors` in float16.
    """
    target = folder / "model-f16.gguf"
    if target.exists():
        return target
    config = json.loads((folder / "config.json").read_text())
    unfinished = target.with_suffix(".unfinished")
    writer = GGUFWriter(unfinished, "llama")
    writer.add_name(folder.name)
    writer.add_file_type(LlamaFileType.MOSTLY_F16)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")
    heads = {
        "self_attn.q_proj": config["num_attention_heads"],
        "self_attn.k_proj": config["num_key_value_heads"],
    }
    for name, tensor in load_file(folder / "model.safetensors").items():
        if name in _NAMES:
            writer.add_tensor(_NAMES[name], _as_stored(tensor))
            continue
        _, _, layer_idx, rest = name.split(".", 3)
        part = rest.removesuffix(".weight")
        if part in heads:
            tensor = _interleave_halves(tensor, heads[part])
        writer.add_tensor(f"blk.{layer_idx}.{_LAYER_NAMES[part]}.weight", _as_stored(tensor))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    unfinished.rename(target)
    return target


def _as_stored(tensor: np.ndarray) -> np.ndarray:
    return tensor.astype(np.float32) if tensor.ndim == 1 else tensor


def _interleave_halves(matrix: np.ndarray, num_heads: int) -> np.ndarray:
    """Reorders the rows of each head: llama.cpp rotates neighbours, transformers the two halves."""
    num_rows, num_columns = matrix.shape
    halves = matrix.reshape(num_heads, 2, num_rows // num_heads // 2, num_columns)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(num_rows, num_columns))
