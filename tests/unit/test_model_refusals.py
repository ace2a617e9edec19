"""What is not served is refused in the words of whoever chose it, with what would work instead."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
import torch
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from coordinator.text.tokenizer_files import load_tokenizer
from stage_server.model.layer_stack import load_layer_stack
from stagecoach.contract.errors import StagecoachError, UnsupportedModelError
from stagecoach.contract.layer_range import LayerRange
from stagecoach.contract.precision import DType, Precision
from stagecoach.model_files import open_model
from stagecoach.model_files.families import FAMILIES
from stagecoach.model_files.hf_files import HfFiles
from stagecoach.model_files.local_folder import LocalFolder
from stagecoach.model_files.text_part import text_config
from tests.tiny_models import needed_keys, tiny_model

LFS_POINTER = (
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n"
    "size 4976698672\n"
)
OTHERS = ("albert", "clip", "idefics3", "llava", "mistral3", "mt5", "qwen2_5_vl", "t5", "vit")
MAKES_NO_MODEL = ("deepseek_v2", "dots1", "nemotron")
"""Types whose configuration without keys describes no model, to transformers either."""

_INTERNAL = re.compile(r"\bNone\b|NoneType|KeyError|Error\b|attribute|object has|Traceback|\n")


def refusal(model: Path | str) -> str:
    """Opens a model and loads a stage of it, as far as that goes; what is said of it."""
    with pytest.raises(StagecoachError) as caught:
        load_layer_stack(
            open_model(str(model)),
            LayerRange(0, 1),
            precision=Precision.uniform(DType.FLOAT32),
            device=torch.device("cpu"),
        )
    message = caught.value.message
    assert _INTERNAL.search(message) is None, message
    return message


@pytest.mark.parametrize("model_type", [*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *OTHERS])
def test_every_model_type_is_served_or_refused_in_words(model_type: str, tmp_path: Path) -> None:
    config = {"model_type": model_type}
    if model_type != "gemma4_assistant":  # has no defaults that it would take itself
        CONFIG_MAPPING[model_type](**needed_keys(model_type)).save_pretrained(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    message = refusal(tmp_path)
    if (text_config(config) or config)["model_type"] in FAMILIES:
        assert "has no weights" in message or model_type in MAKES_NO_MODEL
    else:
        assert f"model type '{config['model_type']}' is not served: " in message
        if model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
            assert "built in another way" not in message, "nobody says what is different"


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"model_type": "mamba"}, "has no attention"),
        ({"model_type": "jamba"}, "some of its layers have no attention"),
        ({"model_type": "bert"}, "an encoder, which generates no text"),
        ({"model_type": "t5"}, "an encoder with a decoder"),
        ({"model_type": "flint2", "num_local_experts": 8}, "a mixture of experts"),
        ({"model_type": "deepseek_v9", "kv_lora_rank": 512}, "of a narrower row (kv_lora_rank)"),
        ({"model_type": "bloom", "n_layer": 12}, "the distance between tokens (ALiBi)"),
        ({"model_type": "hrm_text"}, "run several times for each token"),
        ({"model_type": "gemma4_assistant"}, "only drafts for another model"),
        ({"model_type": "my_own", "auto_map": {}}, "built in another way"),
        (
            {"model_type": "paligemma", "text_config": {"model_type": "gemma"}},
            "its language model of type 'gemma' (text_config) is served once it is saved",
        ),
        ({"model_type": "qwen2_vl", "vision_config": {}}, "takes more than text"),
    ],
)
def test_a_family_is_refused_for_what_it_is(
    config: dict[str, object], told: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    message = refusal(tmp_path)
    assert told in message
    assert "served are arcee, cohere" in message


@pytest.mark.parametrize("value", [False, None, 0])
def test_attention_to_what_follows_is_refused(value: object, tmp_path: Path) -> None:
    """As for transformers, whatever is no yes is a no."""
    path = tiny_model("llama", tmp_path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "is_causal": value}))
    assert f"is_causal {json.dumps(value)} is not served" in refusal(path)
    (path / "config.json").write_text(json.dumps({**config, "is_causal": True}))
    load_layer_stack(
        open_model(str(path)),
        LayerRange(0, 1),
        precision=Precision.uniform(DType.FLOAT32),
        device=torch.device("cpu"),
    )


@pytest.mark.parametrize(
    ("case", "base", "missing"),
    [
        ("llama-gqa-tied", "model.", "model.embed_tokens.weight"),
        ("gpt2", "transformer.", "transformer.h.0.attn.c_attn.bias"),
    ],
)
def test_a_model_that_was_saved_without_its_head_is_told_so(
    case: str, base: str, missing: str, tmp_path: Path
) -> None:
    path = tiny_model(case, tmp_path)
    tensors = load_file(path / "model.safetensors")
    bare = {name.removeprefix(base): tensor for name, tensor in tensors.items()}
    save_file(bare, path / "model.safetensors")
    message = refusal(path)
    assert missing in message
    assert f"lack the '{base}' in front" in message


def test_a_tensor_is_missed_under_the_name_that_files_have_for_it(tmp_path: Path) -> None:
    path = tiny_model("gpt_neox", tmp_path)
    tensors = load_file(path / "model.safetensors")
    masks = {f"gpt_neox.layers.{i}.attention.bias": torch.ones(1, 1, 4, 4) for i in range(6)}
    save_file({**tensors, **masks}, path / "model.safetensors")
    load_layer_stack(
        open_model(str(path)),
        LayerRange(0, 6),
        precision=Precision.uniform(DType.FLOAT32),
        device=torch.device("cpu"),
    )
    del tensors["gpt_neox.layers.0.attention.dense.bias"]
    save_file(tensors, path / "model.safetensors")
    assert "has no tensor gpt_neox.layers.0.attention.dense.bias" in refusal(path)
    save_file({**tensors, "gpt_neox.layers.0.x": torch.ones(1)}, path / "model.safetensors")
    assert "gpt_neox.layers.0.attention.dense.bias" in refusal(path)


@pytest.mark.parametrize(
    ("case", "key", "value"),
    [
        ("biogpt", "scale_embedding", False),
        ("gpt2", "add_cross_attention", True),
        ("olmoe", "sliding_window", 8),
    ],
)
def test_what_makes_other_layers_is_refused_by_its_key(
    case: str, key: str, value: object, tmp_path: Path
) -> None:
    path = tiny_model(case, tmp_path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, key: value}))
    assert f"{key} {json.dumps(value)} is not served" in refusal(path)


def write(path: Path, *names: str) -> None:
    for name in names:
        (path / name).write_bytes(b"\x80\x02}")


def only_config(path: Path) -> None:
    config = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4}
    (path / "config.json").write_text(json.dumps(config))


def pickled(path: Path) -> None:
    only_config(path)
    write(path, "pytorch_model.bin")


def pickled_shards(path: Path) -> None:
    only_config(path)
    write(path, "pytorch_model.bin.index.json", "pytorch_model-00001-of-00002.bin")


def original(path: Path) -> None:
    write(path, "consolidated.00.pth", "params.json", "tokenizer.model")


def mistral_original(path: Path) -> None:
    save_file({"tok_embeddings.weight": torch.zeros(2, 2)}, path / "consolidated.safetensors")
    write(path, "params.json")


def mistral_weights(path: Path) -> None:
    mistral_original(path)
    only_config(path)


def checkpoint(path: Path) -> None:
    write(path, "model.ckpt")


def onnx(path: Path) -> None:
    only_config(path)
    write(path, "model.onnx")


def gguf_inside(path: Path) -> None:
    write(path, "model-Q4_K_M.gguf", "README.md")


def readme(path: Path) -> None:
    write(path, "README.md")


def empty(path: Path) -> None:
    assert not list(path.iterdir())


def adapter(path: Path) -> None:
    (path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    write(path, "adapter_model.safetensors")


def adapter_beside(path: Path) -> None:
    tiny_model("llama", path).rename(path / "m")
    for file in (path / "m").iterdir():
        file.rename(path / file.name)
    adapter(path)


def shards_without_index(path: Path) -> None:
    only_config(path)
    write(path, "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def lfs_config(path: Path) -> None:
    (path / "config.json").write_text(LFS_POINTER)


def lfs_weights(path: Path) -> None:
    only_config(path)
    (path / "model.safetensors").write_text(LFS_POINTER)


def lfs_index(path: Path) -> None:
    only_config(path)
    (path / "model.safetensors.index.json").write_text(LFS_POINTER)


def missing_shards(path: Path) -> None:
    only_config(path)
    names = ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]
    for i in range(32):
        names += [
            f"model.layers.{i}.{name}.weight"
            for name in (
                *(f"self_attn.{one}_proj" for one in "qkvo"),
                *("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
                *("input_layernorm", "post_attention_layernorm"),
            )
        ]
    index = {"weight_map": dict.fromkeys(names, "model-00001-of-00002.safetensors")}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))


def config_that_is(text: str | bytes) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        data = text if isinstance(text, bytes) else text.encode()
        (path / "config.json").write_bytes(data)

    return make


def end_tokens_elsewhere(path: Path) -> None:
    only_config(path)
    (path / "generation_config.json").write_text('{"eos_token_id": 258.0}')


CONVERT = "save it with `save_pretrained`, which writes safetensors"
FOLDERS: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "pickled weights": (pickled, ["pytorch_model.bin", CONVERT]),
    "pickled shards": (pickled_shards, ["pytorch_model-00001-of-00002.bin", CONVERT]),
    "the authors' own form": (original, ["no config.json", "authors' own code", "-hf"]),
    "Mistral's own form": (mistral_original, ["no config.json", "authors' own code"]),
    "Mistral's own weights": (
        mistral_weights,
        ["no weights but consolidated.safetensors", "authors' own code"],
    ),
    "a checkpoint": (checkpoint, ["model.ckpt", CONVERT]),
    "onnx": (onnx, ["a model for ONNX (model.onnx)"]),
    "gguf": (gguf_inside, ["model-Q4_K_M.gguf", "name one of them instead of the folder"]),
    "a README": (readme, ["no config.json", "it has README.md"]),
    "nothing": (empty, ["no config.json", "it is empty"]),
    "a config alone": (only_config, ["no model.safetensors"]),
    "an adapter alone": (adapter, ["only an adapter is here", "merge"]),
    "an adapter beside a model": (adapter_beside, ["an adapter beside its weights", "merge"]),
    "shards without index": (shards_without_index, ["index.json", "-00001-of-00002"]),
    "a pointer for config": (lfs_config, ["config.json is not here", "git lfs pull"]),
    "a pointer for weights": (lfs_weights, ["model.safetensors is not here", "git lfs pull"]),
    "a pointer for the index": (lfs_index, ["index.json is not here", "git lfs pull"]),
    "an index of absent shards": (missing_shards, ["no file model-00001-of-00002.safetensors"]),
    "config is a list": (config_that_is("[1]"), ["config.json is not a JSON object"]),
    "config is empty": (config_that_is(""), ["config.json is not JSON: it is empty"]),
    "config is cut off": (config_that_is('{"model_type": "lla'), ["not JSON", "cut off"]),
    "config is cut off between": (config_that_is('{"a": 1,'), ["not JSON", "cut off"]),
    "config in UTF-16": (config_that_is('{"a": 1}'.encode("utf-16")), ["not text in UTF-8"]),
    "config without family": (config_that_is("{}"), ["model_type is null"]),
    "config without a number": (
        config_that_is('{"model_type": "llama", "rms_norm_eps": NaN}'),
        ["rms_norm_eps is NaN, must be a number from 0 to 1"],
    ),
    "config with a null": (
        config_that_is('{"model_type": "gemma", "num_key_value_heads": null}'),
        ["num_key_value_heads is null, which no gemma model has"],
    ),
    "scaling without factor": (
        config_that_is('{"model_type": "llama", "rope_scaling": {"type": "linear"}}'),
        ["config.json", "factor"],
    ),
    "scaling that is a number": (
        config_that_is('{"model_type": "llama", "rope_scaling": 2}'),
        ["config.json: rope_scaling is 2, must be an object"],
    ),
    "scaling that is a name": (
        config_that_is('{"model_type": "llama", "rope_parameters": "yarn"}'),
        ['config.json: rope_parameters is "yarn", must be an object'],
    ),
    "an activation that does not exist": (
        config_that_is('{"model_type": "llama", "hidden_act": "nonsense"}'),
        ['config.json: hidden_act is "nonsense", which no llama model has'],
    ),
    "a web page for config": (
        config_that_is("<!doctype html><html>"),
        ["config.json is not JSON: it begins with '<!doctype html><html', as a web page does"],
    ),
    "end tokens that are no ids": (end_tokens_elsewhere, ["generation_config.json: eos_token_id"]),
}


@pytest.mark.parametrize(
    "names",
    [
        ["tekken.json"],
        ["tekken_240911.json"],
        ["tokenizer.model"],
        ["tokenizer.model.v3"],
        ["mistral_instruct_tokenizer_241114.model.v7m1"],
        ["spiece.model"],
        ["merges.txt", "vocab.json"],
        ["vocab.txt"],
        ["qwen.tiktoken"],
    ],
)
def test_a_tokenizer_in_another_form_is_told_what_is_missing(
    names: list[str], tmp_path: Path
) -> None:
    only_config(tmp_path)
    write(tmp_path, *names)
    files = HfFiles(LocalFolder(tmp_path))
    with pytest.raises(UnsupportedModelError) as refused:
        load_tokenizer(files)
    assert f"has no tokenizer.json, and {', '.join(names)} is not read" in refused.value.message
    assert "to serve token ids alone" in refused.value.message
    for name in names:
        (tmp_path / name).unlink()
    write(tmp_path, "params.json", "model.safetensors.index.json")
    assert load_tokenizer(files) is None


def test_a_tokenizer_in_another_form_may_lie_beside_one_that_is_read(tmp_path: Path) -> None:
    only_config(tmp_path)
    write(tmp_path, "tekken.json", "tokenizer.model")
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={"a": 0}, merges=[]))
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(HfFiles(LocalFolder(tmp_path)))
    assert tokenizer is not None
    assert tokenizer.encode("aa") == [0, 0]


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_folder_that_is_no_model_is_told_what_it_is(kind: str, tmp_path: Path) -> None:
    make, told = FOLDERS[kind]
    folder = tmp_path / "a model"
    folder.mkdir()
    make(folder)
    message = refusal(folder)
    for text in told:
        assert text in message


def test_a_mark_at_the_beginning_of_config_does_no_harm(tmp_path: Path) -> None:
    path = tiny_model("llama", tmp_path)
    text = (path / "config.json").read_bytes()
    before = open_model(str(path)).fingerprint
    (path / "config.json").write_bytes(b"\xef\xbb\xbf" + text)
    assert open_model(str(path)).fingerprint == before


def test_paths_with_spaces_and_home_lead_to_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_model("llama", tmp_path / "my models")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_model("~/my models/llama").config.num_layers == 6
    assert open_model(f"{tmp_path}/my models/llama/").config.num_layers == 6


def test_a_file_in_the_place_of_a_folder_is_told_what_to_name(tmp_path: Path) -> None:
    path = tiny_model("llama", tmp_path) / "model.safetensors"
    assert "is a file: name the folder that it lies in" in refusal(path)


@pytest.mark.parametrize("model", ["~nobody-of-this-name/model", "x" * 5000, "a\0b"])
def test_what_can_be_no_path_is_refused(model: str) -> None:
    refusal(model)


def test_a_pointer_in_the_place_of_a_gguf_file_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_text(LFS_POINTER)
    assert "x.gguf is not here, only its pointer of git LFS" in refusal(tmp_path / "x.gguf")


def test_a_family_that_is_not_served_is_an_unsupported_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    with pytest.raises(UnsupportedModelError):
        open_model(str(tmp_path))
