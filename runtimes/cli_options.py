"""Arguments and options that commands share, each declared once.

What they mean is imported when a command runs, so that `--help` stays quick.
"""

import inspect
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import typer

from .registry import DEFAULT_RUNTIME

T = TypeVar("T")
BundleArgument = Annotated[str, typer.Argument(help="A bundle's directory, or nano.")]
NamedBundleArgument = Annotated[
    str, typer.Argument(help="A bundle's directory, nano, owner/name or owner/name@revision of the hub.")
]
ThreadsOption = Annotated[
    int | None,
    typer.Option("--threads", help="Threads of each engine.", show_default="the usable cores", min=1),
]
ContextOption = Annotated[
    int | None,
    typer.Option(
        "--context",
        help="Positions of the context, up to the model's own.",
        show_default="the model's own, 4096 at most",
        min=1,
    ),
]
SourcesOption = Annotated[
    Path | None, typer.Option("--sources", help="Where files are that the checkpoint only names.")
]
AllowPickleOption = Annotated[
    bool, typer.Option("--allow-pickle", help="Read the checkpoint's .bin weights.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one line of JSON.")]
_MOST_GRAMMAR_BYTES = 1 << 20
_BY_PRESET = "what the preset takes"
# Title of a group of options in --help -> its options; the others stand first.
_PANELS = {
    "The answer": "max_tokens stop system json_schema grammar logprobs honour_special",
    "How tokens are drawn": "temperature top_p top_k min_p seed "
    "repetition_penalty frequency_penalty presence_penalty",
    "What computes": "runtime preset vision language kv_type context_length threads "
    "gpu_layers main_gpu device flash_attention store_mb",
    "With --runtime torch": "checkpoint sources allow_pickle",
}
_PANEL_OF = {name: title for title, names in _PANELS.items() for name in names.split()}


@dataclass(frozen=True, kw_only=True)
class Opening:
    """What a command that opens a bundle may be told: the runtime and `BackendOptions`."""

    runtime: Annotated[
        str,
        typer.Option(
            help="onnxruntime+llamacpp, openvino+llamacpp, openvino-bf16+llamacpp, tensorrt+llamacpp, "
            "tensorrt-rtx+llamacpp, onnxruntime-cuda+llamacpp, torch, or auto: what build chose "
            "here, else a GPU, else the CPU.",
        ),
    ] = DEFAULT_RUNTIME
    vision: Annotated[str | None, typer.Option(help="Vision variant.", show_default=_BY_PRESET)] = None
    language: Annotated[str | None, typer.Option(help="Language variant.", show_default=_BY_PRESET)] = None
    preset: Annotated[
        str | None,
        typer.Option(
            help="exact, balanced, fast or small, for variants that are not named.", show_default="balanced"
        ),
    ] = None
    kv_type: Annotated[
        str | None,
        typer.Option(help="Type of the KV cache: f16, f32 or q8_0.", show_default="the runtime's own"),
    ] = None
    context_length: ContextOption = None
    threads: ThreadsOption = None
    gpu_layers: Annotated[
        int | None,
        typer.Option(help="Layers of the language model on the GPU.", show_default="all that fit", min=0),
    ] = None
    main_gpu: Annotated[
        int | None, typer.Option(help="The one GPU to take, by number.", show_default="all", min=0)
    ] = None
    flash_attention: Annotated[
        str | None,
        typer.Option(help="llama.cpp's: auto, on or off.", show_default="what the KV type has"),
    ] = None
    device: Annotated[int, typer.Option(help="Number of the GPU for the vision engine.", min=0)] = 0
    store_mb: Annotated[
        int,
        typer.Option(
            help="Keep what pictures become on disk, up to so many MB: a later start has it at once.", min=0
        ),
    ] = 0
    checkpoint: Annotated[
        Path | None, typer.Option(help="Where the weights are, for --runtime torch, as the next two.")
    ] = None
    sources: SourcesOption = None
    allow_pickle: AllowPickleOption = False

    def read(self, kind: type[T]) -> T:
        """The value of a dataclass whose fields are options."""
        return kind(**{field.name: getattr(self, field.name) for field in fields(kind)})  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class Settings(Opening):
    """What commands that ask may be told besides: `Sampling`, and how to answer."""

    allow_url: Annotated[
        bool, typer.Option("--allow-url", help="Fetch pictures given as https URLs of the public network.")
    ] = False
    max_tokens: Annotated[
        int | None, typer.Option(help="Most tokens of an answer.", show_default="512, or what fits", min=1)
    ] = None
    temperature: Annotated[float, typer.Option(help="0 takes the most likely token each time.")] = 0.0
    top_p: Annotated[
        float, typer.Option(help="Keep the likeliest tokens that together reach this probability.")
    ] = 1.0
    top_k: Annotated[int, typer.Option(help="Keep this many tokens; 0 keeps all.")] = 0
    min_p: Annotated[float, typer.Option(help="Keep tokens this likely, relative to the likeliest.")] = 0.0
    seed: Annotated[int | None, typer.Option(help="Seed of the sampling.")] = None
    stop: Annotated[
        list[str] | None, typer.Option(help="Text that ends the answer; may be given several times.")
    ] = None
    repetition_penalty: Annotated[
        float, typer.Option(help="Divide logits of tokens in question and answer by this; 1 is none.")
    ] = 1.0
    frequency_penalty: Annotated[
        float, typer.Option(help="Take this from a logit for each time its token was generated.")
    ] = 0.0
    presence_penalty: Annotated[
        float, typer.Option(help="Take this once from the logits of generated tokens.")
    ] = 0.0
    system: Annotated[str | None, typer.Option(help="The system text.", show_default="the model's own")] = (
        None
    )
    json_schema: Annotated[
        str | None, typer.Option(metavar="FILE|JSON", help="The answer is JSON that fits this schema.")
    ] = None
    grammar: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The answer fits this grammar, in llama.cpp's GBNF.")
    ] = None
    logprobs: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="With --json, the log-probability of each token and of the N likeliest.", min=0
        ),
    ] = None
    honour_special: Annotated[
        bool,
        typer.Option("--honour-special", help="Take text such as </s> in a question as the special token."),
    ] = False
    json: Annotated[bool, typer.Option("--json", help="Print one line of JSON for each answer.")] = False

    def how(self) -> dict[str, Any]:
        """What `Model.answer` is told beside turns and pictures.

        Raises:
            UsageError: a setting is out of range, or of no use here.
            FileError: a file that holds one cannot be read.
        """
        from tinyllava_edge.errors import UsageError
        from tinyllava_edge.sampling import Sampling

        if self.logprobs is not None and not self.json:
            raise UsageError("--logprobs has a place in JSON alone. Add --json.")
        schema = self.json_schema
        if schema is not None and not schema.lstrip().startswith("{"):
            schema = _read(Path(schema))
        return {
            "sampling": self.read(Sampling),
            "max_tokens": self.max_tokens,
            "stop": tuple(self.stop or ()),
            "honour_special": self.honour_special,
            "system": self.system,
            "json_schema": schema,
            "grammar": None if self.grammar is None else _read(self.grammar),
            "logprobs": self.logprobs,
        }


def _read(path: Path) -> str:
    from tinyllava_edge.user_files import read_user_text

    return read_user_text(path, most=_MOST_GRAMMAR_BYTES)


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """The command with an option for each field of its argument `settings` in the place of that."""
    parameters_of = inspect.signature(command, eval_str=True).parameters
    kind: type[Opening] = parameters_of["settings"].annotation
    own = [one for one in parameters_of.values() if one.name != "settings"]
    options = inspect.signature(kind).parameters

    @wraps(command)
    def with_options(**given: Any) -> None:
        settings = kind(**{name: given.pop(name) for name in options})
        command(**given, settings=settings)

    grouped = sorted(
        options.values(), key=lambda one: [*_PANEL_OF].index(one.name) if one.name in _PANEL_OF else -1
    )
    parameters = [*own, *map(_in_its_panel, grouped)]
    with_options.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    with_options.__annotations__ = {one.name: one.annotation for one in parameters}
    return with_options


def _in_its_panel(option: inspect.Parameter) -> inspect.Parameter:
    kind, info = get_args(option.annotation)
    info = copy(info)  # commands that have it alone have no panels
    info.rich_help_panel = _PANEL_OF.get(option.name)
    return option.replace(annotation=Annotated[kind, info])
