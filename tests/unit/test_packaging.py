"""What the project says of itself, and what it installs, agree with each other."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SITE = {
    *("ghp-import", "markdown", "mergedeep", "mkdocs", "mkdocs-get-deps", "pyyaml-env-tag"),
    "watchdog",
}
"""What `make docs` installs, besides what is there anyway."""
WITHOUT_HASHES = {"torch", "atheris", *SITE}
"""torch's builds differ by index and machine; the others belong to targets of their own, and
atheris has wheels for x86-64 only."""
PIN = re.compile(r"^([A-Za-z0-9._-]+)==(\S+)(.*)$")
HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(path: Path) -> dict[str, str]:
    found = (PIN.match(line) for line in path.read_text().splitlines())
    return {canonical(match[1]): match[2] for match in found if match is not None}


def test_the_name_is_not_that_of_another_project() -> None:
    assert PROJECT["name"] == "stagecoach-llm"
    assert set(PROJECT["scripts"]) == {"stage-server", "coordinator-cli"}


def test_classifiers_and_hosted_checks_name_the_same_pythons() -> None:
    prefix = "Programming Language :: Python :: "
    classified = [
        text.removeprefix(prefix) for text in PROJECT["classifiers"] if text.startswith(prefix)
    ]
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yaml").read_text())
    assert workflow["jobs"]["test"]["strategy"]["matrix"]["python"] == classified
    assert classified == ["3.11", "3.12", "3.13"]


@pytest.mark.parametrize("extra", ["coordinator", "stage"])
def test_images_install_all_that_an_extra_asks_for(extra: str) -> None:
    """They install the file, and this distribution without what it depends on."""
    extras = PROJECT["optional-dependencies"]
    asked = [*PROJECT["dependencies"], *extras["server"], *extras[extra]]
    names = {canonical(re.split(r"[\[<>=]", requirement)[0]) for requirement in asked}
    pinned = pins(ROOT / "requirements" / f"{extra}.txt").keys()
    assert names - pinned <= {PROJECT["name"], *WITHOUT_HASHES}


@pytest.mark.parametrize("name", ["coordinator", "stage", "dev"])
def test_every_pin_has_hashes_and_is_that_of_the_constraints(name: str) -> None:
    path = ROOT / "requirements" / f"{name}.txt"
    pinned, constrained = pins(path), pins(ROOT / "constraints.txt")
    assert {key: constrained[key] for key in pinned if key in constrained} == {
        key: version for key, version in pinned.items() if key != "setuptools"
    }
    entries = path.read_text().replace("\\\n", " ").strip().splitlines()
    assert len(entries) == len(pinned)
    assert all(HASH.search(entry) for entry in entries)
    if name == "dev":
        assert pinned.keys() - {"setuptools"} == constrained.keys() - WITHOUT_HASHES
