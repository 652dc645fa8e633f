"""Which of TensorRT's names our code touches, read from its source, and which versions have them.

The manifests in tests/fixtures/trt_api hold names and signatures of the real bindings, one file a version.
Our source is followed with the little type inference that its annotations allow: `binding.trt` is the
library's module, `config: "trt.IBuilderConfig"` an object of it, and what a method returns is in its recorded
signature. A use that cannot be followed is reported, so that none escapes.
"""

import ast
import gzip
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
MANIFESTS = ROOT / "tests" / "fixtures" / "trt_api"
# Every module that touches the library; test_names finds those that are not listed.
MODULES = (
    "runtimes/trt/binding.py",
    "runtimes/trt/builder.py",
    "runtimes/trt/builder_errors.py",
    "runtimes/trt/execution.py",
    "runtimes/trt/timings.py",
    "runtimes/trt/vision.py",
)
# Names that not every version has: versions without it -> what keeps the code from it there.
_PLAIN = ("10.3.0", "10.7.0", "10.13.3.9", "10.14.1.48.post1", "10.16.1.11", "11.0.0.114", "11.4.0.106")
CONDITIONAL = {
    "ComputeCapability": (_PLAIN, "EngineOptions refuses `sms` for the target tensorrt"),
    "IBuilderConfig.num_compute_capabilities": (_PLAIN, "likewise"),
    "CudaGraphStrategy": (_PLAIN, "create_context asks for it where the target is tensorrt-rtx only"),
    "CudaGraphStrategy.WHOLE_GRAPH_CAPTURE": (_PLAIN, "likewise"),
    "IRuntimeConfig.cuda_graph_strategy": (_PLAIN, "likewise"),
    "ICudaEngine.create_runtime_config": (("10.3.0", "10.7.0"), "likewise"),
    "IRuntimeCache": (_PLAIN, "likewise"),
    "IRuntimeCache.deserialize": (_PLAIN, "likewise"),
    "IRuntimeCache.serialize": (_PLAIN, "likewise"),
    "IRuntimeConfig.create_runtime_cache": (_PLAIN, "likewise"),
    "IRuntimeConfig.set_runtime_cache": (_PLAIN, "likewise"),
    "IRuntimeConfig": (("10.3.0", "10.7.0"), "likewise"),
    "IBuilderConfig.set_compute_capability": (_PLAIN, "likewise"),
}
# What Python itself gives an enum or a class.
_PYTHON = {"__members__", "__init__", "name", "value"}
_TYPE = re.compile(r"\btrt\.(\w+)")


@dataclass(frozen=True)
class Type:
    """What an expression is: the library's module, one of its classes, an object of one, or a method."""

    kind: str  # "module", "class", "object", "method"
    name: str = ""  # of the class
    member: str = ""  # of the method


@dataclass
class Uses:
    """What a module's source uses of the library."""

    names: dict[str, str] = field(default_factory=dict)  # name -> where it was first seen
    calls: list[tuple[str, int, tuple[str, ...], str]] = field(default_factory=list)
    unfollowed: dict[str, str] = field(
        default_factory=dict
    )  # attribute of an object of unknown type -> where


@cache
def manifests() -> dict[str, dict[str, Any]]:
    """Version -> its names, oldest first, TensorRT-RTX last."""
    found = {}
    for path in MANIFESTS.glob("*.json.gz"):
        content = json.loads(gzip.decompress(path.read_bytes()))
        prefix = "RTX " if path.name.startswith("rtx") else ""
        found[f"{prefix}{content['version']}"] = content["api"]
    return dict(sorted(found.items(), key=lambda item: _version_key(item[0])))


def _version_key(label: str) -> tuple[bool, list[int]]:
    return label.startswith("RTX"), [int(number) for number in re.findall(r"\d+", label)]


def has_name(api: dict[str, Any], name: str) -> bool:
    """Whether a version has "Class" or "Class.member"."""
    owner, _, member = name.partition(".")
    return owner in api and (not member or member in api[owner].get("members", ()))


def collect_uses(source: str, where: str, returns: dict[str, str]) -> Uses:
    """Everything a module uses of the library.

    Args:
        source: of the module.
        where: its path, for messages.
        returns: names of our functions that return an object of the library -> its class.
    """
    collector = _Collector(where, returns)
    collector.visit(ast.parse(source))
    return collector.uses


def collect_all(modules: tuple[str, ...] = MODULES) -> Uses:
    """Everything our code uses of the library."""
    sources = {name: (ROOT / name).read_text(encoding="utf-8") for name in modules}
    returns = {name: kind for source in sources.values() for name, kind in _returned_types(ast.parse(source))}
    all_uses = Uses()
    for name, source in sources.items():
        uses = collect_uses(source, name, returns)
        all_uses.names = uses.names | all_uses.names
        all_uses.unfollowed |= uses.unfollowed
        all_uses.calls += uses.calls
    return all_uses


def arity(signature: str) -> tuple[int, int, tuple[str, ...]]:
    """Least and largest number of arguments of a recorded signature, without `self`, and their names."""
    inner = signature[signature.index("(") + 1 : signature.rindex(")")]
    parts = [part.strip() for part in re.split(r",\s*(?=\w+:)", inner) if part.strip()]
    parts = [part for part in parts if not part.startswith("self:")]
    optional = sum("=" in part for part in parts)
    return len(parts) - optional, len(parts), tuple(part.split(":")[0] for part in parts)


def _returned_types(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for node in ast.walk(tree):
        kind = _annotated(node.returns) if isinstance(node, ast.FunctionDef) else None
        if isinstance(node, ast.FunctionDef) and kind is not None:
            yield node.name, kind.name


class _Collector(ast.NodeVisitor):
    """Follows objects of the library through one module; a name means one thing in a function."""

    def __init__(self, where: str, returns: dict[str, str]) -> None:
        self.where = where
        self.returns = returns
        self.uses = Uses()
        self.variables: list[dict[str, Type]] = [{}]
        self.attributes: dict[str, Type] = {}  # of `self`

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        scope = dict(self.variables[-1])
        for argument in (*node.args.args, *node.args.kwonlyargs):
            if (kind := _annotated(argument.annotation)) is not None:
                scope[argument.arg] = kind
        self.variables.append(scope)
        self.generic_visit(node)
        self.variables.pop()

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for base in node.bases:
            kind = self.type_of(base)
            if kind is not None and kind.kind == "class":
                for method in node.body:
                    if isinstance(method, ast.FunctionDef) and not method.name.startswith("_"):
                        self._use(f"{kind.name}.{method.name}", method)
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        self.generic_visit(node)
        for target in node.targets:
            self._bind(target, self.type_of(node.value))

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self.generic_visit(node)
        value = None if node.value is None else self.type_of(node.value)
        self._bind(node.target, _annotated(node.annotation) or value)

    def visit_For(self, node: ast.For) -> None:
        self._bind(node.target, self.type_of(node.iter))
        self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.generic_visit(node)
        owner = self.type_of(node.value)
        if owner is None:
            if node.attr in _distinctive_names():
                self.uses.unfollowed.setdefault(node.attr, f"{self.where}:{node.lineno}")
        elif owner.kind == "module":
            if not node.attr.startswith("__"):
                self._use(node.attr, node)
        elif node.attr not in _PYTHON and owner.kind in ("class", "object"):
            self._use(f"{owner.name}.{node.attr}", node)

    def visit_Call(self, node: ast.Call) -> None:
        self.generic_visit(node)
        called = self.type_of(node.func)
        starred = any(isinstance(argument, ast.Starred) for argument in node.args)
        if called is not None and called.kind == "method" and not starred:
            keywords = tuple(keyword.arg or "" for keyword in node.keywords)
            name = f"{called.name}.{called.member}"
            self.uses.calls.append((name, len(node.args), keywords, f"{self.where}:{node.lineno}"))

    def type_of(self, node: ast.expr) -> Type | None:
        """What an expression is, as far as it is of the library."""
        if isinstance(node, ast.Name):
            return self.variables[-1].get(node.id) or (Type("module") if node.id == "trt" else None)
        if isinstance(node, ast.Attribute):
            return self._type_of_attribute(node)
        if isinstance(node, ast.Call):
            return self._type_of_call(node)
        return None

    def _type_of_attribute(self, node: ast.Attribute) -> Type | None:
        owner = self.type_of(node.value)
        if owner is None:
            if node.attr == "trt":
                return Type("module")
            is_self = isinstance(node.value, ast.Name) and node.value.id == "self"
            return self.attributes.get(node.attr) if is_self else None
        if owner.kind == "module":
            return Type("class", node.attr)
        if node.attr in _PYTHON:
            return None
        return Type("method", owner.name, node.attr) if owner.kind == "object" else Type("object", owner.name)

    def _type_of_call(self, node: ast.Call) -> Type | None:
        called = self.type_of(node.func)
        if called is None:
            last = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            return Type("object", self.returns[last]) if last in self.returns else None
        if called.kind == "class":
            return Type("object", called.name)
        if called.kind == "method":
            for api in manifests().values():
                signatures = api.get(called.name, {}).get("members", {})
                text = signatures.get(called.member, [""])[0] if isinstance(signatures, dict) else ""
                result = text.rpartition("-> ")[2].rpartition(".")[2]
                if result in api:
                    return Type("object", result)
        return None

    def _bind(self, target: ast.expr, kind: Type | None) -> None:
        if isinstance(target, ast.Name):
            if kind is None:
                self.variables[-1].pop(target.id, None)
            else:
                self.variables[-1][target.id] = kind
        elif isinstance(target, ast.Attribute) and kind is not None and ast.unparse(target.value) == "self":
            self.attributes[target.attr] = kind

    def _use(self, name: str, node: ast.stmt | ast.expr) -> None:
        self.uses.names.setdefault(name, f"{self.where}:{node.lineno}")


def _annotated(annotation: ast.expr | None) -> Type | None:
    found = None if annotation is None else _TYPE.search(ast.unparse(annotation))
    return Type("object", found[1]) if found else None


@cache
def _distinctive_names() -> frozenset[str]:
    """Members of the library's classes that nothing else is likely to have: an underscore or a capital."""
    members = {
        member
        for api in manifests().values()
        for entry in api.values()
        for member in entry.get("members", ())
    }
    return frozenset(name for name in members if "_" in name.strip("_") or name.isupper())
