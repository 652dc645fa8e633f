"""`tinyllava-edge run`, `chat` and `doctor`.

The engine is imported when a command runs, so that `--help` stays quick.
"""

import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from tinyllava_edge.console import note, print_json
from tinyllava_edge.errors import TinyLlavaEdgeError, UsageError

from .registry import DEFAULT_RUNTIME

if TYPE_CHECKING:
    from tinyllava_edge.bundle import Bundle
    from tinyllava_edge.image import Picture

    from .engine import Model
    from .timings import Timings

BundleArgument = Annotated[str, typer.Argument(metavar="BUNDLE", help="A bundle's directory, or nano.")]
RuntimeOption = Annotated[
    str,
    typer.Option(
        "--runtime",
        help="onnxruntime+llamacpp, tensorrt+llamacpp, tensorrt-rtx+llamacpp, onnxruntime-cuda+llamacpp, "
        "torch, scripted, or auto: what build chose here, else the best that opens.",
    ),
]
VisionOption = Annotated[
    str | None, typer.Option("--vision", help="Vision variant.", show_default="the most precise verified one")
]
LanguageOption = Annotated[
    str | None,
    typer.Option("--language", help="Language variant.", show_default="the most precise verified one"),
]
KvTypeOption = Annotated[
    str | None,
    typer.Option(
        "--kv-type", help="Type of the KV cache: f16, f32 or q8_0.", show_default="the runtime's own"
    ),
]
ContextOption = Annotated[
    int | None,
    typer.Option("--context", help="Positions of the context.", show_default="the model's own", min=1),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option("--threads", help="Threads of each engine.", show_default="the usable cores", min=1),
]
CheckpointOption = Annotated[
    Path | None, typer.Option("--checkpoint", help="Where the weights are, for --runtime torch.")
]
SourcesOption = Annotated[
    Path | None,
    typer.Option("--sources", help="Where files are that the checkpoint only names, for --runtime torch."),
]
AllowPickleOption = Annotated[
    bool, typer.Option("--allow-pickle", help="Read the checkpoint's .bin weights, for --runtime torch.")
]
MaxTokensOption = Annotated[
    int | None,
    typer.Option("--max-tokens", help="Most tokens of an answer.", show_default="512, or what fits", min=1),
]
TemperatureOption = Annotated[
    float, typer.Option("--temperature", help="0 takes the most likely token each time.")
]
TopPOption = Annotated[
    float, typer.Option("--top-p", help="Keep the likeliest tokens that together reach this probability.")
]
TopKOption = Annotated[int, typer.Option("--top-k", help="Keep this many tokens; 0 keeps all.")]
MinPOption = Annotated[
    float, typer.Option("--min-p", help="Keep tokens this likely, relative to the likeliest.")
]
SeedOption = Annotated[int | None, typer.Option("--seed", help="Seed of the sampling.")]
StopOption = Annotated[
    list[str] | None, typer.Option("--stop", help="Text that ends the answer; may be given several times.")
]
HonourSpecialOption = Annotated[
    bool, typer.Option("--honour-special", help="Take text such as </s> in a question as the special token.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one line of JSON for each answer.")]


def run(
    bundle: BundleArgument,
    pictures_and_question: Annotated[
        list[str], typer.Argument(metavar="[PICTURE]... QUESTION", help="Picture files, then the question.")
    ],
    runtime: RuntimeOption = DEFAULT_RUNTIME,
    vision: VisionOption = None,
    language: LanguageOption = None,
    kv_type: KvTypeOption = None,
    context: ContextOption = None,
    threads: ThreadsOption = None,
    checkpoint: CheckpointOption = None,
    sources: SourcesOption = None,
    allow_pickle: AllowPickleOption = False,
    max_tokens: MaxTokensOption = None,
    temperature: TemperatureOption = 0.0,
    top_p: TopPOption = 1.0,
    top_k: TopKOption = 0,
    min_p: MinPOption = 0.0,
    seed: SeedOption = None,
    stop: StopOption = None,
    honour_special: HonourSpecialOption = False,
    json: JsonOption = False,
) -> None:
    """Answer one question: the text goes to stdout, what was used and how long it took to stderr."""
    *pictures, question = pictures_and_question
    if not pictures and Path(question).is_file():
        raise UsageError(f"{question} is a file, but the last argument is the question. Add a question.")
    if not pictures and not question.strip():
        raise UsageError("the question is empty, and there is no picture. Ask something.")
    stops = tuple(stop or ())
    settings = _Settings(max_tokens, temperature, top_p, top_k, min_p, seed, stops, honour_special)
    opened, images = _before_loading(bundle, pictures, settings)
    with _open(
        opened, runtime, vision, language, kv_type, context, threads, checkpoint, sources, allow_pickle
    ) as model:
        _answer(model, question, images, settings, as_json=json)


def chat(
    bundle: BundleArgument,
    pictures: Annotated[
        list[str] | None, typer.Argument(metavar="[PICTURE]...", help="Pictures of the first question.")
    ] = None,
    runtime: RuntimeOption = DEFAULT_RUNTIME,
    vision: VisionOption = None,
    language: LanguageOption = None,
    kv_type: KvTypeOption = None,
    context: ContextOption = None,
    threads: ThreadsOption = None,
    checkpoint: CheckpointOption = None,
    sources: SourcesOption = None,
    allow_pickle: AllowPickleOption = False,
    max_tokens: MaxTokensOption = None,
    temperature: TemperatureOption = 0.0,
    top_p: TopPOption = 1.0,
    top_k: TopKOption = 0,
    min_p: MinPOption = 0.0,
    seed: SeedOption = None,
    stop: StopOption = None,
    honour_special: HonourSpecialOption = False,
    json: JsonOption = False,
) -> None:
    """Answer one question a line of stdin, each knowing the ones before.

    Commands: /image PATH adds a picture to the next question, /reset begins anew, /quit ends. Ctrl-C stops an
    answer. Where stdin is not a terminal, the first error ends the command.
    """
    stops = tuple(stop or ())
    settings = _Settings(max_tokens, temperature, top_p, top_k, min_p, seed, stops, honour_special)
    opened, waiting = _before_loading(bundle, pictures or (), settings)
    with _open(
        opened, runtime, vision, language, kv_type, context, threads, checkpoint, sources, allow_pickle
    ) as model:
        if sys.stdin.isatty():
            note("/image PATH, /reset, /quit; Ctrl-C stops an answer")
        while (line := _read_line()) not in (None, "/quit"):
            answered = len(model.turns)
            try:
                waiting = _chat_line(model, line or "", waiting, settings, as_json=json)
            except KeyboardInterrupt:
                if len(model.turns) > answered:  # the turn was kept, and its pictures with it
                    waiting = []
                note("\n(stopped)")
            except TinyLlavaEdgeError as error:
                if not sys.stdin.isatty():
                    raise
                note(str(error))


def doctor(json: Annotated[bool, typer.Option("--json", help="Print one line of JSON.")] = False) -> None:
    """Show what this machine can run; exit code 1 where the default runtime is not usable."""
    from .doctor import examine, lines

    report = examine()
    if json:
        print_json(asdict(report))
    else:
        for line in lines(report):
            typer.echo(line)
    if not all(state.usable for state in report.runtimes if state.name == DEFAULT_RUNTIME):
        raise typer.Exit(1)


class _Settings(NamedTuple):
    """The arguments of `Model.chat` that the options give."""

    max_tokens: int | None
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    seed: int | None
    stop: tuple[str, ...]
    honour_special: bool


def _before_loading(
    bundle: str, pictures: Sequence[str], settings: _Settings
) -> "tuple[Bundle, list[Picture]]":
    """Check the bundle, the pictures and the settings, before the weights take their time and memory."""
    from tinyllava_edge.bundle import Bundle
    from tinyllava_edge.checkpoint.names import bundle_path
    from tinyllava_edge.image import open_picture
    from tinyllava_edge.sampling import Sampling

    Sampling(
        temperature=settings.temperature,
        top_k=settings.top_k,
        top_p=settings.top_p,
        min_p=settings.min_p,
        seed=settings.seed,
    )
    return Bundle.open(bundle_path(bundle)), [open_picture(path) for path in pictures]


def _open(
    bundle: "Bundle",
    runtime: str,
    vision: str | None,
    language: str | None,
    kv_type: str | None,
    context: int | None,
    threads: int | None,
    checkpoint: Path | None,
    sources: Path | None,
    allow_pickle: bool,
) -> "Model":
    """Open the bundle, and say what was chosen."""
    from .engine import open_bundle

    model = open_bundle(
        bundle,
        runtime=runtime,
        vision=vision,
        language=language,
        kv_type=kv_type,
        context_length=context,
        threads=threads,
        checkpoint=checkpoint,
        sources=sources,
        allow_pickle=allow_pickle,
    )
    if model.runtime_reason:
        note(f"runtime: {model.runtime} ({model.runtime_reason})")
    note(f"vision: {model.vision.name}; language: {model.language.name}")
    return model


def _read_line() -> str | None:
    """The next line of stdin without its end, or None where there is none."""
    if sys.stdin.isatty():
        sys.stderr.write("> ")
        sys.stderr.flush()
    try:
        line = sys.stdin.readline()
    except KeyboardInterrupt:  # at the prompt, there is no answer to stop
        line = ""
    return line.strip() if line else None


def _chat_line(
    model: "Model", line: str, waiting: "list[Picture]", settings: _Settings, *, as_json: bool
) -> "list[Picture]":
    """Do what a line says; returns the pictures that wait for a question."""
    from tinyllava_edge.image import open_picture

    command, _, rest = line.partition(" ")
    if not line:
        return waiting
    if command == "/image":
        return [*waiting, open_picture(rest.strip())]
    if command == "/reset":
        model.reset()
        return []
    if command.startswith("/"):
        raise UsageError(f"{command} is no command. There are /image PATH, /reset and /quit.")
    _answer(model, line, waiting, settings, as_json=as_json)
    return []


def _answer(
    model: "Model", question: str, pictures: "Sequence[Picture]", settings: _Settings, *, as_json: bool
) -> None:
    """Stream an answer to stdout and its times to stderr, or print one line of JSON at the end."""
    pieces = []
    # Closed when Ctrl-C comes while a piece is printed, too: the turn is then kept before anybody asks.
    with closing(model.chat(question, pictures, **settings._asdict())) as answer:
        for piece in answer:
            pieces.append(piece)
            if not as_json:
                typer.echo(piece, nl=False)
    timings = model.last_timings
    assert timings is not None, "a finished turn has timings"
    if as_json:
        print_json(
            {
                "answer": "".join(pieces),
                "bundle": str(model.bundle.root),
                "manifest_sha256": model.bundle.manifest_sha256,
                "runtime": model.runtime,
                "runtime_reason": model.runtime_reason,
                "vision": model.vision.name,
                "language": model.language.name,
                "timings": asdict(timings),
            }
        )
        return
    typer.echo()
    note(_describe(timings))


def _describe(timings: "Timings") -> str:
    """One line about a turn."""
    speed = timings.tokens_per_second
    return (
        f"picture {timings.preprocess_ms + timings.vision_ms:.0f} ms, "
        f"prompt {timings.prefill_ms:.0f} ms for {timings.prompt_tokens - timings.reused_tokens} of "
        f"{timings.prompt_tokens} tokens, first token after {timings.first_token_ms:.0f} ms, "
        f"{timings.generated_tokens} tokens" + (f" at {speed:.1f} a second" if speed else "")
    )
