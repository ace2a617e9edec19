"""Digests tell weights of one shape apart, and do not see how they lie in files."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file

from stagecoach.model_files import open_model
from stagecoach.model_files.weight_digest import WINDOW_BYTES, part_of, windows
from tests.tiny_models import NUM_LAYERS, tiny_gguf, tiny_model

Tensors = dict[str, torch.Tensor]
PARTS = {"embedding", "norm", "head", *(f"layer {i}" for i in range(NUM_LAYERS))}
_INDEX = "model.safetensors.index.json"


def rewrite(path: Path, change: Callable[[Tensors], object]) -> None:
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors")


def other_weights(folder: Path, case: str = "llama") -> Path:
    """A model of the same shape, of which every tensor has other values."""
    path = tiny_model(case, folder)
    rewrite(path, lambda tensors: [tensor.mul_(1.01) for tensor in tensors.values()])
    return path


def test_other_weights_of_one_shape_differ_in_every_part(tmp_path: Path) -> None:
    one = open_model(str(tiny_model("llama", tmp_path / "one")))
    other = open_model(str(other_weights(tmp_path / "other")))
    assert one.fingerprint == other.fingerprint
    found, expected = one.weight_digests(), other.weight_digests()
    assert found.keys() == expected.keys() == PARTS
    assert all(found[part] != expected[part] for part in PARTS)


def test_what_was_tuned_alone_differs(tmp_path: Path) -> None:
    path = tiny_model("llama", tmp_path)
    before = open_model(str(path)).weight_digests()
    rewrite(path, lambda tensors: tensors["model.layers.3.mlp.up_proj.weight"].add_(1e-4))
    after = open_model(str(path)).weight_digests()
    assert [part for part in PARTS if before[part] != after[part]] == ["layer 3"]


def test_shards_their_names_and_their_folder_make_no_difference(tmp_path: Path) -> None:
    whole = open_model(str(tiny_model("llama", tmp_path / "whole")))
    path = tiny_model("llama", tmp_path / "sharded", max_shard_size="20KB")
    sharded = open_model(str(path))
    assert sharded.fingerprint == whole.fingerprint
    assert sharded.weight_digests() == whole.weight_digests()
    index = json.loads((path / _INDEX).read_text())
    for shard in set(index["weight_map"].values()):
        (path / shard).rename(path / f"part-{shard}")
    renamed = {name: f"part-{shard}" for name, shard in index["weight_map"].items()}
    (path / _INDEX).write_text(json.dumps({"weight_map": renamed}))
    moved = open_model(str(path.rename(tmp_path / "moved")))
    assert moved.fingerprint == whole.fingerprint
    assert moved.weight_digests() == whole.weight_digests()


def test_only_parts_whose_files_are_here_and_sound_are_told(tmp_path: Path) -> None:
    path = tiny_model("llama", tmp_path, max_shard_size="20KB")
    whole = open_model(str(path)).weight_digests()
    shards = json.loads((path / _INDEX).read_text())["weight_map"]
    (path / shards["model.layers.1.mlp.up_proj.weight"]).unlink()
    os.truncate(path / shards["model.layers.4.mlp.down_proj.weight"], 100)
    found = open_model(str(path)).weight_digests()
    assert {"layer 0", "layer 5", "norm", "head"} <= found.keys()
    assert not {"layer 1", "layer 4"} & found.keys()
    assert found.items() <= whole.items()


def test_a_type_or_a_shape_makes_a_difference(tmp_path: Path) -> None:
    path = tiny_model("llama", tmp_path)
    before = open_model(str(path)).weight_digests()
    norm = "model.norm.weight"
    rewrite(path, lambda tensors: tensors.update({norm: tensors[norm][:-1].clone()}))
    assert open_model(str(path)).weight_digests()["norm"] != before["norm"]
    rewrite(path, lambda tensors: tensors.update({k: t.half() for k, t in tensors.items()}))
    found = open_model(str(path)).weight_digests()
    assert all(found[part] != before[part] for part in PARTS)


@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
def test_gguf_files_are_told_apart_too(tmp_path: Path, kind: str) -> None:
    quantization = gguf.GGMLQuantizationType[kind]
    (tmp_path / "other").mkdir()
    path = tiny_gguf("llama", tmp_path, quantization=quantization, hidden_size=64)
    one = open_model(str(path))
    copy = open_model(str(shutil.copy(path, tmp_path / "copy.gguf")))
    assert (copy.fingerprint, copy.weight_digests()) == (one.fingerprint, one.weight_digests())
    assert one.weight_digests().keys() == PARTS
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    changed = open_model(str(path))
    assert changed.fingerprint == one.fingerprint
    assert changed.weight_digests() != copy.weight_digests()


def test_a_tensor_of_any_size_costs_a_few_windows_from_its_begin_to_its_end() -> None:
    assert windows(1000, 4) == [(0, 1000)]
    for num_bytes in (4 * WINDOW_BYTES + 1, 26_000_000_000):
        found = windows(num_bytes, 4)
        assert len(found) == 4
        assert (found[0][0], sum(found[-1])) == (0, num_bytes)
        assert all(length == WINDOW_BYTES for _, length in found)


def test_tensors_belong_to_parts() -> None:
    assert part_of("model.layers.12.mlp.up_proj.weight") == "layer 12"
    assert part_of("model.embed_tokens.weight") == "embedding"
    assert part_of("model.norm.bias") == "norm"
    assert part_of("lm_head.weight") == "head"
    assert part_of("score.weight") is None
