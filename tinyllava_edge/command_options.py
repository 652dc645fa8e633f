"""Arguments and options that commands share, each declared once; and a dataclass as a command's options."""

import inspect
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, ClassVar, get_args

import typer

BundleArgument = Annotated[str, typer.Argument(help="A bundle's directory, or nano.")]
NamedBundleArgument = Annotated[
    str, typer.Argument(help="A directory, nano, or owner/name of the hub, @revision behind it.")
]
ThreadsOption = Annotated[
    int | None,
    typer.Option("--threads", help="Threads of each engine.", show_default="usable cores", min=1),
]
ContextOption = Annotated[
    int | None,
    typer.Option(
        "--context", help="Positions of the context.", show_default="the model's own, 4096 at most", min=1
    ),
]
SourcesOption = Annotated[
    Path | None, typer.Option("--sources", help="Files that the checkpoint only names.")
]
AllowPickleOption = Annotated[
    bool, typer.Option("--allow-pickle", help="Read the checkpoint's .bin weights.")
]
AllowUrlOption = Annotated[bool, typer.Option("--allow-url", help="Fetch pictures given as https URLs.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one line of JSON.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace an existing output.")]
# Options of every day stand first in --help, in this order.
_EVERY_DAY = "max_tokens temperature system json_schema runtime preset vision tokens language json".split()  # noqa: SIM905


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """What of a bundle is to fit a device, as `memory_plan.chosen_setting` takes it."""

    panels: ClassVar[dict[str, str]] = {}
    vision: Annotated[str | None, typer.Option(help="Vision variant, for --device.")] = None
    language: Annotated[str | None, typer.Option(help="Language variant, for --device.")] = None
    context_length: Annotated[
        int | None, typer.Option("--context", help="Positions of the context, for --device.", min=1)
    ] = None
    kv_type: Annotated[str | None, typer.Option(help="Type of the KV cache, for --device.")] = None


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """The command with an option for each field of its argument `settings` in the place of that.

    The dataclass's `panels` have titles of groups in --help, and the options of each; those of every day
    stand first.
    """
    parameters_of = inspect.signature(command, eval_str=True).parameters
    kind: Any = parameters_of["settings"].annotation
    own = [one for one in parameters_of.values() if one.name != "settings"]
    options = inspect.signature(kind).parameters

    @wraps(command)
    def with_options(**given: Any) -> None:
        settings = kind(**{name: given.pop(name) for name in options})
        command(**given, settings=settings)

    panel_of = {name: title for title, names in kind.panels.items() for name in names.split()}
    order = [*_EVERY_DAY, *panel_of]
    behind = len(_EVERY_DAY) - 0.5  # a command's own, which is in no group
    grouped = sorted(options.values(), key=lambda one: order.index(one.name) if one.name in order else behind)
    parameters = [*own, *(_in_panel(one, panel_of.get(one.name)) for one in grouped)]
    with_options.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    with_options.__annotations__ = {one.name: one.annotation for one in parameters}
    return with_options


def _in_panel(option: inspect.Parameter, panel: str | None) -> inspect.Parameter:
    kind, info = get_args(option.annotation)
    info = copy(info)  # commands that have it alone have no panels
    info.rich_help_panel = panel
    return option.replace(annotation=Annotated[kind, info])
