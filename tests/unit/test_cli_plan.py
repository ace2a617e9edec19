"""`coordinator-cli plan`: what it prints and how it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from coordinator.cli.app import app
from stagecoach.roofline.torch_builds import PINNED_TORCH

THREE_CARDS = ["--gpu", "rtx-3060-12gb"] * 3
MODEL = ["--model", "shape:llama-2-13b"]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["plan", *arguments])


def test_json_is_one_object_with_split_memory_and_speed() -> None:
    result = run(*MODEL, *THREE_CARDS, "--batch", "1,8", "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    answer: dict[str, Any] = json.loads(result.stdout)
    assert [stage["layers"] for stage in answer["stages"]] == [[0, 13], [13, 27], [27, 40]]
    assert sum(stage["weight_bytes"] for stage in answer["stages"]) == answer["weight_bytes"]
    assert answer["kv_tokens"] == min(stage["kv_tokens"] for stage in answer["stages"])
    assert answer["max_model_len"] == 4096
    assert answer["overhead_ms"] == 3
    assert [row["batch"] for row in answer["rows"]] == [1, 8]
    one = answer["rows"][0]["one_micro_batch"]
    assert one["tokens_per_s"] == pytest.approx(1e3 / one["step_ms"])
    assert one["limit"] == "bandwidth"
    assert answer["what_if"] == []


def test_tables_name_every_card_and_every_limit() -> None:
    result = run(*MODEL, *THREE_CARDS, "--batch", "1,64", "--what-if", "--network", "10gbe")
    assert result.exit_code == 0
    for text in ("13.02 B", "26.03 GB", "10gbe", "13:27", "bandwidth", "KV memory", "4 x FLOP/s"):
        assert text in result.stdout
    assert result.stdout.count("rtx-3060-12gb") == 3
    assert "another order" not in result.stdout


def test_another_order_is_said() -> None:
    result = run(*MODEL, "--gpu", "rtx-3060-12gb", "--gpu", "rtx-3090-24gb")
    assert "in another order" in result.stdout


def test_what_does_not_fit_exits_with_1_and_the_numbers() -> None:
    result = run(*MODEL, *THREE_CARDS[:4])
    assert (result.exit_code, result.stdout) == (1, "")
    assert "26.03 GB" in result.stderr
    assert "25.77 GB" in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "culprit"),
    [
        ([*MODEL], "--gpu"),
        ([*THREE_CARDS], "--model"),
        ([*MODEL, "--gpu", "rtx-3061"], "rtx-3061"),
        ([*MODEL, *THREE_CARDS, "--network", "pigeons"], "pigeons"),
        ([*MODEL, *THREE_CARDS, "--efficiency", "0"], "efficiency"),
        ([*MODEL, *THREE_CARDS, "--efficiency", "nan"], "efficiency"),
        ([*MODEL, *THREE_CARDS, "--overhead-ms", "-1"], "--overhead-ms"),
        ([*MODEL, *THREE_CARDS, "--max-model-len", "5000"], "--max-model-len is 5000"),
        ([*MODEL, *THREE_CARDS, "--context", "0"], "context"),
        ([*MODEL, *THREE_CARDS, "--batch", "1,two"], "1,two"),
        ([*MODEL, *THREE_CARDS, "--batch", "0"], "batch"),
        ([*MODEL, *(["--gpu", "t4-16gb"] * 17)], "--gpu is given 17 times"),
    ],
)
def test_bad_usage_exits_with_2_and_names_the_culprit(arguments: list[str], culprit: str) -> None:
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert culprit in result.stderr


def test_a_sequence_that_must_fit_counts() -> None:
    fits = run(*MODEL, *THREE_CARDS, "--max-model-len", "2048", "--json")
    assert json.loads(fits.stdout)["max_model_len"] == 2048
    long = ["--model", "shape:llama-3.1-8b", "--gpu", "rtx-3090-24gb"]
    assert run(*long, "--max-model-len", "131072").exit_code == 1
    assert run(*long, "--max-model-len", "32768").exit_code == 0


@pytest.fixture
def gemma(tmp_path: Path) -> list[str]:
    """A model of its configuration alone, in bfloat16, of a family that float16 cannot hold."""
    return model_of(tmp_path, "gemma2")


def model_of(folder: Path, model_type: str, **more: object) -> list[str]:
    config = {"model_type": model_type, "torch_dtype": "bfloat16", **more}
    (folder / "config.json").write_text(json.dumps(config))
    return ["--model", str(folder)]


def test_a_card_that_the_pinned_torch_cannot_run_is_marked() -> None:
    cards = ["--gpu", "rtx-3060-12gb", "--gpu", "v100-16gb", "--gpu", "p40-24gb"]
    tables = run(*MODEL, *cards).stdout
    assert [tables.count(mark) for mark in (" 8.6 ", "7.0 (*)", "6.1 (*)")] == [1, 1, 1]
    assert f"(*) torch {PINNED_TORCH.version} as pip installs it has no kernels" in tables
    answer = json.loads(run(*MODEL, *cards, "--json").stdout)
    assert answer["torch"] == PINNED_TORCH.version
    assert {
        stage["gpu"]: (stage["capability"], stage["runs_pinned_torch"])
        for stage in answer["stages"]
    } == {
        "rtx-3060-12gb": ("8.6", True),
        "v100-16gb": ("7.0", False),
        "p40-24gb": ("6.1", False),
    }
    assert "(*)" not in run(*MODEL, *THREE_CARDS).stdout


def test_the_dtype_of_a_plan_is_that_of_auto(gemma: list[str]) -> None:
    result = run(*gemma, *THREE_CARDS)
    assert "GB in bfloat16," in result.stdout
    assert "--dtype" not in result.stdout
    answer = json.loads(run(*gemma, *THREE_CARDS, "--json").stdout)
    assert (answer["dtype"], answer["dtype_is_auto"]) == ("bfloat16", True)
    answer = json.loads(run(*MODEL, *THREE_CARDS, "--json").stdout)
    assert (answer["dtype"], answer["dtype_is_auto"]) == ("float16", True)


def test_a_card_without_the_checkpoints_dtype_makes_all_take_the_other(tmp_path: Path) -> None:
    arguments = [*model_of(tmp_path, "llama"), "--gpu", "rtx-3060-12gb", "--gpu", "t4-16gb"]
    assert "Give --dtype float16 to every stage" in run(*arguments).stdout
    answer = json.loads(run(*arguments, "--json").stdout)
    assert (answer["dtype"], answer["dtype_is_auto"]) == ("float16", False)


def test_a_model_that_no_dtype_of_16_bits_holds_is_refused(gemma: list[str]) -> None:
    result = run(*gemma, "--gpu", "rtx-3060-12gb", "--gpu", "t4-16gb")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "gemma2 models need bfloat16, which t4-16gb of compute capability 7.5" in result.stderr


def test_weights_in_few_bits_fit_one_card_and_are_read_sooner() -> None:
    shape = ("--model", "shape:llama-2-13b", "--gpu", "rtx-3060-12gb", "--batch", "1")
    assert run(*shape).exit_code == 1  # 26 GB
    answer = json.loads(run(*shape, "--weights", "int4", "--json").stdout)
    assert answer["weights"] == "int4"
    assert answer["dtype"] == "float16"
    assert 5.1 < answer["bits_per_weight"] < 5.3
    assert answer["rows"][0]["one_micro_batch"]["tokens_per_s"] > 30
    assert (
        "in int4, 5.2 bits a weight, computed in float16" in run(*shape, "--weights", "int4").stdout
    )


def test_kv_in_8_bits_leaves_room_for_more_tokens() -> None:
    shape = ("--model", "shape:llama-2-13b", *("--gpu", "rtx-3060-12gb") * 3, "--batch", "8")
    plain, codes = (
        json.loads(run(*shape, *flags, "--json").stdout) for flags in ((), ("--kv-dtype", "int8"))
    )
    assert (plain["kv_dtype"], codes["kv_dtype"]) == ("float16", "int8")
    assert 1.9 < codes["kv_tokens"] / plain["kv_tokens"] < 2.1
    shown = run(*shape, "--kv-dtype", "int8").stdout
    assert "422 kB of KV a token in int8" in shown  # 2 * 40 layers * 40 heads * (128 + 4) bytes


def test_another_form_of_kv_is_refused_by_name() -> None:
    result = run("--model", "demo", "--gpu", "t4-16gb", "--kv-dtype", "q8_0")
    assert result.exit_code == 2
    assert "--kv-dtype 'q8_0' is not one of auto, float32, float16, bfloat16, int8" in result.stderr


@pytest.mark.parametrize(
    ("name", "expected"), [("Q4_0", "int4"), ("q4_k_m", "q4_k_m"), ("q8_0", "int8")]
)
def test_weights_are_planned_by_the_name_of_a_gguf_file(name: str, expected: str) -> None:
    """In Q4_K_M a part of each layer has 8 bits, so it is between the two."""
    flags = "--model", "shape:llama-2-13b", *("--gpu", "rtx-3060-12gb") * 3
    found, int4, int8 = (
        json.loads(run(*flags, "--weights", each, "--json").stdout)
        for each in (name, "int4", "int8")
    )
    assert found["weights"] == expected
    bits = [each["bits_per_weight"] for each in (int4, found, int8)]
    assert bits == sorted(bits)
    speeds = [each["rows"][0]["one_micro_batch"]["tokens_per_s"] for each in (int8, found, int4)]
    assert speeds == sorted(speeds)


def test_a_file_is_planned_in_its_own_bits() -> None:
    answer = json.loads(run("--model", "demo", "--gpu", "t4-16gb", "--json").stdout)
    assert answer["weights"] == "int4"


@pytest.mark.parametrize(
    ("settings", "weights"),
    [
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, "int4"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "int8"),
    ],
)
def test_a_quantized_checkpoint_is_planned_in_its_own_bits(
    settings: dict[str, object], weights: str, tmp_path: Path
) -> None:
    arguments = model_of(tmp_path, "llama", quantization_config=settings)
    answer = json.loads(run(*arguments, "--gpu", "t4-16gb", "--json").stdout)
    assert answer["weights"] == weights


def test_a_checkpoint_that_no_stage_reads_is_not_planned(tmp_path: Path) -> None:
    arguments = model_of(tmp_path, "llama", quantization_config={"quant_method": "aqlm"})
    result = run(*arguments, "--gpu", "t4-16gb")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "weights quantized with aqlm (config.json: quantization_config)" in result.stderr


def test_another_form_of_weights_is_refused_by_name() -> None:
    result = run("--model", "demo", "--gpu", "t4-16gb", "--weights", "q9_k")
    assert result.exit_code == 2
    assert "--weights 'q9_k' is not one of auto, int4, int8, q4_0" in result.stderr
