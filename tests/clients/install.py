"""Makes an environment for each client of `clients.toml` under `build/clients`.

A client that cannot be installed, because the network is not there, is named with the reason
and left out; the others go on. What is installed already, in the versions of the table, stays.
"""

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence

from tests.clients.client_table import ListedClient, clients, node_folder

PIP = ("-m", "pip", "install", "--quiet", "--no-compile", "--disable-pip-version-check")
NPM = (
    *("node", str(node_folder().parent / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")),
    *("install", "--silent", "--no-audit", "--no-fund", "--prefix"),
)


SEE = "import pathlib, site, sys; "
SEE += "pathlib.Path(site.getsitepackages()[0], 'seen.pth').write_text(sys.argv[1])"
"""Lets an environment see the packages of another one behind its own."""


def install(client: ListedClient) -> str | None:
    """Installs one client.

    Returns:
        Why it cannot be; None when it is there.
    """
    if client.is_installed:
        return None
    shutil.rmtree(client.folder, ignore_errors=True)
    client.folder.mkdir(parents=True)
    for step in steps(client):
        done = subprocess.run(
            step,
            cwd=client.folder,
            env={**os.environ, "PATH": client.path},
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        if done.returncode:
            return next(iter(done.stderr.strip().splitlines()[-1:]), f"{step[0]} failed")
    (client.folder / "installed").write_text(client.wanted)
    return None


def steps(client: ListedClient) -> Iterator[Sequence[str]]:
    """The commands that install a client, which run in its folder."""
    if client.pip:
        yield (sys.executable, "-m", "venv", str(client.folder))
        if client.sees_torch:
            yield (str(client.python), "-c", SEE, sysconfig.get_path("purelib"))
        yield (str(client.python), *PIP, *client.pip)
    if client.npm:
        yield (*NPM, str(client.folder), *client.npm)
    if client.post_install:
        yield client.post_install


def main() -> None:
    """Installs those that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="of clients.toml; default: all")
    names = parser.parse_args().names
    for client in clients():
        if names and client.name not in names:
            continue
        reason = install(client)
        if reason is not None:
            client.folder.mkdir(parents=True, exist_ok=True)
            (client.folder / "failed").write_text(f"could not be installed: {reason}")
            print(f"{client.name} is left out: {reason}", file=sys.stderr)


if __name__ == "__main__":
    main()
