"""Generates the Python stubs of `protos/stagecoach/v1/*.proto` beside them; run by `make protos`.

protoc names modules after the proto path, `stagecoach.v1`, while the stubs live in
`protos.stagecoach.v1`; the imports are rewritten so that no second top-level package is needed.
"""

import os
import re
import sys
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent


def main() -> int:
    """Writes all stubs; returns protoc's exit code."""
    sources = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("stagecoach/v1/*.proto"))
    includes = [ROOT, files("grpc_tools") / "_proto", files("google") / ".."]
    outputs = ["python_out", "grpc_python_out", "mypy_out", "mypy_grpc_out"]
    # protoc finds protoc-gen-mypy on PATH; it is installed beside this interpreter.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    code = protoc.main(
        [
            "protoc",
            *(f"-I{path}" for path in includes),
            *(f"--{output}={ROOT}" for output in outputs),
            *sources,
        ]
    )
    for stub in ROOT.glob("stagecoach/v1/*_pb2*.py*"):
        text = re.sub(r"(?m)^(from|import) stagecoach\.", r"\1 protos.stagecoach.", stub.read_text())
        stub.write_text(text)
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
