"""The command `tinyllava-edge`: a table of commands, each imported only when it runs."""

import sys
from importlib import import_module
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from tinyllava_edge.errors import MissingExtraError, TinyLlavaEdgeError, UsageError
from tinyllava_edge.process import STREAMS, USER_ERROR, say

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
    "inspect": ("tinyllava_edge.inspect_cli", "inspect", "Show what a checkpoint, bundle or GGUF holds."),
    "prune": ("tinyllava_edge.prune_cli", "prune", "Write a smaller bundle with some variants only."),
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
    "onnxruntime": "ort",
    "llama_cpp": "llamacpp",
    "openvino": "openvino",
    "fastapi": "serve",
    "uvicorn": "serve",
    "matplotlib": "plots",
    "cryptography": "packs",
}


class _LazyGroup(TyperGroup):
    """Knows its commands by name, and imports one when it is asked for: their list needs none of them."""

    _only_listing = False

    def format_help(self, ctx: Any, formatter: Any) -> None:
        self._only_listing = True
        try:
            super().format_help(ctx, formatter)
        finally:
            self._only_listing = False

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        module, function, help_text = COMMANDS[cmd_name]
        callback = (lambda: None) if self._only_listing else getattr(import_module(module), function)
        command_app = typer.Typer(add_completion=False)
        command_app.command(cmd_name, help=help_text)(callback)
        return typer.main.get_command(command_app)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """A command may have two words; its first one is then a command too (`bench`, `bench compare`)."""
        name = " ".join(args[:2])
        if len(args) > 1 and name in COMMANDS:
            return name, self.get_command(ctx, name), args[2:]
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=_LazyGroup,
    add_completion=False,
    no_args_is_help=True,
    help="From a TinyLLaVA checkpoint to a device: export, proven equal stage by stage, and a fast runtime.",
)


@app.callback(invoke_without_command=True)
def _root(version: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
    if version:
        from tinyllava_edge import __version__

        sys.stdout.write(f"tinyllava-edge {__version__}\n")
        raise typer.Exit


def main() -> NoReturn:
    """Run the command, and exit with its code; what a user can mend is one line, and code 2."""
    command = typer.main.get_command(app)
    try:
        with command.make_context("tinyllava-edge", sys.argv[1:]) as context:
            code = command.invoke(context)
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


def _fail_usage(error: Any) -> NoReturn:
    """An unknown command or option, a missing argument, a bad value."""
    if type(error).__name__ == "NoArgsIsHelpError":  # its message is the help itself
        error.show()
        sys.exit(error.exit_code)
    context = getattr(error, "ctx", None)
    hint = f" See {context.command_path} --help." if context is not None else ""
    message = " ".join(error.format_message().split()).rstrip(".")
    _fail(UsageError(f"{message}.{hint}"))


def _fail(error: TinyLlavaEdgeError) -> NoReturn:
    say(str(error))
    sys.exit(USER_ERROR)
