"""The documents agree with the code, with each other, and with what is on disk."""

import re
import tomllib
from datetime import date
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
import typer.main
import yaml

from coordinator.cli.app import app as coordinator_cli
from stage_server.process.command import app as stage_server
from stagecoach.version import __version__
from tests.documents import (
    DOCUMENTS,
    ROOT,
    anchors,
    code_words,
    commands,
    links,
    name_of,
    named_commands,
    prose,
    spans,
)
from tools.generate_docs import drift, filled

OF_TODAY = [document for document in DOCUMENTS if document.name != "CHANGELOG.md"]
"""What a changelog names may be gone."""
DECISIONS = sorted((ROOT / "docs/decisions").glob("0*.md"))
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
SECTIONS = ["Context", "Decision", "Tried and lost", "Measured"]
TOP = ("benchmarks", "coordinator", "docker", "docs", "examples", "protos", "requirements",
       "stage_server", "stagecoach", "tests", "tools", ".ci", ".github")  # fmt: skip
"""Folders that a document may name something in."""
PATH = re.compile(rf"({'|'.join(map(re.escape, TOP))})(/[\w.*-]+)*/?")
MODULE = re.compile(r"(benchmarks|coordinator|stage_server|stagecoach|tests|tools)(\.\w+)+")


def named_paths(text: list[str]) -> set[str]:
    """Words that name a file or folder of this repository."""
    return {word for word in text if PATH.fullmatch(word) and "/" in word}


def exists(path: str) -> bool:
    return any(ROOT.glob(path.rstrip("/")))


def is_module_or_in_one(name: str) -> bool:
    """True for a module or package, and for a name that one defines, or that the contract has."""
    parts = name.split(".")
    if parts[:2] == ["stagecoach", "v1"]:
        protos = "".join(path.read_text() for path in ROOT.glob("protos/stagecoach/v1/*.proto"))
        return all(re.search(rf"\b{part}\b", protos) for part in parts[2:])
    for path in (ROOT.joinpath(*parts), ROOT.joinpath(*parts).with_suffix(".py")):
        if path.exists():
            return True
    module = ROOT.joinpath(*parts[:-1])
    source = module / "__init__.py" if module.is_dir() else module.with_suffix(".py")
    if not source.exists():
        return False
    return re.search(rf"\b{parts[-1]}\b", source.read_text()) is not None


@cache
def cli() -> object:
    """The whole of `coordinator-cli`."""
    return typer.main.get_command(coordinator_cli)


def flags_of_script(path: Path) -> set[str]:
    """Every flag that a benchmark or a tool takes."""
    source = path.read_text()
    if path.suffix == ".py":
        return set(re.findall(r'add_argument\(\s*"(--[a-z][a-z0-9-]+)"', source))
    own = set(re.findall(r"^\s*(--[a-z][a-z0-9-]+)\)", source, flags=re.MULTILINE))
    return own | flags_of_cli("bench")  # to which it passes the others on


def flags_of_cli(*names: str) -> set[str]:
    """Every flag of a command of `coordinator-cli`, or of the commands of a group."""
    command = cli()
    for name in names:
        command = getattr(command, "commands", {}).get(name, command)
    return flags_of(command)


def flags_of_command(command: str) -> set[str] | None:
    """The flags that a command takes; None for what is no command of ours.

    Commands of `coordinator-cli` may stand without it.
    """
    program, *words = re.sub(r"^\S*python -m ", "", command).split()
    script = re.fullmatch(r"((?:benchmarks|tools)[./][\w/]+)(?:\.(py|sh))?", program)
    if script is not None:
        path = ROOT / script[1].replace(".", "/")
        is_package = path.is_dir()
        file = path / "__main__.py" if is_package else path.with_suffix(f".{script[2] or 'py'}")
        return flags_of_script(file)
    if program == "stage-server":
        return flags_of(typer.main.get_command(stage_server))
    if program == "coordinator-cli":
        return flags_of_cli(*words)
    is_command = program in getattr(cli(), "commands", {})
    return flags_of_cli(program, *words) if is_command else None


def flags_of(group: object) -> set[str]:
    """Every flag of a command, or of the commands of a group."""
    found = set()
    for parameter in getattr(group, "params", ()):
        found |= {*parameter.opts, *parameter.secondary_opts}
    for command in getattr(group, "commands", {}).values():
        found |= flags_of(command)
    return found


@cache
def known_flags() -> set[str]:
    """Every flag of the commands, and every one that the sources of benchmarks and tools spell."""
    apps = (typer.main.get_command(app) for app in (coordinator_cli, stage_server))
    sources = [*(ROOT / "benchmarks").rglob("*"), *(ROOT / "tools").glob("*.py")]
    text = "\n".join(path.read_text() for path in sources if path.suffix in (".py", ".sh"))
    return set(re.findall(r"--[a-z][a-z0-9-]+", text)).union(*map(flags_of, apps))


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 170


def test_the_generated_tables_are_what_the_code_gives() -> None:
    assert drift() == [], "`make docs` writes them"


def test_a_table_that_differs_is_seen() -> None:
    page = "<!-- begin generated: up -->\n\nold\n\n<!-- end generated: up -->\n"
    assert filled(page, {"up": "new\n"}) == page.replace("old", "new")
    with pytest.raises(KeyError):
        filled(page, {})


def test_a_list_of_files_names_those_that_have_the_word_and_no_others() -> None:
    page = "<!-- begin generated: files with min_p -->\n<!-- end generated: files with min_p -->\n"
    named = re.findall(r"^- `([^`]+)`: .", filled(page, {}), flags=re.MULTILINE)
    assert {"coordinator/sampling/parameters.py", "protos/stagecoach/v1/generation.proto"} < {
        *named
    }
    assert all(re.search(r"\bmin_p\b", (ROOT / path).read_text()) for path in named)
    with pytest.raises(ValueError, match="no file has the word nowhere_at_all"):
        filled(page.replace("min_p", "nowhere_at_all"), {})


def test_links_between_documents_resolve() -> None:
    broken = []
    for link in links():
        if link.target.startswith(("https://", "http://")):
            continue
        path, _, anchor = link.target.partition("#")
        target = (link.document.parent / path).resolve() if path else link.document
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(str(link))
    assert broken == []


def test_pages_of_the_site_link_to_nothing_outside_of_it() -> None:
    site = ROOT / "docs"
    outside = [
        str(link)
        for link in links()
        if site in link.document.parents
        and not link.target.startswith("https://")
        and site not in (link.document.parent / link.target).resolve().parents
    ]
    assert outside == []


@pytest.mark.parametrize("document", OF_TODAY, ids=name_of)
def test_paths_and_modules_that_a_document_names_are_there(document: Path) -> None:
    words = [word.lstrip("('\"").rstrip(")'\":;.") for word in code_words(document)]
    missing = {path for path in named_paths(words) if not exists(path)}
    missing |= {word for word in words if MODULE.fullmatch(word) and not is_module_or_in_one(word)}
    assert missing == set()


@pytest.mark.parametrize("document", OF_TODAY, ids=name_of)
def test_targets_of_make_that_a_document_names_are_there(document: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = re.findall(r"`make ([a-z-]+)", document.read_text())
    assert set(named) <= targets


@pytest.mark.parametrize("document", OF_TODAY, ids=name_of)
def test_flags_that_a_document_names_are_there(document: Path) -> None:
    named = {word.partition("=")[0] for word in code_words(document)}
    assert {word for word in named if re.fullmatch("--[a-z][a-z0-9-]+", word)} <= known_flags()


def test_a_flag_of_another_command_is_seen() -> None:
    assert "--stages" in (flags_of_command("benchmarks/cluster.sh --stages 3") or ())
    assert "--minutes" in (flags_of_command(".venv/bin/python -m benchmarks.soak") or ())
    assert "--minutes" not in (flags_of_command("benchmarks.growth --minutes 3") or ())
    assert "--quick" in (flags_of_command(".venv/bin/python -m benchmarks.gpu_check") or ())
    assert "--overwrite" in (flags_of_command("certs issue pki") or ())
    assert "--overwrite" not in (flags_of_command("coordinator-cli certs show pki") or ())
    assert flags_of_command("git clone --depth 1") is None


def test_flags_of_a_command_are_its_own() -> None:
    """Benchmarks are not run, so a flag that one has lost would go unseen."""
    wrong = []
    for command in {*commands(), *(span for document in OF_TODAY for span in spans(document))}:
        taken = flags_of_command(command)
        words = (word.partition("=")[0] for word in command.split())
        given = {word for word in words if re.fullmatch("--[a-z][a-z0-9-]+", word)}
        if taken is not None and not given <= taken | {"--help", "--version"}:
            wrong.append(command)
    assert wrong == []


def test_commands_of_the_cli_that_a_document_names_are_there() -> None:
    """A wrong name of a command would pass the test of flags, which takes those of the group."""
    wrong = []
    for command in {*commands(), *named_commands("coordinator-cli")}:
        program, *words = command.split()
        group = cli()
        while program == "coordinator-cli" and words and hasattr(group, "commands"):
            word = words.pop(0)
            if word.startswith("--"):
                break
            group = group.commands.get(word)
        if group is None:
            wrong.append(command)
    assert wrong == []


def test_what_needs_docker_names_files_that_are_there() -> None:
    """`make test-docker` runs the compose files; that needs root and a daemon."""
    compose = named_commands("docker")
    assert compose
    for command in compose:
        assert command.split()[:2] == ["docker", "compose"]
        for name in re.findall(r"-f (\S+)", command):
            assert (ROOT / "docker/stage" / name).is_file(), command
    assert all((ROOT / "docker" / part / "compose.yaml").is_file() for part in ("stage", "local"))
    assert (ROOT / "docker/coordinator/compose.yaml").is_file()


def test_what_installs_names_what_can_be_installed() -> None:
    """Installing takes the network; that pip installs the wheel is shown by its own test."""
    installs = named_commands("pip", ".venv/bin/pip")
    assert installs
    for command in installs:
        found = re.fullmatch(r"\S*pip install (?:-e )?(?:\.|'\.\[([a-z,]+)\]')", command)
        assert found, command
        assert {*(found[1] or "").split(",")} - {""} <= EXTRAS.keys()
    assert named_commands(".venv/bin/pre-commit") == [".venv/bin/pre-commit install"]
    assert (ROOT / ".pre-commit-config.yaml").is_file()


@pytest.mark.parametrize("page", DECISIONS, ids=lambda page: page.stem)
def test_a_decision_says_when_why_what_and_what_was_tried_and_measured(page: Path) -> None:
    lines = page.read_text().splitlines()
    assert re.fullmatch("# .*[^.]", lines[0])
    assert date.fromisoformat(lines[2].removeprefix("Date: ")) >= date(2026, 11, 22)
    headings = [line.removeprefix("## ") for line in lines if line.startswith("## ")]
    assert headings == SECTIONS
    bodies = re.split("^## .*$", page.read_text(), flags=re.MULTILINE)[1:]
    assert all(body.strip() for body in bodies), "a section says nothing"


def test_decisions_are_numbered_without_gaps_and_in_the_order_of_their_dates() -> None:
    assert [int(page.name[:4]) for page in DECISIONS] == list(range(1, len(DECISIONS) + 1))
    dates = [page.read_text().splitlines()[2] for page in DECISIONS]
    assert dates == sorted(dates)


def test_the_glossary_is_in_order() -> None:
    rows = (ROOT / "docs/glossary.md").read_text().splitlines()
    words = [row.split("|")[1].strip() for row in rows if row.startswith("| ")][2:]
    assert len(words) >= 20
    assert all(before < after for before, after in pairwise(words))


def test_every_page_is_on_the_site_and_in_the_readme() -> None:
    pages = {path.name for path in (ROOT / "docs").glob("*.md")}
    listed = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    assert {entry for entry in listed if isinstance(entry, str)} == pages
    readme = prose(ROOT / "README.md")
    assert [name for name in pages - {"index.md"} if f"(docs/{name})" not in readme] == []


@pytest.mark.parametrize("document", OF_TODAY, ids=name_of)
def test_extras_that_a_document_installs_are_there(document: Path) -> None:
    named = re.findall(r"pip install (?:-e )?'\.\[([a-z,]+)\]'", document.read_text())
    assert {extra for names in named for extra in names.split(",")} <= EXTRAS.keys()


def test_the_newest_entry_of_the_changelog_is_this_version() -> None:
    entries = re.findall(
        r"^## \[(.+?)\](?: - (.+))?$", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE
    )
    version, day = next(entry for entry in entries if entry[0] != "Unreleased")
    assert version == __version__
    assert date.fromisoformat(day)


def test_hosted_checks_run_what_one_runs_at_a_desk() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yaml").read_text())
    assert ".ci/run" in [step.get("run") for step in workflow["jobs"]["test"]["steps"]]


def test_issue_forms_are_whole() -> None:
    forms = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"))
    assert {"config.yml"} < {form.name for form in forms}
    for form in forms:
        content = yaml.safe_load(form.read_text())
        if form.name != "config.yml":
            assert {"name", "description", "body"} <= content.keys()
            assert all(field["type"] == "markdown" or field["id"] for field in content["body"])


def test_the_site_is_not_needed_to_test() -> None:
    importing = re.compile(r"^\s*(?:import|from) mkdocs", flags=re.MULTILINE)
    tests = (ROOT / "tests").rglob("*.py")
    assert [name_of(path) for path in tests if importing.search(path.read_text())] == []
    assert not any(requirement.startswith("mkdocs") for requirement in EXTRAS["dev"])
