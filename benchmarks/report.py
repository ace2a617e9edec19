"""What the benchmarks print: a table for people, or one JSON object."""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table


def machine() -> str:
    """Names this machine's processor and how many of its cores may be used."""
    processor = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            processor = line.partition(":")[2].strip()
            break
    return f"{processor}, {len(os.sched_getaffinity(0))} cores"


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Prints a table whose first column names the row; floats get two decimals."""
    table = Table()
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*(f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in row))
    console = Console()
    console.print(title)
    console.print(table)
    console.print(machine())


def print_json(result: Mapping[str, object]) -> None:
    """Prints one object, the machine named in it."""
    print(json.dumps({"machine": machine(), **result}))
