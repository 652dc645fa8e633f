"""A bundle with several vision variants and reference tensors, to build engines from."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from tests.runtimes import bundles
from tests.runtimes.tiny_gguf import write_tiny_gguf
from tinyllava_edge.bundle import Bundle, Part, PromptSpec, Source, Variant, create_bundle
from tinyllava_edge.image import preprocess
from tinyllava_edge.prompt import template_named
from tinyllava_edge.runtimes.ort import OnnxVision

PICTURES = 3


def write_engine_bundle(
    directory: Path,
    variants: tuple[str, ...] = ("fp32", "fp16", "bf16"),
    seed: int = 0,
    *,
    with_questions: bool = False,
) -> Bundle:
    """Write a bundle whose graphs are named after their variants; all compute the same in float32."""
    with create_bundle(directory) as writer:
        for folder in ("vision", "language", "reference"):
            (writer.root / folder).mkdir()
        for name in variants:
            path = writer.root / f"vision/{name}.onnx"
            bundles.write_tiny_onnx(path, seed=seed)
            model = onnx.load(path)
            model.graph.name = name
            onnx.save(model, path)
        write_reference(writer.root, with_questions=with_questions)
        language, _ = write_tiny_gguf(
            writer.root / "language/f32.gguf",
            vocab=bundles.VOCAB,
            hidden=bundles.HIDDEN,
            context=bundles.CONTEXT,
        )
        (writer.root / "tokenizer.json").write_text(bundles.llama_tokenizer(), encoding="utf-8")
        part = Part(architecture="random", parameters=1, dtype="F32")
        vision = [bundles.verified("vision", name, "onnx", f"vision/{name}.onnx") for name in variants]
        writer.seal(
            parts={"vision_tower": part, "connector": part, "language_model": part},
            prompt=PromptSpec(
                template=template_named("llama"),
                template_reason="test",
                bos_id=bundles.BOS,
                stop_ids=(bundles.EOS,),
            ),
            vision=bundles.vision_spec(),
            language=language,
            variants=(
                *map(built_only, vision),
                bundles.verified("language", "f32", "gguf", "language/f32.gguf"),
            ),
            source=Source(name="random", checkpoint_sha256="0" * 64, layout="none"),
            versions={},
        )
    return Bundle.open(directory)


def built_only(variant: Variant) -> Variant:
    """ONNX Runtime's CPU has no bfloat16, so nothing on the exporting machine can verify it."""
    return variant.model_copy(update={"status": "built, not run"}) if variant.name == "bf16" else variant


def question(picture: int) -> dict[str, Any]:
    """A question about a picture; of its answer only the length is ever read here."""
    positions = 3 + bundles.NUM_TOKENS
    return {
        "name": f"picture {picture}",
        "turns": [["<image>\nthe", None]],
        "pictures": [picture],
        "input_ids": [bundles.BOS, -200, 5 + picture, 9],
        "positions": positions,
        "logit_positions": [positions - 1],
        "greedy_ids": [7] * 6,
        "greedy_margins": [0.0] * 6,
    }


def write_reference(root: Path, *, with_questions: bool = False) -> None:
    """What the float32 graph makes of three pictures."""
    pictures = [bundles.picture(seed) for seed in range(PICTURES)]
    names = [f"{index}.png" for index in range(PICTURES)]
    pixels = np.stack([preprocess(picture, bundles.vision_spec().preprocessing) for picture in pictures])
    backend = OnnxVision(root / "vision/fp32.onnx", bundles.vision_spec(), name="reference", threads=1)
    embeddings = backend.encode(pixels)
    tensors: dict[str, Any] = {}
    for index, picture in enumerate(pictures):
        picture.save(root / "reference" / names[index])
        tensors |= {f"pixels/{index}": pixels[index], f"embeddings/{index}": embeddings[index]}
        tensors |= {f"vision_tower/{index}": embeddings[index]}  # no connector
    prompts = [question(index) for index in range(PICTURES)] if with_questions else []
    tensors |= {f"logits/{p['name']}": np.zeros((1, bundles.VOCAB), dtype=np.float32) for p in prompts}
    np.savez(root / "reference/reference.npz", **tensors)
    contents = {"pictures": names, "image_token_id": -200, "prompts": prompts}
    (root / "reference/reference.json").write_text(json.dumps(contents))
