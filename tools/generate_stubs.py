"""Generates the Python stubs of `protos/stagecoach/v1/*.proto`; run by `make protos`.

protoc names modules after the path of their source, so they lie in the package `stagecoach.v1`.
With `--check` nothing is written; the exit code says whether the stubs there are what the sources
give.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "protos"
STUBS = "stagecoach/v1/*_pb2*.py*"
OUTPUTS = ("--python_out=", "--grpc_python_out=", "--mypy_out=quiet:", "--mypy_grpc_out=quiet:")


def generate(target: Path) -> None:
    """Writes all stubs under `target`, in the folders of their packages.

    Raises:
        SystemExit: protoc refused the sources; it has said why on stderr.
    """
    sources = sorted(
        str(path.relative_to(SOURCES)) for path in SOURCES.glob("stagecoach/v1/*.proto")
    )
    # protoc finds protoc-gen-mypy on PATH; it is installed beside this interpreter.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    code = protoc.main(
        [
            "protoc",
            f"-I{SOURCES}",
            *(f"{output}{target}" for output in OUTPUTS),
            *sources,
        ]
    )
    if code != 0:
        sys.exit(code)


def drift() -> list[str]:
    """Names the stubs that are missing, superfluous or not what the sources give."""
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        fresh = _contents(Path(folder))
    present = _contents(ROOT)
    return sorted(
        name for name in fresh.keys() | present.keys() if fresh.get(name) != present.get(name)
    )


def _contents(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): path.read_text() for path in root.glob(STUBS)}


def main() -> int:
    """Writes the stubs, or checks them; returns the exit code."""
    parser = argparse.ArgumentParser(description="Generate the Python stubs of the .proto files.")
    parser.add_argument("--check", action="store_true", help="fail if the stubs are out of date")
    if not parser.parse_args().check:
        generate(ROOT)
        return 0
    names = drift()
    if names:
        print(f"out of date, run `make protos`: {', '.join(names)}", file=sys.stderr)
    return 1 if names else 0


if __name__ == "__main__":
    sys.exit(main())
