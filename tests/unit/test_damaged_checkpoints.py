"""Quantized safetensors whose files say what does not fit: refused in words, and soon."""

import json
import math
import os
import re
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from stagecoach.contract.errors import ModelFilesError, StagecoachError, UnsupportedModelError
from stagecoach.contract.layer_range import LayerRange
from stagecoach.model_files import open_model
from tests.loaded_checkpoints import DOWN_PROJ, Q_PROJ, grouped, load, read, requantized
from tests.packed_checkpoints import FORMATS, packed_model

Edit = Callable[[dict[str, torch.Tensor]], None]


def _set(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Edit:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name] = change(tensors[name]).contiguous().clone()

    return edit


def _without(name: str) -> Edit:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        del tensors[name]

    return edit


def _and(name: str, make: Callable[[], torch.Tensor]) -> Edit:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name] = make()

    return edit


def _with_first(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(tensor: torch.Tensor) -> torch.Tensor:
        flat = tensor.clone().flatten()
        flat[0] = value
        return flat.view(tensor.shape)

    return change


_STATE = f"{DOWN_PROJ}.weight.quant_state.bitsandbytes__nf4"

DAMAGED: list[tuple[str, Edit, str]] = [
    *(
        (name, _set(f"{DOWN_PROJ}.{part}", _with_first(value)), f"{DOWN_PROJ}.{part} is damaged")
        for name, part in (
            ("awq", "scales"),
            ("gptq", "scales"),
            ("compressed-tensors, int4", "weight_scale"),
            ("fp8", "weight_scale_inv"),
            ("bitsandbytes, int8", "SCB"),
            ("bitsandbytes, nf4", "weight.nested_absmax"),
        )
        for value in (math.nan, math.inf)
    ),
    ("fp8", _set(f"{DOWN_PROJ}.weight", lambda old: (old.float() * math.nan).to(old.dtype)),
     f"{DOWN_PROJ}.weight is damaged: an element is no finite number"),
    ("awq", _set(f"{DOWN_PROJ}.qweight", lambda old: old[:, :-1]), f"{DOWN_PROJ}.scales has shape"),
    ("awq", _set(f"{DOWN_PROJ}.qzeros", lambda old: old[:, :-1]), f"{DOWN_PROJ}.qzeros has shape"),
    ("awq", _set(f"{DOWN_PROJ}.qweight", lambda old: old[:100]),
     f"tensors of {DOWN_PROJ} do not fit together: group_size 32 does not divide 100 columns"),
    ("awq", _set(f"{DOWN_PROJ}.qweight", lambda old: old[0]), "must have 2 dimensions"),
    ("awq", _set(f"{DOWN_PROJ}.qweight", lambda old: old.long()),
     f"{DOWN_PROJ}.qweight has type I64, must be I32"),
    *((name, _set(f"{DOWN_PROJ}.{part}", lambda old: old[:, :0]), "none of them 0")
      for name, part in (("awq", "qweight"), ("gptq", "qzeros"), ("fp8", "weight"),
                         ("compressed-tensors, int4", "weight_packed"))),
    ("bitsandbytes, nf4", _set(_STATE, lambda old: old.repeat(1000)), "at most 65536 are read"),
    ("awq", _without(f"{DOWN_PROJ}.scales"), f"there is no tensor {DOWN_PROJ}.scales"),
    ("gptq", _set(f"{DOWN_PROJ}.qweight", lambda old: old[:-1]), "does not divide 120 columns"),
    ("gptq", _set(f"{DOWN_PROJ}.qzeros", lambda old: old[:, :4]),
     f"{DOWN_PROJ} do not fit together: 4 words of qzeros for 64 rows are codes of 2 bits"),
    ("gptq", _set(f"{DOWN_PROJ}.g_idx", _with_first(7)), "g_idx has groups 0 to 7, there are 4"),
    ("gptq", _set(f"{DOWN_PROJ}.g_idx", lambda old: old[:-1]), f"{DOWN_PROJ}.g_idx has shape"),
    ("compressed-tensors, int4",
     _set(f"{DOWN_PROJ}.weight_packed", lambda old: old[:, :-1]),
     f"{DOWN_PROJ} do not fit together: weight_packed has shape [64, 15], weight_shape says"),
    ("compressed-tensors, int4",
     _set(f"{DOWN_PROJ}.weight_scale", lambda old: old[:, :-1]),
     "group_size 32 does not divide 128 columns into 3 groups"),
    ("compressed-tensors, int4, asymmetric",
     _set(f"{DOWN_PROJ}.weight_zero_point", lambda old: old[:-1]),
     f"{DOWN_PROJ}.weight_zero_point has shape [7, 4]"),
    ("compressed-tensors, int4, asymmetric",
     _and(f"{DOWN_PROJ}.weight_zero_point", lambda: torch.full((64, 4), -9, dtype=torch.int8)),
     "weight_zero_point has -9 to -9, must be from -8 to 7 in 4 bits"),
    ("compressed-tensors, int4, asymmetric",
     _and(f"{DOWN_PROJ}.weight_zero_point", lambda: torch.full((1,), 1 << 16, dtype=torch.int32)),
     "weight_zero_point has 65536 to 65536, must be from -8 to 7 in 4 bits"),
    ("compressed-tensors, int-quantized",
     _set(f"{DOWN_PROJ}.weight_scale", lambda old: old[:-1]),
     "weight_scale has shape [63, 1], weight [64, 128]: must be of the tensor, its rows"),
    ("fp8", _set(f"{DOWN_PROJ}.weight_scale_inv", lambda old: old[:, :-1]),
     "weight_scale_inv has shape [2, 2], weight [64, 128]"),
    ("fp8", _set(f"{DOWN_PROJ}.weight", lambda old: old.to(torch.float8_e5m2)),
     f"{DOWN_PROJ}.weight has type F8_E5M2, must be F8_E4M3 or I8: take the model that"),
    ("bitsandbytes, nf4", _set(f"{DOWN_PROJ}.weight", lambda old: old[:-1]),
     f"{DOWN_PROJ}.weight has 4095 bytes, {DOWN_PROJ} takes 4096"),
    ("bitsandbytes, nf4", _set(f"{DOWN_PROJ}.weight.absmax", lambda old: old[:-1]),
     f"{DOWN_PROJ}.weight.absmax has shape [127]"),
    ("bitsandbytes, nf4", _set(_STATE, lambda old: old[:-1]), f"{_STATE} is not JSON"),
    ("bitsandbytes, nf4", _without(_STATE), f"there is no tensor {_STATE}"),
    ("bitsandbytes, int8", _set(f"{DOWN_PROJ}.weight_format", lambda old: old + 1),
     f"{DOWN_PROJ} do not fit together: weight_format is not 0"),
    ("bitsandbytes, int8", _set(f"{DOWN_PROJ}.weight_format", lambda old: old.double()),
     f"{DOWN_PROJ}.weight_format has type F64"),
    ("bitsandbytes, nf4", _set(f"{DOWN_PROJ}.weight.quant_map", lambda old: old.double()),
     f"{DOWN_PROJ}.weight.quant_map has type F64"),
    ("gptq, symmetric",
     _set(f"{DOWN_PROJ}.bias", lambda old: old[:-1]),
     f"{DOWN_PROJ}.bias has shape [63], must be [64]"),
    ("fp8", _and(f"{DOWN_PROJ}.weight_scale", lambda: torch.ones(1)),
     f"{DOWN_PROJ} do not fit together: there are weight_scale and weight_scale_inv"),
    ("bitsandbytes, nf4", _and(_STATE.replace("nf4", "fp4"), lambda: torch.ones(1).byte()),
     f"{DOWN_PROJ} do not fit together: there are weight.quant_state.bitsandbytes__nf4 and"),
    ("bitsandbytes, nf4", _without(f"{DOWN_PROJ}.weight.nested_absmax"),
     f"there is no tensor {DOWN_PROJ}.weight.nested_absmax"),
    ("gptq, symmetric",
     _set(f"{DOWN_PROJ}.bias", _with_first(1)),
     f"{DOWN_PROJ}.bias is not 0, and the model has no such bias"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "edit", "told"), DAMAGED)
def test_tensors_that_do_not_fit_are_named(
    name: str, edit: Edit, told: str, tmp_path: Path
) -> None:
    path = packed_model(FORMATS[name], "llama", tmp_path, num_hidden_layers=2).path
    tensors = load_file(path / "model.safetensors")
    edit(tensors)
    save_file(tensors, path / "model.safetensors")
    with pytest.raises(StagecoachError) as caught:
        load(path, LayerRange(0, 2))
    assert isinstance(caught.value, ModelFilesError | UnsupportedModelError)
    assert told in caught.value.message
    assert load(path, LayerRange(1, 2)).weight_bytes > 0, "other layers are sound"


CHANGES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "flat": lambda old: old.flatten(),
    "of one more dimension": lambda old: old[None],
    "empty": lambda old: old.flatten()[:0],
    "transposed": lambda old: old.T if old.dim() == 2 else old.repeat(2),
    "shorter": lambda old: old[:-1] if old.dim() else old[None],
    "of another type": lambda old: old.to(torch.float64),
    "of ones in its bits": lambda old: (
        torch.full_like(old.flatten().view(torch.uint8), 255).view(old.dtype).view(old.shape)
    ),
}


@pytest.mark.parametrize("name", FORMATS)
def test_whatever_a_tensor_is_no_error_is_of_another_class(name: str, tmp_path: Path) -> None:
    """A change may leave a matrix valid; what is not is refused in words."""
    path = packed_model(FORMATS[name], "llama", tmp_path, num_hidden_layers=1).path
    sound = load_file(path / "model.safetensors")
    messages = []
    for tensor in (name for name in sound if name.startswith(DOWN_PROJ)):
        for change in CHANGES.values():
            changed = {**sound, tensor: change(sound[tensor]).contiguous().clone()}
            save_file(changed, path / "model.safetensors")
            try:
                load(path, LayerRange(0, 1))
            except (ModelFilesError, UnsupportedModelError) as error:
                messages.append(error.message)
    assert len(messages) > 4
    assert all(DOWN_PROJ in message for message in messages)


STRANGE: list[object] = [
    *(None, True, "64", [], {}, 0, -1, 0.5, math.nan, math.inf, 1e300),
    *(2**31, 2**63, 2**64, 10**30, 10**400, 10**4000),
    *([64], [[], []], [0, 0], [128, 64], [2**62, 2], [10**4000, 10**4000]),
]
"""What a value of JSON may be instead."""


def refusals(path: Path, changes: Iterator[object]) -> list[str]:
    """Reads a matrix after each change of a model's files.

    Returns:
        Messages where it was refused; an error of another class is raised.
    """
    messages = []
    for _ in changes:
        try:
            files = open_model(str(path))
            load(path, LayerRange(0, 1)) if files.encoding is None else read(path)
        except (ModelFilesError, UnsupportedModelError) as error:
            messages.append(error.message)
    return messages


@pytest.mark.parametrize("key", ["blocksize", "nested_blocksize", "nested_offset", "shape"])
def test_whatever_a_state_says_no_error_is_of_another_class(key: str, tmp_path: Path) -> None:
    path = packed_model(FORMATS["bitsandbytes, nf4"], "llama", tmp_path, num_hidden_layers=1).path
    sound = load_file(path / "model.safetensors")
    state = json.loads(sound[_STATE].numpy().tobytes())
    scales = (f"{DOWN_PROJ}.weight.absmax", f"{DOWN_PROJ}.weight.nested_absmax")

    def changes() -> Iterator[object]:
        for value in STRANGE:
            text = json.dumps({**state, key: value}).encode()
            said = {_STATE: torch.from_numpy(np.frombuffer(text, np.uint8).copy())}
            for fewer in ({}, {name: sound[name][:1] for name in scales}):
                save_file({**sound, **fewer, **said}, path / "model.safetensors")
                yield value

    messages = refusals(path, changes())
    assert len(messages) > len(STRANGE)
    assert all(DOWN_PROJ in message and len(message) < 300 for message in messages)


def _replaced(settings: Any, value: object) -> Iterator[Any]:
    """Copies of settings, in each of which another one of the values is replaced."""
    yield value
    for key, old in settings.items():
        changed = _replaced(old, value) if isinstance(old, dict) else [value]
        yield from ({**settings, key: new} for new in changed)


@pytest.mark.parametrize("name", FORMATS)
def test_whatever_the_settings_say_no_error_is_of_another_class(name: str, tmp_path: Path) -> None:
    """Scales of one row fit the largest block, and those of one column the widest group."""
    path = packed_model(FORMATS[name], "llama", tmp_path, num_hidden_layers=1).path
    settings = {**FORMATS[name].settings, "group_size": 32, "weight_block_size": [48, 48]}
    sound = load_file(path / "model.safetensors")
    scale = next((each for each in sound if each.startswith(f"{DOWN_PROJ}.weight_scale")), None)

    def changes() -> Iterator[object]:
        for rows in (1, 64):
            if scale is not None:
                save_file({**sound, scale: sound[scale][:rows]}, path / "model.safetensors")
            for value in (*STRANGE, [2**31 - 1, 48], [48, 2**31 - 1]):
                for changed in _replaced(settings, value):
                    requantized(path, changed)
                    yield value

    messages = refusals(path, changes())
    assert len(messages) > 2 * len(STRANGE)
    assert all(len(message) < 700 for message in messages)


def _reshaped(
    path: Path, tensor: str, shape: list[int], dtype: str = "", num_bytes: int = 0
) -> None:
    """Gives a tensor of a file other bytes, at the end of it; they are a hole of zeros."""
    file = path / "model.safetensors"
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    old, end = header[tensor], len(data) - 8 - length
    size = old["data_offsets"][1] - old["data_offsets"][0]
    unread = {"dtype": "U8", "shape": [size], "data_offsets": old["data_offsets"]}
    header[f"{tensor}.rotary_emb.inv_freq"] = unread
    offsets = [end, end + num_bytes]
    header[tensor] = {"dtype": dtype or old["dtype"], "shape": shape, "data_offsets": offsets}
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    os.truncate(file, 8 + len(text) + end + num_bytes)


@pytest.mark.parametrize("name", FORMATS)
def test_whatever_shape_a_tensor_has_no_error_is_of_another_class(
    name: str, tmp_path: Path
) -> None:
    path = packed_model(FORMATS[name], "llama", tmp_path, num_hidden_layers=1).path
    file = path / "model.safetensors"
    sound = file.read_bytes()
    tensors = [each for each in load_file(file) if each.startswith(DOWN_PROJ)]
    shapes = [
        [0, 2**70],
        [2**70, 0],
        [0, 2**40, 2**40],
        [0, 2**62],
        [0] * 100,
        [0],
        [0, 0],
        [64, 0],
    ]
    for tensor in tensors:
        for shape in shapes:
            file.write_bytes(sound)
            _reshaped(path, tensor, shape)
            with pytest.raises((ModelFilesError, UnsupportedModelError)) as caught:
                load(path, LayerRange(0, 1))
            assert DOWN_PROJ in caught.value.message


@pytest.mark.parametrize(
    ("name", "part", "dtype", "shape"),
    [
        ("gptq, symmetric", "bias", "F32", [1 << 28]),
        ("gptq, act-order", "g_idx", "I32", [1 << 28]),
        ("compressed-tensors, act-order", "weight_g_idx", "I32", [1 << 28]),
        ("compressed-tensors, int4", "weight_shape", "I64", [1 << 27]),
        ("bitsandbytes, nf4", _STATE.removeprefix(f"{DOWN_PROJ}."), "U8", [1 << 30]),
    ],
)
def test_a_tensor_that_fits_nothing_is_refused_before_it_is_read(
    name: str, part: str, dtype: str, shape: list[int], tmp_path: Path
) -> None:
    path = packed_model(FORMATS[name], "llama", tmp_path, num_hidden_layers=1).path
    _reshaped(path, f"{DOWN_PROJ}.{part}", shape, dtype, 1 << 30)
    with most_memory(50_000_000), pytest.raises(ModelFilesError, match=rf"{DOWN_PROJ}"):
        load(path, LayerRange(0, 1))


@contextmanager
def most_memory(num_bytes: int) -> Iterator[None]:
    """Checks how much the arrays inside take at most."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < num_bytes
    finally:
        tracemalloc.stop()


def test_columns_of_a_matrix_that_fits_no_model_are_not_ordered(tmp_path: Path) -> None:
    """Its headers fit each other; how large it may be is known only after they were read."""
    path = packed_model(FORMATS["gptq, act-order"], "llama", tmp_path, num_hidden_layers=1).path
    num_columns = 1 << 23
    for part, shape in (("qweight", [num_columns // 8, 8]), ("g_idx", [num_columns])):
        _reshaped(path, f"{DOWN_PROJ}.{part}", shape, "I32", 4 * math.prod(shape))
    for part, width, dtype in (("qzeros", 1, "I32"), ("scales", 8, "F32")):
        shape = [num_columns // 32, width]
        _reshaped(path, f"{DOWN_PROJ}.{part}", shape, dtype, 4 * math.prod(shape))
    with most_memory(50_000_000), pytest.raises(ModelFilesError, match=r"at most \d+ are read"):
        load(path, LayerRange(0, 1))


def test_a_block_larger_than_its_matrix_takes_no_more_memory(tmp_path: Path) -> None:
    path = packed_model(FORMATS["fp8"], "llama", tmp_path, num_hidden_layers=1).path
    tensors = load_file(path / "model.safetensors")
    scales = tensors[f"{DOWN_PROJ}.weight_scale_inv"] = torch.tensor([[2.0, 3.0, 4.0, 5.0]])
    save_file(tensors, path / "model.safetensors")
    requantized(path, {**FORMATS["fp8"].settings, "weight_block_size": [100_000_000, 32]})
    with most_memory(50_000_000):
        found = torch.from_numpy(read(path))
    numbers = tensors[f"{DOWN_PROJ}.weight"].float()
    assert torch.equal(found, numbers * scales.repeat_interleave(32, dim=1))


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_that_is_cut_off_is_refused(name: str, tmp_path: Path) -> None:
    path = packed_model(FORMATS[name], "llama", tmp_path, num_hidden_layers=1).path
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelFilesError, match=r"model\.safetensors is truncated"):
        load(path, LayerRange(0, 1))


def test_a_tensor_of_other_bytes_than_its_shape_has_is_refused(tmp_path: Path) -> None:
    path = packed_model(FORMATS["awq"], "llama", tmp_path).path
    file = path / "model.safetensors"
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header[f"{Q_PROJ}.qweight"]["shape"][0] -= 1
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    with pytest.raises(ModelFilesError, match=rf"{Q_PROJ}\.qweight.* has \d+ bytes"):
        load(path)


@pytest.mark.parametrize(
    ("name", "packed"),
    [
        ("awq", "qweight"),
        ("gptq", "qweight"),
        ("compressed-tensors, int4", "weight_packed"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.int8])
def test_a_matrix_that_is_stored_twice_is_refused(
    name: str, packed: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    path = packed_model(FORMATS[name], "llama", tmp_path, num_hidden_layers=1).path
    tensors = load_file(path / "model.safetensors")
    tensors[f"{Q_PROJ}.weight"] = torch.zeros(64, 64, dtype=dtype)
    save_file(tensors, path / "model.safetensors")
    told = f"there are {Q_PROJ}.weight and {Q_PROJ}.{packed}, must be one of them"
    with pytest.raises(ModelFilesError, match=re.escape(told)):
        load(path, LayerRange(0, 1))


@pytest.mark.parametrize("swapped", [False, True])
def test_blocks_that_fit_a_matrix_in_two_ways_are_refused(swapped: bool, tmp_path: Path) -> None:
    """Blocks of 40 rows and of 48 make two of 64."""
    path = packed_model(FORMATS["fp8"], "llama", tmp_path, num_hidden_layers=1).path
    blocks = [[48, 48], [40, 48]]
    weights = [
        {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": block}
        for block in (blocks[::-1] if swapped else blocks)
    ]
    requantized(path, grouped(*weights, format="float-quantized"))
    told = r"its rows, or blocks of 40 x 48, or blocks of 48 x 48, and of one of them alone"
    with pytest.raises(ModelFilesError, match=told):
        load(path, LayerRange(0, 1))
    for one in weights:
        assert read(path, grouped(one, format="float-quantized")).any()


def test_codes_whose_bits_are_in_doubt_are_refused(tmp_path: Path) -> None:
    """128 columns take 16 words in 4 bits; of few columns, codes of 3 bits take as many."""
    path = packed_model(FORMATS["compressed-tensors, int4"], "llama", tmp_path).path
    tensors = load_file(path / "model.safetensors")
    for part, made in (
        ("weight_packed", torch.zeros(64, 1, dtype=torch.int32)),
        ("weight_shape", torch.tensor([64, 8])),
        ("weight_scale", torch.ones(64, 1)),
    ):
        tensors[f"{DOWN_PROJ}.{part}"] = made
    save_file(tensors, path / "model.safetensors")
    assert (read(path, grouped({"num_bits": 4, "strategy": "channel"})) == -8).all()
    both = grouped(*({"num_bits": bits, "strategy": "channel"} for bits in (3, 4)))
    with pytest.raises(ModelFilesError, match="in codes of 3 or 4 bits, of which one must fit"):
        read(path, both)
