"""A whole bundle of a few hundred kilobytes, written without our exporter: random weights, real formats."""

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnx.helper as oh
from PIL import Image

from tests.runtimes.tiny_gguf import write_tiny_gguf
from tinyllava_edge.bundle import (
    Bundle,
    Part,
    PromptSpec,
    Source,
    Variant,
    VisionSpec,
    create_bundle,
)
from tinyllava_edge.image import Preprocessing
from tinyllava_edge.prompt import template_named

IMAGE_SIZE, PATCH, NUM_TOKENS, HIDDEN, VOCAB = 28, 14, 4, 64, 300
CONTEXT = 1024
UNK, BOS, EOS = 0, 1, 2


def llama_tokenizer() -> str:
    """A `tokenizer.json` as Llama's: spaces are U+2581, and what has no piece becomes bytes."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["\u2581", *"abcdefghijklmnopqrstuvwxyz"]
    merges = [("t", "h"), ("th", "e"), ("\u2581", "a"), ("\u2581", "the"), ("o", "n"), ("e", "d")]
    pieces += ["".join(pair) for pair in merges]
    pieces += [f"unused{number}" for number in range(VOCAB - len(pieces))]
    special = [
        {
            "id": index,
            "content": pieces[index],
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for index in (UNK, BOS, EOS)
    ]
    return json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": special,
            "normalizer": {
                "type": "Sequence",
                "normalizers": [
                    {"type": "Prepend", "prepend": "\u2581"},
                    {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
                ],
            },
            "pre_tokenizer": None,
            "post_processor": None,
            "decoder": {
                "type": "Sequence",
                "decoders": [
                    {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
                    {"type": "ByteFallback"},
                    {"type": "Fuse"},
                    {"type": "Strip", "content": " ", "start": 1, "stop": 0},
                ],
            },
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": "<unk>",
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": True,
                "byte_fallback": True,
                "ignore_merges": False,
                "vocab": {piece: index for index, piece in enumerate(pieces)},
                "merges": [list(pair) for pair in merges],
            },
        }
    )


def write_tiny_onnx(path: Path, *, hidden: int = HIDDEN, seed: int = 0) -> np.ndarray:
    """One convolution over patches; returns its kernel [hidden, 3, patch, patch]."""
    kernel = np.random.default_rng(seed).standard_normal((hidden, 3, PATCH, PATCH), dtype=np.float32) * 0.05
    shape = np.array([0, hidden, NUM_TOKENS], dtype=np.int64)
    square = [PATCH, PATCH]
    nodes = [
        oh.make_node("Conv", ["pixels", "kernel"], ["patches"], kernel_shape=square, strides=square),
        oh.make_node("Reshape", ["patches", "shape"], ["columns"]),
        oh.make_node("Transpose", ["columns"], ["embeddings"], perm=[0, 2, 1]),
    ]
    graph = oh.make_graph(
        nodes,
        "vision",
        [oh.make_tensor_value_info("pixels", onnx.TensorProto.FLOAT, ["batch", 3, IMAGE_SIZE, IMAGE_SIZE])],
        [oh.make_tensor_value_info("embeddings", onnx.TensorProto.FLOAT, ["batch", NUM_TOKENS, hidden])],
        [onnx.numpy_helper.from_array(kernel, "kernel"), onnx.numpy_helper.from_array(shape, "shape")],
    )
    onnx.save(oh.make_model(graph, opset_imports=[oh.make_opsetid("", 18)], ir_version=10), path)
    return kernel


def vision_spec(hidden: int = HIDDEN) -> VisionSpec:
    how = Preprocessing(
        aspect="square",
        resize="stretch",
        size=IMAGE_SIZE,
        crop=None,
        resample=3,
        rescale_factor=1 / 255,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )
    return VisionSpec(
        image_size=IMAGE_SIZE,
        num_tokens=NUM_TOKENS,
        hidden_size=hidden,
        feature_layer=-2,
        drop_first=False,
        preprocessing=how,
        tower_output="patches",
    )


def verified(
    part: Literal["vision", "language"], name: str, target: Literal["onnx", "gguf"], file: str
) -> Variant:
    return Variant(part=part, name=name, target=target, files=(file,), status="verified")


def write_bundle(directory: Path, **gguf_sizes: Any) -> Bundle:
    """Write a bundle for "onnxruntime+llamacpp" and "scripted", and open it."""
    with create_bundle(directory) as writer:
        for folder in ("vision", "language"):
            (writer.root / folder).mkdir()
        write_tiny_onnx(writer.root / "vision/fp32.onnx")
        language, _ = write_tiny_gguf(
            writer.root / "language/f32.gguf", vocab=VOCAB, hidden=HIDDEN, context=CONTEXT, **gguf_sizes
        )
        (writer.root / "tokenizer.json").write_text(llama_tokenizer(), encoding="utf-8")
        part = Part(architecture="random", parameters=1, dtype="F32")
        writer.seal(
            parts={"vision_tower": part, "connector": part, "language_model": part},
            prompt=PromptSpec(
                template=template_named("llama"), template_reason="test", bos_id=BOS, stop_ids=(EOS,)
            ),
            vision=vision_spec(),
            language=language,
            variants=(
                verified("vision", "fp32", "onnx", "vision/fp32.onnx"),
                verified("language", "f32", "gguf", "language/f32.gguf"),
            ),
            source=Source(name="random", checkpoint_sha256="0" * 64, layout="none"),
            versions={},
        )
    return Bundle.open(directory)


def picture(seed: int, size: tuple[int, int] = (40, 30)) -> Image.Image:
    """A picture of seeded noise."""
    values = np.random.default_rng(seed).integers(0, 256, size=(*size[::-1], 3), dtype=np.uint8)
    return Image.fromarray(values)
