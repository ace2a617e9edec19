"""Other people's programs, unchanged and with their defaults, against the coordinator's doors.

Each has an environment of its own, which `make test-clients` makes, and `make test` leaves them
out; README.md says how to add one. What they send is in `tests/contract/client_bodies` too, which
`make test` reads. The demo model is too small to decide to call a tool: calls that are forced, and
a model whose texts were written by hand, stand in.
"""

import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.clients.client_table import FOLDER, ListedClient, clients, node_folder
from tests.clients.conftest import DemoServer
from tests.clients.tool_caller import ToolCaller
from tests.contract.http_door import in_background, serving_http

TIMEOUT_S = 420

pytestmark = pytest.mark.clients


def command(client: ListedClient) -> Sequence[str]:
    """What runs its program, where that finds its packages."""
    program = FOLDER / "programs" / client.program
    if program.suffix == ".mjs":
        # Node looks for packages beside the program.
        return (
            str(node_folder() / "node"),
            str(shutil.copy(program, client.folder / program.name)),
        )
    return (str(client.python) if client.pip else sys.executable, str(program))


@pytest.mark.timeout(TIMEOUT_S + 120)
@pytest.mark.parametrize("client", clients(), ids=lambda client: client.name)
def test_a_client_works_as_it_comes(
    client: ListedClient,
    demo: DemoServer,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    record_property("client", client.name)
    if missing := client.missing():
        pytest.skip(f"{client.name}: {missing}")
    with in_background(serving_http(ToolCaller(client.calls, client.says))) as scripted:
        done = subprocess.run(
            [*command(client), demo.http, f"http://{scripted}"],
            cwd=tmp_path,
            env={
                "PATH": client.path,
                "HOME": str(tmp_path),
                "STAGECOACH_COORDINATOR": demo.grpc,
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    assert done.returncode == 0, done.stdout[-6000:]
