"""A bundle's model: picture and question in, a stream of text out.

Turns and pictures -> elements (`conversation.py`, `pictures.py`) -> prefill of what the context does not hold
yet (`context.py`) -> one token after another (`sampling.py`) -> pieces of text (`answer_text.py`). Written
once for every runtime; knows a backend only by its protocol.
"""

import os
import weakref
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt
from PIL import Image

from tinyllava_edge.bundle import TOKENIZER_FILE, Bundle
from tinyllava_edge.checkpoint.config import IMAGE_TOKEN_ID
from tinyllava_edge.checkpoint.names import bundle_path, checkpoint_path
from tinyllava_edge.errors import BackendError, ContextOverflowError, UsageError
from tinyllava_edge.image import Picture
from tinyllava_edge.prompt import TextTokenizer, Turn, place_markers
from tinyllava_edge.sampling import Sampler, Sampling

from .answer_text import AnswerText
from .auto import open_runtime
from .base import BackendOptions, LanguageBackend, VisionBackend
from .context import Context, Element, PictureRows, count_positions
from .conversation import Conversation, Prompt
from .pictures import PictureEncoder
from .registry import DEFAULT_RUNTIME
from .timings import Finish, Stopwatch, Timings

DEFAULT_MAX_TOKENS = 512  # what upstream's command line allows


def open_bundle(  # noqa: PLR0913 - one argument per setting a user may give
    path: str | Path | Bundle,
    *,
    runtime: str = DEFAULT_RUNTIME,
    vision: str | None = None,
    language: str | None = None,
    kv_type: str | None = None,
    context_length: int | None = None,
    threads: int | None = None,
    checkpoint: str | Path | None = None,
    sources: str | Path | None = None,
    allow_pickle: bool = False,
) -> "Model":
    """Open a bundle to chat with it; used in a `with` statement, it is closed at the end.

    Args:
        path: a bundle's directory, "nano", or a bundle that is open already.
        runtime: one of `registry.RUNTIMES`, such as "onnxruntime+llamacpp" or "tensorrt+llamacpp", or "auto":
            what `tinyllava-edge build` chose here, else the best that opens; `Model.runtime_reason` says why.
        vision: variant of the vision part, or None for the most precise verified one.
        language: variant of the language model, likewise.
        kv_type: type of the KV cache: "f16", "f32" (conformance) or "q8_0"; None for the runtime's own,
            which is "f16" with llama.cpp and "f32" with torch.
        context_length: positions of the context, or None for the model's own.
        threads: threads of each engine (they work in turns), or None for the cores this process may use.
        checkpoint: where the weights are, for runtime "torch".
        sources: where the configs are that the checkpoint only names, likewise.
        allow_pickle: read the checkpoint's `.bin` files, likewise.

    Raises:
        BundleError: the bundle is damaged, or has no such variant.
        BackendError: the runtime is not usable on this machine.
        UsageError: an option has no such value, or the runtime no such option.
    """
    options = BackendOptions(
        vision=vision,
        language=language,
        kv_type=kv_type,
        context_length=context_length,
        threads=threads,
        checkpoint=None if checkpoint is None else checkpoint_path(checkpoint),
        sources=None if sources is None else Path(sources),
        allow_pickle=allow_pickle,
    )
    bundle = path if isinstance(path, Bundle) else Bundle.open(bundle_path(path))
    opened = open_runtime(runtime, bundle, options)
    try:
        model = Model(bundle, opened.vision, opened.language)
    except BaseException:
        opened.vision.close()
        opened.language.close()
        raise
    model.runtime, model.runtime_reason = opened.runtime, opened.reason
    return model


@dataclass
class _Turn:
    """One turn while it runs."""

    prompt: Prompt
    pictures: tuple[Picture, ...]
    max_tokens: int
    sampler: Sampler
    text: AnswerText
    stopwatch: Stopwatch
    ids: list[int] = field(default_factory=list)


class Model:
    """An opened bundle with one conversation. Not for use by several threads at once.

    Attributes:
        vision: the vision backend, for measuring and verifying.
        language: the language backend, likewise; call `forget()` after evaluating with it directly.
        runtime: name of the runtime that `open_bundle` opened, "" where the backends were given.
        runtime_reason: why "auto" took it, "" where it was asked for.
        last_timings: of the last turn that gave a token, or None.
    """

    def __init__(self, bundle: Bundle, vision: VisionBackend, language: LanguageBackend) -> None:
        manifest = bundle.manifest
        self.bundle = bundle
        self.vision = vision
        self.language = language
        self.runtime = self.runtime_reason = ""
        self.last_timings: Timings | None = None
        self._closed = False
        self._template = manifest.prompt.template
        self._stop_ids = frozenset(manifest.prompt.stop_ids)
        tokenizer_json = bundle.path(TOKENIZER_FILE).read_text(encoding="utf-8")
        self._tokenizer = TextTokenizer(tokenizer_json, bos_id=manifest.prompt.bos_id)
        self._encoder = PictureEncoder(vision, manifest.vision)
        self._context = Context(language)
        self._conversation = Conversation(self._tokenizer, self._template)
        # Weak: a caller who drops the iterator closes it, and with it the turn.
        self._running: Callable[[], Generator[str, None, None] | None] = lambda: None

    def __enter__(self) -> "Model":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free both backends; calling it twice is harmless, asking for anything more is a BackendError."""
        self._end_running_turn()
        self._closed = True
        self.vision.close()
        self.language.close()

    def reset(self) -> None:
        """Begin a new conversation.

        What was computed stays: a prompt that begins like the last one (the same picture, say) reuses it.
        """
        self._check_open()
        self._end_running_turn()
        self._conversation = Conversation(self._tokenizer, self._template)

    def forget(self) -> None:
        """Begin a new conversation with nothing computed, as after opening."""
        self.reset()
        self._encoder = PictureEncoder(self.vision, self.bundle.manifest.vision)
        self._context = Context(self.language)

    @property
    def turns(self) -> list[Turn]:
        """Questions, with their markers placed, and answers of the conversation so far."""
        return list(self._conversation.turns)

    def chat(  # noqa: PLR0913 - one argument per setting a user may give
        self,
        question: str,
        pictures: Sequence[Picture] | Picture | None = None,
        *,
        max_tokens: int | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        min_p: float = 0.0,
        seed: int | None = None,
        stop: Sequence[str] | str = (),
        honour_special: bool = False,
    ) -> Generator[str, None, None]:
        """Ask a question, with new pictures or about those of earlier turns; the answer comes in pieces.

        The arguments are checked and the length of the prompt counted at once; the work begins with the first
        piece. The turn counts when the iteration is done, or when it is closed after the first piece
        (`break`, Ctrl-C): the answer is then what was handed out. An error, or closing before that, drops
        the turn and leaves the conversation as it was. Asking the next question closes a running answer.

        Args:
            question: one picture's `<image>` marker moves to the front; several pictures need one each.
            pictures: new ones, or a single one: paths, file contents or PIL images.
            max_tokens: most tokens of the answer, or None for 512 or what the context leaves.
            temperature: 0 takes the most likely token each time.
            top_p: see `sampling.Sampling`, as for the settings around it.
            top_k: likewise.
            min_p: likewise.
            seed: likewise.
            stop: strings that end the answer, and are no part of it; a single one may stand by itself.
            honour_special: whether text such as `</s>` in the question is the special token, as upstream.

        Raises:
            PromptError: markers and pictures do not fit together.
            ContextOverflowError: prompt and answer do not fit in the context; nothing was done yet.
            UsageError: a setting is out of range.
            BackendError: the model is closed.
        """
        self._check_open()
        self._end_running_turn()
        stopwatch = Stopwatch()
        if not isinstance(question, str):
            raise UsageError(f"the question must be text, found {type(question).__name__}.")
        if max_tokens is not None and max_tokens < 1:
            raise UsageError(f"max_tokens is {max_tokens}; it must be 1 or more.")
        how = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed)
        given = _as_pictures(pictures)
        stops = (stop,) if isinstance(stop, str) else tuple(stop)
        text = AnswerText(self._tokenizer.decode, (self._template.end, *stops))
        with stopwatch.stage("tokenize"):
            prompt = self._conversation.ask(question, len(given), honour_special=honour_special)
        room = self._check_room(prompt.elements, max_tokens)
        answer = self._answer(_Turn(prompt, given, room, Sampler(how), text, stopwatch))
        self._running = weakref.ref(answer)
        return answer

    def tokenize(
        self, turns: Sequence[Turn], *, honour_special: bool = True, num_pictures: int | None = None
    ) -> list[int]:
        """Token ids as upstream gives them, -200 standing for each picture.

        Args:
            turns: questions and answers; None for an answer that is to come.
            honour_special: False takes special-token text as plain text, as `chat` does.
            num_pictures: how many there are, or None to follow upstream, which keeps one marker a question.
        """
        placed = place_markers(turns, num_pictures)
        return self._tokenizer.encode(self._template, placed, honour_special=honour_special)

    def encode(self, pictures: Sequence[Picture] | Picture) -> npt.NDArray[np.float32]:
        """Embeddings [pictures, tokens, hidden]."""
        self._check_open()
        spec = self.bundle.manifest.vision
        encoded = self._encoder.encode(_as_pictures(pictures), Stopwatch())
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
        self._check_open()
        self._end_running_turn()
        given = _as_pictures(pictures)
        ids = self.tokenize(turns, num_pictures=len(given))
        self._check_room(ids, 0)
        rows = iter(self._encoder.encode(given, Stopwatch()))
        return self._context.all_logits([next(rows) if i == IMAGE_TOKEN_ID else i for i in ids])

    def _check_open(self) -> None:
        if self._closed:
            raise BackendError(f"the model is closed. Open {self.bundle.root} again.")

    def _check_room(self, elements: Sequence[Element], max_tokens: int | None) -> int:
        """Tokens the answer may have.

        Raises:
            ContextOverflowError: says how many positions are asked for, and how many there are.
        """
        per_picture = self.bundle.manifest.vision.num_tokens
        new_pictures = sum(element == IMAGE_TOKEN_ID for element in elements)
        needed = count_positions(elements) + new_pictures * (per_picture - 1)
        available = self.language.context_length
        if max_tokens is None:
            max_tokens = max(1, min(DEFAULT_MAX_TOKENS, available - needed))
        if needed + max_tokens > available:
            has_pictures = any(not isinstance(e, int) or e == IMAGE_TOKEN_ID for e in elements)
            pictures = f" ({per_picture} a picture)" if has_pictures else ""
            raise ContextOverflowError(
                f"the prompt has {needed} tokens{pictures} and the answer may have "
                f"{max_tokens}: together {needed + max_tokens}, but the context holds {available}. "
                "Ask for fewer tokens, start a new conversation, or open the bundle with a larger context."
            )
        return max_tokens

    def _end_running_turn(self) -> None:
        running = self._running()
        if running is not None:
            running.close()

    def _answer(self, turn: _Turn) -> Generator[str, None, None]:
        """Run one turn; `chat` says when it counts."""
        pictures = self._encoder.encode(turn.pictures, turn.stopwatch)
        elements = turn.prompt.with_pictures(pictures)
        with turn.stopwatch.stage("prefill"):
            reused = self._context.prefill(elements)
            first = turn.sampler.choose(self._context.last_logits())
        finish: Finish = "closed"
        try:
            finish = yield from self._decode(first, turn)
            if rest := turn.text.finish():
                yield rest
        except (GeneratorExit, KeyboardInterrupt):
            if not turn.text.text:
                raise
            self._keep(turn, pictures, "closed")
            raise
        else:
            self._keep(turn, pictures, finish)
        finally:
            self.last_timings = turn.stopwatch.timings(
                prompt_tokens=count_positions(elements),
                reused_tokens=reused,
                generated_tokens=len(turn.ids),
                finish=finish,
            )

    def _decode(self, token: int, turn: _Turn) -> Generator[str, None, Finish]:
        """Hand out pieces until something ends the answer."""
        while token not in self._stop_ids:
            turn.ids.append(token)
            piece = turn.text.push(token)
            turn.stopwatch.mark_token()
            if piece:
                yield piece
            if turn.text.stopped:
                return "stop_string"
            if len(turn.ids) == turn.max_tokens:
                return "max_tokens"
            self._context.append(token)
            token = turn.sampler.choose(self._context.last_logits())
        return "stop_id"

    def _keep(self, turn: _Turn, pictures: Sequence[PictureRows], finish: Finish) -> None:
        """Add the turn to the conversation, with the generated ids where they say just what the text says."""
        cut = finish == "stop_string" or (finish == "closed" and turn.text.holds_text)
        self._conversation.add(turn.prompt, pictures, turn.text.text, None if cut else turn.ids)


def _as_pictures(given: Sequence[Picture] | Picture | None) -> tuple[Picture, ...]:
    """Several pictures, or one by itself: a path is a sequence too, of characters that are no pictures."""
    if given is None:
        return ()
    return (given,) if isinstance(given, str | bytes | os.PathLike | Image.Image) else tuple(given)
