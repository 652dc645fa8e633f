"""The routes: chat completions, models and their proofs, health, metrics, and the page."""

import asyncio
import sys
from collections.abc import AsyncIterator, Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from tinyllava_edge.errors import BundleError, TinyLlavaEdgeError
from tinyllava_edge.runtimes.timings import Timings

from .answering import Answering
from .answers import KEEP_ALIVE, Completion, failed
from .body import BodyReader, parse_json
from .errors import ApiError, told
from .gate import Gate, Rules, read_headers
from .images import KnownPictures
from .jobs import Event, Piece
from .messages import Asked, read_messages
from .metrics import CONTENT_TYPE, Metrics
from .page import add_page
from .proof import proof_of
from .request import ChatRequest, read_request
from .worker import Served

DEADLINE_S = 300.0
KEEP_ALIVE_S = 15.0
_READING = 4  # bodies that are understood, and pictures decoded, at the same time


class _Stream(Response):
    """Chunks as they come; an error after the first one is an event of its own."""

    def __init__(self, chunks: AsyncIterator[bytes], answering: Answering) -> None:
        super().__init__(media_type="text/event-stream", headers={"x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._chunks, self._answering = chunks, answering

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async for chunk in self._chunks:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            self._answering.end()


class Server:
    """The application of some models; `app` is what uvicorn runs.

    Args:
        models: by the names that clients call them.
        metrics: counts.
        rules: who may ask.
        pictures: those that are known by their hash.
        deadline_s: for a request, its wait included.
        body_reader: reads bodies within their limits.
        with_page: whether there is the page to try models on.
    """

    def __init__(
        self,
        models: Mapping[str, Served],
        metrics: Metrics,
        rules: Rules,
        *,
        pictures: KnownPictures | None = None,
        deadline_s: float = DEADLINE_S,
        body_reader: BodyReader | None = None,
        with_page: bool = True,
    ) -> None:
        self._models = models
        self._metrics = metrics
        self._pictures = pictures or KnownPictures()
        self._deadline_s = deadline_s
        self._bodies = body_reader or BodyReader()
        self._reading = asyncio.Semaphore(_READING)
        routes = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
        routes.add_api_route("/health", self._health, methods=["GET", "HEAD"])
        routes.add_api_route("/metrics", self._show_metrics, methods=["GET"])
        routes.add_api_route("/v1/models", self._list_models, methods=["GET"])
        routes.add_api_route("/v1/models/{name}", self._show_model, methods=["GET"])
        routes.add_api_route("/v1/models/{name}/proof", self._show_proof, methods=["GET"])
        routes.add_api_route("/v1/chat/completions", self._complete, methods=["POST"], response_model=None)
        routes.add_exception_handler(ApiError, _as_json)
        routes.add_exception_handler(TinyLlavaEdgeError, _as_json)
        routes.add_exception_handler(HTTPException, _as_json)
        routes.add_exception_handler(Exception, _as_json)
        self.app = Gate(routes, rules, metrics, add_page(routes) if with_page else ())

    async def _health(self) -> JSONResponse:
        return JSONResponse({"status": "ok"})

    async def _show_metrics(self) -> Response:
        gauges = {
            "queue_depth": {name: served.num_waiting for name, served in self._models.items()},
            "running": {name: served.num_answering for name, served in self._models.items()},
        }
        return Response(self._metrics.text(gauges), headers={"content-type": CONTENT_TYPE})

    async def _list_models(self) -> JSONResponse:
        return JSONResponse({"object": "list", "data": [_about(served) for served in self._models.values()]})

    async def _show_model(self, name: str) -> JSONResponse:
        return JSONResponse(_about(self._served(name)))

    async def _show_proof(self, name: str) -> JSONResponse:
        served = self._served(name)
        try:
            proof = await asyncio.to_thread(proof_of, served.model.bundle, served.model.runtime)
        except (BundleError, OSError) as error:  # which names the file, to the owner alone
            sys.stderr.write(f"tinyllava-edge: {served.name}: {' '.join(str(error).split())}\n")
            message = "the bundle's proofs cannot be read; the server's own output says why."
            raise ApiError(500, message, code="proof_unreadable") from None
        return JSONResponse({"object": "model.proof", "model": served.name, **proof})

    async def _complete(self, request: Request) -> Response:
        headers = read_headers(request.scope)
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise ApiError(415, "the body must be sent as Content-Type: application/json.")
        body = await self._bodies.read(request.receive, headers)
        try:
            async with self._reading:
                served, wanted, asked = await asyncio.to_thread(self._understand, body)
        finally:
            self._bodies.release(body)
        client = f"{request.client.host if request.client else ''} {headers.get('authorization', '')}"
        completion = Completion(served.name, served.fingerprint, asked.image_ids, bool(wanted.logprobs))
        answering = Answering(served, wanted, asked, client, self._deadline_s)
        try:
            answering.begin(request.receive)
            first = await answering.next()
            assert first is not None
            answering.mark_first()
            if wanted.stream:
                usage = wanted.stream_options is not None and bool(wanted.stream_options.include_usage)
                return _Stream(_chunks(completion, answering, first, with_usage=usage), answering)
            reply = await _whole(completion, answering, first)
        except BaseException:
            answering.end()
            raise
        answering.end()
        return JSONResponse(reply)

    def _understand(self, body: bytes) -> tuple[Served, ChatRequest, Asked]:
        wanted = read_request(parse_json(body))
        served = self._served(wanted.model)
        return served, wanted, read_messages(wanted, self._pictures, served.model.language.context_length)

    def _served(self, name: str | None) -> Served:
        if name is None and len(self._models) == 1:
            return next(iter(self._models.values()))
        if name is None or name not in self._models:
            known = ", ".join(self._models)
            message = (
                f"there is no model {name[:100]!r}. Known: {known}." if name else f"name a model: {known}."
            )
            raise ApiError(404 if name else 400, message, param="model", code="model_not_found")
        return self._models[name]


async def _whole(completion: Completion, answering: Answering, event: Event | None) -> dict[str, Any]:
    pieces = []
    while isinstance(event, Piece):
        pieces.append(event)
        event = await answering.next()
    assert isinstance(event, Timings)
    return completion.whole(pieces, event, answering.queue_ms)


async def _chunks(
    completion: Completion, answering: Answering, event: Event | None, *, with_usage: bool
) -> AsyncIterator[bytes]:
    yield completion.begin()
    try:
        while event is None or isinstance(event, Piece):
            yield KEEP_ALIVE if event is None else completion.piece(event)
            event = await answering.next(KEEP_ALIVE_S)
    except ApiError as error:
        yield failed(error)
        return
    assert isinstance(event, Timings)
    yield completion.end(event, answering.queue_ms, with_usage=with_usage)


async def _as_json(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):  # of the router: no such path or method
        error = ApiError(error.status_code, f"{error.detail}.".lower(), headers=dict(error.headers or {}))
    if isinstance(error, TinyLlavaEdgeError):
        error = told(error)
    if not isinstance(error, ApiError):  # a fault of ours, which uvicorn writes to the owner's terminal
        error = ApiError(500, "the server failed.", code="server_failed")
    return JSONResponse(error.body, error.status, headers=error.headers)


def _about(served: Served) -> dict[str, Any]:
    model = served.model
    return {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "tinyllava-edge",
        "context_length": model.language.context_length,
        "tokens_per_picture": model.bundle.manifest.vision.num_tokens,
        "runtime": model.runtime,
        "vision": model.vision.name,
        "language": model.language.name,
        "manifest_sha256": model.bundle.manifest_sha256,
    }
