"""The page to try a model on: files that come with the package, the same for everybody, without a key."""

from hashlib import sha256
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import Response

FOLDER = Path(__file__).with_name("page")
# The page asks this server and no other, runs its own files only, and never makes HTML of a text:
# `trusted-types 'none'` has the browser refuse it even if a script tried.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
_HEADERS = {
    "cache-control": "no-cache",  # kept, and asked for anew each time
    "content-security-policy": _POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(self), microphone=(), geolocation=(), display-capture=(), usb=()",
    "x-frame-options": "DENY",
}
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".webp": "image/webp",
}


class _File:
    """One file, read once."""

    def __init__(self, path: Path) -> None:
        self._content = path.read_bytes()
        self._headers = {
            **_HEADERS,
            "content-type": _TYPES[path.suffix],
            "etag": f'"{sha256(self._content).hexdigest()[:32]}"',
        }

    async def answer(self, request: Request) -> Response:
        """The file; 304 where the browser has it."""
        known = request.headers.get("if-none-match", "")
        etags = [etag.strip().removeprefix("W/") for etag in known.split(",")]
        if "*" in etags or self._headers["etag"] in etags:
            headers = {name: value for name, value in self._headers.items() if name != "content-type"}
            return Response(status_code=304, headers=headers)
        return Response(self._content, headers=self._headers)


def add_page(routes: FastAPI) -> frozenset[str]:
    """Add a route for each file, and no other: no part of a request ever becomes a path.

    Returns:
        the paths.
    """
    paths = {f"/page/{path.name}": path for path in sorted(FOLDER.iterdir()) if path.suffix in _TYPES}
    paths["/"] = paths.pop("/page/index.html")
    for path, file in paths.items():
        routes.add_api_route(path, _File(file).answer, methods=["GET", "HEAD"], response_model=None)
    return frozenset(paths)
