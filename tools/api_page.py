"""Fill the reference of docs/python.md from docstrings: `python -m tools.api_page`."""

import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import tinyllava_edge
from tinyllava_edge import errors
from tinyllava_edge.atomic_files import write_bytes

PAGE = Path(__file__).resolve().parents[1] / "docs" / "python.md"
BEGIN, END = "<!-- reference: begin -->\n", "<!-- reference: end -->"
# What the public names take and give, by the module that has it.
BESIDE = {
    "runtimes.stream": ("Stream",),
    "runtimes.async_model": ("AsyncStream",),
    "runtimes.timings": ("Timings",),
    "runtimes.watch.watching": ("Watch", "Seen", "Summary"),
    "runtimes.logprobs": ("TokenLogprob",),
    "sampling": ("Sampling",),
}
_BETWEEN_MODULES = {
    "begin",
    "in_worker",
    "start",
    "end_running",
    "end_for_another",
}  # public to our own alone
_SECTIONS = ("Args", "Attributes", "Raises", "Returns")


def documented() -> list[Any]:
    """Every object of the page, in its order: what the package exports, and what that takes and gives."""
    names = [name for name in tinyllava_edge.__all__ if not name.startswith("_")]
    names.sort(key=lambda name: (name[0].isupper(), name))  # functions first
    public = [getattr(tinyllava_edge, name) for name in names]
    modules = {name: import_module(f"tinyllava_edge.{name}") for name in BESIDE}
    return [*public, *(getattr(modules[module], name) for module in BESIDE for name in BESIDE[module])]


def reference() -> Iterator[str]:
    """Lines of the reference."""
    for thing in documented():
        yield from (f"### {thing.__name__}", "")
        yield from (f"    {_signature(thing.__name__, thing)}", "")
        yield from _prose(thing)
        for name, member in vars(thing).items() if inspect.isclass(thing) else ():
            if inspect.isfunction(member) or isinstance(member, property):
                yield from _member(name, member)
    yield from ("### Errors", "", "All are in `tinyllava_edge.errors`, and children of the first.", "")
    for name, error in vars(errors).items():
        if inspect.isclass(error) and issubclass(error, errors.TinyLlavaEdgeError):
            yield f"- `{name}({error.__bases__[0].__name__})`: {_first_line(error)}"


def _member(name: str, member: Any) -> Iterator[str]:
    if name.startswith("_") or name in _BETWEEN_MODULES:
        return
    shown = name if isinstance(member, property) else _signature(name, member)
    yield from (f"#### `{shown}`", "")
    yield from _prose(member)


def _signature(name: str, function: Any) -> str:
    """Names and defaults; of a default that is an object only that there is one."""
    shown: list[str] = []
    for one in inspect.signature(function).parameters.values():
        if one.kind is one.KEYWORD_ONLY and "*" not in shown and not any(s.startswith("*") for s in shown):
            shown.append("*")
        plain = one.default is None or isinstance(one.default, str | int | float | bool | tuple)
        default = "" if one.default is one.empty else f"={one.default!r}" if plain else "=..."
        prefix = "*" if one.kind is one.VAR_POSITIONAL else "**" if one.kind is one.VAR_KEYWORD else ""
        shown += [] if one.name == "self" else [f"{prefix}{one.name}{default}"]
    return f"{name}({', '.join(shown)})"


def _prose(thing: Any) -> Iterator[str]:
    """A docstring in Google's form as Markdown: its sections become lists."""
    section = ""
    for line in (inspect.getdoc(thing) or "").splitlines():
        if line.removesuffix(":") in _SECTIONS and line.endswith(":"):
            section = line
            yield from (f"*{section}*", "")
        elif section and (found := re.match(r" {4}(\w+): (.*)", line)):
            yield f"- `{found[1]}`: {found[2]}"
        else:
            yield f"  {line.strip()}" if section and line else line
    yield ""


def _first_line(thing: Any) -> str:
    return (inspect.getdoc(thing) or "").split("\n\n")[0].replace("\n", " ")


def filled(page: str) -> str:
    """The page with the reference of this source."""
    before, after = page.split(BEGIN)
    lines = "\n".join(reference())
    return f"{before}{BEGIN}{lines}\n{END}{after.split(END)[1]}"


if __name__ == "__main__":
    write_bytes(PAGE, filled(PAGE.read_text(encoding="utf-8")).encode())
