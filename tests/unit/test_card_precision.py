"""What `--dtype` stands for on cards, by the checkpoint, the family and the card."""

from typing import Any

import pytest

from stagecoach.contract.errors import IncompatibleError
from stagecoach.contract.precision import DType, Precision
from stagecoach.model_files import open_model
from stagecoach.model_files.config import ModelConfig, parse_config
from stagecoach.model_files.families import FAMILIES
from stagecoach.roofline.capability import Capability
from stagecoach.roofline.card_precision import automatic_dtype, card_precision, dtype_of_all
from stagecoach.roofline.devices import gpu_named

TURING, AMPERE = Capability(7, 5), Capability(8, 0)
OVERFLOWING = ("gemma2", "gemma3_text", "glm4")


def create_config(model_type: str = "llama", **keys: Any) -> ModelConfig:
    return parse_config({"model_type": model_type, **keys})


def precision(dtype: str, config: ModelConfig, capability: Capability = AMPERE) -> Precision:
    return card_precision(dtype, config, card="the card", capability=capability)


@pytest.mark.parametrize(
    ("keys", "dtype"),
    [
        ({"dtype": "bfloat16"}, DType.BFLOAT16),
        ({"torch_dtype": "bfloat16"}, DType.BFLOAT16),
        ({"dtype": "float16", "torch_dtype": "bfloat16"}, DType.FLOAT16),
        ({"dtype": None, "torch_dtype": "float32"}, DType.FLOAT32),
        ({"dtype": "auto"}, None),
        ({"dtype": "float64"}, None),
        ({"dtype": ["bfloat16"]}, None),
        ({}, None),
    ],
)
def test_a_configuration_says_the_dtype_under_its_new_or_its_old_name(
    keys: dict[str, Any], dtype: DType | None
) -> None:
    assert create_config(**keys).checkpoint_dtype is dtype


def test_gguf_files_and_shapes_say_none() -> None:
    assert open_model("demo").config.checkpoint_dtype is None
    assert open_model("shape:llama-2-13b").config.checkpoint_dtype is None


@pytest.mark.parametrize(
    ("checkpoint", "expected"),
    [
        ("bfloat16", DType.BFLOAT16),
        ("float16", DType.FLOAT16),
        ("float32", DType.FLOAT16),
        (None, DType.FLOAT16),
    ],
)
def test_auto_is_the_dtype_of_the_checkpoint(checkpoint: str | None, expected: DType) -> None:
    config = create_config(dtype=checkpoint)
    assert precision("auto", config) == Precision.uniform(expected)


def test_auto_never_depends_on_the_card() -> None:
    with pytest.raises(IncompatibleError) as caught:
        precision("auto", create_config(dtype="bfloat16"), TURING)
    assert caught.value.message == (
        "dtype auto is bfloat16 for this model, which the card of compute capability 7.5 does not "
        "have: it begins with 8.0; give --dtype float16 to every box"
    )
    assert precision("auto", create_config(dtype="float16"), TURING) == precision(
        "auto", create_config(dtype="float16"), AMPERE
    )


@pytest.mark.parametrize("capability", [TURING, AMPERE], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_what_is_asked_for_is_taken(dtype: str, capability: Capability) -> None:
    config = create_config(dtype="bfloat16")
    assert precision(dtype, config, capability) == Precision.uniform(DType(dtype))


def test_bfloat16_is_refused_where_the_card_would_emulate_it() -> None:
    with pytest.raises(IncompatibleError, match="give --dtype float16 to every box"):
        precision("bfloat16", create_config(), TURING)


def test_the_families_that_overflow_in_float16_are_named() -> None:
    overflowing = [name for name, family in FAMILIES.items() if family.overflows_in_float16]
    assert overflowing == list(OVERFLOWING)


@pytest.mark.parametrize("model_type", OVERFLOWING)
@pytest.mark.parametrize("checkpoint", ["bfloat16", "float16", "float32", None])
def test_a_family_that_overflows_in_float16_takes_bfloat16(
    model_type: str, checkpoint: str | None
) -> None:
    config = create_config(model_type, dtype=checkpoint)
    assert automatic_dtype(config) is DType.BFLOAT16
    assert precision("float32", config, TURING) == Precision.uniform(DType.FLOAT32)
    for asked, capability, remedy in (
        ("float16", AMPERE, "bfloat16"),
        ("float16", TURING, "float32"),
        ("auto", TURING, "float32"),
    ):
        with pytest.raises(IncompatibleError, match=f"give --dtype {remedy} to every box"):
            precision(asked, config, capability)


def test_the_reason_against_float16_is_said() -> None:
    with pytest.raises(IncompatibleError) as caught:
        precision("float16", create_config("gemma2"))
    assert caught.value.message == (
        "dtype float16, in which gemma2 models overflow: their hidden states exceed 65504, and "
        "logits become NaN; give --dtype bfloat16 to every box"
    )


def test_gpus_together_have_the_dtype_that_all_of_them_have() -> None:
    ampere, turing = gpu_named("rtx-3060-12gb"), gpu_named("t4-16gb")
    config = create_config(dtype="bfloat16")
    assert dtype_of_all(config, [ampere, ampere]) is DType.BFLOAT16
    assert dtype_of_all(config, [ampere, turing]) is DType.FLOAT16
    assert dtype_of_all(create_config(), [ampere]) is DType.FLOAT16
    with pytest.raises(IncompatibleError, match="gemma2 models need bfloat16, which t4-16gb"):
        dtype_of_all(create_config("gemma2"), [ampere, turing])
