"""A bundle's model: turns and pictures in, a stream of text out.

Turns and pictures -> elements (`pictures.py`) -> prefill of what the context does not hold yet (`context.py`)
-> one token after another (`sampling.py`) -> pieces of text (`answer_text.py`). Written once for every
runtime; knows a backend only by its protocol, and remembers no turns: a conversation is `chat.py`.
"""

import weakref
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import fields
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tinyllava_edge.bundle import TOKENIZER_FILE, Bundle
from tinyllava_edge.checkpoint.config import IMAGE_MARKER, IMAGE_TOKEN_ID
from tinyllava_edge.checkpoint.names import bundle_path, checkpoint_path
from tinyllava_edge.errors import BackendError, ContextOverflowError, UsageError
from tinyllava_edge.image import Picture
from tinyllava_edge.picture_given import Fetch
from tinyllava_edge.prompt import Template, TextTokenizer, Turn, check_turns, place_markers
from tinyllava_edge.sampling import Sampler, Sampling

from .access import Access
from .answer_settings import GREEDY, AnswerSettings
from .answer_text import AnswerText
from .ask_each import AHEAD, Answered, ask_each
from .auto import open_runtime
from .base import BackendOptions, Divisible, LanguageBackend, StoppedError, VisionBackend
from .chat import Chat
from .context import Context, Element, count_positions
from .grammar import Grammars
from .logprobs import Logprobs
from .pictures import PictureEncoder, Prepared, as_pictures
from .registry import DEFAULT_RUNTIME
from .store import PictureStore, open_store
from .stream import Run, Stream
from .timings import Finish, Stopwatch, Timings
from .watch.watching import Watch

DEFAULT_MAX_TOKENS = 512  # what upstream's command line allows


def open_bundle(
    path: str | Path | Bundle,
    *,
    runtime: str = DEFAULT_RUNTIME,
    checkpoint: str | Path | None = None,
    sources: str | Path | None = None,
    store_mb: int = 0,
    allow_url: bool | Fetch = False,
    **options: Any,
) -> "Model":
    """Open a bundle to ask it; used in a `with` statement, it is closed at the end.

    Args:
        path: a bundle's directory, "nano", or a bundle that is open already.
        runtime: one of `registry.RUNTIMES`, such as "onnxruntime+llamacpp" or "tensorrt+llamacpp", or "auto":
            what `tinyllava-edge build` chose here, else a GPU, else the CPU; `Model.runtime_reason` says why.
        checkpoint: where the weights are, or "nano", for runtime "torch".
        sources: where the configs are that the checkpoint only names, likewise.
        store_mb: keep what pictures become on disk, up to so many megabytes (10^6 bytes) for all bundles, so
            that a later process answers about a known picture at once; 0 keeps nothing. `store.py`.
        allow_url: fetch pictures given as https URLs, as `picture_url.fetch_https` does; or what does it.
        options: the other fields of `BackendOptions`: `vision`, `tokens`, `language`, `preset`, `kv_type`,
            `context_length`, `threads`, `gpu_layers`, `main_gpu`, `flash_attention`, `device`,
            `allow_pickle`.

    Raises:
        BundleError: the bundle is damaged, or has no such variant.
        BackendError: the runtime is not usable on this machine.
        UsageError: an option has no such value, or the runtime no such option.
    """
    asked = BackendOptions(
        checkpoint=None if checkpoint is None else checkpoint_path(checkpoint),
        sources=None if sources is None else Path(sources),
        **options,
    )
    if store_mb < 0:
        raise UsageError(f"store_mb is {store_mb}; it must be 0, which keeps nothing, or more.")
    bundle = path if isinstance(path, Bundle) else Bundle.open(bundle_path(path))
    bundle = bundle.at_tokens(asked.tokens, asked.vision)
    opened = open_runtime(runtime, bundle, asked)
    try:
        store = open_store(bundle, opened, asked, store_mb * 10**6)
        model = Model(bundle, opened.vision, opened.language, store, allow_url)
    except BaseException:
        opened.vision.close()
        opened.language.close()
        raise
    model.runtime, model.runtime_reason = opened.runtime, opened.reason
    return model


class Model:
    """An opened bundle.

    It answers one question at a time, and asking the next one closes the answer that runs. Threads wait for
    each other: what another one asks begins when the stream that is read has ended, or was closed or dropped,
    its reader has died, or nobody has read on for `stream.IDLE_S`. A call from a forked child is a
    BackendError. Freed when it is closed, which waits for no stream, or dropped.

    Attributes:
        access: whose turn it is, for a conversation on top.
        bundle: what was opened.
        vision: the vision backend, for measuring and verifying.
        language: the language backend, likewise; call `forget()` after evaluating with it directly.
        tokenizer: the bundle's.
        runtime: name of the runtime that `open_bundle` opened, "" where the backends were given.
        runtime_reason: why "auto" took it, and what the backends say of themselves (a model that did not fit
            on the GPU); "" where it was asked for and there is nothing to say.
        last_timings: of the last answer that gave a token, or None.
    """

    def __init__(
        self,
        bundle: Bundle,
        vision: VisionBackend,
        language: LanguageBackend,
        store: PictureStore | None = None,
        allow_url: bool | Fetch = False,
        beside: "Model | None" = None,
    ) -> None:
        manifest = bundle.manifest
        self.access = Access()
        self.bundle = bundle
        self.vision = vision
        self.language = language
        self.runtime = self.runtime_reason = ""
        self.last_timings: Timings | None = None
        self._closed = False
        self._owns_vision = beside is None
        self._parts: list[Model] = []  # of `divide`
        self._template = manifest.prompt.template
        self._stop_ids = frozenset(manifest.prompt.stop_ids)
        self.tokenizer: TextTokenizer = (
            beside.tokenizer
            if beside
            else TextTokenizer(bundle.read_text(TOKENIZER_FILE), bos_id=manifest.prompt.bos_id, checked=True)
        )
        self._store = store
        self._allow_url = allow_url
        self._encoder: PictureEncoder = (
            beside._encoder if beside else PictureEncoder(vision, manifest.vision, store, allow_url)
        )
        self._context = Context(language, store)
        self._grammars: Grammars = (
            beside._grammars
            if beside
            else Grammars(bundle, self.tokenizer.special_ids, manifest.prompt.stop_ids)
        )
        self._chat = Chat(weakref.proxy(self))  # weak: a model that is dropped frees its backends at once
        # Weak: a caller who drops the stream closes it, and with it the answer.
        self._running: Callable[[], Stream | None] = lambda: None

    def __repr__(self) -> str:
        state = ", closed" if self._closed else ""
        what = f"vision {self.vision.name}, language {self.language.name}"
        return f"<Model {self.bundle.root.name}: {what}, context {self.language.context_length}{state}>"

    def __enter__(self) -> "Model":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Free both backends; calling it twice is harmless, asking for anything more is a BackendError.

        In a forked child it does nothing: what is open is the parent's.
        """
        if not self.access.is_here:
            return
        for each in self._parts:  # which waits for what its thread computes
            each.close()
        with self.access.call():
            if (running := self._running()) is not None:
                running.end_for_another()
            self._closed = True
            if self._owns_vision:
                self.vision.close()
            self.language.close()

    def divide(self, count: int) -> "list[Model]":
        """So many models that answer at the same time, each in a thread of its own, over the same weights.

        What they decode is decoded together, so that a token's id may be another one where the two best are
        about equal. A picture is known to all of them. This model answers no more; to close it
        closes them.

        Raises:
            UsageError: the runtime's language model cannot be divided.
            BackendError: there is no memory for so many contexts.
        """
        if not isinstance(self.language, Divisible):
            raise UsageError(f"{self.language.name} decodes one sequence at a time: leave --parallel out.")
        with self.access.call():
            self.end_running()
            languages = self.language.divide(count)
        for language in languages:
            each = Model(self.bundle, self.vision, language, self._store, self._allow_url, self)
            each.runtime, each.runtime_reason = self.runtime, self.runtime_reason
            self._parts.append(each)
        return list(self._parts)

    def end_running(self) -> None:
        """Within a call, wait for the answer that another thread reads, or close this thread's own.

        Raises:
            BackendError: the model is closed.
        """
        self._check_open()
        while (running := self._running()) is not None and running.is_read_elsewhere:
            del running  # or it could not be dropped
            self.access.let_others()
            self._check_open()
        if running is not None:
            running.end_for_another()

    def forget(self) -> None:
        """Begin a new conversation with nothing computed, as after opening."""
        self.reset()
        with self.access.call():
            spec = self.bundle.manifest.vision
            self._encoder = PictureEncoder(self.vision, spec, self._store, self._allow_url)
            self._context = Context(self.language, self._store)

    def answer(  # noqa: PLR0913  # what a user may set, each by its name
        self,
        turns: Sequence[Turn],
        pictures: Sequence[Picture] | Picture | None = None,
        *,
        sampling: Sampling = GREEDY,
        max_tokens: int | None = None,
        stop: Sequence[str] | str = (),
        honour_special: bool = False,
        system: str | None = None,
        json_schema: dict[str, Any] | str | None = None,
        grammar: str | None = None,
        logprobs: int | None = None,
    ) -> Stream:
        """Answer the last of some turns, which hold all there is to know; the answer comes in pieces.

        The arguments are checked and the length of the prompt counted at once; the work begins with the first
        piece. What the context holds of the prompt already, from whatever was asked before, is not computed
        again, and neither is a picture seen before.

        Args:
            turns: questions and answers, the last one's None. One picture's `<image>` marker moves to the
                front of its question; several pictures need one each; one picture without any marker is the
                first question's. A marker in an answer is dropped.
            pictures: of all turns, in order, or a single one, each a `picture_given.Picture`: a path, a URL,
                what is in a file, an array, a PIL image.
            sampling: how tokens are chosen; the most likely one by default.
            max_tokens: most tokens of the answer, or None for 512 or what the context leaves.
            stop: strings that end the answer, and are no part of it; a single one may stand by itself.
            honour_special: whether text such as `</s>` in the turns is the special token, as upstream.
            system: in the place of the template's own system text, as docs/decoding.md has it.
            json_schema: the answer is JSON that fits this schema, an object or its text, where it ends by
                itself; one that is cut (`finish` is "max_tokens" or "stop_string") may be no JSON at all.
            grammar: likewise, the answer is a sentence of this grammar, in llama.cpp's GBNF.
            logprobs: keep the log-probability of each token, and so many of the likeliest (0 to 20) in its
                place: `Stream.logprobs`.

        Raises:
            PromptError: markers and pictures do not fit together, or the template has no system text.
            GrammarError: the schema or grammar cannot be read, or the bundle has no vocabulary for it.
            ContextOverflowError: prompt and answer do not fit in the context; nothing was done yet.
            UsageError: a setting is out of range, or the turns are something else.
            BackendError: the model is closed.
        """
        how: dict[str, Any] = {
            "sampling": sampling,
            "max_tokens": max_tokens,
            "stop": stop,
            "json_schema": json_schema,
            "grammar": grammar,
            "logprobs": logprobs,
        }
        with self.access.call():
            return self._answer(turns, pictures, honour_special=honour_special, system=system, **how)

    def _answer(
        self,
        turns: Sequence[Turn],
        pictures: Sequence[Picture] | Picture | None,
        *,
        honour_special: bool = False,
        system: str | None = None,
        **how: Any,
    ) -> Stream:
        self.end_running()
        stopwatch = Stopwatch()
        given = as_pictures(pictures)
        check_turns(turns)
        asked = [(question, text and text.replace(IMAGE_MARKER, "")) for question, text in turns]
        with stopwatch.stage("tokenize"):
            prompt = self.tokenize(
                asked, honour_special=honour_special, num_pictures=len(given), system=system
            )
        return self.start(prompt, given, stopwatch, **how)

    def start(
        self,
        prompt: Sequence[Element],
        pictures: Sequence[Picture],
        stopwatch: Stopwatch,
        *,
        on_end: Callable[[Run], None] = lambda run: None,
        **settings: Any,
    ) -> Stream:
        """Within a call, the stream of an answer to a tokenised prompt; as `Run` and `AnswerSettings` say."""
        how = AnswerSettings(**settings)
        text_ids = [element for element in prompt if isinstance(element, int) and element != IMAGE_TOKEN_ID]
        constraint = self._grammars.start(how.json_schema, how.grammar)
        # Text such as the template's end may stand in what a grammar wants, which says itself where it ends.
        end = () if constraint else (self._template.end,)
        run = Run(
            prompt=prompt,
            pictures=pictures,
            max_tokens=self._check_room(prompt, how.max_tokens),
            text=AnswerText(self.tokenizer.decode, (*end, *how.stops)),
            logprobs=None if how.logprobs is None else Logprobs(self.tokenizer.decode, how.logprobs),
            sampler=Sampler(how.sampling, text_ids, constraint),
            stopwatch=stopwatch,
            on_end=on_end,
        )
        stream = Stream(run, self._pieces(run), self.access)
        self._running = weakref.ref(stream)
        return stream

    def ask(self, question: str, pictures: Sequence[Picture] | Picture | None = None, **settings: Any) -> str:
        """The whole answer to one question by itself: nothing asked before counts, nothing is remembered.

        Args:
            question: one picture's `<image>` marker moves to the front; several pictures need one each.
            pictures: as for `answer`, as are errors.
            settings: the keyword arguments of `answer`, and the fields of `Sampling` by themselves:
                `temperature`, `top_k`, `top_p`, `min_p`, `seed`, `repetition_penalty` and so on.
        """
        with self.access.call():
            return "".join(self._answer([(question, None)], pictures, **_grouped(settings)).pieces)

    def prepare(self, picture: Picture) -> Prepared:
        """Decode and preprocess a picture, in any thread and while the model answers, for `answer`.

        Raises:
            ImageError: it cannot be read or fetched, or is over the limits.
        """
        return self._encoder.prepare(picture)

    def ask_each(
        self,
        question: str | Iterable[str],
        pictures: Any,
        *,
        ahead: int = AHEAD,
        **settings: Any,
    ) -> Generator[Answered, None, None]:
        """An answer about each picture by itself, in order; see `ask_each.ask_each`, settings as of `ask`."""
        return ask_each(self, question, pictures, ahead=ahead, settings=_grouped(settings))

    def watch(
        self,
        source: "str | PathLike[str]",
        question: str,
        *,
        every_s: float = 0.0,
        changed: float | None = None,
        every_frame: bool = False,
        limit: int | None = None,
        **settings: Any,
    ) -> Watch:
        """Answers about the newest picture of a source, again and again, until it ends.

        Args:
            source: a folder for its new pictures, a video file, a camera such as `/dev/video0`, or
                `rtsp://HOST/PATH`.
            question: about each picture.
            every_s: seconds between two questions, at least; of a video, in its own time.
            changed: ask only where the picture differs so much from the last one that was asked about: of
                255, the mean over 16 x 16 fields of grey.
            every_frame: skip no frame of a file, which then keeps no time of its own, and no picture of a
                folder.
            limit: end after so many answers.
            settings: as of `ask`.

        Raises:
            CameraError: there is no such source, it shows nothing, or it was lost.
            UsageError: a setting is out of range.
            ModuleNotFoundError: PyAV is not installed, and it is no folder.
        """
        return Watch(
            self,
            source,
            question,
            every_s=every_s,
            changed=changed,
            every_frame=every_frame,
            limit=limit,
            settings=_grouped(settings),
        )

    def chat(
        self, question: str, pictures: Sequence[Picture] | Picture | None = None, **settings: Any
    ) -> Stream:
        """The next question of the model's own conversation: `Chat.ask`, with the settings of `ask`."""
        return self._chat.ask(question, pictures, **_grouped(settings))

    @property
    def turns(self) -> list[Turn]:
        """Those of the model's own conversation so far."""
        return self._chat.turns

    def reset(self) -> None:
        """Begin the model's own conversation anew; see `Chat.reset`."""
        self._chat.reset()

    def template(self, system: str | None) -> Template:
        """The bundle's, with another system text where one is given; a PromptError where it has none."""
        return self._template if system is None else self._template.with_system(system)

    def tokenize(
        self,
        turns: Sequence[Turn],
        *,
        honour_special: bool = True,
        num_pictures: int | None = None,
        system: str | None = None,
    ) -> list[int]:
        """Token ids as upstream gives them, -200 standing for each picture.

        Args:
            turns: questions and answers; None for an answer that is to come.
            honour_special: False takes special-token text as plain text, as `answer` does.
            num_pictures: how many there are, or None to follow upstream, which keeps one marker a question.
            system: in the place of the template's own system text.
        """
        placed = place_markers(turns, num_pictures, self._template)
        return self.tokenizer.encode(self.template(system), placed, honour_special=honour_special)

    def encode(self, pictures: Sequence[Picture] | Picture) -> npt.NDArray[np.float32]:
        """Embeddings [pictures, tokens, hidden]."""
        spec = self.bundle.manifest.vision
        with self.access.call():
            self._check_open()
            encoded = self._encoder.encode(as_pictures(pictures), Stopwatch())
        empty = np.empty((0, spec.num_tokens, spec.hidden_size), dtype=np.float32)
        return np.stack([picture.rows for picture in encoded]) if encoded else empty

    def logits(
        self, turns: Sequence[Turn], pictures: Sequence[Picture] | Picture = ()
    ) -> npt.NDArray[np.float32]:
        """Logits [positions, vocab] of a whole prompt, picture positions included.

        Apart from the conversation of `chat`, whose next turn then evaluates its whole prompt again.

        Raises:
            PromptError: markers and pictures do not fit together.
            ContextOverflowError: the prompt does not fit in the context.
        """
        with self.access.call():
            self.end_running()
            given = as_pictures(pictures)
            ids = self.tokenize(turns, num_pictures=len(given))
            self._check_room(ids, 0)
            rows = iter(self._encoder.encode(given, Stopwatch()))
            return self._context.all_logits([next(rows) if i == IMAGE_TOKEN_ID else i for i in ids])

    def _check_open(self) -> None:
        if self._closed:
            raise BackendError(f"the model is closed. Open {self.bundle.root} again.")

    def _check_room(self, elements: Sequence[Element], max_tokens: int | None) -> int:
        """Tokens the answer may have, or a ContextOverflowError with the positions asked for and there."""
        per_picture = self.bundle.manifest.vision.num_tokens
        num_pictures = sum(e == IMAGE_TOKEN_ID or not isinstance(e, int) for e in elements)
        needed = len(elements) + num_pictures * (per_picture - 1)
        available = self.language.context_length
        if max_tokens is None:
            max_tokens = max(1, min(DEFAULT_MAX_TOKENS, available - needed))
        if needed + max_tokens > available:
            pictures = f" ({per_picture} a picture)" if num_pictures else ""
            raise ContextOverflowError(
                f"the prompt has {needed} tokens{pictures} and the answer may have "
                f"{max_tokens}: together {needed + max_tokens}, but the context holds {available}. "
                f"Ask for fewer tokens or start a new conversation{self._larger_context(available)}."
            )
        return max_tokens

    def _larger_context(self, available: int) -> str:
        own = self.bundle.manifest.language.context_length
        if available >= own:
            return "; the model was made for no more"
        return f", or open the bundle with a larger context: --context N (context_length=N), N up to {own}"

    def _pieces(self, run: Run) -> Generator[str, None, None]:
        """Compute an answer."""
        rows = iter(self._encoder.encode(run.pictures, run.stopwatch))
        run.prompt = [next(rows) if element == IMAGE_TOKEN_ID else element for element in run.prompt]
        with run.stopwatch.stage("prefill"):
            try:
                reused = self._context.prefill(run.prompt, run.stopping)
            except StoppedError:
                return
            first = self._choose(run)
        try:
            run.finish = yield from self._decode(first, run)
            if rest := run.text.finish():
                yield rest
            self._context.keep()
        except (GeneratorExit, KeyboardInterrupt):
            run.on_end(run)
            raise
        else:
            run.on_end(run)
        finally:
            self.last_timings = run.timings = run.stopwatch.timings(
                prompt_tokens=count_positions(run.prompt),
                reused_tokens=reused,
                generated_tokens=len(run.ids),
                finish=run.finish,
            )

    def _decode(self, token: int, run: Run) -> Generator[str, None, Finish]:
        """Hand out pieces until something ends the answer."""
        while token not in self._stop_ids:
            run.ids.append(token)
            piece = run.text.push(token)
            run.stopwatch.mark_token()
            if piece:
                yield piece
            if run.text.stopped:
                return "stop_string"
            if len(run.ids) == run.max_tokens:
                return "max_tokens"
            if run.stopping.is_set:
                return "closed"
            self._context.append(token)
            token = self._choose(run)
        return "stop_id"

    def _choose(self, run: Run) -> int:
        """The next token, whose log-probability is kept where it is wanted."""
        logits = self._context.last_logits()
        token = run.sampler.choose(logits)
        if run.logprobs is not None and token not in self._stop_ids:
            run.logprobs.add(token, logits)
        return token


def _grouped(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of `Model.answer`, from some in which those of `Sampling` stand by themselves."""
    names = {field.name for field in fields(Sampling)} & set(settings)
    if names and "sampling" in settings:
        raise UsageError(f"give sampling, or {', '.join(sorted(names))} by itself, not both.")
    sampling = Sampling(**{name: settings.pop(name) for name in names})
    return {"sampling": sampling, **settings}
