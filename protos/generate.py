"""Generates the Python stubs of `protos/stagecoach/v1/*.proto`; run by `make protos`.

protoc names modules after the proto path, `stagecoach.v1`, while the stubs live in
`protos.stagecoach.v1`; the imports are rewritten so that no second top-level package is needed.
With `--check` nothing is written beside the sources; the exit code says whether the stubs there
are what the sources give.
"""

import argparse
import os
import re
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent
STUBS = "stagecoach/v1/*_pb2*.py*"
OUTPUTS = ("--python_out=", "--grpc_python_out=", "--mypy_out=quiet:", "--mypy_grpc_out=quiet:")
IMPORTS = re.compile(r"^(from|import) stagecoach\.", re.MULTILINE)


def generate(target: Path) -> None:
    """Writes all stubs under `target`, in the folders of their packages.

    Raises:
        SystemExit: protoc refused the sources; it has said why on stderr.
    """
    sources = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("stagecoach/v1/*.proto"))
    # protoc finds protoc-gen-mypy on PATH; it is installed beside this interpreter.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    code = protoc.main(
        [
            "protoc",
            f"-I{ROOT}",
            *(f"{output}{target}" for output in OUTPUTS),
            *sources,
        ]
    )
    if code != 0:
        sys.exit(code)
    for stub in target.glob(STUBS):
        stub.write_text(IMPORTS.sub(r"\1 protos.stagecoach.", stub.read_text()))


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
