"""`tinyllava-edge run`, `chat` and `doctor`.

The model is imported when a command runs, so that `--help` stays quick.
"""

import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tinyllava_edge.command_options import JsonOption, NamedBundleArgument, with_settings
from tinyllava_edge.console import note, print_json
from tinyllava_edge.errors import TinyLlavaEdgeError, UsageError
from tinyllava_edge.machine_files import HERE
from tinyllava_edge.printable import printable
from tinyllava_edge.process import Terminated

from .cli_options import Opening, Settings
from .registry import CPU_RUNTIME

if TYPE_CHECKING:
    from tinyllava_edge.bundle import Bundle
    from tinyllava_edge.image import Picture

    from .chat import Chat
    from .model import Model
    from .stream import Stream
    from .timings import Timings


@with_settings
def run(
    bundle: NamedBundleArgument,
    pictures_and_question: Annotated[
        list[str],
        typer.Argument(
            metavar="[PICTURE]... QUESTION",
            help="Picture files, data URLs or - for standard input, then the question.",
        ),
    ],
    settings: Settings,
) -> None:
    """Answer one question: the text goes to stdout, what was used and how long it took to stderr."""
    *pictures, question = pictures_and_question
    if not pictures and Path(question).is_file():
        raise UsageError(f"{question} is a file, but the last argument is the question. Add a question.")
    if not pictures and not question.strip():
        raise UsageError("the question is empty, and there is no picture. Ask something.")
    model, images, how = _open(bundle, pictures, settings)
    with model:
        _print_answer(model, model.answer([(question, None)], images, **how), as_json=settings.json)


@with_settings
def chat(
    bundle: NamedBundleArgument,
    settings: Settings,
    pictures: Annotated[
        list[str] | None, typer.Argument(metavar="[PICTURE]...", help="Pictures of the first question.")
    ] = None,
) -> None:
    """Answer one question a line of stdin, each knowing the ones before.

    Commands: /image PATH adds a picture to the next question, /reset begins anew, /quit ends. Ctrl-C stops an
    answer. Where stdin is not a terminal, the first error ends the command.
    """
    from .chat import Chat

    if "-" in (pictures or ()):
        raise UsageError("- is standard input, where the questions are. Give pictures as files.")
    model, waiting, how = _open(bundle, pictures or (), settings)
    with model:
        talk = Chat(model)
        if sys.stdin.isatty():
            note("/image PATH, /reset, /quit; Ctrl-C stops an answer")
        while (line := _read_line()) not in (None, "/quit"):
            answered = len(talk.turns)
            try:
                waiting = _chat_line(model, talk, line or "", waiting, how, settings)
            except Terminated:
                raise
            except KeyboardInterrupt:
                if len(talk.turns) > answered:  # the turn was kept, and its pictures with it
                    waiting = []
                note("\n(stopped)")
            except TinyLlavaEdgeError as error:
                if not sys.stdin.isatty():
                    raise
                note(str(error), is_fault=True)


def doctor(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[DIR]...", help="Directories to clean, with --clean; this one by default."),
    ] = None,
    clean: Annotated[
        bool, typer.Option("--clean", help="Remove what killed runs left there and in the cache.")
    ] = False,
    bundle: Annotated[
        str | None, typer.Option("--bundle", help="Judge memory and disk by what this bundle needs.")
    ] = None,
    root: Annotated[
        Path, typer.Option("--root", metavar="DIR", help="Look at another machine's files: its mounted disk.")
    ] = HERE,
    json: JsonOption = False,
) -> None:
    """Show what this machine can run; exit code 1 where the runtime for the CPU is not usable."""
    if clean:
        _clean(folders or [Path()], as_json=json)
        return
    if folders:
        raise UsageError(f"{folders[0]}: doctor looks at the machine; directories go with --clean.")
    if not root.is_dir():
        raise UsageError(f"{root}: no such directory. Give the root of a machine's files.")
    from tinyllava_edge.bundle import Bundle
    from tinyllava_edge.checkpoint.names import bundle_path

    from .doctor import examine, lines

    report = examine(
        root if root == HERE else root.resolve(), Bundle.open(bundle_path(bundle)) if bundle else None
    )
    if json:
        print_json(asdict(report))
    else:
        for line in lines(report):
            typer.echo(printable(line))
    if not all(state.usable for state in report.runtimes if state.name == CPU_RUNTIME):
        raise typer.Exit(1)


def _clean(folders: Sequence[Path], *, as_json: bool) -> None:
    """Remove what killed runs left, and say what it was and what stays."""
    from tinyllava_edge.cache import cache_folder
    from tinyllava_edge.leftovers import remove_leftovers

    for folder in folders:
        if not folder.is_dir():
            raise UsageError(f"{folder}: no such directory.")
    found = remove_leftovers([*folders, cache_folder()])
    freed = sum(one.size_bytes for one in found if not one.stays)
    if as_json:
        shown = [{"path": str(one.path), "bytes": one.size_bytes, "stays": one.stays} for one in found]
        removed, kept = ([one for one in shown if bool(one["stays"]) is stays] for stays in (False, True))
        print_json({"removed": removed, "kept": kept, "bytes": freed})
        return
    for one in found:
        fate = f"stays: {one.stays}" if one.stays else "removed"
        typer.echo(printable(f"{one.path}: {one.size_bytes:,} bytes, {fate}", line_ends=True))
    typer.echo(f"{freed:,} bytes removed")


def _open(
    bundle: str, pictures: Sequence[str], settings: Settings
) -> "tuple[Model, list[Picture], dict[str, Any]]":
    """Check bundle, pictures and settings before the weights take their time."""
    from tinyllava_edge.image import open_picture

    from .bundle_by_name import is_to_fetch, open_named
    from .picture_arguments import picture_argument

    def shown() -> "list[Picture]":
        return [open_picture(picture_argument(given), allow_url=settings.allow_url) for given in pictures]

    how = settings.how()
    # A picture that is not there is said before gigabytes come.
    first = shown() if is_to_fetch(bundle) else []
    opened, settings = open_named(bundle, settings)
    images = first or shown()
    return open_model(opened, settings, allow_url=settings.allow_url), images, how


def open_model(bundle: "Bundle", settings: Opening, *, allow_url: bool = False, called: str = "") -> "Model":
    """Open what the settings ask for, and say what was chosen; behind its name where there are several."""
    from tinyllava_edge.install import llamacpp_line

    from .base import BackendOptions
    from .llamacpp_build import CPU_BUILD, lacks_cuda
    from .model import open_bundle

    options = {**vars(settings.read(BackendOptions)), "allow_url": allow_url}
    model = open_bundle(bundle, runtime=settings.runtime, store_mb=settings.store_mb, **options)
    why = f" ({settings.runtime}: {model.runtime_reason})" if model.runtime_reason else ""
    name = called and f"{called}: "
    note(f"{name}vision: {model.vision.name}; language: {model.language.name}{why}")
    if "llamacpp" in model.runtime and lacks_cuda():
        note(f"{CPU_BUILD}: {llamacpp_line()}")
    return model


def _read_line() -> str | None:
    """The next line of stdin without its end, or None where there is none."""
    if sys.stdin.isatty():
        sys.stderr.write("> ")
        sys.stderr.flush()
    try:
        line = sys.stdin.readline()
    except Terminated:
        raise
    except UnicodeDecodeError as error:
        raise UsageError(f"standard input: not {error.encoding} ({error.reason}). Give text.") from None
    except KeyboardInterrupt:  # at the prompt, there is no answer to stop
        line = ""
    return line.strip() if line else None


def _chat_line(
    model: "Model",
    talk: "Chat",
    line: str,
    waiting: "list[Picture]",
    how: dict[str, Any],
    settings: Settings,
) -> "list[Picture]":
    """Do what a line says; returns the pictures that wait for a question."""
    from tinyllava_edge.image import open_picture

    command, _, rest = line.partition(" ")
    if not line:
        return waiting
    if command == "/image":
        return [*waiting, open_picture(rest.strip(), allow_url=settings.allow_url)]
    if command == "/reset":
        talk.reset()
        return []
    if command.startswith("/"):
        raise UsageError(f"{command} is no command. There are /image PATH, /reset and /quit.")
    _print_answer(model, talk.ask(line, waiting, **how), as_json=settings.json)
    return []


def _print_answer(model: "Model", answer: "Stream", *, as_json: bool) -> None:
    """Stream an answer to stdout and its times to stderr, or print one line of JSON at the end."""
    shown = printable if sys.stdout.isatty() else str  # a program has the answer as it is
    # Closed when Ctrl-C comes while a piece is printed, too: the turn is then kept before anybody asks.
    with closing(answer):
        for piece in answer:
            if not as_json:
                typer.echo(shown(piece), nl=False)
    assert answer.timings is not None, "a finished answer has timings"
    if as_json:
        found = answer.logprobs
        print_json(
            {
                "answer": answer.text,
                "bundle": str(model.bundle.root),
                "manifest_sha256": model.bundle.manifest_sha256,
                "runtime": model.runtime,
                "runtime_reason": model.runtime_reason,
                "vision": model.vision.name,
                "language": model.language.name,
                "timings": asdict(answer.timings),
                **({} if found is None else {"logprobs": [asdict(entry) for entry in found]}),
            }
        )
        return
    typer.echo()
    note(_describe(answer.timings))


def _describe(timings: "Timings") -> str:
    """One line about a turn."""
    speed = timings.tokens_per_second
    return (
        f"picture {timings.preprocess_ms + timings.vision_ms:.0f} ms, "
        f"prompt {timings.prefill_ms:.0f} ms for {timings.prompt_tokens - timings.reused_tokens} of "
        f"{timings.prompt_tokens} tokens, first token after {timings.first_token_ms:.0f} ms, "
        f"{timings.generated_tokens} tokens" + (f" at {speed:.1f} a second" if speed else "")
    )
