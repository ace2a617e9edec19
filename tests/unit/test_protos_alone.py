"""The published `.proto` files are whole: any protoc compiles them with nothing beside them."""

import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool

PROTOS = Path(__file__).parents[2] / "protos"
OURS = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.glob("stagecoach/v1/*.proto"))
GOOGLES = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.glob("google/*/*.proto"))

COMPILE = """
import sys
from grpc_tools import _protoc_compiler
sys.exit(_protoc_compiler.run_main([argument.encode() for argument in sys.argv[1:]]))
"""
"""The compiler as it is: `grpc_tools.protoc` as a command would add Google's files by itself."""


def compile_alone(folder: Path, *arguments: str) -> None:
    command = [sys.executable, "-c", COMPILE, "protoc", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_they_compile_with_their_own_folder_alone(tmp_path: Path) -> None:
    target = tmp_path / "set"
    compile_alone(PROTOS, "-I.", f"--descriptor_set_out={target}", "--include_imports", *OURS)
    pool = descriptor_pool.DescriptorPool()
    found = descriptor_pb2.FileDescriptorSet.FromString(target.read_bytes())
    for file in found.file:
        pool.Add(file)
    assert {file.name for file in found.file} >= set(OURS)
    service = pool.FindServiceByName("stagecoach.v1.GenerationService")
    assert {method.name for method in service.methods} >= {"Generate", "Tokenize", "GetStatus"}


def test_google_s_compile_too_for_clients_that_read_the_details_of_errors(tmp_path: Path) -> None:
    compile_alone(PROTOS, "-I.", f"--descriptor_set_out={tmp_path / 'set'}", *GOOGLES)


def test_every_file_says_where_its_go_package_is() -> None:
    for name in OURS + GOOGLES:
        assert "\noption go_package = " in (PROTOS / name).read_text(), name


@pytest.mark.parametrize("name", GOOGLES)
def test_google_s_are_as_they_were_published_and_never_ours_to_import(name: str) -> None:
    root = files("grpc_tools") / "_proto" if "protobuf" in name else files("google") / ".."
    assert (PROTOS / name).read_text() == (root / name).read_text()
    assert not list(PROTOS.glob("google/**/*.py"))
