"""GGUF models in several files, as the writer of the `gguf` package divides them."""

import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from stagecoach.contract.errors import ModelFilesError, UnsupportedModelError
from stagecoach.model_files import open_model
from tests.tiny_models import read_all, tiny_gguf


def part(path: Path, number: int) -> Path:
    return path.with_name(path.name.replace("-00001-", f"-{number:05}-"))


@pytest.fixture
def first(tmp_path: Path) -> Path:
    """The first of three files."""
    path = tiny_gguf("llama", tmp_path, tensors_per_part=20)
    assert path.name == "llama-00001-of-00003.gguf"
    assert part(path, 3).exists()
    assert not part(path, 4).exists()
    return path


def test_parts_are_one_model(first: Path, tmp_path: Path) -> None:
    whole = tiny_gguf("llama", tmp_path / "whole")
    found, expected = read_all(first), read_all(whole)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name], tensor, err_msg=name)
    parts, one = open_model(str(first)), open_model(str(whole))
    assert parts.model_id == one.model_id == "llama"
    assert parts.config == one.config
    assert parts.fingerprint == one.fingerprint
    assert parts.weight_digests() == one.weight_digests()
    assert parts.tokenizer_files() == one.tokenizer_files()


def test_groups_come_from_the_part_that_holds_them(tmp_path: Path) -> None:
    q8_0 = gguf.GGMLQuantizationType.Q8_0
    shape: dict[str, Any] = {"quantization": q8_0, "hidden_size": 64}
    files = open_model(str(tiny_gguf("llama", tmp_path, tensors_per_part=9, **shape)))
    name = "model.layers.5.mlp.up_proj.weight"
    with files.open_tensors([name]) as reader:
        found = reader.read_groups(name, 3, 9).values()
        np.testing.assert_array_equal(found, reader.read(name, 3, 9))


def test_a_later_part_names_the_first(first: Path) -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        open_model(str(part(first, 2)))
    assert str(caught.value) == (
        "llama-00002-of-00003.gguf is not the first of 3 parts of a model: open the first, "
        "llama-00001-of-00003.gguf"
    )


def test_a_later_part_of_another_name_is_told_too(first: Path) -> None:
    other = first.with_name("other.gguf")
    part(first, 2).rename(other)
    with pytest.raises(
        UnsupportedModelError, match="not the first of 3 parts of a model: open the"
    ):
        open_model(str(other))


def test_a_missing_part_is_named(first: Path) -> None:
    part(first, 2).unlink()
    with pytest.raises(ModelFilesError, match=r"^llama-00002-of-00003\.gguf: No such file"):
        open_model(str(first))


def test_a_first_part_of_another_name_says_how_it_must_end(first: Path) -> None:
    renamed = first.rename(first.with_name("model.gguf"))
    with pytest.raises(ModelFilesError, match=r"it must end in -00001-of-00003\.gguf$"):
        open_model(str(renamed))


def test_a_part_in_the_place_of_another_is_refused(first: Path) -> None:
    shutil.copy(part(first, 3), part(first, 2))
    with pytest.raises(ModelFilesError) as caught:
        open_model(str(first))
    assert str(caught.value) == (
        "llama-00002-of-00003.gguf is no part of llama-00001-of-00003.gguf: its split.no and "
        "split.count are 2 and 3, must be 1 and 3"
    )


def test_a_truncated_part_is_named(first: Path) -> None:
    last = part(first, 3)
    last.write_bytes(last.read_bytes()[:-100])
    with pytest.raises(ModelFilesError, match=r"^llama-00003-of-00003\.gguf is truncated"):
        open_model(str(first))


def write_part(path: Path, number: int, tensors: dict[str, np.ndarray]) -> None:
    """A second and last part."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.kv_data[0].clear()
    writer.add_uint16("split.no", number)
    writer.add_uint16("split.count", 3)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_part_without_its_number_is_refused(tmp_path: Path) -> None:
    whole = tiny_gguf("llama", tmp_path, metadata={"split.count": 3})
    with pytest.raises(ModelFilesError, match=r"is one of 3 parts and has no split\.no$"):
        open_model(str(whole))


def test_the_ending_may_be_in_capitals(first: Path) -> None:
    for number in (3, 2, 1):
        old = part(first, number)
        old.rename(old.with_suffix(".GGUF"))
    assert open_model(str(first.with_suffix(".GGUF"))).model_id == "llama"


def test_a_tensor_in_two_parts_is_refused(first: Path) -> None:
    write_part(part(first, 3), 2, {"token_embd.weight": np.ones((4, 4), np.float32)})
    with pytest.raises(ModelFilesError, match=r"'token_embd\.weight' is in llama-00001-of-00003\."):
        open_model(str(first))


def test_parts_that_lack_tensors_are_refused_with_the_numbers(first: Path) -> None:
    write_part(part(first, 3), 2, {"blk.9.attn_q.weight": np.ones((4, 4), np.float32)})
    with pytest.raises(ModelFilesError, match=r"split\.tensors\.count is 57, all parts have 41"):
        open_model(str(first))
