"""A model for asyncio: tasks wait as threads do, and a cancelled one ends its answer."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from tests.runtimes import bundles
from tests.runtimes.bundles import picture
from tests.runtimes.scripted_models import bundle_ids, scripted_model
from tinyllava_edge import open_bundle_async
from tinyllava_edge.bundle import Bundle
from tinyllava_edge.errors import ImageError, UsageError
from tinyllava_edge.runtimes.async_model import AsyncModel, AsyncStream

ANSWER = "the cat and the dog"
Test = Callable[[AsyncModel], Coroutine[Any, Any, None]]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return bundles.write_bundle(tmp_path_factory.mktemp("bundles") / "tiny")


@pytest.fixture
def play(bundle: Bundle) -> Callable[[Test], None]:
    """Runs a test in an event loop, with a model, and no longer than 30 s."""

    def run(test: Test) -> None:
        async def whole() -> None:
            async with AsyncModel(scripted_model(bundle, ANSWER)) as model:
                await asyncio.wait_for(test(model), 30)

        asyncio.run(whole())

    return run


def test_a_bundle_is_opened_asked_and_closed(bundle: Bundle) -> None:
    async def whole() -> None:
        before = threading.active_count()
        async with open_bundle_async(bundle, runtime="scripted") as model:
            answer = await model.ask("what", picture(1), max_tokens=3)
            stream = model.chat("what", picture(1), max_tokens=3)
            assert repr(stream) == "<AsyncStream not asked yet>"
            assert "".join([piece async for piece in stream]) == answer == stream.text
            assert stream.finish == "max_tokens"
            assert len(stream.ids) == 3
            assert stream.timings is not None
            assert len(model.model.turns) == 1
            assert threading.active_count() <= before + 1  # one thread, whatever is called
            assert repr(model).startswith("<AsyncModel tiny: vision scripted")
            with pytest.raises(UsageError, match="temperature"):
                await model.ask("what", temperature=-1)
            with pytest.raises(ImageError, match="nowhere"):
                await model.ask("what", Path("nowhere.png"))
            assert await model.ask("what", picture(1), max_tokens=3) == answer
        assert model.model._closed

    asyncio.run(whole())


def test_tasks_wait_for_each_others_streams_and_the_loop_goes_on(play: Callable[[Test], None]) -> None:
    async def test(model: AsyncModel) -> None:
        stream = model.answer([("what", None)])
        first = await anext(stream)
        other = asyncio.create_task(model.ask("why"))
        third = asyncio.create_task(model.ask("and why"))
        await asyncio.sleep(0.1)
        assert not other.done()
        rest = [piece async for piece in stream]
        assert "".join([first, *rest]) == ANSWER
        assert list(await asyncio.gather(other, third)) == [ANSWER, ANSWER]

    play(test)


def test_the_same_tasks_next_question_closes_its_own_stream(play: Callable[[Test], None]) -> None:
    async def test(model: AsyncModel) -> None:
        stream = model.answer([("what", None)])
        await anext(stream)
        other = asyncio.create_task(model.ask("why"))  # waits for the stream, first in the queue
        await asyncio.sleep(0.05)
        assert await model.ask("and now") == ANSWER
        assert await other == ANSWER
        assert (stream.finish, [piece async for piece in stream]) == ("closed", [])

    play(test)


@pytest.mark.parametrize("how", ["dropped", "reader done"])
def test_a_stream_that_nobody_will_read_holds_nobody_up(play: Callable[[Test], None], how: str) -> None:
    async def test(model: AsyncModel) -> None:
        held: list[AsyncStream] = []

        async def read_one() -> None:
            stream = model.answer([("what", None)])
            await anext(stream)
            if how == "reader done":
                held.append(stream)

        await asyncio.create_task(read_one())
        assert await model.ask("why") == ANSWER

    play(test)


def test_cancelling_ends_the_answer(play: Callable[[Test], None]) -> None:
    async def test(model: AsyncModel) -> None:
        language: Any = model.model.language
        evaluate, began, go_on = language.evaluate, threading.Event(), threading.Event()
        calls = []

        def slow(*arguments: Any, **named: Any) -> Any:
            calls.append(arguments)
            began.set()
            assert go_on.wait(30)
            return evaluate(*arguments, **named)

        language.evaluate = slow
        task = asyncio.create_task(model.ask("what"))
        await asyncio.to_thread(began.wait, 30)
        task.cancel()
        await asyncio.sleep(0.02)
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await model.ask("why") == ANSWER
        assert len(calls) <= 3 + len(bundle_ids(ANSWER)), "the cancelled answer went on"

    play(test)


def test_pictures_are_asked_about_in_turn_with_others_questions(play: Callable[[Test], None]) -> None:
    async def test(model: AsyncModel) -> None:
        found = []
        async for one in model.ask_each("what", [picture(1), b"no picture", picture(2)]):
            found.append(one.answer)
            assert await model.ask("meanwhile") == ANSWER
        assert found == [ANSWER, None, ANSWER]

    play(test)
