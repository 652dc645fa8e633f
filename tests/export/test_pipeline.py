"""The whole export: what is in the bundle, and that a failure leaves nothing."""

import json
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from tests.core.small_bundle import tree, write_small_bundle
from tests.export.conftest import Exported
from tests.export.gguf_files import change_weights, language_source
from tests.opened_files import counted_opens
from tinyllava_edge.bundle import Bundle
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.errors import CheckpointError, ExportError, OutputExistsError
from tinyllava_edge.export import pipeline, vision_variants
from tinyllava_edge.export.cli import export as export_command
from tinyllava_edge.export.gguf_arch import llama
from tinyllava_edge.export.language_gguf import no_progress
from tinyllava_edge.export.pipeline import ExportOptions, count_steps, export_bundle
from tinyllava_edge.export.recipes import Recipes
from tinyllava_edge.image import open_picture, preprocess
from tinyllava_edge.model.vlm import TinyLlava, load_model

SMALL = ExportOptions(vision=("fp32",), language=("q8_0",))


@pytest.fixture
def quick_trace(vision_graph: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trace the tower once for all tests that export the same checkpoint: it is the slow step."""

    def traced_before(model: TinyLlava, size: int) -> onnx.ModelProto:
        return vision_graph

    monkeypatch.setattr(pipeline, "build_vision_graph", traced_before)


def test_the_manifest_says_what_the_checkpoint_is(exported: Exported) -> None:
    manifest = exported.bundle.manifest
    assert [(v.part, v.name, v.target, v.files, v.status) for v in manifest.variants] == [
        ("vision", "fp32", "onnx", ("vision/fp32.onnx",), "verified"),
        ("vision", "fp16", "onnx", ("vision/fp16.onnx",), "verified"),
        ("language", "f32", "gguf", ("language/f32.gguf",), "verified"),
        ("language", "f16", "gguf", ("language/f16.gguf",), "verified"),
        ("language", "q8_0", "gguf", ("language/q8_0.gguf",), "verified"),
        ("language", "q4_k_m", "gguf", ("language/q4_k_m.gguf",), "verified"),
    ]
    model = load_model(Checkpoint(exported.checkpoint))
    for part, spec in manifest.parts.items():
        assert spec.parameters == sum(p.numel() for p in getattr(model, part).parameters())
        assert spec.dtype == "float32"
    assert manifest.source.name == str(exported.checkpoint)
    assert manifest.source.checkpoint_sha256 == Checkpoint(exported.checkpoint).sha256
    assert (manifest.prompt.bos_id, manifest.prompt.stop_ids) == (1, (2,))
    assert (manifest.vision.num_tokens, manifest.vision.drop_first) == (15, True)
    assert (manifest.language.context_length, manifest.language.num_key_value_heads) == (1024, 2)
    assert manifest.versions["torch"] == version("torch")


def test_the_default_variant_is_the_most_precise_one(exported: Exported) -> None:
    assert exported.bundle.variant("vision").name == "fp32"
    assert exported.bundle.variant("language").name == "f32"


def test_what_was_measured_is_kept_beside_the_manifest_and_bound_to_it(exported: Exported) -> None:
    path = exported.bundle.root / "parity" / "export.json"
    report = json.loads(path.read_text(encoding="utf-8"))
    assert report["manifest_sha256"] == exported.bundle.manifest_sha256
    assert report["vision"]["fp32"]["onnxruntime"]["nmse"] < 1e-11
    assert report["vision"]["fp16"]["rounded"]["snr_db"] > 45
    assert report["vision"]["fp16"]["margin"] > 1
    assert report["language"]["f32"]["lowest_snr_db"] is None
    assert report["language"]["q4_k_m"]["fallback"] == []


def test_reference_tensors_are_torchs(exported: Exported) -> None:
    folder = exported.bundle.root / "reference"
    contents = json.loads((folder / "reference.json").read_text(encoding="utf-8"))
    tensors = np.load(folder / "reference.npz", allow_pickle=False)
    model = load_model(Checkpoint(exported.checkpoint))
    how = exported.bundle.manifest.vision.preprocessing
    pixels = [preprocess(open_picture(folder / name), how) for name in contents["pictures"]]
    for index, picture in enumerate(pixels):
        np.testing.assert_array_equal(tensors[f"pixels/{index}"], picture)
        embeddings = model.encode(torch.from_numpy(picture)[None])[0].detach().numpy()
        np.testing.assert_allclose(tensors[f"embeddings/{index}"], embeddings, atol=1e-5)
        assert tensors[f"vision_tower/{index}"].shape == (15, 48)
    names = [prompt["name"] for prompt in contents["prompts"]]
    assert names == ["single", "two_turns", "text_only", "two_pictures"]
    for prompt in contents["prompts"]:
        given = torch.from_numpy(np.stack(pixels)[prompt["pictures"]])
        logits = model.logits(prompt["input_ids"], given).numpy()
        assert len(logits) == prompt["positions"]
        assert prompt["logit_positions"] == list(range(len(logits) - 32, len(logits)))
        np.testing.assert_allclose(tensors[f"logits/{prompt['name']}"], logits[-32:], atol=1e-4)
        assert prompt["input_ids"].count(-200) == len(prompt["pictures"])
        assert prompt["greedy_ids"] == greedy_without_cache(
            model, prompt["input_ids"], given, len(prompt["greedy_ids"])
        )


def greedy_without_cache(model: TinyLlava, ids: list[int], pixels: torch.Tensor, count: int) -> list[int]:
    """A greedy answer from whole prefills, the plain way."""
    answer: list[int] = []
    for _ in range(count):
        answer.append(int(model.logits([*ids, *answer], pixels)[-1].argmax()))
    return answer


def test_pictures_are_of_several_shapes_and_modes_and_small(exported: Exported) -> None:
    folder = exported.bundle.root / "reference"
    names = json.loads((folder / "reference.json").read_text(encoding="utf-8"))["pictures"]
    sizes = [open_picture(folder / name).size for name in names]
    assert any(width < height for width, height in sizes)
    assert any(width > 1.5 * height for width, height in sizes)
    assert sum((folder / name).stat().st_size for name in names) < 150_000


def test_a_float16_checkpoint_is_quantized_from_float16_to_the_same_bytes(
    checkpoint: Path, tmp_path: Path
) -> None:
    """The base of the quantizer is half as large, and gone when the bundle is done."""
    half = Path(shutil.copytree(checkpoint, tmp_path / "half"))
    change_weights(half, lambda tensors: tensors.update({k: v.half() for k, v in tensors.items()}))
    whole = Path(shutil.copytree(half, tmp_path / "whole"))
    change_weights(whole, lambda tensors: tensors.update({k: v.float() for k, v in tensors.items()}))
    written = []
    for stored, is_half in ((half, True), (whole, False)):
        root = tmp_path / f"bundle of {stored.name}"
        root.mkdir()
        pipeline._export_language(
            root, language_source(stored), is_half, Recipes(options=SMALL), lambda step: None, no_progress
        )
        (path,) = (root / "language").iterdir()
        written.append(path.read_bytes())
    assert written[0] == written[1]


@pytest.mark.usefixtures("quick_trace")
def test_steps_are_announced_and_the_same_input_gives_the_same_bundle(
    checkpoint: Path, tmp_path: Path
) -> None:
    steps: list[str] = []
    total: list[int] = []
    first = export_bundle(
        Checkpoint(checkpoint), tmp_path / "first", SMALL, on_step=steps.append, on_total=total.append
    )
    assert [len(steps)] == total == [count_steps(SMALL)] == [len(set(steps))]
    assert export_bundle(Checkpoint(checkpoint), tmp_path / "second", SMALL) == first


@pytest.mark.usefixtures("quick_trace")
def test_config_json_is_read_once(checkpoint: Path, tmp_path: Path) -> None:
    with counted_opens(checkpoint / "config.json") as opens:
        export_bundle(Checkpoint(checkpoint), tmp_path / "out", SMALL)
    assert opens == [1]


@pytest.mark.usefixtures("quick_trace")
def test_the_command_reads_config_json_once(checkpoint: Path, tmp_path: Path) -> None:
    with counted_opens(checkpoint / "config.json") as opens:
        export_command(str(checkpoint), tmp_path / "out", vision="fp32", language="f32")
    assert opens == [1]


def test_an_existing_output_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputExistsError, match="--force"):
        export_bundle(Checkpoint(tmp_path / "no checkpoint"), tmp_path / "out", SMALL)


@pytest.mark.usefixtures("quick_trace")
@pytest.mark.parametrize(
    "step",
    [
        "read_assets",
        "stream_model",
        "write_reference",
        "build_vision_graph",
        "calibration_pixels",
        "write_variant",
        "vision_variants.write_vision_graph",
        "vision_variants.check_rounded",
        "vision_variants.to_float16",
        "vision_variants.check_vision",
        "write_language_gguf",
        "quantize_gguf",
        "check_language",
        "_seal",
        "write_parity",
    ],
)
def test_a_failure_at_any_step_leaves_nothing_and_an_older_bundle_untouched(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    out = write_small_bundle(tmp_path / "out")
    before = tree(out)

    def fail(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt  # what a user's Ctrl-C raises

    owner, _, name = step.rpartition(".")
    owners = {"": pipeline, "vision_variants": vision_variants}
    monkeypatch.setattr(owners[owner], name, fail)
    with pytest.raises(KeyboardInterrupt):
        export_bundle(
            Checkpoint(checkpoint), out, ExportOptions(vision=("fp16",), language=("q8_0",), force=True)
        )
    assert list(tmp_path.iterdir()) == [out]
    assert tree(out) == before


def test_a_template_that_asks_no_question_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="'pretrain' needs"):
        export_bundle(Checkpoint(checkpoint, template="pretrain"), tmp_path / "out")


@pytest.mark.usefixtures("quick_trace")
def test_a_bundle_that_fails_its_own_check_is_not_published(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A converter that leaves q and k as they are writes a file that reads back wrong."""
    monkeypatch.setattr(llama, "interleave", lambda tensor, heads: tensor)
    with pytest.raises(ExportError, match=r"f32\.gguf: blk\.\d\.attn_[qk]\.weight"):
        export_bundle(
            Checkpoint(checkpoint), tmp_path / "out", ExportOptions(vision=("fp32",), language=("f32",))
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name",
    [
        "vision_tower._vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight",
        "connector._connector.0.bias",
        "language_model.model.norm.weight",
    ],
)
def test_a_weight_that_is_not_finite_is_named(checkpoint: Path, tmp_path: Path, name: str) -> None:
    spoilt = Path(shutil.copytree(checkpoint, tmp_path / "spoilt"))
    change_weights(spoilt, lambda tensors: tensors[name].view(-1)[:1].fill_(torch.nan))
    with pytest.raises(CheckpointError, match=f"{name.split('.')[-2]}.*NaN"):
        export_bundle(Checkpoint(spoilt), tmp_path / "out", SMALL)
    assert not (tmp_path / "out").exists()


def test_a_transposed_weight_is_named_with_both_shapes(checkpoint: Path, tmp_path: Path) -> None:
    spoilt = Path(shutil.copytree(checkpoint, tmp_path / "spoilt"))
    name = "language_model.model.layers.0.mlp.down_proj.weight"
    change_weights(spoilt, lambda tensors: tensors.update({name: tensors[name].T.contiguous()}))
    with pytest.raises(CheckpointError, match=r"down_proj.*\[128, 64\].*\[64, 128\]"):
        export_bundle(Checkpoint(spoilt), tmp_path / "out", SMALL)


@pytest.mark.usefixtures("quick_trace")
def test_the_command_prints_one_line_of_json_and_warns_of_fallbacks(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export_command(str(checkpoint), tmp_path / "out", vision="fp32", language="q4_k_m,f16", json=True)
    captured = capsys.readouterr()
    (line,) = captured.out.splitlines()
    result = json.loads(line)
    bundle = Bundle.open(tmp_path / "out")
    assert result["manifest_sha256"] == bundle.manifest_sha256
    rows = {row["name"]: row for row in result["variants"]}
    assert list(rows) == ["fp32", "f16", "q4_k_m"]
    assert rows["f16"]["bytes"] == (tmp_path / "out/language/f16.gguf").stat().st_size
    assert len(rows["q4_k_m"]["fallback"]) == 16
    assert "q4_k_m: 16 tensors" in captured.err
    assert "f16" not in captured.err


@pytest.mark.usefixtures("quick_trace")
def test_the_command_prints_a_table_of_variants(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export_command(str(checkpoint), tmp_path / "out", vision="fp16", language="f32")
    text = capsys.readouterr().out
    for word in ("fp16", "f32", "verified", "bit-equal", "SNR"):
        assert word in text
