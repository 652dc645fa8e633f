"""Fill the generated tables of docs/tensorrt.md: `python -m tests.runtimes.trt.write_docs`."""

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.runtimes.trt.measure_engines import RESULTS
from tests.runtimes.trt.names import CONDITIONAL, ROOT, collect_all, has_name, manifests
from tinyllava_edge.runtimes.trt.build_ahead import table_lines

DOCS = ROOT / "docs" / "tensorrt.md"


class DeviceTest(NamedTuple):
    """A test that only some hardware can run."""

    name: str
    needs: tuple[str, ...]
    reason: str  # first line of its docstring


def engines_block() -> Iterator[str]:
    """Table of the engines that measure_engines recorded."""
    record = json.loads(RESULTS.read_text(encoding="utf-8"))
    yield (
        f"TensorRT-RTX {record['tensorrt']}, batch 1 to 4, on {record['processor']} with "
        f"{record['usable_cores']} usable cores. Status of every row: {record['status']}."
    )
    yield ""
    yield from table_lines(record["engines"])
    yield ""
    weights = {row["graph"]: row["weights"] for row in record["engines"]}
    yield f"Weights: {'; '.join(f'{name} {origin}' for name, origin in weights.items())}."


def names_block() -> Iterator[str]:
    """Which version has which of the names our code touches."""
    versions = manifests()
    names = sorted(collect_all().names)
    missing = [
        n for n in names if n not in CONDITIONAL and not all(has_name(a, n) for a in versions.values())
    ]
    short = ["RTX 1.7.1" if v.startswith("RTX") else ".".join(v.split(".")[:3]) for v in versions]
    yield f"{len(names)} names, {len(versions)} versions, {len(missing)} missing where they are used."
    yield ""
    yield f"| name | {' | '.join(short)} | guard |"
    yield f"|---|{'---|' * len(short)}---|"
    for name in names:
        marks = ["yes" if has_name(api, name) else "-" for api in versions.values()]
        guard = CONDITIONAL[name][1] if name in CONDITIONAL else ""
        yield f"| `{name}` | {' | '.join(marks)} | {guard} |"


def device_tests() -> Iterator[DeviceTest]:
    """Every test with a `device` mark, of its own or of its module."""
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        common = [
            need
            for node in tree.body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark"
            for need in _needs(node.value)
        ]
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                needs = common + [need for mark in node.decorator_list for need in _needs(mark)]
                if needs:
                    name = f"{path.relative_to(ROOT).as_posix()}::{node.name}"
                    reason = (ast.get_docstring(node) or "").partition("\n")[0]
                    yield DeviceTest(name, tuple(dict.fromkeys(needs)), reason)


def _needs(node: ast.expr) -> Iterator[str]:
    for call in ast.walk(node):
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "pytest.mark.device":
            yield ast.literal_eval(call.args[0])


def device_block() -> Iterator[str]:
    """The tests that wait for hardware, each with its reason."""
    found = list(device_tests())
    yield f"{len(found)} tests wait for hardware:"
    yield ""
    yield "| test | needs | why only there |"
    yield "|---|---|---|"
    for test in found:
        yield f"| `{test.name}` | {', '.join(test.needs)} | {test.reason} |"


BLOCKS = {"engines": engines_block, "names": names_block, "device tests": device_block}


def filled(text: str) -> str:
    """The page with its tables made anew."""
    for name, block in BLOCKS.items():
        begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
        before, _, rest = text.partition(begin)
        assert end in rest, f"docs/tensorrt.md has no block {name!r}"
        text = (
            f"{before}{begin}{''.join(f'{line}' + chr(10) for line in block())}{end}{rest.partition(end)[2]}"
        )
    return text


def write_docs(path: Path = DOCS) -> None:
    """Rewrite the page."""
    path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    write_docs()
