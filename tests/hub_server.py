"""A hub on this machine, for tests: enough of its HTTP interface for huggingface_hub's own client.

A repository is a directory `root/owner/name`; its only commit is `COMMIT`. One with a file `.gated` wants a
login. Who has the token `WRITER` writes below any owner but `OTHERS`: what is large goes to `root/.lfs`
first, and all of a commit is seen at once. Where there is a file `root/.full`, files over 3 MB are refused,
after another one has come. Every request is kept, and how many bytes of each file were sent. A file that is
to be cut ends there once.
"""

import base64
import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"
WRITER, READER = "hf_writer", "hf_reader"
OTHERS = "somebody-else"
_LARGE = 20_000  # bytes from which on a file is uploaded apart; the hub has its own rules


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

    def do_POST(self) -> None:
        path, body = self._received()
        parts = path.split("/")
        if path == "api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif refusal := self._refusal(parts, body):
            self._send(refusal, b"{}", {})
        elif path == "api/repos/create":
            self._create(json.loads(body))
        elif path.endswith(".git/info/lfs/objects/batch"):
            self._offer(json.loads(body)["objects"])
        elif parts[4] == "preupload":
            self._tell_modes(parts, json.loads(body)["files"])
        elif parts[4] == "commit":
            self._commit(parts, [json.loads(line) for line in body.splitlines()])

    def do_PUT(self) -> None:
        path, body = self._received()
        stored = self.root / ".lfs" / path.split("/")[-1]
        stored.parent.mkdir(exist_ok=True)
        if (self.root / ".full").exists() and len(body) > 3_000_000:
            deadline = time.monotonic() + 10
            while not any(stored.parent.iterdir()) and time.monotonic() < deadline:
                time.sleep(0.01)
            self._send(403, b"{}", {})
            return
        assert hashlib.sha256(body).hexdigest() == stored.name
        stored.write_bytes(body)
        self._send(200, b"", {})

    def _received(self) -> tuple[str, bytes]:
        path = self.path.split("?")[0].strip("/")
        self.requests.append(f"{self.command} {path}")
        if self.headers.get("Transfer-Encoding") != "chunked":
            return path, self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return path, body

    def _refusal(self, parts: list[str], body: bytes) -> int:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        owner = json.loads(body)["organization"] if parts[:2] == ["api", "repos"] else None
        if token not in (WRITER, READER):
            return 401
        return 403 if token == READER or OTHERS in (owner, parts[0], parts[2]) else 0

    def _create(self, wanted: dict[str, Any]) -> None:
        folder = self.root / wanted["organization"] / wanted["name"]
        if folder.exists():
            self._send(409, b"{}", {})
            return
        folder.mkdir(parents=True)
        (folder / ".gitattributes").write_text("*.gguf filter=lfs\n")
        if wanted.get("visibility") == "private" or wanted.get("private"):
            (folder / ".private").touch()
        self._json({"url": f"http://{self.headers['Host']}/{wanted['organization']}/{wanted['name']}"})

    def _tell_modes(self, parts: list[str], files: list[dict[str, Any]]) -> None:
        modes = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["size"] >= _LARGE else "regular",
                "shouldIgnore": False,
            }
            for file in files
        ]
        self._json({"files": modes})

    def _offer(self, objects: list[dict[str, Any]]) -> None:
        for one in objects:
            if not (self.root / ".lfs" / one["oid"]).exists():
                href = f"http://{self.headers['Host']}/lfs/{one['oid']}"
                one["actions"] = {"upload": {"href": href}}
        self._json({"objects": objects, "transfer": "basic"})

    def _commit(self, parts: list[str], lines: list[dict[str, Any]]) -> None:
        folder = self.root / parts[2] / parts[3]
        header = lines[0]["value"]
        if header.get("parentCommit") not in (None, COMMIT):
            self._send(412, b"{}", {})
            return
        for line in lines[1:]:
            value = line["value"]
            file = folder / value["path"]
            if line["key"] == "deletedFile":
                file.unlink()
                continue
            file.parent.mkdir(parents=True, exist_ok=True)
            if line["key"] == "file":
                file.write_bytes(base64.b64decode(value["content"]))
            else:
                file.write_bytes((self.root / ".lfs" / value["oid"]).read_bytes())
        address = f"http://{self.headers['Host']}/{parts[2]}/{parts[3]}"
        self._json({"commitUrl": f"{address}/commit/{COMMIT}", "commitOid": COMMIT})

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

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
    thread = Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
