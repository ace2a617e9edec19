"""Writes what documents say and the code decides: tables of `docs/`, lists of `CONTRIBUTING.md`.

Run by `make docs`. A table stands between `<!-- begin generated: NAME -->` and the line that ends
it. What a flag means is said by the docstring of the configuration's field that it sets, else by
its help. What a room is for is said by the first paragraph of its docstring. `files with WORD`
lists the files that have a word, for recipes that name all places of a change. Other people's
clients are those that `make test-clients` runs. What a request of a
client may say follows from the schemas and the client (`http_fields`, `sdk_tables`). With `--check`
nothing is written; the exit code says whether every table is what the code gives.
"""

import argparse
import ast
import importlib
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import typer.main
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

from coordinator.cli import cluster_file
from coordinator.cli.app import app as coordinator_cli
from coordinator.cli.serve import serve
from coordinator.config import ClusterConfig, CoordinatorConfig
from stage_server.core.config import StageConfig
from stage_server.process.command import app as stage_server
from tests.clients.client_table import clients
from tools import http_fields, sdk_tables
from tools.attributes import attributes
from tools.markdown import first_sentence, split_at, table

Parameter = TyperOption | TyperArgument


class Field(NamedTuple):
    """What a field of a configuration means to whoever sets its flag."""

    meaning: str
    of_none: str
    """What holds when it is not given; empty where its default says so."""


ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PACKAGES = ("stagecoach", "coordinator", "stage_server")
FILES_WITH = "files with "
NOT_LISTED = ("install_completion", "show_completion")
"""Flags that every command of typer has."""
WITH_TABLES_OF_THEIR_OWN = ("serve", "up")
_REGION = re.compile(
    r"(<!-- begin generated: ([\w -]+) -->\n).*?(<!-- end generated: \2 -->)", re.DOTALL
)


def tables() -> dict[str, str]:
    """Every generated table by its name, in Markdown."""
    commands = _commands(typer.main.get_command(coordinator_cli))
    return {
        "rooms": _rooms(),
        "stage-server": _flags(
            _commands(typer.main.get_command(stage_server))[""],
            prefix="STAGECOACH",
            fields=_fields(StageConfig),
        ),
        "serve": _flags(
            commands["serve"],
            prefix="STAGECOACH",
            fields=_fields(ClusterConfig) | _fields(CoordinatorConfig),
        ),
        "keys of a file": _keys(),
        "up": _flags(commands["up"], prefix=None, fields={}),
        "commands": "\n".join(
            f"### coordinator-cli {name}\n\n{first_sentence(command.help or '')}\n\n"
            + _flags(command, prefix=None, fields={})
            for name, command in commands.items()
            if name not in WITH_TABLES_OF_THEIR_OWN
        ),
        "decisions": _decisions(),
        "fields of each route": http_fields.tables(),
        "options of a completion": sdk_tables.options(),
        "options of a prompt": sdk_tables.prompt_options(),
        "options of an embedding": sdk_tables.embed_options(),
        "methods of a client": sdk_tables.methods(),
        "results of a client": sdk_tables.results(),
        "errors of a client": sdk_tables.errors(),
        "clients that are tested": _tested_clients(),
    }


def filled(page: str, contents: Mapping[str, str]) -> str:
    """A page with its tables as the code gives them.

    Args:
        page: Its text.
        contents: Every table that has a name of its own.

    Raises:
        KeyError: The page asks for a table that there is not.
        ValueError: It asks for the files with a word that none has.
    """

    def content(name: str) -> str:
        word = name.removeprefix(FILES_WITH)
        return contents[name] if word == name else _files_with(word)

    return _REGION.sub(lambda found: f"{found[1]}\n{content(found[2])}\n{found[3]}", page)


def pages() -> list[Path]:
    """The documents that may have tables."""
    return [ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]


def drift() -> list[str]:
    """Names the pages whose tables are not what the code gives."""
    contents = tables()
    return [
        str(path.relative_to(ROOT))
        for path in pages()
        if path.read_text() != filled(path.read_text(), contents)
    ]


def _commands(group: object, words: str = "") -> dict[str, TyperCommand]:
    """The commands of a group and of the groups in it, by what one types."""
    if isinstance(group, TyperCommand):
        return {words: group}
    assert isinstance(group, TyperGroup), "typer makes commands and groups of them"
    found: dict[str, TyperCommand] = {}
    for name, command in group.commands.items():
        found |= _commands(command, f"{words} {name}".strip())
    return found


def _flags(command: TyperCommand, *, prefix: str | None, fields: Mapping[str, Field]) -> str:
    """The table of a command's arguments and flags.

    Args:
        command: The command.
        prefix: Beginning of the variables that set its flags; None where each names its own.
        fields: Fields of its configuration.
    """
    rows = []
    for parameter in command.params:
        assert isinstance(parameter, TyperOption | TyperArgument), "typer makes nothing else"
        name = str(parameter.name)
        if name.startswith("_") or name in NOT_LISTED:
            continue
        field = next((fields[n] for n in (name, f"{name}_bytes", f"{name}s") if n in fields), None)
        meaning, of_help = split_at(parameter.help or "", "Default: ")
        if field is not None:
            meaning = field.meaning
        default = _default(parameter) or (field and field.of_none) or of_help
        variable = () if prefix is None else (_variable(parameter, prefix),)
        rows.append((_spelling(parameter), *variable, default, meaning))
    header = ("flag", "default", "meaning")
    return table(header if prefix is None else (header[0], "variable", *header[1:]), rows)


def _keys() -> str:
    """The table of what a file of several models may say."""
    rows = []
    for parameter, key in cluster_file.keys_of(serve).items():
        of = "every model, or all" if parameter in cluster_file.OF_MODEL else "the process"
        if parameter in cluster_file.OF_ONE_MODEL:
            of = "every model"
        rows.append((f"`{key}`", of, f"`--{parameter.replace('_', '-')}`"))
    return table(("key", "of", "flag"), rows)


def _spelling(parameter: Parameter) -> str:
    if isinstance(parameter, TyperArgument):
        return f"`{parameter.metavar or str(parameter.name).upper()}`"
    names = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
    return f"{names} `{parameter.metavar}`" if parameter.metavar else names


def _variable(parameter: Parameter, prefix: str | None) -> str:
    """The environment variable that sets a parameter; empty for none."""
    if isinstance(parameter.envvar, str):
        return f"`{parameter.envvar}`"
    takes_one = isinstance(parameter, TyperOption) and parameter.allow_from_autoenv
    return f"`{prefix}_{parameter.name}`".upper() if prefix and takes_one else ""


def _default(parameter: Parameter) -> str:
    if parameter.required:
        return "required"
    default = parameter.default
    if default is False or default is None or default == ():
        return ""
    return "on" if default is True else f"`{default}`"


def _fields(configuration: type) -> dict[str, Field]:
    """What a configuration says under each of its fields.

    Names of tuples of choices are replaced by the choices.
    """
    choices = vars(importlib.import_module(configuration.__module__))
    fields = {}
    for name, attribute in attributes(configuration).items():
        text = re.sub(
            "`([A-Z_]+)`",
            lambda found: ", ".join(f"`{choice}`" for choice in choices[found[1]]),
            attribute.text,
        )
        meaning, of_none = split_at(text, "None: ")
        is_none = isinstance(attribute.value, ast.Constant) and attribute.value.value is None
        fields[name] = Field(meaning, of_none if is_none else "")
    return fields


def _rooms() -> str:
    """The table of packages, and of the modules that lie flat beside them."""
    rows = []
    for path in _room_files():
        docstring = ast.get_docstring(ast.parse(path.read_text()))
        if docstring is None:
            raise ValueError(f"{path} does not say what it is for")
        name = path.parent if path.name == "__init__.py" else path
        rows.append((f"`{name.relative_to(ROOT)}`", first_sentence(docstring)))
    return table(("room", "duty"), rows)


def _room_files() -> Iterator[Path]:
    """What says what a room is for: packages with those in them, then modules beside them."""
    for package in PACKAGES:
        folder = ROOT / package
        yield from sorted(folder.rglob("__init__.py"), key=lambda path: path.parent)
        for path in sorted(folder.glob("*.py")):
            if not path.name.startswith("__"):
                yield path


def _files_with(word: str) -> str:
    """The list of source files that have a word, with what each is for."""
    whole = re.compile(rf"\b{word}\b")
    lines = [
        f"- `{path.relative_to(ROOT)}`: {_purpose(path)}\n"
        for folder in ("protos", *PACKAGES)
        for path in sorted([*(ROOT / folder).rglob("*.py"), *(ROOT / folder).rglob("*.proto")])
        if "_pb2" not in path.name and whole.search(path.read_text())
    ]
    if not lines:
        raise ValueError(f"no file has the word {word}")
    return "".join(lines)


def _purpose(path: Path) -> str:
    """What a source file says that it is for."""
    text = path.read_text()
    if path.suffix == ".proto":
        [comment] = re.findall(r"^// (.*)\npackage ", text, flags=re.MULTILINE)
        return str(comment).removesuffix(".")
    return first_sentence(ast.get_docstring(ast.parse(text)) or "")


def _tested_clients() -> str:
    header = ("client", "version", "does")
    return table(header, [(one.name, one.version, one.does) for one in clients()])


def _decisions() -> str:
    rows = []
    for path in sorted(DOCS.glob("decisions/0*.md")):
        lines = path.read_text().splitlines()
        title, date = lines[0].removeprefix("# "), lines[2].removeprefix("Date: ")
        rows.append((path.name[:4], f"[{title}]({path.name})", date))
    return table(("number", "decision", "date"), rows)


def main() -> int:
    """Writes the tables; with `--check` says which pages would change."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 on a change")
    check = parser.parse_args().check
    differing = drift()
    if check:
        for page in differing:
            print(f"{page} is not what the code gives: make docs writes it", file=sys.stderr)
        return 1 if differing else 0
    contents = tables()
    for page in differing:
        path = ROOT / page
        path.write_text(filled(path.read_text(), contents))
        print(f"wrote {page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
