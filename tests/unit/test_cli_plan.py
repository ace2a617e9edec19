"""`coordinator-cli plan`: what it prints and how it refuses."""

import json
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from coordinator.cli.app import app

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
    result = run(*MODEL, "--gpu", "rtx-3090-24gb", "--gpu", "rtx-3060-12gb")
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
        ([*MODEL, *THREE_CARDS, "--overhead-ms", "-1"], "overhead_ms"),
        ([*MODEL, *THREE_CARDS, "--max-model-len", "5000"], "max_model_len is 5000"),
        ([*MODEL, *THREE_CARDS, "--context", "0"], "context"),
        ([*MODEL, *THREE_CARDS, "--batch", "1,two"], "1,two"),
        ([*MODEL, *THREE_CARDS, "--batch", "0"], "batch"),
        ([*MODEL, *(["--gpu", "t4-16gb"] * 17)], "17 GPUs"),
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
