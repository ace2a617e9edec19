"""The report as one page of Markdown for people, and as JSON for programs."""

import json
import math
from collections.abc import Iterator

from benchmarks.gpu_check.report import CheckReport, Figure, Report, Row, Verdict, worst

_HEADER = "| | figure | limit | | note |\n| --- | --- | --- | --- | --- |\n"


def as_page(report: Report) -> str:
    """Writes the page: what was checked, then a line for each row, or for a group that passes."""
    heads = "".join(f"| {_cell(name)} | {_cell(text)} |\n" for name, text in report.facts.items())
    parts = [
        f"# GPU check: {_summary(report)}\n",
        f"| | |\n| --- | --- |\n{heads}",
        *(_section(check) for check in report.checks),
    ]
    return "\n".join(parts)


def as_json(report: Report) -> str:
    """Writes every row as an object; a figure that is no number is null, and has failed."""
    content = {
        "passed": report.has_passed,
        "whole": report.is_whole,
        "facts": dict(report.facts),
        "checks": [
            {
                "check": check.check,
                "elapsed_s": round(check.elapsed_s, 1),
                "rows": [_row_json(row) for row in check.rows],
            }
            for check in report.checks
        ],
    }
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def _summary(report: Report) -> str:
    num_rows = len(report.rows)
    counts = [
        f"{count} {verdict.value}"
        for verdict in (Verdict.FAIL, Verdict.NOT_REACHED, Verdict.NOT_JUDGED)
        if (count := report.count(verdict))
    ]
    word = "PASSED" if report.has_passed else "FAILED"
    of = ", ".join([f"{num_rows} rows", *counts])
    return f"{word} ({of})" + ("" if report.is_whole else ", of a part of the checks")


def _section(check: CheckReport) -> str:
    lines = "".join(_lines(check))
    return f"## {check.check}, {check.elapsed_s:.0f} s\n\n{_HEADER}{lines}"


def _lines(check: CheckReport) -> Iterator[str]:
    """Rows that pass, folded by group where their first stands; all others as they come."""
    shown: set[tuple[str, Verdict]] = set()
    for row in check.rows:
        group = (row.figure.group if row.figure else "", row.verdict)
        if not group[0] or row.verdict is Verdict.FAIL:
            yield _line(row.name, row)
        elif group not in shown:
            shown.add(group)
            yield _group_line(check, *group)


def _group_line(check: CheckReport, group: str, verdict: Verdict) -> str:
    rows = [
        row
        for row in check.rows
        if row.verdict is verdict and row.figure is not None and row.figure.group == group
    ]
    one = worst(rows)
    note = f"the worst: {one.name}" + (f"; {one.note}" if one.note else "")
    return _line(f"{group}: {len(rows)}", one._replace(note=note))


def _line(name: str, row: Row) -> str:
    figure, limit = ("", "") if row.figure is None else _texts(row.figure)
    cells = (name, figure, limit, row.verdict.value, row.note)
    return f"| {' | '.join(map(_cell, cells))} |\n"


def _texts(figure: Figure) -> tuple[str, str]:
    sides = []
    if figure.limit.least is not None:
        sides.append(f"at least {figure.limit.least:.3g}")
    if figure.limit.most is not None:
        sides.append(f"at most {figure.limit.most:.3g}")
    return f"{figure.value:.3g} {figure.unit}".rstrip(), ", ".join(sides)


def _row_json(row: Row) -> dict[str, object]:
    figure = row.figure
    content: dict[str, object] = {"name": row.name, "verdict": row.verdict.value, "note": row.note}
    if figure is None:
        return content
    return content | {
        "figure": figure.value if math.isfinite(figure.value) else None,
        "unit": figure.unit,
        "least": figure.limit.least,
        "most": figure.limit.most,
    }


def _cell(text: str) -> str:
    return text.replace("|", r"\|")
