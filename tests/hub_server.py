"""A hub on this machine, for tests: enough of its HTTP interface for huggingface_hub's own client.

A repository is a directory `root/owner/name`; its only commit is `COMMIT`. One with a file `.gated` wants a
login. Every request is kept.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class _Handler(BaseHTTPRequestHandler):
    root: Path
    requests: list[str]

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self, *, with_body: bool) -> None:
        path = self.path.split("?")[0].strip("/")
        self.requests.append(path)
        parts = path.split("/")
        name = parts[2:4] if parts[:2] == ["api", "models"] else parts[:2]
        if (self.root / "/".join(name) / ".gated").exists():
            self._send(401, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted."})
            return
        if parts[:2] == ["api", "models"]:
            self._describe(self.root / parts[2] / parts[3], parts[4:])
        elif "resolve" in parts and (file := self.root / parts[0] / parts[1] / "/".join(parts[4:])).is_file():
            data = file.read_bytes()
            tag = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "Content-Length": str(len(data))}
            self._send(200, data if with_body else b"", tag)
        else:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})

    def _describe(self, folder: Path, rest: list[str]) -> None:
        if not folder.is_dir():
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            return
        if rest[:1] == ["revision"] and rest[1] not in ("main", COMMIT):
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            return
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        names = [path.relative_to(folder).as_posix() for path in files]
        if rest[:1] == ["tree"]:
            facts: Any = [
                {"type": "file", "path": name, "size": path.stat().st_size, "oid": "0" * 40}
                for name, path in zip(names, files, strict=True)
            ]
        else:
            facts = {
                "id": "/".join(folder.parts[-2:]),
                "sha": COMMIT,
                "siblings": [{"rfilename": n} for n in names],
            }
        self._send(200, json.dumps(facts).encode(), {})

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"X-Repo-Commit": COMMIT, "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def hub_of(root: Path) -> Iterator[tuple[str, list[str]]]:
    """Serve the repositories in a directory; gives the address, and the list of requests."""
    requests: list[str] = []
    handler = type("Handler", (_Handler,), {"root": root, "requests": requests})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
