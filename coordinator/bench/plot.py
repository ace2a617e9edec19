"""Draws a bench: speed by batch size, and where the time of a token goes."""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from coordinator.bench.report import PARTS, title
from coordinator.bench.result import BenchResult
from stagecoach.contract.errors import IncompatibleError, InvalidArgumentError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = ("png", "svg", "pdf")

_COLORS = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#a463f2", "#9c9c9c")
"""A color for each part of the time, told apart also by people who see few colors (Observable's
10)."""

_LIMIT_COLOR = "#888888"

_WIDE_SWEEP = 16
"""Largest over smallest batch above which both axes are logarithmic."""


def check_plot(path: Path) -> None:
    """Says before anything is measured what would be in the way of a picture.

    Raises:
        InvalidArgumentError: The file's name does not end in a known format.
        IncompatibleError: matplotlib is not installed.
    """
    if path.suffix.lstrip(".").lower() not in FORMATS:
        raise InvalidArgumentError(
            f"--plot {path} must end in .{', .'.join(FORMATS)}", field="plot"
        )
    if find_spec("matplotlib") is None:
        raise IncompatibleError("--plot needs matplotlib: pip install -e '.[plot]' in the clone")


def write_plot(result: BenchResult, path: Path) -> None:
    """Writes the picture; call `check_plot` first.

    Raises:
        OSError: The file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.8), dpi=150, layout="constrained")
    figure.suptitle(title(result), fontweight="bold")
    speed, split = figure.subplots(1, 2)
    _draw_speed(speed, result)
    _draw_split(split, result)
    figure.savefig(path)


def _draw_speed(axes: "Axes", result: BenchResult) -> None:
    rows = result.rows
    batches = [row.batch for row in rows]
    rates = [row.tokens_per_s for row in rows]
    below = [row.tokens_per_s - row.tokens_per_s_min for row in rows]
    above = [row.tokens_per_s_max - row.tokens_per_s for row in rows]
    limits = [
        (row.batch, row.limit_tokens_per_s) for row in rows if row.limit_tokens_per_s is not None
    ]
    if limits:
        label = "limit of the emulated devices"
        axes.plot(*zip(*limits, strict=True), "--", color=_LIMIT_COLOR, label=label)
    repeats = f"median of {result.plan.repeats}, lowest to highest"
    axes.errorbar(
        batches, rates, yerr=(below, above), fmt="o-", color=_COLORS[0], capsize=4, label=repeats
    )
    for batch, rate in zip(batches, rates, strict=True):
        axes.annotate(
            f"{rate:.1f}", (batch, rate), (6, -11), textcoords="offset points", fontsize=8
        )
    axes.set_xlabel("batch, requests at once")
    axes.set_ylabel("tokens/s, decode")
    axes.margins(x=0.08)
    if max(batches) > _WIDE_SWEEP * min(batches):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        axes.yaxis.set_major_formatter("{x:g}")
    else:
        axes.set_ylim(bottom=0)
    axes.set_xticks(batches, [str(batch) for batch in batches], fontsize=8)
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper left")


def _draw_split(axes: "Axes", result: BenchResult) -> None:
    names = [str(row.batch) for row in result.rows]
    bottoms = [0.0] * len(names)
    for part, color in zip(PARTS, _COLORS, strict=True):
        times = [max(0.0, getattr(row.split, part)) for row in result.rows]
        axes.bar(names, times, bottom=bottoms, color=color, label=part, width=0.7)
        bottoms = [bottom + time for bottom, time in zip(bottoms, times, strict=True)]
    for index, row in enumerate(result.rows):
        label = f"{row.split.overhead:.1f}"
        place = (index, bottoms[index])
        axes.annotate(label, place, (0, 3), textcoords="offset points", ha="center", fontsize=8)
    axes.set_title("above the bars: ms that are not compute", fontsize=9, loc="left")
    axes.set_xlabel("batch, requests at once")
    axes.set_ylabel("ms from one token to the next")
    axes.spines[["top", "right"]].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    legend = axes.legend(handles[::-1], labels[::-1], frameon=False, loc="center left")
    legend.set_bbox_to_anchor((1.0, 0.5))  # beside the bars
