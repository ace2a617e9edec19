"""The architecture, as far as imports and forbidden constructs show it."""

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (
    "protos",
    "security",
    "telemetry",
    "model_files",
    "roofline",
    "load_display",
    "stage_server",
    "coordinator",
)

CORE = {"protos.errors", "protos.layer_range", "protos.load_progress", "coordinator.core"}
ENGINE_PARTS = {
    f"coordinator.{name}"
    for name in (
        "activity",
        "admission",
        "batch_sampling",
        "dispatcher",
        "engine",
        "engine_status",
        "intake",
        "landed_step",
        "lane",
        "live_request",
        "live_requests",
        "mask_waits",
        "micro_batches",
        "observer",
        "outage",
        "preparing_stream",
        "readiness",
        "request_log",
        "request_stream",
        "step_watch",
        "throughput",
    )
}
ENGINE = ENGINE_PARTS | {
    f"coordinator.{name}"
    for name in (
        "core",
        "config",
        "constraint",
        "sandbox",
        "scheduler",
        "sampling",
        "text",
        "planner",
        "pipeline",
    )
}

ALLOWED: dict[str, set[str]] = {
    "protos": set(),
    "security": {"protos.errors"},
    "model_files": {"protos"},
    "roofline": {"protos.errors", "protos.layer_range", "model_files.config"},
    "telemetry": {"protos.errors"},
    "load_display": {"protos.load_progress"},
    "stage_server": {
        *("protos", "security", "telemetry", "model_files", "roofline", "load_display"),
    },
    "coordinator": set(),
    "coordinator.core": CORE,
    "coordinator.config": CORE | {"protos", "security"},
    "coordinator.constraint": CORE | {"coordinator.sandbox", "coordinator.text"},
    "coordinator.sandbox": {"protos.errors"},
    "coordinator.scheduler": CORE,
    "coordinator.sampling": CORE,
    "coordinator.text": CORE | {"coordinator.sandbox", "model_files", "protos.error_facts"},
    "coordinator.planner": CORE | {"roofline", "model_files.config"},
    "coordinator.pipeline": CORE | {"protos", "security"},
    **dict.fromkeys(ENGINE_PARTS, ENGINE | {"protos"}),
    "coordinator.metrics": ENGINE | {"protos", "telemetry"},
    "coordinator.tracing": CORE | {"protos", "coordinator.observer"},
    "coordinator.assembly": ENGINE | {"protos", "security", "model_files"},
    "coordinator.access": CORE | {"protos", "security", "coordinator.service.generation_engine"},
    "coordinator.service": ENGINE
    | {"protos", "security", "coordinator.access", "coordinator.assembly"},
    "coordinator.http": ENGINE
    | {
        *("protos", "security", "coordinator.access", "coordinator.assembly"),
        *("coordinator.client",),
        *("coordinator.service.generation_engine", "coordinator.service.messages"),
    },
    "coordinator.client": {"protos", "security"},
    "coordinator.timeline": {"coordinator.client"},
    "coordinator.bench": {
        *("protos.errors", "protos.layer_range", "model_files", "roofline"),
        *("coordinator.client", "coordinator.planner"),
    },
    "coordinator.cli": {
        *("protos", "security", "telemetry", "model_files", "roofline", "load_display"),
        "coordinator",
    },
}
"""What a package may import besides itself and what is not ours. The longest name that a module
lies under decides."""

WIRE_EDGES = (
    "protos",
    "stage_server.servicer",
    "stage_server.answer",
    "stage_server.micro_batch",
    "coordinator.pipeline.answered_logits",
    "coordinator.pipeline.stage_link",
    "coordinator.pipeline.wire",
    "coordinator.service",
    "coordinator.client",
)
"""Modules that may handle messages; everything below them handles domain types."""

NEEDS_TORCH = ("torch", "transformers", "accelerate")


class Import(NamedTuple):
    """One imported name."""

    module: str
    line: int
    name: str
    """Dotted, as deep as the statement goes: `a.b.C` for `from a.b import C`."""
    lazy: bool
    """Inside a function body, or only for the type checker."""

    def __str__(self) -> str:
        return f"{self.module}:{self.line} imports {self.name}"


def under(name: str, *packages: str) -> bool:
    """True when a dotted name is one of the packages or lies in one."""
    return any(name == package or name.startswith(f"{package}.") for package in packages)


@cache
def modules() -> dict[str, ast.Module]:
    """Every module that is ours, generated stubs excepted, by dotted name."""
    trees = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            if "_pb2" not in path.name:
                name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
                trees[name.removesuffix(".__init__")] = ast.parse(path.read_text())
    return trees


def imports_of(module: str) -> Iterator[Import]:
    """Every import of a module, those in function bodies included."""

    def visit(node: ast.AST, lazy: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(module, node.lineno, alias.name, lazy)
        elif isinstance(node, ast.ImportFrom):
            source = "." * node.level + (node.module or "")
            for alias in node.names:
                yield Import(module, node.lineno, f"{source}.{alias.name}", lazy)
        for_types = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        in_body = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, lazy or for_types or in_body)

    yield from visit(modules()[module], False)


def all_imports(*packages: str) -> list[Import]:
    """Every import of the modules in these packages."""
    return [found for name in modules() if under(name, *packages) for found in imports_of(name)]


def test_imports_run_one_way() -> None:
    violations = []
    for found in all_imports(*PACKAGES):
        if under(found.name, *PACKAGES):
            package = max((name for name in ALLOWED if under(found.module, name)), key=len)
            if not under(found.name, package, *ALLOWED[package]):
                violations.append(f"{found}, which {package} may not")
    assert violations == []


def test_every_part_of_the_coordinator_has_its_row_in_the_table() -> None:
    listed = {name.split(".")[1] for name in ALLOWED if name.startswith("coordinator.")}
    present = {name.split(".")[1] for name in modules() if name.startswith("coordinator.")}
    assert present <= listed


def test_imports_are_absolute() -> None:
    assert [str(found) for found in all_imports(*PACKAGES) if found.name.startswith(".")] == []


def test_the_coordinator_and_the_contract_do_not_need_torch() -> None:
    violations = [
        str(found)
        for found in all_imports(
            *("protos", "security", "telemetry", "model_files", "roofline", "load_display"),
            "coordinator",
        )
        if under(found.name, *NEEDS_TORCH)
        and not (found.module == "protos.tensor_codec" and found.lazy)
    ]
    assert violations == []


def test_core_needs_only_the_standard_library() -> None:
    violations = [
        str(found)
        for found in all_imports("coordinator.core", "protos.errors", "protos.layer_range")
        if found.name.partition(".")[0] not in sys.stdlib_module_names
        and not under(found.name, *CORE)
    ]
    assert violations == []


def test_the_scheduler_knows_no_network_no_loop_and_no_clock() -> None:
    forbidden = ("grpc", "torch", "numpy", "asyncio", "threading", "time", "datetime", "random")
    violations = [
        str(found)
        for found in all_imports("coordinator.scheduler")
        if under(found.name, *forbidden)
    ]
    assert violations == []


def test_messages_stay_at_the_edges() -> None:
    violations = [
        str(found)
        for found in all_imports(*PACKAGES)
        if under(found.name, "protos.stagecoach") and not under(found.module, *WIRE_EDGES)
    ]
    assert violations == []


def is_call_of(*names: str) -> Callable[[ast.AST], bool]:
    """Matches a call of one of these functions, written in full."""
    return lambda node: isinstance(node, ast.Call) and ast.unparse(node.func) in names


def passes_true(*names: str) -> Callable[[ast.AST], bool]:
    """Matches a keyword argument of one of these names that is not the literal False."""
    return lambda node: (
        isinstance(node, ast.keyword)
        and node.arg in names
        and not (isinstance(node.value, ast.Constant) and node.value.value is False)
    )


@pytest.mark.parametrize(
    "matches",
    [
        is_call_of("eval", "exec", "compile", "__import__"),
        is_call_of("torch.load", "torch.jit.load", "numpy.load", "np.load", "yaml.load"),
        is_call_of("os.system", "os.popen"),
        passes_true("trust_remote_code", "allow_pickle", "shell"),
    ],
    ids=["evaluation", "unpickling", "shells", "permissions"],
)
def test_nothing_can_execute_what_was_loaded(matches: Callable[[ast.AST], bool]) -> None:
    violations = [
        f"{name}:{getattr(node, 'lineno', '?')} {ast.unparse(node)}"
        for name, tree in modules().items()
        for node in ast.walk(tree)
        if matches(node)
    ]
    assert violations == []


def test_nothing_that_unpickles_is_imported() -> None:
    forbidden = ("pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib")
    found = [str(found) for found in all_imports(*PACKAGES) if under(found.name, *forbidden)]
    assert found == []


def imported_by(*names: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after importing these."""
    program = f"import sys, {', '.join(names)}; print(*{{m.split('.')[0] for m in sys.modules}})"
    run = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, cwd=ROOT
    )
    return set(run.stdout.split())


def test_importing_the_whole_coordinator_does_not_load_torch() -> None:
    packages = ("coordinator", "model_files", "roofline", "telemetry")
    names = [name for name in modules() if under(name, *packages)]
    loaded = imported_by(*(name for name in names if not name.endswith("__main__")))
    assert loaded.isdisjoint(NEEDS_TORCH)


def test_importing_the_client_loads_neither_torch_nor_numpy() -> None:
    assert imported_by("coordinator.client").isdisjoint({*NEEDS_TORCH, "numpy", "tokenizers"})


def test_a_stage_listens_before_it_imports_what_only_loading_needs() -> None:
    # sympy stands for torch's compiler, which transformers imports.
    assert imported_by("stage_server.server").isdisjoint({"transformers", "sympy"})
    assert imported_by("stage_server.__main__").isdisjoint(NEEDS_TORCH)
