"""Arguments and options that commands share, each declared once.

What they mean is imported when a command runs, so that `--help` stays quick.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from .registry import DEFAULT_RUNTIME

T = TypeVar("T")
BundleArgument = Annotated[str, typer.Argument(help="A bundle's directory, or nano.")]
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
_BY_PRESET = "what the preset takes"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What `run` and `chat` may be told: the runtime, `BackendOptions`, `Sampling`, and how to answer."""

    runtime: Annotated[
        str,
        typer.Option(
            help="onnxruntime+llamacpp, openvino+llamacpp, openvino-bf16+llamacpp, tensorrt+llamacpp, "
            "tensorrt-rtx+llamacpp, onnxruntime-cuda+llamacpp, torch, scripted, or auto: what build chose "
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
    allow_url: Annotated[
        bool, typer.Option("--allow-url", help="Fetch pictures given as https URLs of the public network.")
    ] = False
    honour_special: Annotated[
        bool,
        typer.Option("--honour-special", help="Take text such as </s> in a question as the special token."),
    ] = False
    json: Annotated[bool, typer.Option("--json", help="Print one line of JSON for each answer.")] = False

    def read(self, kind: type[T]) -> T:
        """The value of a dataclass whose fields are options."""
        return kind(**{field.name: getattr(self, field.name) for field in fields(kind)})  # type: ignore[arg-type]

    def how(self) -> dict[str, Any]:
        """What `Model.answer` is told beside turns and pictures.

        Raises:
            UsageError: a setting is out of range.
        """
        from tinyllava_edge.sampling import Sampling

        return {
            "sampling": self.read(Sampling),
            "max_tokens": self.max_tokens,
            "stop": tuple(self.stop or ()),
            "honour_special": self.honour_special,
        }


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """The command with an option for each field of `Settings` in the place of its argument `settings`."""
    own = [one for one in inspect.signature(command).parameters.values() if one.name != "settings"]
    options = inspect.signature(Settings).parameters

    @wraps(command)
    def with_options(**given: Any) -> None:
        settings = Settings(**{name: given.pop(name) for name in options})
        command(**given, settings=settings)

    parameters = [*own, *options.values()]
    with_options.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    with_options.__annotations__ = {one.name: one.annotation for one in parameters}
    return with_options
