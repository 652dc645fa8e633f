"""The whole chain on real weights: SmolLM2-135M with a ViT-S/14. Not in `make test`.

pytest -m network -s tests/integration/test_real_weights.py
"""

import json
import time
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from tinyllava_edge import open_bundle
from tinyllava_edge.bundle import Bundle
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.console import note
from tinyllava_edge.export.pipeline import export_bundle
from tinyllava_edge.image import open_picture, preprocess
from tinyllava_edge.model.vlm import load_model
from tools.dinov2 import download_onnx
from tools.smollm2 import download_gguf, write_checkpoint

pytestmark = [pytest.mark.network, pytest.mark.slow]
# Keys that a converter fills from a model card, or that we leave to llama.cpp's defaults.
FREE_KEYS = ("general.", "tokenizer.chat_template", "tokenizer.ggml.add_", "GGUF.")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return download_gguf(tmp_path_factory.mktemp("package"))


@pytest.fixture(scope="module")
def chain(original: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Bundle]:
    folder = tmp_path_factory.mktemp("chain")
    checkpoint = write_checkpoint(original, download_onnx(folder), folder / "checkpoint")
    start = time.perf_counter()
    export_bundle(Checkpoint(checkpoint), folder / "bundle")
    bundle = Bundle.open(folder / "bundle")
    report = json.loads((bundle.root / "parity" / "export.json").read_text(encoding="utf-8"))
    note(f"\nexported in {time.perf_counter() - start:.0f} s")
    for variant in bundle.manifest.variants:
        figures = report[variant.part][variant.name]
        note(f"{variant.part} {variant.name}: {bundle.variant_bytes(variant):,} bytes, {str(figures)[:400]}")
    return checkpoint, bundle


def contents(path: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


def test_our_file_says_what_llama_cpps_own_converter_said(original: Path, chain: tuple[Path, Bundle]) -> None:
    theirs = contents(original)
    ours = contents(chain[1].root / "language" / "f32.gguf")
    wanted = {key: value for key, value in theirs.items() if not key.startswith(FREE_KEYS)}
    assert {key: ours.get(key) for key in wanted} == wanted
    assert ours["tokenizer.ggml.add_bos_token"] == theirs["tokenizer.ggml.add_bos_token"]


def test_our_float32_tensors_are_those_of_llama_cpps_own_converter(
    original: Path, chain: tuple[Path, Bundle]
) -> None:
    """Bit by bit, out of its row order and back into it: their file dequantized."""
    ours = {t.name: t.data for t in gguf.GGUFReader(chain[1].root / "language" / "f32.gguf").tensors}
    for tensor in gguf.GGUFReader(original).tensors:
        theirs = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        np.testing.assert_array_equal(ours.pop(tensor.name), theirs, err_msg=tensor.name)
    assert not ours


def test_logits_with_a_picture_are_torchs(chain: tuple[Path, Bundle]) -> None:
    checkpoint, bundle = chain
    picture = bundle.root / "reference" / "portrait.png"
    turns = [("<image>\nWhat is the capital of France?", None)]
    reference = load_model(Checkpoint(checkpoint))
    pixels = torch.from_numpy(preprocess(open_picture(picture), bundle.manifest.vision.preprocessing))
    with open_bundle(bundle.root, language="f32", kv_type="f32", context_length=512) as model:
        expected = reference.logits(model.tokenize(turns), pixels[None]).numpy()
        actual = model.logits(turns, [picture])
    nmse = float(np.mean((expected - actual) ** 2) / np.var(expected))
    note(f"\nprefill logits, {len(expected)} positions: NMSE {nmse:.2e}")
    assert nmse <= 1e-10


@pytest.mark.parametrize("language", ["f32", "f16", "q8_0", "q4_k_m"])
def test_every_variant_answers(chain: tuple[Path, Bundle], language: str) -> None:
    with open_bundle(chain[1].root, language=language, vision="fp16", context_length=512) as model:
        start = time.perf_counter()
        answer = "".join(model.chat("What is the capital of France?", max_tokens=24, temperature=0.0))
        note(f"\n{language}: {answer!r} in {time.perf_counter() - start:.1f} s")
        assert "Paris" in answer
        model.reset()
        picture = chain[1].root / "reference" / "wide.png"
        about_noise = "".join(model.chat("What is this?", [picture], max_tokens=8, temperature=0.0))
        note(f"{language}, about a picture through a random tower: {about_noise!r}")
