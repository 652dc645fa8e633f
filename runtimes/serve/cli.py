"""`tinyllava-edge serve`."""

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tinyllava_edge.command_options import with_settings
from tinyllava_edge.console import note
from tinyllava_edge.errors import UsageError
from tinyllava_edge.runtimes.cli_options import Opening

if TYPE_CHECKING:
    from tinyllava_edge.runtimes.model import Model

    from .images import KnownPictures

KEY_VARIABLE = "TINYLLAVA_EDGE_API_KEY"
MIN_KEY_CHARACTERS = 16
MAX_KEY_FILE_BYTES = 65_536
_KEY = re.compile(r"[!-~]+")
_ORIGIN = re.compile(r"https?://[^/\s]+")


@with_settings
def serve(
    bundles: Annotated[list[str], typer.Argument(metavar="BUNDLE...", help="Bundles' directories, or nano.")],
    settings: Opening,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.", min=0, max=65535)] = 8000,
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            help=f"A file with an API key a line, one of which every request must have; or {KEY_VARIABLE}."
        ),
    ] = None,
    host_name: Annotated[
        list[str] | None, typer.Option(help="A name by which this server is reached; several times.")
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(help="Let pages of this origin ask, as https://example.org; several times."),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(help="Fetch pictures of https URLs of this host; several times. None by default."),
    ] = None,
    queue: Annotated[int, typer.Option(help="Requests that may wait for a model.", min=1, max=1024)] = 32,
    parallel: Annotated[
        int,
        typer.Option(help="Requests a model answers at the same time, each with a context.", min=1, max=64),
    ] = 1,
    deadline: Annotated[float, typer.Option(help="Seconds for a request, its wait included.", min=1)] = 300.0,
    page: Annotated[
        bool, typer.Option("--page/--no-page", help="The page to try the models on, at the server's address.")
    ] = True,
) -> None:
    """Answer requests of OpenAI's clients until Ctrl-C, and show a page to try the models on.

    Of --runtime, --vision and --language several may be named with commas: each is a model of its own, by the
    name NAME:VARIANT.
    """
    from tinyllava_edge.runtimes.bundle_by_name import open_named
    from tinyllava_edge.runtimes.cli import open_model

    from .images import KnownPictures, fetch_from, open_file_store
    from .server import is_loopback, listen, url_of

    keys = _read_keys(api_key_file)
    _check_origins(allow_origin or ())
    names = _names(bundles)
    with listen(host, port) as listening:
        is_local = is_loopback(listening)
        if not is_local and not keys:
            raise UsageError(
                f"{host} is reached by other machines, and there is no API key. Give --api-key-file, or "
                f"{KEY_VARIABLE}, or listen on 127.0.0.1."
            )
        rules: dict[str, Any] = {
            "is_local": is_local,
            "host_names": host_name or (),
            "origins": allow_origin or (),
            "keys": keys,
        }
        models: dict[str, Model] = {}
        try:
            for name, bundle in names.items():
                opened, opening = open_named(bundle, settings)
                for suffix, one in _openings(opening).items():
                    if name + suffix in models:
                        raise UsageError(
                            f"two models would have the name {name + suffix}. Rename a directory."
                        )
                    models[name + suffix] = open_model(opened, one, called=name + suffix)
            where = f"{url_of(listening)}/v1{' with an API key' if keys else ''}"
            shown = f"; a page to try it on at {url_of(listening)}/" if page else ""
            note(f"{', '.join(models)} at {where}{shown}; Ctrl-C ends")
            known = KnownPictures(open_file_store(settings.store_mb), fetch_from(allow_host or ()))
            _run(
                listening,
                models,
                rules,
                known,
                queue=queue,
                parallel=parallel,
                deadline_s=deadline,
                with_page=page,
            )
        finally:
            for model in models.values():
                model.close()


def _run(
    listening: Any,
    models: "dict[str, Model]",
    rules: dict[str, Any],
    known: "KnownPictures",
    *,
    queue: int,
    parallel: int,
    **bounds: Any,
) -> None:
    """Serve until a signal, which is raised again at the end."""
    from .app import Server
    from .gate import Rules
    from .metrics import Metrics
    from .server import GRACE_S, Program
    from .worker import Served

    metrics = Metrics()
    served = {
        name: Served(name, model, metrics, max_waiting=queue, parallel=parallel)
        for name, model in models.items()
    }
    server = Server(served, metrics, Rules(**rules), pictures=known, **bounds)
    try:
        Program(server, served.values()).run(sockets=[listening])
    finally:
        for each in served.values():
            each.close(GRACE_S)


def _names(bundles: Sequence[str]) -> dict[str, str]:
    """What clients call each bundle: the name of its directory."""
    names = {Path(os.path.abspath(bundle)).name: bundle for bundle in bundles}
    if len(names) < len(bundles):
        raise UsageError("two bundles have the same name, by which clients ask for them. Rename a directory.")
    return names


def _openings(settings: Opening) -> dict[str, Opening]:
    """How a bundle is opened, by what its name gets: each of several runtimes and variants is a model."""
    ways: dict[str, Opening] = {"": settings}
    for field in ("runtime", "vision", "language"):
        values = [value.strip() for value in (getattr(settings, field) or "").split(",") if value.strip()]
        if len(values) > 1:
            ways = {
                f"{suffix}:{value}": replace(way, **{field: value})  # type: ignore[arg-type]
                for suffix, way in ways.items()
                for value in values
            }
    return ways


def _read_keys(path: Path | None) -> list[str]:
    """API keys of a file or the environment; none where neither is given."""
    from tinyllava_edge.user_files import read_user_text

    where, text = KEY_VARIABLE, os.environ.get(KEY_VARIABLE, "")
    if path is not None:
        where, text = str(path), read_user_text(path, most=MAX_KEY_FILE_BYTES)
    keys = [line.strip() for line in text.splitlines() if line.strip()]
    if path is not None and not keys:
        raise UsageError(f"{where}: no API key in it. Write one a line: openssl rand -hex 32 makes one.")
    for number, key in enumerate(keys, start=1):
        if len(key) < MIN_KEY_CHARACTERS or not _KEY.fullmatch(key):
            raise UsageError(
                f"{where}: key {number} must be {MIN_KEY_CHARACTERS} characters or more, letters, digits and "
                "signs of ASCII. openssl rand -hex 32 makes one."
            )
    return keys


def _check_origins(origins: Sequence[str]) -> None:
    for origin in origins:
        if not _ORIGIN.fullmatch(origin):
            raise UsageError(
                f"--allow-origin {origin}: expected scheme and host alone, as https://example.org."
            )
