"""A hub on this machine, for tests: enough of its HTTP interface for huggingface_hub's own client.

A repository is a directory `root/owner/name`; its only commit is `COMMIT`. One with a file `.gated` wants a
login. Every request is kept, and how many bytes of each file were sent. A file that is to be cut ends there
once.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Requests(list[str]):
    """Paths that were asked for.

    Attributes:
        sent: bytes of each file.
        cut: files, and after how many bytes the connection ends.
        goes_down: when one is cut.
        is_down: nothing is answered.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sent: Counter[str] = Counter()
        self.cut: dict[str, int] = {}
        self.goes_down = self.is_down = False


class _Handler(BaseHTTPRequestHandler):
    root: Path
    requests: Requests

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self, *, with_body: bool) -> None:
        path = self.path.split("?")[0].strip("/")
        if self.requests.is_down:
            self.close_connection = True
            return
        self.requests.append(path)
        parts = path.split("/")
        name = parts[2:4] if parts[:2] == ["api", "models"] else parts[:2]
        if (self.root / "/".join(name) / ".gated").exists():
            self._send(401, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted."})
            return
        if parts[:2] == ["api", "models"]:
            self._describe(self.root / parts[2] / parts[3], parts[4:])
        elif "resolve" in parts and (file := self.root / parts[0] / parts[1] / "/".join(parts[4:])).is_file():
            self._send_file("/".join(parts[4:]), file.read_bytes(), with_body=with_body)
        else:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})

    def _send_file(self, name: str, data: bytes, *, with_body: bool) -> None:
        wanted = re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(wanted[1]) if wanted else 0
        headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "Content-Length": str(len(data) - start)}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        rest = data[start:] if with_body else b""
        if with_body and name in self.requests.cut:
            rest, self.requests.is_down = rest[: self.requests.cut.pop(name)], self.requests.goes_down
            self.close_connection = True
        self._send(206 if start else 200, rest, headers)
        self.requests.sent[name] += len(rest)

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
def hub_of(root: Path) -> Iterator[tuple[str, Requests]]:
    """Serve the repositories in a directory; gives the address, and the list of requests."""
    requests = Requests()
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
