"""A model for asyncio: its calls run in one thread of their own, so that the event loop never waits.

Tasks are to it what threads are to `Model`: another task's question waits until the stream that is read has
ended, was closed or dropped, or its reader is done; the same task's next question closes its own.
"""

import asyncio
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from tinyllava_edge.bundle import Bundle
from tinyllava_edge.prompt import Turn

from .ask_each import Answered
from .chat import Chat
from .model import Model, _grouped, open_bundle
from .stream import Stream
from .timings import Finish, Timings
from .watch.watching import Seen

T = TypeVar("T")
_LOOK_S = 0.02  # between two looks at a stream of another task: nothing tells that it was dropped


@asynccontextmanager
async def open_bundle_async(path: str | Path | Bundle, **options: Any) -> AsyncIterator["AsyncModel"]:
    """Open a bundle for an `async with`; arguments and errors as of `open_bundle`."""
    worker = ThreadPoolExecutor(1, "tinyllava-edge")
    try:
        opened = await asyncio.wrap_future(worker.submit(open_bundle, path, **options))
        async with AsyncModel(opened, worker) as model:
            yield model
    finally:
        worker.shutdown(wait=False)


class AsyncModel:
    """A model whose calls are awaited; methods, settings and errors are those of `Model`.

    Cancelling a task ends its answer with the token that is being computed.

    Attributes:
        model: what answers; used elsewhere too, its own rules hold.
    """

    def __init__(self, model: Model, worker: ThreadPoolExecutor | None = None) -> None:
        self.model = model
        self._worker = worker or ThreadPoolExecutor(1, "tinyllava-edge")
        self._queue = asyncio.Lock()  # who asks next
        self._running: Callable[[], AsyncStream | None] = lambda: None

    async def __aenter__(self) -> "AsyncModel":
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"<Async{repr(self.model)[1:]}"

    async def aclose(self) -> None:
        """Free the model; calling it twice is harmless."""
        await self.in_worker(self.model.close)

    async def ask(self, question: str, pictures: Any = None, **settings: Any) -> str:
        """The whole answer, as of `Model.ask`."""
        return "".join([piece async for piece in self._stream(self._ask, question, pictures, settings)])

    def answer(self, turns: Sequence[Turn], pictures: Any = None, **settings: Any) -> "AsyncStream":
        """The pieces of an answer, as of `Model.answer`; asked with the first `async for`."""
        return self._stream(self.model.answer, turns, pictures, settings)

    def chat(
        self, question: str, pictures: Any = None, *, chat: Chat | None = None, **settings: Any
    ) -> "AsyncStream":
        """The next question of a conversation, as of `Model.chat`, or of a `Chat` of this model."""
        ask = self.model.chat if chat is None else chat.ask
        return self._stream(ask, question, pictures, settings)

    async def ask_each(
        self, question: str | Iterable[str], pictures: Any, **settings: Any
    ) -> AsyncGenerator[Answered, None]:
        """An answer about each picture, as of `Model.ask_each`; what other tasks ask comes in between."""
        each = self.model.ask_each(question, pictures, **settings)
        try:
            while (found := await self._in_turn(next, each, None)) is not None:
                yield found
        finally:
            await self.in_worker(each.close)

    async def watch(self, source: Any, question: str, **settings: Any) -> AsyncGenerator[Seen, None]:
        """Answers about the newest picture of a source, as of `Model.watch`; a thread waits for pictures."""
        watched = await asyncio.to_thread(partial(self.model.watch, source, question, **settings))
        try:
            while (due := await asyncio.to_thread(watched.due)) is not None:
                yield await self._in_turn(watched.ask, due)
        finally:
            await asyncio.to_thread(watched.close)

    async def _in_turn(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run in the model's thread what asks and waits for the answer, once no stream is read."""
        await self._close_own()
        async with self._queue:
            await self._wait()
            return await self.in_worker(function, *arguments)

    def _ask(self, question: str, pictures: Any, **settings: Any) -> Stream:
        return self.model.answer([(question, None)], pictures, **_grouped(settings))

    def _stream(
        self, ask: Callable[..., Stream], question: Any, pictures: Any, settings: dict[str, Any]
    ) -> "AsyncStream":
        return AsyncStream(self, lambda: ask(question, pictures, **settings))

    async def begin(self, stream: "AsyncStream", ask: Callable[[], Stream]) -> Stream:
        """Ask, in turn, what a stream is of."""
        await self._close_own()
        async with self._queue:
            await self._wait()
            self._running = weakref.ref(stream)
            return await self.in_worker(ask)

    async def _close_own(self) -> None:
        """Before the queue: whoever is first in it may wait for this very stream."""
        if (running := self._running()) is not None and running.reader is asyncio.current_task():
            await running.aclose()

    async def _wait(self) -> None:
        while (running := self._running()) is not None and running.is_open:
            if running.reader is None or running.reader.done():
                await running.aclose()
            else:
                del running  # or it could not be dropped
                await asyncio.sleep(_LOOK_S)

    async def in_worker(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run it in the model's thread; it goes on there where this is cancelled, and the next call waits."""
        return await asyncio.get_running_loop().run_in_executor(self._worker, function, *arguments)


class AsyncStream(AsyncIterator[str]):
    """Pieces of an answer; `text`, `ids`, `timings` and `finish` are those of a `Stream`.

    Attributes:
        stream: what it awaits the pieces of; None before the first was asked for.
        reader: the task that asks for it, or has read of it last; None before that.
        is_open: whether more may come.
    """

    def __init__(self, model: AsyncModel, ask: Callable[[], Stream]) -> None:
        self._model = model
        self._ask = ask
        self.stream: Stream | None = None
        self.reader: asyncio.Task[Any] | None = None
        self.is_open = True

    async def __anext__(self) -> str:
        if not self.is_open:
            raise StopAsyncIteration
        self.reader = asyncio.current_task()
        try:
            if self.stream is None:
                self.stream = await self._model.begin(self, self._ask)
            piece: str | None = await self._model.in_worker(next, self.stream, None)
        except BaseException:  # cancelled, too
            await asyncio.shield(self.aclose())
            raise
        if piece is None:
            self.is_open = False
            raise StopAsyncIteration
        return piece

    async def aclose(self) -> None:
        """End the answer here; calling it twice is harmless."""
        if self.stream is not None and self.is_open:
            await self._model.in_worker(self.stream.close)
        self.is_open = False

    def __repr__(self) -> str:
        return f"<Async{repr(self.stream)[1:]}" if self.stream else "<AsyncStream not asked yet>"

    @property
    def text(self) -> str:
        """All pieces so far."""
        return self.stream.text if self.stream else ""

    @property
    def ids(self) -> list[int]:
        """Token ids so far."""
        return self.stream.ids if self.stream else []

    @property
    def timings(self) -> Timings | None:
        """None until the answer has ended."""
        return self.stream.timings if self.stream else None

    @property
    def finish(self) -> Finish | None:
        """What ended the answer, likewise."""
        return self.stream.finish if self.stream else None
