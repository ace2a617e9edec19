"""The report of a check of a card: how figures are judged, and what the page and the JSON say."""

import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from benchmarks.gpu_check.checks import CHECKS, DEVICE, chosen_checks
from benchmarks.gpu_check.kernel_shapes import SHAPES, KernelShape
from benchmarks.gpu_check.messages import (
    End,
    Fact,
    Failure,
    Message,
    Names,
    read_messages,
    write_message,
)
from benchmarks.gpu_check.page import as_json, as_page
from benchmarks.gpu_check.report import (
    CheckReport,
    Figure,
    Limit,
    Outcome,
    Report,
    Row,
    Verdict,
    judge,
    not_started,
)
from benchmarks.gpu_check.runner import RunPlan, run_check, run_checks
from stage_server.model.module_blueprint import ModuleBlueprint
from stagecoach.contract.errors import InvalidArgumentError
from stagecoach.contract.layer_range import LayerRange

ROOT = Path(__file__).resolve().parents[2]


def create_figure(
    name: str = "speed",
    value: float = 1.0,
    *,
    least: float | None = None,
    most: float | None = None,
    group: str = "",
    is_of_cards: bool = False,
) -> Figure:
    return Figure(name, value, "GB/s", Limit(least, most), "a note", group, is_of_cards)


def judged(
    *figures: Figure,
    names: tuple[str, ...] | None = None,
    failure: str = "",
    is_card: bool = True,
) -> dict[str, Verdict]:
    announced = tuple(figure.name for figure in figures) if names is None else names
    rows = judge(Outcome({}, announced, figures, failure, 1.0), is_card=is_card)
    return {row.name: row.verdict for row in rows}


def create_report(*rows: Row, is_whole: bool = True) -> Report:
    check = CheckReport(check="speed", rows=rows, elapsed_s=12.34)
    return Report(facts={"device": "cuda:0 a|b"}, checks=(check,), is_whole=is_whole)


@pytest.mark.parametrize(
    ("value", "limit", "verdict"),
    [
        (1.0, Limit(least=1.0), Verdict.PASS),
        (0.99, Limit(least=1.0), Verdict.FAIL),
        (1.0, Limit(most=1.0), Verdict.PASS),
        (1.01, Limit(most=1.0), Verdict.FAIL),
        (math.inf, Limit(most=1.0), Verdict.FAIL),
        (math.nan, Limit(most=1.0), Verdict.FAIL),
        (math.nan, Limit(least=1.0), Verdict.FAIL),
        (-math.inf, Limit(least=1.0), Verdict.FAIL),
    ],
)
def test_a_figure_beyond_its_limit_fails(value: float, limit: Limit, verdict: Verdict) -> None:
    figure = create_figure(value=value, least=limit.least, most=limit.most)
    assert judged(figure) == {"speed": verdict}


def test_a_figure_that_was_announced_and_is_missing_fails() -> None:
    found = judged(create_figure(least=1.0), names=("speed", "memory"))
    assert found == {"speed": Verdict.PASS, "memory": Verdict.FAIL}


def test_a_check_that_ends_early_fails_and_what_it_did_not_reach_is_no_pass() -> None:
    found = judged(create_figure(least=1.0), names=("speed", "memory"), failure="killed")
    assert found == {
        "ran to its end": Verdict.FAIL,
        "speed": Verdict.PASS,
        "memory": Verdict.NOT_REACHED,
    }


@pytest.mark.parametrize("names", [None, ()])
def test_a_check_without_rows_fails(names: tuple[str, ...] | None) -> None:
    (row,) = judge(Outcome({}, names, (), "", 1.0), is_card=True)
    assert row.verdict is Verdict.FAIL


def test_a_limit_of_cards_does_not_judge_a_cpu_and_does_judge_a_card() -> None:
    figure = create_figure(value=0.0, least=1.0, is_of_cards=True)
    assert judged(figure, is_card=False) == {"speed": Verdict.NOT_JUDGED}
    assert judged(figure, is_card=True) == {"speed": Verdict.FAIL}


@pytest.mark.parametrize(
    ("verdict", "has_passed"),
    [
        (Verdict.PASS, True),
        (Verdict.NOT_JUDGED, True),
        (Verdict.FAIL, False),
        (Verdict.NOT_REACHED, False),
    ],
)
def test_one_row_decides_over_the_whole(verdict: Verdict, has_passed: bool) -> None:
    report = create_report(Row("one", Verdict.PASS, ""), Row("two", verdict, ""))
    assert report.has_passed is has_passed
    assert json.loads(as_json(report))["passed"] is has_passed
    assert ("PASSED" if has_passed else "FAILED") in as_page(report).splitlines()[0]


def test_nothing_is_no_pass() -> None:
    assert not create_report().has_passed


def test_the_json_has_every_row_with_its_figure_and_limit() -> None:
    figures = [create_figure("good", 2.0, least=1.5), create_figure("bad", math.nan, most=3.0)]
    rows = judge(Outcome({}, ("good", "bad", "gone"), figures, "killed", 1.0), is_card=True)
    content = json.loads(as_json(create_report(*rows, is_whole=False)))
    assert (content["whole"], content["facts"]) == (False, {"device": "cuda:0 a|b"})
    (check,) = content["checks"]
    assert (check["check"], check["elapsed_s"]) == ("speed", 12.3)
    common = {"unit": "GB/s", "note": "a note"}
    assert check["rows"][1:] == [
        {"name": "good", "verdict": "pass", "figure": 2.0, "least": 1.5, "most": None, **common},
        {"name": "bad", "verdict": "FAIL", "figure": None, "least": None, "most": 3.0, **common},
        {"name": "gone", "verdict": "NOT REACHED", "note": "the check ended before it"},
    ]


def test_the_page_folds_what_passes_and_shows_what_fails() -> None:
    figures = [
        create_figure("a", 0.1, most=1.0, group="tiny"),
        create_figure("b", 0.9, most=1.0, group="tiny"),
        create_figure("c", 1.1, most=1.0, group="tiny"),
    ]
    rows = judge(Outcome({}, ("a", "b", "c"), figures, "", 1.0), is_card=True)
    page = as_page(create_report(*rows))
    assert "# GPU check: FAILED (3 rows, 1 FAIL)" in page
    assert r"| device | cuda:0 a\|b |" in page
    assert "| tiny: 2 | 0.9 GB/s | at most 1 | pass | the worst: b; a note |" in page
    assert "| c | 1.1 GB/s | at most 1 | FAIL | a note |" in page
    assert "| a |" not in page


@pytest.mark.parametrize(
    ("least", "most", "worst"), [(1.0, None, "small"), (None, 9.0, "large")], ids=["least", "most"]
)
def test_the_worst_of_a_group_is_nearest_to_its_limit(
    least: float | None, most: float | None, worst: str
) -> None:
    figures = [
        create_figure(name, value, least=least, most=most, group="all")
        for name, value in (("small", 2.0), ("medium", 3.0), ("large", 4.0))
    ]
    rows = judge(Outcome({}, ("small", "medium", "large"), figures, "", 1.0), is_card=True)
    assert f"the worst: {worst};" in as_page(create_report(*rows))


def test_messages_are_read_as_they_were_written_but_for_an_unfinished_one(tmp_path: Path) -> None:
    messages: list[Message] = [
        Names(("a", "b")),
        Fact("device", "cpu"),
        create_figure(least=1.0, group="all"),
        Failure("killed"),
        End(),
    ]
    path = tmp_path / "messages"
    with path.open("w") as file:
        for message in messages:
            write_message(file, message)
        file.write('["Fact", {"na')
    assert read_messages(path) == messages


def test_the_device_is_checked_in_any_case_and_first() -> None:
    assert chosen_checks(None) == CHECKS
    assert [check.name for check in chosen_checks("speed, parity")] == ["device", "parity", "speed"]
    assert chosen_checks("device") == (DEVICE,)
    with pytest.raises(InvalidArgumentError, match="only 'sped' is not one of device, kernels"):
        chosen_checks("sped")


def create_plan(logs: Path, *, device: str = "cpu", deadline_s: float = 60.0) -> RunPlan:
    return RunPlan(
        checks=CHECKS,
        device=device,
        is_quick=True,
        is_whole=False,
        logs=logs,
        deadline_s=deadline_s,
    )


def test_what_the_deadline_leaves_no_time_for_is_not_reached(tmp_path: Path) -> None:
    started: list[str] = []
    report = run_checks(create_plan(tmp_path, deadline_s=0.0), started.append)
    assert started == []
    assert [check.check for check in report.checks] == [check.name for check in CHECKS]
    assert {row.verdict for row in report.rows} == {Verdict.NOT_REACHED}
    assert report.checks[0] == not_started("device", "the 0 s for all checks were over")


def test_a_check_that_takes_too_long_is_ended_and_has_failed(tmp_path: Path) -> None:
    outcome = run_check(DEVICE, create_plan(tmp_path), max_elapsed_s=0.01)
    (row,) = judge(outcome, is_card=False)
    assert row.verdict is Verdict.FAIL
    assert row.note == (
        "ended after 0 s, which it may take at most; run it again, as kernels that it has compiled "
        "are kept (device.log)"
    )


def test_a_device_that_cannot_be_taken_is_told_in_a_line_and_ends_all(tmp_path: Path) -> None:
    """In words and not by a traceback, which the log has."""
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--device", "cuda:99"]
    done = subprocess.run(
        [*command, "--output", str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    assert "Traceback" in (tmp_path / "device.log").read_text()
    content = json.loads((tmp_path / "report.json").read_text())
    assert content["passed"] is False
    first, *others = (check["rows"] for check in content["checks"])
    assert [row["verdict"] for row in first] == ["FAIL"]
    assert first[0]["note"].startswith("device cuda:99: ")
    assert {row["note"] for rows in others for row in rows} == {"the device cannot be taken"}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--device", "auto"), "device 'auto' is not one of cuda, cuda:N, cpu"),
        (("--only", "sped"), "only 'sped' is not one of"),
        (("--deadline-s", "nan"), "deadline-s is nan, must be above 0"),
    ],
)
def test_a_wrong_flag_is_refused_in_words(flags: tuple[str, ...], words: str) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu_check", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_kernels_are_compared_in_the_shape_of_the_model_that_is_named(shape: KernelShape) -> None:
    config = shape.files.config
    found = (config.num_attention_heads, config.num_kv_heads, config.head_dim, config.hidden_size)
    assert found == (shape.num_heads, shape.num_kv_heads, shape.head_dim, shape.hidden_size)
    blueprint = ModuleBlueprint(shape.files, LayerRange(2, 4))
    assert blueprint.traits[0].sliding_window == shape.sliding_window


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_in_words_with_what_it_has_started(
    number: signal.Signals, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--device", "cpu", "--quick"]
    with subprocess.Popen(
        [*command, "--output", str(tmp_path)], cwd=ROOT, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "device ...\n"
        while not (children := psutil.Process(process.pid).children()):
            time.sleep(0.01)
        process.send_signal(number)
        assert process.stderr.read() == f"gpu-check: ended by {number.name}\n"
    assert process.returncode == 1
    assert not any(child.is_running() for child in children)
