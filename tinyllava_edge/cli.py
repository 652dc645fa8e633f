"""The command `tinyllava-edge`: a table of commands, each imported only when it runs."""

import inspect
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from difflib import get_close_matches
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, NoReturn, get_args

import typer
from typer.core import TyperGroup
from typer.models import OptionInfo

from tinyllava_edge.errors import MissingExtraError, TinyLlavaEdgeError, UsageError
from tinyllava_edge.process import STREAMS, USER_ERROR, Talk, detail, say, stop_behind

# name -> (module, function, one line of help)
COMMANDS = {
    "train": (
        "tinyllava_edge.train.cli",
        "train",
        "Train a checkpoint on your own data (nano's recipe: the repository's examples/nano).",
    ),
    "export": ("tinyllava_edge.export.cli", "export", "Turn a checkpoint into a bundle, proven equal to it."),
    "build": (
        "tinyllava_edge.runtimes.trt.cli",
        "build",
        "Build TensorRT engines from a bundle's vision graphs, for this machine or others.",
    ),
    "keygen": ("tinyllava_edge.runtimes.trt.cli", "keygen", "Make the key that signs engine packs."),
    "verify": (
        "tinyllava_edge.benchmarks.verify.cli",
        "verify",
        "Find the first stage where a bundle differs from its source.",
    ),
    "explain": (
        "tinyllava_edge.benchmarks.verify.explain_cli",
        "explain",
        "Ask checkpoint and bundle one question: where they differ first, and why.",
    ),
    "run": ("tinyllava_edge.runtimes.cli", "run", "Ask one question about a picture."),
    "ask": (
        "tinyllava_edge.benchmarks.evals.ask_cli",
        "ask",
        "Ask about many pictures: an answer for each.",
    ),
    "chat": ("tinyllava_edge.runtimes.cli", "chat", "Talk about pictures over several turns."),
    "watch": (
        "tinyllava_edge.runtimes.watch.cli",
        "watch",
        "Ask about what a camera, a video or a folder shows, again and again.",
    ),
    "serve": (
        "tinyllava_edge.runtimes.serve.cli",
        "serve",
        "Answer requests over HTTP, as OpenAI's clients ask.",
    ),
    "tune": (
        "tinyllava_edge.runtimes.tune_cli",
        "tune",
        "Measure a bundle on this machine, for the fastest variants and settings.",
    ),
    "eval": (
        "tinyllava_edge.benchmarks.evals.cli",
        "evaluate",
        "Score short answers, with the blind score beside.",
    ),
    "bench": (
        "tinyllava_edge.benchmarks.bench.cli",
        "bench",
        "Compare runtimes and variants: time, parity, accuracy, size.",
    ),
    "eval compare": (
        "tinyllava_edge.benchmarks.evals.compare_cli",
        "eval_compare",
        "Compare two files of answers: paired difference, exact test, questions that one point wants.",
    ),
    "bench compare": (
        "tinyllava_edge.benchmarks.bench.compare_cli",
        "bench_compare",
        "Compare two reports of bench.",
    ),
    "hub-check": (
        "tinyllava_edge.benchmarks.evals.hub_check",
        "hub_check",
        "Download, export, verify and score the released checkpoints.",
    ),
    "hardware-check": (
        "tinyllava_edge.benchmarks.hardware.cli",
        "hardware_check",
        "Run all that a device can show, beside what was expected of it; one report to send back.",
    ),
    "ablate": (
        "tinyllava_edge.benchmarks.ablate.cli",
        "ablate",
        "Train and score every cell of a grid: one table and one plot, with intervals.",
    ),
    "inspect": (
        "tinyllava_edge.export.inspect_cli",
        "inspect",
        "Show what a checkpoint, bundle or GGUF holds.",
    ),
    "prune": ("tinyllava_edge.prune_cli", "prune", "Write a smaller bundle with some variants only."),
    "card": (
        "tinyllava_edge.benchmarks.card.cli",
        "card",
        "Write a bundle's card: parts, variants, parity, speed, licences.",
    ),
    "push": ("tinyllava_edge.benchmarks.card.cli", "push", "Upload a bundle and its card to the hub."),
    "deploy": (
        "tinyllava_edge.runtimes.deploy_cli",
        "deploy",
        "Write one folder for a board: a bundle that fits, this package, a first answer.",
    ),
    "doctor": (
        "tinyllava_edge.runtimes.cli",
        "doctor",
        "Show what this machine can run, and what mends the rest.",
    ),
}
# Package that is missing -> extra that brings it.
EXTRAS = {
    "torch": "torch",
    "transformers": "torch",
    "safetensors": "torch",
    "sentencepiece": "torch",
    "huggingface_hub": "torch",
    "regex": "torch",
    "onnx": "export",
    "onnxscript": "export",
    "gguf": "export",
    "accelerate": "train",
    "peft": "train",
    "bitsandbytes": "qlora",
    "torchao": "qat",
    "onnxruntime": "ort",
    "llama_cpp": "llamacpp",
    "openvino": "openvino",
    "fastapi": "serve",
    "uvicorn": "serve",
    "av": "camera",
    "matplotlib": "plots",
    "cryptography": "packs",
}


# Older names of options, which are read and shown nowhere: command -> old -> new.
_GPU = {"--device": "--gpu"}  # the other --device is a board's name
OLD_OPTIONS = {
    "bench": {"--runtimes": "--runtime"},
    "train": {"--out": "--output"},
    **dict.fromkeys(("build", "run", "ask", "chat", "serve"), _GPU),
}


QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing on standard error but errors.")]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="Say what is done, and when.")]


def _set_talk(quiet: bool, verbose: bool) -> None:
    Talk.quiet, Talk.verbose = Talk.quiet or quiet, Talk.verbose or verbose
    if Talk.quiet and Talk.verbose:
        raise UsageError("--quiet and --verbose contradict each other: give one.")
    if Talk.quiet:
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"


def _with_talk(command: Callable[..., None]) -> Callable[..., None]:
    """The command with -q and -v, which may stand before it, too."""

    @wraps(command)
    def talking(*, quiet: bool, verbose: bool, **given: Any) -> None:
        _set_talk(quiet, verbose)
        chosen = (f"{name}={value!r}" for name, value in given.items() if value != own[name].default)
        detail(f"{command.__module__}.{command.__name__} {' '.join(chosen)}")
        command(**given)

    own = inspect.signature(command, eval_str=True).parameters
    kinds = {"quiet": QuietOption, "verbose": VerboseOption}
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [_with_short_type(one).replace(kind=keyword) for one in own.values()]
    parameters += [inspect.Parameter(n, keyword, default=False, annotation=k) for n, k in kinds.items()]
    talking.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    talking.__annotations__ = {one.name: one.annotation for one in parameters}
    return talking


# What --help shows for a type, in the place of "<int range>" and its like, which leave no room for words.
_TYPES = {int: "N", float: "X", str: "TEXT", Path: "PATH"}


def _with_short_type(one: inspect.Parameter) -> inspect.Parameter:
    kind, info = get_args(one.annotation)
    shown = next((word for each, word in _TYPES.items() if each in (kind, *_parts(kind))), None)
    if not isinstance(info, OptionInfo) or info.metavar or shown is None:
        return one
    info = copy(info)
    info.metavar = shown
    return one.replace(annotation=Annotated[kind, info])


def _parts(kind: Any) -> Iterator[Any]:
    """Types in a union or list."""
    for part in get_args(kind):
        yield from (part, *_parts(part))


class _LazyGroup(TyperGroup):
    """Knows its commands by name, and imports one when it is asked for: their list needs none of them."""

    _only_listing = False

    def format_help(self, ctx: Any, formatter: Any) -> None:
        self._list(super().format_help, ctx, formatter)

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        return self._list(super().shell_complete, ctx, incomplete)

    def _list(self, how: Callable[..., Any], *arguments: Any) -> Any:
        self._only_listing = True
        try:
            return how(*arguments)
        finally:
            self._only_listing = False

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        module, function, help_text = COMMANDS[cmd_name]
        callback = (
            (lambda: None) if self._only_listing else _with_talk(getattr(import_module(module), function))
        )
        command_app = typer.Typer(add_completion=False)
        command_app.command(cmd_name, help=help_text)(callback)
        return typer.main.get_command(command_app)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """A command may have two words; its first one is then a command too (`bench`, `bench compare`)."""
        name = " ".join(args[:2])
        if len(args) > 1 and name in COMMANDS:
            return name, self.get_command(ctx, name), args[2:]
        args = [args[0], *_renamed(args[1:], OLD_OPTIONS.get(args[0], {}))]
        if args[0] not in COMMANDS and not args[0].startswith("-"):
            near = get_close_matches(args[0], COMMANDS)
            raise UsageError(f"there is no command {args[0]!r}.{_near(near)} {_SEE_HELP}")
        return super().resolve_command(ctx, args)


def _renamed(words: Sequence[str], names: Mapping[str, str]) -> list[str]:
    """A command's words with the newer names of its options; what stands behind -- is none."""
    end = words.index("--") if "--" in words else len(words)
    pairs = (word.partition("=") for word in words[:end])
    return [*(names.get(old, old) + sign + value for old, sign, value in pairs), *words[end:]]


_SEE_HELP = "See tinyllava-edge --help."


def _near(names: Sequence[str]) -> str:
    return f" Did you mean {names[0]}?" if names else ""  # the nearest comes first


app = typer.Typer(
    cls=_LazyGroup,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="From a TinyLLaVA checkpoint to a device: export, proven equal stage by stage, and a fast runtime.",
)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    Talk.quiet = Talk.verbose = False
    _set_talk(quiet, verbose)
    if version:
        from tinyllava_edge import __version__

        sys.stdout.write(f"tinyllava-edge {__version__}\n")
        raise typer.Exit


def main() -> NoReturn:
    """Run the command, and exit with its code; what a user can mend is one line, and code 2."""
    try:
        code = _invoke()
    except typer.Exit as ended:
        code = ended.exit_code
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package not in EXTRAS:
            raise
        from tinyllava_edge.extras import install_line

        _fail(
            MissingExtraError(
                f"this command needs {package}, which is not installed: {install_line(EXTRAS[package])}"
            )
        )
    except TinyLlavaEdgeError as error:
        _fail(error)
    except OSError as error:  # a missing permission, a disk that fails
        if isinstance(error, BrokenPipeError) or error.filename in STREAMS:  # `run_program` knows these
            raise
        _fail(TinyLlavaEdgeError(f"{error.filename or 'the system says'}: {error.strerror or error}."))
    except Exception as error:
        if isinstance(error, MemoryError) or "can't allocate memory" in str(error):  # torch's RuntimeError
            _fail(TinyLlavaEdgeError("out of memory. Close other programs, or give smaller files."))
        # Known by its method: some versions of typer bring their own click, others take the installed one.
        if not hasattr(error, "format_message"):
            raise
        _fail_usage(error)
    sys.exit(code if isinstance(code, int) else 0)


def _invoke() -> object:
    if os.environ.get("NO_COLOR"):
        vars(import_module("typer.rich_utils"))["COLOR_SYSTEM"] = (
            None  # neither colour nor what is bold or dim
        )
    command: Any = typer.main.get_command(app)
    command._main_shell_completion({}, "tinyllava-edge")  # ends here where a shell asks
    try:
        with command.make_context("tinyllava-edge", sys.argv[1:]) as context:
            return command.invoke(context)
    except Exception as error:
        stop = None if isinstance(error, typer.Exit) else stop_behind(error)
        if stop is not None:
            raise stop from None
        raise


def _fail_usage(error: Any) -> NoReturn:
    """An unknown command or option, a missing argument, a bad value."""
    if type(error).__name__ == "NoArgsIsHelpError":  # its message is the help itself
        error.show()
        sys.exit(error.exit_code)
    context = getattr(error, "ctx", None)
    hint = f" See {context.command_path} --help." if context is not None else ""
    near = getattr(error, "possibilities", None) or ()
    message = " ".join((error.message if near else error.format_message()).split()).rstrip(".")
    _fail(UsageError(f"{message}.{_near(near)}{hint}"))


def _fail(error: TinyLlavaEdgeError) -> NoReturn:
    say(str(error))
    sys.exit(USER_ERROR)
