"""A snapshot for people: what it looks like in a terminal of any width."""

from collections.abc import Iterator, Sequence

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from coordinator.cli.shared.model_title import model_title
from coordinator.cli.watch.snapshot import Snapshot
from coordinator.observe.step_window import StageActivity
from stagecoach.client import ModelStatus, StageState, StageStatus

_UNBOUNDED_COLUMNS = 10_000
_BAR_COLUMNS = 6
_NS_PER_MS = 1e6
_PEAK_COLUMNS = 16
_SPARKS = "▁▂▃▄▅▆▇█"
_STATE_STYLES = {
    StageState.READY: "green",
    StageState.CONNECTING: "yellow",
    StageState.LOST: "red",
}


def render(snapshot: Snapshot, console: Console) -> RenderableType:
    """Lays a snapshot out.

    Args:
        snapshot: What to show.
        console: Where; its width decides whether a model has one table or two.
    """
    parts: list[RenderableType] = [_headline(snapshot)]
    is_only = len(snapshot.models) == 1
    for model, activities in snapshot.models:
        title = () if is_only else (Text(""), _title(model))
        parts += [*title, Text(""), *_tables(model, activities, console)]
        if not is_only:
            parts += [Text(""), _requests(model), _memory(model)]
    if snapshot.models:
        parts += [Text(""), _speed(snapshot.tokens_per_s, console.width)]
    if is_only:
        [(model, _)] = snapshot.models
        parts += [_requests(model), _memory(model)]
    return Group(*parts)


def sparkline(values: Sequence[float]) -> str:
    """Draws values as a line of blocks, the largest as the highest."""
    largest = max(values, default=0.0)
    if largest <= 0:
        return _SPARKS[0] * len(values)
    return "".join(_SPARKS[round(value / largest * (len(_SPARKS) - 1))] for value in values)


def bar(share: float) -> str:
    """Draws a share [0, 1] as a bar with its percentage."""
    filled = round(share * _BAR_COLUMNS)
    return f"{'█' * filled}{'░' * (_BAR_COLUMNS - filled)} {100 * share:3.0f} %"


def _headline(snapshot: Snapshot) -> Text:
    status = snapshot.status
    models = ", ".join(model_title(model) for model, _ in snapshot.models)
    name = f"{models} at {snapshot.address}" if models else snapshot.address
    line = Text(name, style="bold")
    if snapshot.is_ready:
        line.append("  ready", style="bold green")
        if any(model.emulated for model, _ in snapshot.models):
            line.append(", emulated", style="bold yellow")
    else:
        line.append("  not ready", style="bold red")
        line.append(f"\n{snapshot.why_not or 'nothing is known yet'}", style="red")
        if snapshot.error is not None and status is not None:
            line.append("\nWhat follows is what it said last.", style="dim")
    return line


def _title(model: ModelStatus) -> Text:
    """Title of one model among several."""
    line = Text(model_title(model), style="bold")
    if model.ready:
        return line
    return line.append("  failed" if model.failed else "  not ready", style="bold red")


def _tables(
    model: ModelStatus, activities: tuple[StageActivity, ...], console: Console
) -> Iterator[RenderableType]:
    """What the stages of a model are and do, in one table if there is room for it."""
    one_table = _stage_table(model, activities, with_device=True)
    unbounded = console.options.update(width=_UNBOUNDED_COLUMNS)
    is_wide = console.measure(one_table, options=unbounded).maximum <= console.width
    yield one_table if is_wide else _stage_table(model, activities, with_device=False)
    yield Text("the times are ms a step", style="dim")
    if not is_wide:
        yield Text("")
        yield _device_table(model)


def _stage_table(
    model: ModelStatus, activities: tuple[StageActivity, ...], *, with_device: bool
) -> Table:
    """What each stage does; with what it is, if wanted."""
    table = _table("stage", *(("layers",) if with_device else ()), "state", "KV in use", "busy")
    for name in ("compute", "queue", "wire", "serialize"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("device", "address") if with_device else ():
        table.add_column(name, no_wrap=True)
    for stage in model.stages:
        activity = activities[stage.index] if stage.index < len(activities) else None
        style = _STATE_STYLES[stage.state]
        table.add_row(
            str(stage.index),
            *((_layers(stage),) if with_device else ()),
            f"[{style}]{stage.state}[/{style}]",
            *_activity(stage, activity),
            *((_device(stage), stage.address) if with_device else ()),
        )
    return table


def _device_table(model: ModelStatus) -> Table:
    """What each stage is, for a narrow terminal."""
    table = _table("stage", "layers", "address")
    table.add_column("device")
    for stage in model.stages:
        table.add_row(str(stage.index), _layers(stage), stage.address, _device(stage))
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for name in columns:
        table.add_column(name, no_wrap=True)
    return table


def _layers(stage: StageStatus) -> str:
    return "?" if stage.layers is None else "{}:{}".format(*stage.layers)


def _device(stage: StageStatus) -> str:
    return escape(f"{stage.device or '?'}, {stage.forms}")


def _activity(stage: StageStatus, activity: StageActivity | None) -> list[str]:
    """KV that requests hold, busy share and time split."""
    num_blocks = stage.num_kv_blocks
    kv = "?" if num_blocks == 0 else bar(stage.num_used_kv_blocks / num_blocks)
    if activity is None:
        return [kv, bar(0.0), *"----"]
    mean = activity.mean
    split_ns = (mean.compute_ns, mean.queue_ns, mean.wire_ns, mean.serialize_ns)
    return [kv, bar(activity.busy_share), *(f"{ns / _NS_PER_MS:.1f}" for ns in split_ns)]


def _speed(tokens_per_s: tuple[float, ...], columns: int) -> Text:
    now = tokens_per_s[-1] if tokens_per_s else 0.0
    line = Text(f"{now:8.1f} tokens/s  ", style="bold", no_wrap=True)
    room = max(columns - len(line.plain) - _PEAK_COLUMNS, 1)
    line.append(sparkline(tokens_per_s[-room:]), style="cyan")
    if tokens_per_s:
        line.append(f"  peak {max(tokens_per_s[-room:]):.1f}", style="dim")
    return line


def _requests(model: ModelStatus) -> Text:
    return Text(
        f"{model.num_running:8} running, {model.num_waiting} waiting, "
        f"{model.num_finished} finished, {model.num_preemptions} preempted"
    )


def _memory(model: ModelStatus) -> Text:
    num_used = model.num_kv_blocks - model.num_free_kv_blocks
    used, cached = (
        f"{100 * count / max(model.num_kv_blocks, 1):.0f} %"
        for count in (num_used, model.num_cached_kv_blocks)
    )
    return Text(f"{used:>8} of the KV held by requests, {cached} by the prefix cache")
