"""Writes the files of this folder with llama.cpp's own converter.

Usage: python -m tests.recorded_gguf.record LLAMA_CPP [CASE ...]

`LLAMA_CPP` is a checkout of llama.cpp, for instance what `pip download --no-deps --no-binary
llama-cpp-python llama-cpp-python==0.3.36` has below `vendor/llama.cpp`. Of each case, a tiny random
model of transformers is saved with the keys of a published `config.json`, the converter writes its
file, and what transformers generates greedily is noted beside it.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
EXPECTED = HERE / "expected.json"
PROMPT = (5, 60, 7, 88, 9, 14, 33, 101, 2, 76, 41, 19)
NUM_TOKENS = 24
VOCAB_SIZE = 128

SMALL: dict[str, Any] = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "initializer_range": 0.35,
}
_FOUR_LAYERS = {"num_hidden_layers": 4}
_TIED = {"tie_word_embeddings": True}
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "afmoe": ("afmoe", {**_FOUR_LAYERS, "global_attn_every_n_layers": 4}, {}),
    "arcee": ("arcee", {}, {}),
    "cohere": ("cohere", {}, {}),
    "cohere-head-norms": ("cohere", {"use_qk_norm": True}, {}),
    "cohere2": ("cohere2", {**_FOUR_LAYERS}, {"rotary_pct": 1.0}),
    "dots1": ("dots1", {"sliding_window": None}, {}),
    "ernie4_5": ("ernie4_5", {}, {}),
    "ernie4_5_moe": ("ernie4_5_moe", {}, {}),
    "exaone4": ("exaone4", {**_FOUR_LAYERS}, {}),
    "exaone_moe": ("exaone_moe", {**_FOUR_LAYERS}, {}),
    "gemma": ("gemma", {}, {}),
    "gemma2": ("gemma2", {**_TIED}, {}),
    "gemma3_text": ("gemma3_text", {**_TIED, "num_hidden_layers": 7, "layer_types": None}, {}),
    "glm4": ("glm4", {}, {}),
    "glm4_moe": ("glm4_moe", {}, {"num_nextn_predict_layers": 1}),
    "gpt_bigcode": ("gpt_bigcode", {"n_inner": None, "intermediate_size": None}, {}),
    "gpt_neox": ("gpt_neox", {"rotary_emb_base": 10000}, {"rotary_pct": 0.5}),
    "gpt_neox-in-a-row": (
        "gpt_neox-in-a-row",
        {"rotary_emb_base": 10000},
        {"rotary_pct": 0.5},
    ),
    "gpt_oss": ("gpt_oss", {"swiglu_limit": 7.0}, {}),
    "granite": ("granite", {}, {}),
    "granitemoe": ("granitemoe", {}, {}),
    "hunyuan_v1_dense": ("hunyuan_v1_dense", {"rope_parameters": None}, {}),
    "internlm3": ("internlm3", {}, {}),
    "jais2": ("jais2", {}, {}),
    "llama": ("llama", {}, {}),
    "llama3-rope": ("llama3-rope", {}, {}),
    "llama-yarn": ("llama-yarn", {}, {}),
    "minimax_m2": ("minimax_m2", {}, {}),
    "mixtral": ("mixtral", {"sliding_window": None}, {}),
    "nemotron": ("nemotron", {}, {}),
    "olmo": ("olmo", {"clip_qkv": 2.0}, {}),
    "olmo2": ("olmo2", {}, {}),
    "olmo3": ("olmo3", {**_FOUR_LAYERS, "layer_types": None}, {}),
    "olmoe": ("olmoe", {"clip_qkv": None}, {}),
    "phi": ("phi", {"qk_layernorm": False, "num_key_value_heads": 4, "intermediate_size": 128}, {}),
    "phi3": ("phi3", {}, {}),
    "phi3-partial": ("phi3-partial", {}, {}),
    "phi3-longrope": ("phi3-longrope", {"hidden_size": 48}, {}),
    "qwen2": ("qwen2", {}, {}),
    "qwen2_moe": (
        "qwen2_moe",
        {"mlp_only_layers": [], "use_sliding_window": False, "sliding_window": None},
        {},
    ),
    "qwen3": ("qwen3", {}, {}),
    "qwen3_moe": ("qwen3_moe", {"mlp_only_layers": []}, {}),
    "seed_oss": ("seed_oss", {}, {}),
    "smollm3": ("smollm3", {**_FOUR_LAYERS, "no_rope_layer_interval": 4}, {}),
    "stablelm": ("stablelm", {}, {}),
    "starcoder2": ("starcoder2", {"sliding_window": 4096}, {}),
}
"""By the name of the file: a case of `tests.tiny_models`, what differs of its configuration, and
keys that published configurations have beside those that transformers writes."""


def main() -> None:
    """Records all cases, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("llama_cpp", type=Path)
    parser.add_argument("cases", nargs="*", choices=[*CASES, []])
    options = parser.parse_args()
    sys.path[:0] = [str(options.llama_cpp / "gguf-py")]
    import gguf  # the converter's own, before tests of this repository bring another

    assert Path(gguf.__file__).is_relative_to(options.llama_cpp), "another gguf was imported"
    sys.path.remove(str(options.llama_cpp / "gguf-py"))
    sys.path.insert(0, str(options.llama_cpp))
    expected = json.loads(EXPECTED.read_text()) if EXPECTED.exists() else {}
    for case in options.cases or CASES:
        with tempfile.TemporaryDirectory() as folder:
            expected[case] = record(case, Path(folder))
            print(case, expected[case])
    lines = [f"{json.dumps(case)}: {json.dumps(expected[case])}" for case in sorted(expected)]
    EXPECTED.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def record(name: str, folder: Path) -> list[int]:
    """Writes one file, and returns what transformers generates."""
    import torch
    from conversion import get_model_class
    from conversion.base import ModelBase, ModelType, get_model_architecture
    from gguf import LlamaFileType

    from tests.tiny_models import reference_model, tiny_model, unsplit_tokens

    case, overrides, published = CASES[name]
    path = tiny_model(case, folder, rounded_to=torch.float16, **{**SMALL, **overrides})
    tokens = unsplit_tokens(reference_model(path), PROMPT, NUM_TOKENS)
    vocab = {f"t{i}": i for i in range(VOCAB_SIZE)}
    tokenizer = {"model": {"vocab": vocab}, "added_tokens": []}
    (path / "tokenizer.json").write_text(json.dumps(tokenizer))
    hparams = ModelBase.load_hparams(path, False) | published
    model_class = get_model_class(get_model_architecture(hparams, ModelType.TEXT))
    model_class.set_vocab = _set_vocab
    with torch.inference_mode():
        file = HERE / f"{name}.gguf"
        model_class(path, LlamaFileType.MOSTLY_F16, file, hparams=hparams).write()
    return tokens


def _set_vocab(model: Any) -> None:
    """Writes a vocabulary in the place of a tokenizer's: here only weights are of interest."""
    writer = model.gguf_writer
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([f"t{i}" for i in range(VOCAB_SIZE)])
    writer.add_token_types([1] * VOCAB_SIZE)
    writer.add_token_merges(["t 1"])
    writer.add_eos_token_id(2)


if __name__ == "__main__":
    main()
