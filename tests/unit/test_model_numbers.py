"""Every number that a model's files say is refused by its name, or makes a model that computes."""

import json
import math
import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch

from stage_server.model.layer_stack import load_layer_stack
from stagecoach.contract.errors import ModelFilesError, StagecoachError
from stagecoach.contract.layer_range import LayerRange
from stagecoach.contract.precision import DType, Precision
from stagecoach.model_files import open_model
from stagecoach.model_files.config import parse_config
from stagecoach.model_files.families import FAMILIES as SERVED
from stagecoach.model_files.gguf_file import GgufFile
from stagecoach.model_files.gguf_metadata import NUMBERS
from stagecoach.roofline.layer_split import split_layers
from tests.parity.test_layer_stack import CPU, SplitModel
from tests.tiny_models import FAMILIES, tiny_gguf, tiny_model

ODD: tuple[object, ...] = (
    *(math.nan, math.inf, -math.inf, 0, 0.0, -1, -0.5, 1e-300, 1e300, 10**30, 2**31),
    *("1", "", [], [1], [math.nan], [1e300], {}, True, None),
)
FIRST = "llama-yarn"
CASES = [FIRST, "llama3-rope", "phi3-longrope", *(case for case in FAMILIES if case in SERVED)]
"""The first one is walked whole, the others where they say more than it does."""

_INTERNAL = re.compile(r"\bNone\b|NoneType|\w+Error\b|Traceback|\n")


def numbers_in(raw: Mapping[str, object], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Where a configuration has numbers, or could: whatever is no text and no switch."""
    for name, value in raw.items():
        if isinstance(value, dict):
            yield from numbers_in(value, (*path, name))
        elif not isinstance(value, str | bool):
            yield (*path, name)


def changed(raw: object, path: tuple[str, ...], value: object) -> object:
    if not path:
        return value
    assert isinstance(raw, dict)
    return {**raw, path[0]: changed(raw.get(path[0]), path[1:], value)}


def refusal(path: Path) -> str | None:
    """Why a model is not served; None for one that computes."""
    try:
        files = open_model(str(path))
        split_layers(files.config, 1)
        layers = LayerRange(0, files.config.num_layers)
        stack = load_layer_stack(
            files, layers, precision=Precision.uniform(DType.FLOAT32), device=CPU
        )
    except StagecoachError as error:
        return error.message
    split = SplitModel([stack])
    for token_ids in ([1, 5, 9], [7]):
        assert torch.isfinite(split.logits(token_ids)).all()
    return None


def fault(path: Path) -> str:
    """What is wrong with how a model is treated; nothing for one that is served or refused."""
    try:
        message = refusal(path)
    except Exception as error:  # any other class is what is looked for
        return f"{type(error).__name__} {error}"
    return "" if message is None or _INTERNAL.search(message) is None else message


@pytest.fixture(scope="module")
def first_fields(tmp_path_factory: pytest.TempPathFactory) -> frozenset[tuple[str, ...]]:
    path = tiny_model(FIRST, tmp_path_factory.mktemp("first"))
    return frozenset(numbers_in(json.loads((path / "config.json").read_text())))


@pytest.mark.parametrize("case", CASES)
def test_no_number_of_a_configuration_breaks_a_stage(
    case: str, first_fields: frozenset[tuple[str, ...]], tmp_path: Path
) -> None:
    path = tiny_model(case, tmp_path)
    file = path / "config.json"
    raw = json.loads(file.read_text())
    assert refusal(path) is None
    known = frozenset[tuple[str, ...]]() if case == FIRST else first_fields
    faults = []
    for field in numbers_in(raw):
        for value in ODD if field not in known else ():
            file.write_text(json.dumps(changed(raw, field, value)))
            if found := fault(path):
                faults.append(f"{'.'.join(field)} = {value!r}: {found}")
    assert not faults, "\n".join(faults)


YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA = {"model_type": "llama"}
LISTED = {"model_type": "exaone4", "layer_types": ["full_attention"] * 32}


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        ({**LLAMA, "num_hidden_layers": 300000}, "num_hidden_layers is 300000, must be a whole"),
        ({**LLAMA, "num_attention_heads": 0}, "num_attention_heads is 0"),
        ({**LLAMA, "hidden_size": 16}, "head_dim is 0, must be a whole number from 1"),
        ({**LLAMA, "rope_theta": 0}, "rope_theta is 0, must be a number from 1 to"),
        ({**LLAMA, "rope_theta": "10000"}, 'rope_theta is "10000"'),
        ({**LLAMA, "rms_norm_eps": -1.0}, "rms_norm_eps is -1.0"),
        ({**LLAMA, "eos_token_id": 10**30}, f"eos_token_id is {10**30}"),
        ({**LLAMA, "eos_token_id": [2, 2**31]}, f"eos_token_id is {2**31}"),
        ({**LLAMA, "rope_scaling": {**YARN, "factor": math.inf}}, "rope_scaling.factor is Inf"),
        ({**LLAMA, "rope_scaling": {**YARN, "factor": 1e300}}, "rope_scaling.factor is 1e+300"),
        (
            {**LLAMA, "rope_parameters": {"rope_type": "linear", "factor": 0.0}},
            "rope_parameters.factor is 0.0",
        ),
        (
            {"model_type": "olmo3", "rope_parameters": {"full_attention": {"rope_theta": -1}}},
            "rope_parameters.full_attention.rope_theta is -1",
        ),
        ({"model_type": "mistral", "sliding_window": 0}, "sliding_window is 0"),
        ({"model_type": "cohere", "logit_scale": None}, "logit_scale is null"),
        ({"model_type": "granite", "logits_scaling": 0}, "logits_scaling is 0"),
        ({"model_type": "exaone4", "sliding_window_pattern": 0}, "sliding_window_pattern is 0"),
        ({"model_type": "exaone4", "sliding_window_pattern": "LLLG"}, "sliding_window_pattern is"),
        ({"model_type": "exaone4", "sliding_window": None}, "sliding_window is null, must be a"),
    ],
)
def test_a_number_is_refused_by_the_name_that_the_file_has_for_it(
    raw: dict[str, object], told: str
) -> None:
    with pytest.raises(ModelFilesError, match=re.escape(f"config.json: {told}")):
        parse_config(raw)


@pytest.mark.parametrize(
    "raw",
    [
        {"model_type": "qwen2", "sliding_window": 0},
        {"model_type": "mistral", "sliding_window": None},
        {**LISTED, "sliding_window_pattern": "LLLG"},
        {**LISTED, "sliding_window_pattern": 0, "sliding_window": None},
        {**LLAMA, "logit_scale": None, "rope_scaling": None, "head_dim": None},
        {**LLAMA, "eos_token_id": -1, "pad_token_id": -1},
    ],
)
def test_what_is_not_read_or_has_a_meaning_of_its_own_is_taken(raw: dict[str, object]) -> None:
    assert parse_config(raw).eos_token_ids in {(), (2,)}


def test_yarn_reaches_no_further_than_positions_are_counted() -> None:
    raw = {
        **LLAMA,
        "rope_scaling": {**YARN, "factor": 1e6, "original_max_position_embeddings": 4096},
    }
    assert parse_config(raw).max_model_len == 2**31 - 1


def test_generation_config_is_checked_alike() -> None:
    with pytest.raises(ModelFilesError, match="eos_token_id"):
        parse_config(LLAMA, {"eos_token_id": 10**30})


FLOAT64, INT64, BOOL, STRING, ARRAY = 12, 11, 7, 8, 9
GGUF_VALUES: list[tuple[int, bytes]] = [
    *((FLOAT64, struct.pack("<d", value)) for value in ODD if isinstance(value, float)),
    *((INT64, struct.pack("<q", value)) for value in (0, -1, 2**31, 2**62)),
    (BOOL, b"\1"),
    (STRING, struct.pack("<Q", 1) + b"1"),
    (ARRAY, struct.pack("<IQ", FLOAT64, 0)),
    (ARRAY, struct.pack("<IQ2d", FLOAT64, 2, math.nan, math.nan)),
    (ARRAY, struct.pack("<IQ2q", INT64, 2, 1, 2)),
]


def entry(name: str, kind: int, data: bytes) -> bytes:
    return struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", kind) + data


def with_field(raw: bytes, name: str, kind: int, data: bytes) -> bytes:
    """A GGUF file with one more field, which hides an earlier one of its name."""
    added = entry(name, kind, data)
    filler = -(len(added) + len(entry("z", STRING, bytes(8)))) % 32  # the data stays aligned
    added += entry("z", STRING, struct.pack("<Q", filler) + b"." * filler)
    (num_fields,) = struct.unpack_from("<Q", raw, 16)
    end = raw.index(struct.pack("<Q", 17) + b"token_embd.weight")
    return raw[:16] + struct.pack("<Q", num_fields + 2) + raw[24:end] + added + raw[end:]


@pytest.mark.parametrize("case", ["llama", "llama-yarn"])
def test_no_number_of_a_gguf_header_breaks_a_stage(case: str, tmp_path: Path) -> None:
    path = tiny_gguf(case, tmp_path)
    raw = path.read_bytes()
    yarn = with_field(raw, "llama.rope.scaling.type", STRING, struct.pack("<Q", 4) + b"yarn")
    path.write_bytes(yarn)
    assert refusal(path) is None
    ids = [f"tokenizer.ggml.{name}_token_id" for name in ("bos", "eos", "eot")]
    faults = []
    for name in (*(f"llama.{name}" for name in NUMBERS), *ids):
        for kind, data in GGUF_VALUES:
            path.write_bytes(with_field(yarn, name, kind, data))
            if found := fault(path):
                faults.append(f"{name} = {kind} {data!r}: {found}")
        path.write_bytes(with_field(yarn, name, FLOAT64, struct.pack("<d", math.nan)))
        # A number that only other architectures have is refused whatever it is.
        said = refusal(path) or ""
        assert f"{path.name}: {name} is NaN, must be" in said or f"{name} NaN is not" in said
    assert not faults, "\n".join(faults)


def test_an_embedding_without_dimensions_is_refused(tmp_path: Path) -> None:
    path = tiny_gguf("llama", tmp_path)
    raw = path.read_bytes()
    at = raw.index(b"token_embd.weight") + 17
    path.write_bytes(raw[:at] + struct.pack("<I", 0) + raw[at + 4 + 16 :] + bytes(16))
    with GgufFile(path) as file:
        assert file.tensors["token_embd.weight"].shape == ()
    assert "token_embd.weight has 0 dimensions, must have 2" in (refusal(path) or "")
