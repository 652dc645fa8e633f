"""What commands that open a bundle may be told, as one value.

What it means is imported when a command runs, so that `--help` stays quick.
"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

import typer

from tinyllava_edge.command_options import (
    AllowPickleOption,
    AllowUrlOption,
    ContextOption,
    SourcesOption,
    ThreadsOption,
)

from .registry import DEFAULT_RUNTIME

T = TypeVar("T")
_MOST_GRAMMAR_BYTES = 1 << 20
_BY_PRESET = "by preset"
_PANELS = {
    "More on the answer": "stop grammar logprobs seed top_p top_k min_p "
    "repetition_penalty frequency_penalty presence_penalty honour_special allow_url",
    "More on what computes": "context_length kv_type threads flash_attention gpu_layers main_gpu device "
    "store_mb",
    "With --runtime torch": "checkpoint sources allow_pickle",
}


@dataclass(frozen=True, kw_only=True)
class Opening:
    """What a command that opens a bundle may be told: the runtime and `BackendOptions`."""

    panels: ClassVar[dict[str, str]] = _PANELS
    runtime: Annotated[
        str,
        typer.Option(
            help="onnxruntime+llamacpp, tensorrt+llamacpp, torch or another that doctor lists.",
        ),
    ] = DEFAULT_RUNTIME
    vision: Annotated[str | None, typer.Option(help="Vision variant.", show_default=_BY_PRESET)] = None
    tokens: Annotated[
        int | None,
        typer.Option(help="Visual tokens of a picture, of a bundle's.", show_default="the most", min=1),
    ] = None
    language: Annotated[str | None, typer.Option(help="Language variant.", show_default=_BY_PRESET)] = None
    preset: Annotated[
        str | None,
        typer.Option(help="exact, balanced, fast or small.", show_default="balanced"),
    ] = None
    kv_type: Annotated[
        str | None,
        typer.Option(help="KV cache: f16, f32 or q8_0.", show_default="by runtime"),
    ] = None
    context_length: ContextOption = None
    threads: ThreadsOption = None
    gpu_layers: Annotated[
        int | None,
        typer.Option(help="Language layers on the GPU.", show_default="what fits", min=0),
    ] = None
    main_gpu: Annotated[
        int | None,
        typer.Option(help="Its one GPU, by number.", show_default="all", min=0),
    ] = None
    flash_attention: Annotated[
        str | None,
        typer.Option(help="llama.cpp's: auto, on or off.", show_default="by KV type"),
    ] = None
    device: Annotated[
        int, typer.Option("--gpu", help="Number of the vision engine's GPU.", min=0, show_default=False)
    ] = 0
    store_mb: Annotated[
        int, typer.Option(help="Disk for known pictures; 0: none.", show_default=False, min=0)
    ] = 0
    checkpoint: Annotated[str | None, typer.Option(help="The weights: a directory or a name.")] = None
    sources: SourcesOption = None
    allow_pickle: AllowPickleOption = False

    def read(self, kind: type[T]) -> T:
        """The value of a dataclass whose fields are options."""
        return kind(**{field.name: getattr(self, field.name) for field in fields(kind)})  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class Settings(Opening):
    """What commands that ask may be told besides: `Sampling`, and how to answer."""

    allow_url: AllowUrlOption = False
    max_tokens: Annotated[
        int | None,
        typer.Option(help="Most tokens of an answer.", show_default="512, or what fits", min=1),
    ] = None
    temperature: Annotated[
        float, typer.Option(help="0: the likeliest token each time.", show_default=False)
    ] = 0.0
    top_p: Annotated[float, typer.Option(help="Up to this probability; 1: all.", show_default=False)] = 1.0
    top_k: Annotated[int, typer.Option(help="So many likeliest tokens; 0: all.", show_default=False)] = 0
    min_p: Annotated[float, typer.Option(help="Of the likeliest's at least; 0: all.", show_default=False)] = (
        0.0
    )
    seed: Annotated[int | None, typer.Option(help="Seed of the sampling.")] = None
    stop: Annotated[list[str] | None, typer.Option(help="Ends the answer; may be repeated.")] = None
    repetition_penalty: Annotated[
        float, typer.Option(help="Divides seen tokens' logits; 1: none.", show_default=False)
    ] = 1.0
    frequency_penalty: Annotated[
        float, typer.Option(help="Off a logit, each time; 0: none.", show_default=False)
    ] = 0.0
    presence_penalty: Annotated[
        float, typer.Option(help="Off a logit, once; 0: none.", show_default=False)
    ] = 0.0
    system: Annotated[str | None, typer.Option(help="System text.", show_default="the model's own")] = None
    json_schema: Annotated[
        str | None, typer.Option(metavar="FILE|JSON", help="The answer is JSON that fits this schema.")
    ] = None
    grammar: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The answer fits it: llama.cpp's GBNF.")
    ] = None
    logprobs: Annotated[
        int | None, typer.Option(metavar="N", help="With --json: of the N likeliest, too.", min=0)
    ] = None
    honour_special: Annotated[
        bool, typer.Option("--honour-special", help="</s> in a question is a special token.")
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
