"""A sealed bundle of dummy files, some 40 KB, for the tests of the container itself."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from onnx import helper

from tests.core.gguf_files import tiny_llama, tiny_spec
from tinyllava_edge.bundle import (
    BundleWriter,
    Manifest,
    Part,
    PromptSpec,
    Source,
    Variant,
    VisionSpec,
    create_bundle,
)
from tinyllava_edge.image import Preprocessing
from tinyllava_edge.manifest import digest_of
from tinyllava_edge.prompt import template_named


def _graph(name: str) -> bytes:
    node = helper.make_node("Identity", ["pixels"], ["embeddings"])
    content: bytes = helper.make_model(helper.make_graph([node], name, [], [])).SerializeToString()
    return content


TOKENIZER = b'{"added_tokens": [], "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}'
FILES = {
    "vision/fp32.onnx": _graph("tower"),
    "vision/fp32.onnx.data": bytes(range(256)),
    "vision/fp16.onnx": _graph("half the tower"),
    "language/f16.gguf": tiny_llama("f16", vocab=500, hidden=16).encode(),
    "tokenizer.json": TOKENIZER,
    "reference/reference.json": b"[]".ljust(len(TOKENIZER)),
}


def seal(writer: BundleWriter) -> Manifest:
    """Seal what was written, with made-up facts of the model."""
    how = Preprocessing(
        aspect="square",
        resize="stretch",
        size=96,
        crop=None,
        resample=3,
        rescale_factor=1 / 255,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )
    return writer.seal(
        parts={"vision_tower": Part(architecture="siglip_vision_model", parameters=7, dtype="F16")},
        prompt=PromptSpec(template=template_named("llama"), template_reason="given", bos_id=1, stop_ids=(2,)),
        vision=VisionSpec(
            image_size=96,
            num_tokens=35,
            hidden_size=16,
            feature_layer=-2,
            drop_first=True,
            preprocessing=how,
            tower_output="vision_tower_output",
        ),
        language=tiny_spec(vocab=500, hidden=16),
        variants=(
            variant("vision", "fp32", "onnx", ("vision/fp32.onnx", "vision/fp32.onnx.data")),
            variant("vision", "fp16", "onnx", ("vision/fp16.onnx",), status="built, not run"),
            variant("language", "f16", "gguf", ("language/f16.gguf",)),
        ),
        source=Source(name="nano", checkpoint_sha256="0" * 64, layout="flat safetensors"),
        versions={"tinyllava-edge": "0"},
    )


def variant(
    part: Literal["vision", "language"],
    name: str,
    target: Literal["onnx", "gguf"],
    files: tuple[str, ...],
    *,
    status: Literal["verified", "built, not run"] = "verified",
) -> Variant:
    """One precision of one part."""
    return Variant(part=part, name=name, target=target, files=files, status=status)


def write_files(root: Path) -> None:
    """Write `FILES` below `root`."""
    for name, content in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


def write_small_bundle(target: Path, *, force: bool = False) -> Path:
    """Write a sealed bundle of `FILES`."""
    with create_bundle(target, force=force) as writer:
        write_files(writer.root)
        seal(writer)
    return target


def change_manifest(root: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Rewrite a bundle's manifest, as an attacker would: its digest fits again."""
    path = root / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    manifest["digest"] = digest_of(manifest)
    path.write_text(json.dumps(manifest))


def file_entry(path: str, content: bytes = b"") -> dict[str, Any]:
    """What a manifest says about a file."""
    return {"path": path, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def tree(root: Path) -> dict[str, bytes]:
    """Every file below a directory, with its content."""
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}
