"""The architecture, as far as imports and forbidden constructs show it."""

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.import_memory import STAGE_MODULES

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("stagecoach", "stage_server", "coordinator")

CONTRACT = {"stagecoach.contract", "stagecoach.v1", "stagecoach.version"}
BELOW_SERVERS = CONTRACT | {
    f"stagecoach.{name}"
    for name in ("model_files", "process", "roofline", "security", "serving", "telemetry")
}
NOUNS = tuple(
    f"stagecoach.contract.{name}"
    for name in (
        *("address", "cluster_status", "errors", "float32", "layer_range", "load_progress"),
        *(
            "hidden_sums",
            "logits_request",
            "model_choice",
            "precision",
            "prompt_logits",
            "protocol",
        ),
        "request_timings",
        *("slot_ops", "stage_info"),
        *("stage_timings", "status_json", "step_record"),
    )
)
"""The part of the contract that needs only the standard library."""

CORE = {*NOUNS, "coordinator.core"}
ENGINE = CORE | {
    f"coordinator.{name}"
    for name in (
        *(
            "constraint",
            "dialogue",
            "observe",
            "pipeline",
            "planner",
            "sampling",
            "sandbox",
            "scheduler",
            "speculation",
        ),
        *("text",),
    )
}
_SHARED_BY_DOORS = ("access", "embedding", "prompt_items", "thinking_arguments", "tool_use")
DOORS = (
    CORE
    | CONTRACT
    | {"stagecoach.security", "stagecoach.serving"}
    | {f"coordinator.doors.{name}" for name in _SHARED_BY_DOORS}
)

ALLOWED: dict[str, set[str]] = {
    "stagecoach": {"stagecoach.client", "stagecoach.version"},
    "stagecoach.version": set(),
    "stagecoach.v1": set(),
    "stagecoach.contract": {"stagecoach.v1", "stagecoach.version"},
    "stagecoach.security": {"stagecoach.contract"},
    "stagecoach.telemetry": {"stagecoach.contract"},
    "stagecoach.process": {
        f"stagecoach.{name}" for name in ("contract", "model_files", "roofline", "telemetry")
    },
    "stagecoach.serving": {"stagecoach.contract"},
    "stagecoach.model_files": {"stagecoach.contract"},
    "stagecoach.roofline": {"stagecoach.contract", "stagecoach.model_files"},
    "stagecoach.client": CONTRACT | {"stagecoach.security"},
    "stage_server.core": BELOW_SERVERS,
    "stage_server.kernels": set(),
    "stage_server.kv_cache": BELOW_SERVERS | {"stage_server.core", "stage_server.kernels"},
    "stage_server.model": BELOW_SERVERS | {"stage_server.core", "stage_server.kernels"},
    "stage_server.compute": BELOW_SERVERS
    | {f"stage_server.{name}" for name in ("core", "kernels", "kv_cache", "model")},
    "stage_server.emulation": BELOW_SERVERS
    | {"stage_server.core", "stage_server.kv_cache", "stage_server.compute"},
    "stage_server.wire": BELOW_SERVERS | {"stage_server.core", "stage_server.compute"},
    "stage_server.process": BELOW_SERVERS
    | {f"stage_server.{name}" for name in ("core", "compute", "emulation", "wire")},
    "stage_server.__main__": {"stagecoach.contract", "stage_server.process"},
    "coordinator.core": CORE,
    "coordinator.sandbox": {"stagecoach.contract", "stagecoach.process"},
    "coordinator.scheduler": CORE,
    "coordinator.sampling": CORE,
    "coordinator.speculation": CORE | {"stagecoach.roofline"},
    "coordinator.dialogue": CORE,
    "coordinator.text": CORE
    | {
        "coordinator.dialogue",
        "coordinator.sandbox",
        "stagecoach.contract",
        "stagecoach.model_files",
    },
    "coordinator.constraint": CORE
    | {"coordinator.dialogue", "coordinator.sandbox", "coordinator.text"},
    "coordinator.planner": CORE | {"stagecoach.roofline", "stagecoach.model_files"},
    "coordinator.pipeline": CORE | CONTRACT | {"stagecoach.security"},
    "coordinator.observe": CORE | {"stagecoach.telemetry", "stagecoach.version"},
    "coordinator.engine": ENGINE,
    "coordinator.config": CORE | {"stagecoach.security"},
    "coordinator.assembly": ENGINE
    | {
        *("coordinator.config", "coordinator.engine", "stagecoach.contract"),
        "stagecoach.model_files",
    },
    "coordinator.stage_waits": {"stagecoach.contract", "stagecoach.process"},
    "coordinator.model_keeper": ENGINE
    | BELOW_SERVERS
    | {f"coordinator.{name}" for name in ("assembly", "config", "engine", "stage_waits")}
    | {"coordinator.doors.access"},
    "coordinator.doors.access": DOORS,
    "coordinator.doors.embedding": CORE,
    "coordinator.doors.prompt_items": CORE,
    "coordinator.doors.thinking_arguments": CORE,
    "coordinator.doors.tool_use": CORE,
    "coordinator.doors.grpc": DOORS,
    "coordinator.doors.http": DOORS | {"coordinator.observe", "coordinator.sandbox"},
    "coordinator.process": ENGINE
    | BELOW_SERVERS
    | {f"coordinator.{name}" for name in ("config", "doors", "engine", "model_keeper")},
    "coordinator.timeline": {"stagecoach.client"},
    "coordinator.bench": {"stagecoach", "coordinator.planner"},
    "coordinator.perplexity": {"stagecoach"},
    "coordinator.cli.shared": {"stagecoach"},
    "coordinator.cli.chat": {"stagecoach", "coordinator.cli.shared"},
    "coordinator.cli.cluster": {"stagecoach", "coordinator.cli.shared"},
    "coordinator.cli.watch": {
        *("stagecoach", "coordinator.cli.shared", "coordinator.observe.step_window"),
    },
    "coordinator.cli": {"stagecoach", "coordinator"},
}
"""What a folder, or a module beside the folders, may import besides itself and what is not ours.
The longest name that a module lies under decides. Names below are never above: a test looks for
circles."""

WIRE_EDGES = (
    "stagecoach.contract",
    "stagecoach.client",
    "stage_server.wire.servicer",
    "stage_server.wire.answer",
    "stage_server.wire.micro_batch",
    "coordinator.pipeline.answered_logits",
    "coordinator.pipeline.answered_sums",
    "coordinator.pipeline.forward_call",
    "coordinator.pipeline.forward_stream",
    "coordinator.pipeline.stage_inquiry",
    "coordinator.pipeline.stage_link",
    "coordinator.pipeline.stream_opening",
    "coordinator.pipeline.wire",
    "coordinator.doors.grpc",
)
"""Modules that may handle messages; everything below them handles domain types."""

STARTED = {
    "coordinator.cli.cluster.cluster": {"coordinator.cli"},
    "coordinator.cli.cluster.stage_forks": {"stage_server.process.command"},
}
"""Modules that a module names because it starts processes of them, outside its own process."""

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
    """Every import of a module, those in function bodies included.

    A string that is the name of a module of ours counts, but for processes that are started.
    """

    def visit(node: ast.AST, lazy: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(module, node.lineno, alias.name, lazy)
        elif isinstance(node, ast.ImportFrom):
            source = "." * node.level + (node.module or "")
            for alias in node.names:
                yield Import(module, node.lineno, f"{source}.{alias.name}", lazy)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            named = node.value.partition(":")[0]  # of `module:function`, as fork servers take it
            known = named in modules() and named not in STARTED.get(module, ())
            if known and "." in named and named != module:
                yield Import(module, node.lineno, named, True)
        for_types = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        in_body = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, lazy or for_types or in_body)

    yield from visit(modules()[module], False)


def all_imports(*packages: str) -> list[Import]:
    """Every import of the modules in these packages."""
    return [found for name in modules() if under(name, *packages) for found in imports_of(name)]


def test_imports_keep_to_the_table() -> None:
    violations = []
    for found in all_imports(*PACKAGES):
        if under(found.name, *PACKAGES):
            package = max((name for name in ALLOWED if under(found.module, name)), key=len)
            own = {package} if package != "stagecoach" else set()
            if not under(found.name, *own, *ALLOWED[package]):
                violations.append(f"{found}, which {package} may not")
    assert violations == []


def test_every_folder_and_every_module_beside_them_has_its_row_in_the_table() -> None:
    present = {".".join(name.split(".")[:2]) for name in modules() if "." in name}
    listed = {name for name in ALLOWED if name.count(".") == 1}
    within = {name.rpartition(".")[0] for name in ALLOWED if name.count(".") == 2}
    assert present == listed | within


def module_of(name: str) -> str:
    """The module of ours that an imported name is, or lies in."""
    while name not in modules():
        name = name.rpartition(".")[0]
    return name


def folder_of(module: str) -> str:
    """The folder that a module lies in; a module right under a top-level package is its own."""
    is_package = any(name.startswith(f"{module}.") for name in modules())
    return module if is_package or module.count(".") <= 1 else module.rpartition(".")[0]


def circles(arrows: set[tuple[str, str]]) -> list[set[str]]:
    """The strongly connected components of more than one node; R. Tarjan, 1972."""
    targets: dict[str, list[str]] = {}
    for source, target in sorted(arrows):
        if source != target:
            targets.setdefault(source, []).append(target)
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    path: list[str] = []
    found: list[set[str]] = []

    def visit(node: str) -> None:
        order[node] = lowest[node] = len(order)
        path.append(node)
        for target in targets.get(node, ()):
            if target not in order:
                visit(target)
            if target in path:
                lowest[node] = min(lowest[node], lowest[target])
        if lowest[node] == order[node]:
            start = path.index(node)
            component = set(path[start:])
            del path[start:]
            if len(component) > 1:
                found.append(component)

    for node in targets:
        if node not in order:
            visit(node)
    return found


def arrows() -> Iterator[tuple[str, str]]:
    """Every import of one module of ours by another, lazy ones included."""
    for found in all_imports(*PACKAGES):
        if under(found.name, *PACKAGES) and not under(found.name, "stagecoach.v1"):
            yield found.module, module_of(found.name)


def test_an_import_by_a_string_is_seen() -> None:
    by_string = {
        ("stagecoach", "stagecoach.client"),
        ("stage_server.process.command", "stage_server.process.server"),
        ("coordinator.constraint.grammar_compiler", "coordinator.constraint.grammar_job"),
    }
    assert by_string <= set(arrows())


def test_a_circle_would_be_found() -> None:
    straight = {("a", "b"), ("b", "c"), ("a", "c"), ("d", "a")}
    assert circles(straight) == []
    assert circles(straight | {("c", "a")}) == [{"a", "b", "c"}]
    assert circles({("a", "b"), ("b", "a"), ("b", "c"), ("c", "d"), ("d", "c")}) == [
        {"c", "d"},
        {"a", "b"},
    ]


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert circles(set(arrows())) == []


def test_no_folders_import_each_other_in_a_circle() -> None:
    assert circles({(folder_of(source), folder_of(target)) for source, target in arrows()}) == []


def test_imports_are_absolute() -> None:
    assert [str(found) for found in all_imports(*PACKAGES) if found.name.startswith(".")] == []


def test_the_coordinator_and_the_contract_do_not_need_torch() -> None:
    violations = [
        str(found)
        for found in all_imports("stagecoach", "coordinator")
        if under(found.name, *NEEDS_TORCH)
        and not (found.module == "stagecoach.contract.tensor_codec" and found.lazy)
    ]
    assert violations == []


def test_core_needs_only_the_standard_library() -> None:
    violations = [
        str(found)
        for found in all_imports("coordinator.core", *NOUNS)
        if found.name.partition(".")[0] not in sys.stdlib_module_names
        and not under(found.name, *CORE, "stagecoach.version")
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
        if under(found.name, "stagecoach.v1") and not under(found.module, *WIRE_EDGES)
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


HEAVY = {"transformers", "sympy"}
"""sympy stands for torch's compiler, which transformers and many corners of torch import."""


def imported_by(*names: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after importing these."""
    program = f"import sys, {', '.join(names)}; print(*{{m.split('.')[0] for m in sys.modules}})"
    run = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, cwd=ROOT
    )
    return set(run.stdout.split())


def test_importing_the_whole_coordinator_does_not_load_torch() -> None:
    names = [name for name in modules() if under(name, "stagecoach", "coordinator")]
    loaded = imported_by(*(name for name in names if not name.endswith("__main__")))
    assert loaded.isdisjoint(NEEDS_TORCH)


def test_importing_the_client_loads_neither_torch_nor_numpy() -> None:
    assert imported_by("stagecoach.client").isdisjoint({*NEEDS_TORCH, "numpy", "tokenizers"})


def test_a_stage_listens_before_it_imports_what_only_loading_needs() -> None:
    assert imported_by("stage_server.process.server").isdisjoint(HEAVY)
    assert imported_by("stage_server.process.command").isdisjoint(NEEDS_TORCH)


def test_a_stage_of_a_llama_never_imports_what_takes_longer_than_torch() -> None:
    assert imported_by(*STAGE_MODULES).isdisjoint(HEAVY)
