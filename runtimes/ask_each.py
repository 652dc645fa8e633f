"""Many pictures, an answer about each: the next ones are decoded by a thread while the model answers."""

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tinyllava_edge.errors import ImageError, PromptError, TinyLlavaEdgeError, UsageError
from tinyllava_edge.picture_given import is_picture

from .logprobs import TokenLogprob
from .pictures import Prepared, as_pictures
from .timings import Timings

if TYPE_CHECKING:
    from .model import Model

AHEAD = 4  # pictures that are ready at most; the pixels of one, 384 a side, are 1.8 MB
_END = object()
_Asked = tuple[int, Any, str, "Future[list[Prepared]]"]


@dataclass(frozen=True, kw_only=True)
class Answered:
    """What became of one picture.

    Attributes:
        index: its place, from 0.
        picture: as it was given.
        question: that was asked about it.
        answer: the whole text; None where it failed.
        timings: of the answer; `preprocess_ms` is the time of the thread that ran ahead, and no part of
            `first_token_ms` and `total_ms`. None where it failed.
        error: why it failed; None where it did not.
        logprobs: of the answer's tokens where they were asked for, as `Stream.logprobs`.
    """

    index: int
    picture: Any
    question: str
    answer: str | None
    timings: Timings | None
    error: TinyLlavaEdgeError | None = None
    logprobs: list[TokenLogprob] | None = None


def ask_each(
    model: "Model",
    question: str | Iterable[str],
    pictures: Any,
    *,
    ahead: int = AHEAD,
    settings: dict[str, Any],
) -> Generator[Answered, None, None]:
    """Answers in the order of the pictures, each by itself: nothing asked before counts.

    A picture that cannot be read, or whose prompt does not fit, ends nothing: its `Answered.error` says why.
    Other threads' questions are answered in between. Closing or dropping the generator ends the thread.

    Args:
        model: an opened bundle.
        question: about every picture, or as many questions as there are pictures, in their order.
        pictures: any iterable, taken as far as is needed; or a single picture. Each is a
            `picture_given.Picture`, a list of them that one question is about, or None for a question alone.
        ahead: pictures that are decoded before their turn, at most.
        settings: of `Model.answer`.

    Raises:
        UsageError: a setting is out of range, or there are more questions than pictures, or fewer.
        BackendError: the runtime failed, which is no picture's fault.
    """
    if ahead < 1:
        raise UsageError(f"ahead is {ahead}; it must be 1 or more.")
    one = pictures is None or is_picture(pictures)
    if not one and not isinstance(pictures, Iterable):
        as_pictures(pictures)  # which says what it is
    return _each(model, _pairs(question, [pictures] if one else pictures), ahead, settings)


def _pairs(question: str | Iterable[str], pictures: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    if isinstance(question, str):
        yield from ((question, picture) for picture in pictures)
        return
    questions, shown = iter(question), iter(pictures)
    for number, text in enumerate(questions):
        if (picture := next(shown, _END)) is _END:
            raise UsageError(f"more than {number} questions and {number} pictures: give one for each.")
        yield text, picture
    if next(shown, _END) is not _END:
        raise UsageError("fewer questions than pictures: give one for each, or one as a text for all.")


def _each(
    model: "Model", pairs: Iterable[tuple[str, Any]], ahead: int, settings: dict[str, Any]
) -> Generator[Answered, None, None]:
    def prepare(picture: Any) -> list[Prepared]:
        return [model.prepare(one) for one in as_pictures(picture)]

    pool = ThreadPoolExecutor(1, "decode pictures")
    waiting: deque[_Asked] = deque()
    try:
        for index, (question, picture) in enumerate(pairs):
            waiting.append((index, picture, question, pool.submit(prepare, picture)))
            if len(waiting) > ahead:
                yield _answered(model, *waiting.popleft(), settings)
        while waiting:
            yield _answered(model, *waiting.popleft(), settings)
    finally:
        pool.shutdown(cancel_futures=True)


def _answered(
    model: "Model",
    index: int,
    picture: Any,
    question: str,
    prepared: "Future[list[Prepared]]",
    settings: dict[str, Any],
) -> Answered:
    try:
        shown: Any = prepared.result()  # no `Picture`, which is what people give
        stream = model.answer([(question, None)], shown, **settings)
        text = "".join(stream)
    except (ImageError, PromptError) as fault:  # with its traceback it would hold the picture
        return Answered(
            index=index,
            picture=picture,
            question=question,
            answer=None,
            timings=None,
            error=fault.with_traceback(None),
        )
    return Answered(
        index=index,
        picture=picture,
        question=question,
        answer=text,
        timings=stream.timings,
        logprobs=stream.logprobs,
    )
