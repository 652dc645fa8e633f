"""YAML that anybody may have written: a mapping of plain values, and nothing that grows."""

import re
from pathlib import Path
from typing import Any

import yaml

from tinyllava_edge.errors import UsageError

MAX_DEPTH = 20


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """No aliases, whose few lines can stand for gigabytes; no key twice; 1e-3 is a number, as in YAML 1.2."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise self._error("an alias; write the value out", self.peek_event().start_mark)
        if self.depth == MAX_DEPTH:
            raise self._error(f"values more than {MAX_DEPTH} deep", self.peek_event().start_mark)
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key.value, str) or key.value in seen:
                raise self._error(f"{key.value!r:.60} is there twice, or is no name", key.start_mark)
            seen.add(key.value)
        found: dict[Any, Any] = super().construct_mapping(node, deep)
        return found

    @staticmethod
    def _error(what: str, mark: Any) -> yaml.YAMLError:
        return yaml.MarkedYAMLError(problem=what, problem_mark=mark)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def parse_yaml(text: bytes, path: Path) -> dict[str, Any]:
    """What a YAML file says, of `yaml.SafeLoader`'s types.

    Raises:
        UsageError: not YAML, not one mapping, or with aliases, tags, a key twice or values very deep.
    """
    try:
        values = yaml.load(text.decode("utf-8"), _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}" if mark is not None else ""
        what = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UsageError(f"{path}: not the YAML of a recipe{where}: {what:.200}.") from None
    if not isinstance(values, dict):
        raise UsageError(f"{path}: expected keys and values, found {type(values).__name__}.")
    return values
