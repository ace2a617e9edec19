"""A hub on this machine: an HTTP server with the routes that `huggingface_hub` uses."""

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class FakeHub:
    """Serves one folder as the repository `org/tiny` and remembers what was fetched."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fetched: list[str] = []
        """Names of files whose content was sent whole."""
        self.damaged = ""
        """Name of a file of which one bit changes on its way, once."""
        self.lists = True
        """Whether it tells what is in a folder; some mirrors do not."""
        self.status, self.code = 0, ""
        """Answered to everything, with the hub's own error code; 0: files are."""
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self._answer(send_content=False)

            def do_GET(self) -> None:
                self._answer(send_content=True)

            def log_message(self, format: str, *args: object) -> None:
                pass

            def _answer(self, *, send_content: bool) -> None:
                if hub.status:
                    return self._refuse(hub.code, hub.status)
                tree = re.fullmatch(r"/api/models/org/tiny/tree/\w+(/\w+)?\?.*", self.path)
                if tree is not None:
                    return self._list((tree[1] or "")[1:])
                match = re.fullmatch(r"/(\w+/\w+)/resolve/(\w+)/([\w./-]+)", self.path)
                if match is None or match[1] != "org/tiny":
                    return self._refuse("RepoNotFound")
                if match[2] not in ("main", COMMIT):
                    return self._refuse("RevisionNotFound")
                path = hub.folder / match[3]
                if not path.is_file():
                    return self._refuse("EntryNotFound")
                content = path.read_bytes()
                span = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
                part = content[int(span[1]) : int(span[2]) + 1] if span else content
                self.send_response(206 if span else 200)
                self.send_header("X-Repo-Commit", COMMIT)
                self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
                self.send_header("Content-Length", str(len(part)))
                self.end_headers()
                if send_content:
                    if span is None:
                        hub.fetched.append(match[3])
                    if match[3] == hub.damaged:
                        hub.damaged = ""
                        part = part[:-1] + bytes([part[-1] ^ 1])
                    self.wfile.write(part)
                return None

            def _list(self, subfolder: str) -> None:
                folder = hub.folder / subfolder
                if not folder.is_dir() or not hub.lists:
                    return self._refuse("EntryNotFound" if hub.lists else "")
                paths = [str(path.relative_to(hub.folder)) for path in folder.iterdir()]
                entries = [{"type": "file", "path": p, "size": 1, "oid": "0"} for p in paths]
                content = json.dumps(entries).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)
                return None

            def _refuse(self, code: str, status: int = 404) -> None:
                self.send_response(status)
                self.send_header("X-Error-Code", code)
                if code == "EntryNotFound":
                    self.send_header("X-Repo-Commit", COMMIT)
                self.send_header("Content-Length", "0")
                self.end_headers()

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
