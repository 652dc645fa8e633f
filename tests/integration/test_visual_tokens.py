"""Connectors that make fewer visual tokens, from checkpoint to a proven bundle and an answer."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from tests.benchmarks.conftest import climb_quickly, write_decided_checkpoint
from tinyllava_edge.benchmarks.bench.plan import plan_cells
from tinyllava_edge.benchmarks.evals.cells import Wish, named_bundles
from tinyllava_edge.benchmarks.verify.reference_checkpoint import CheckpointReference
from tinyllava_edge.benchmarks.verify.reference_stored import StoredReference
from tinyllava_edge.bundle import Bundle
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.cli import app
from tinyllava_edge.errors import BundleError, UsageError
from tinyllava_edge.export import onnx_file
from tinyllava_edge.export.pipeline import ExportOptions, export_bundle
from tinyllava_edge.prune_cli import prune_bundle
from tinyllava_edge.reference_tensors import read_reference_tensors
from tinyllava_edge.runtimes.model import open_bundle

pytestmark = pytest.mark.slow
RUNTIME = "onnxruntime+llamacpp"


@pytest.mark.long
def test_a_connector_of_squares_is_exported_and_proven(tmp_path: Path) -> None:
    """On the tower whose pictures are not of its position table's size."""
    sizes: dict[str, Any] = {"connector": "avg_pool", "tower": "dinov2", "image_size": 42, "factor": 3}
    checkpoint = write_decided_checkpoint(tmp_path / "checkpoint", **sizes)
    options = ExportOptions(vision=("fp32",), language=("f32",))
    assert export_bundle(Checkpoint(checkpoint), tmp_path / "bundle", options).vision.num_tokens == 1
    reference = CheckpointReference(Checkpoint(checkpoint), num_tokens=2)
    report = climb_quickly(Bundle.open(tmp_path / "bundle"), reference)
    assert report.passed, report.verdict


@dataclass(frozen=True)
class Nested:
    """A checkpoint with the budgets 16, 4 and 1, and its bundle, whose weights lie apart."""

    checkpoint: Path
    bundle: Bundle


@pytest.fixture(scope="module")
def nested(tmp_path_factory: pytest.TempPathFactory) -> Nested:
    folder = tmp_path_factory.mktemp("nested")
    sizes: dict[str, Any] = {"connector": "avg_pool", "select_strategy": "cls_patch"}
    checkpoint = write_decided_checkpoint(folder / "checkpoint", **sizes)
    path = checkpoint / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"token_budgets": [16, 4, 1]}))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(onnx_file, "INLINE_LIMIT", 1 << 10)
        options = ExportOptions(vision=("fp32", "int8"), language=("f32",))
        export_bundle(Checkpoint(checkpoint), folder / "bundle", options)
    return Nested(checkpoint, Bundle.open(folder / "bundle"))


@pytest.fixture
def picture() -> Image.Image:
    return Image.effect_mandelbrot((80, 60), (-2, -1.5, 1, 1.5), 50).convert("RGB")


def test_each_budget_is_a_vision_variant_over_the_same_weights(nested: Nested) -> None:
    manifest = nested.bundle.manifest
    visions = [variant for variant in manifest.variants if variant.part == "vision"]
    names = ["fp32", "int8", "fp32-4", "int8-4", "fp32-1", "int8-1"]
    assert [variant.name for variant in visions] == names
    assert (manifest.budgets, manifest.vision.num_tokens) == ((16, 4, 1), 16)
    data = {variant.name: set(variant.files[1:]) for variant in visions}
    assert data["fp32"] == data["fp32-4"] == data["fp32-1"] == {"vision/fp32.onnx.data"}
    assert data["int8-4"] == {"vision/int8.onnx.data"}


def test_verify_proves_every_budget(nested: Nested) -> None:
    reference = CheckpointReference(Checkpoint(nested.checkpoint), num_tokens=2)
    report = climb_quickly(nested.bundle, reference, vision=("fp32", "int8-4", "fp32-1"))
    assert report.passed, report.verdict
    found = {(result.stage, result.variant) for result in report.results if result.checks}
    assert {("connector", name) for name in ("fp32", "int8-4", "fp32-1")} <= found
    assert {("greedy", f"f32{more}") for more in ("", ", vision int8-4", ", vision fp32-1")} <= found
    stored = climb_quickly(nested.bundle, StoredReference(nested.bundle), vision=("fp32", "fp32-4"))
    assert stored.passed, stored.verdict


def test_verify_finds_a_budget_whose_graph_is_another_ones(nested: Nested, tmp_path: Path) -> None:
    """4 tokens under the name of 1: everything else is right."""
    from tests.core.small_bundle import change_manifest

    prune_bundle(nested.bundle, tmp_path / "bundle", nested.bundle.manifest.variants)

    def swap(manifest: dict[str, Any]) -> None:
        by_name = {variant["name"]: variant for variant in manifest["variants"]}
        by_name["fp32-1"]["files"] = by_name["fp32-4"]["files"]

    change_manifest(tmp_path / "bundle", swap)
    reference = CheckpointReference(Checkpoint(nested.checkpoint), num_tokens=2)
    report = climb_quickly(Bundle.open(tmp_path / "bundle"), reference, vision=("fp32", "fp32-1"))
    assert report.first_failure is not None
    assert (report.first_failure.stage, report.first_failure.variant) == ("connector", "")
    assert "4, 64" in report.first_failure.cause


@pytest.mark.parametrize("runtime", [RUNTIME, "torch", "scripted"])
def test_a_budget_is_picked_when_a_bundle_is_opened(
    runtime: str, nested: Nested, picture: Image.Image
) -> None:
    options: dict[str, Any] = {"runtime": runtime}
    if runtime == "torch":
        options["checkpoint"] = nested.checkpoint
    positions = {}
    for tokens in (None, 16, 4, 1):
        with open_bundle(nested.bundle.root, tokens=tokens, **options) as model:
            rows = model.encode(picture)
            assert rows.shape[1] == (tokens or 16)
            assert "".join(model.answer([("What?", None)], picture, max_tokens=2)) is not None
            assert model.last_timings is None or model.last_timings.prompt_tokens > 0
            positions[tokens] = model.last_timings and model.last_timings.prompt_tokens
            if runtime == RUNTIME:
                assert model.vision.name == f"onnxruntime fp32{'' if rows.shape[1] == 16 else f'-{tokens}'}"
    if None not in positions.values():
        assert positions[16] - positions[1] == 15  # type: ignore[operator]


def test_a_variant_is_named_by_its_precision_beside_a_budget(nested: Nested) -> None:
    for asked in ({"vision": "int8", "tokens": 4}, {"vision": "int8-4"}, {"vision": "int8-4", "tokens": 4}):
        with open_bundle(nested.bundle, runtime=RUNTIME, **asked) as model:
            assert (model.vision.name, model.bundle.manifest.vision.num_tokens) == ("onnxruntime int8-4", 4)


@pytest.mark.parametrize(("asked", "said"), [
    ({"tokens": 81}, "has no budget of 81 visual tokens. There are: 16, 4, 1."),
    ({"vision": "int8-9"}, "has no budget of 9 visual tokens. There are: 16, 4, 1."),
    ({"vision": "int8-4", "tokens": 1}, "no vision variant 'int8-4'. There are: fp32-1 (verified), int8-1"),
])  # fmt: skip
def test_a_budget_that_is_not_there_is_one_line(asked: dict[str, Any], said: str, nested: Nested) -> None:
    with pytest.raises(BundleError) as caught:
        open_bundle(nested.bundle, runtime=RUNTIME, **asked)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="tokens is 0; it must be 1 or more"):
        open_bundle(nested.bundle, tokens=0)
    with pytest.raises(BundleError, match=r"no budget of 81 visual tokens. There are: 35."):
        open_bundle("nano", tokens=81)


def test_a_picture_known_at_one_budget_is_computed_anew_at_another(
    nested: Nested, picture: Image.Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither rows nor the context's state of one budget are taken for another's, on disk or in memory."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found = []
    for tokens in (4, 1, 4):
        with open_bundle(nested.bundle, runtime=RUNTIME, tokens=tokens, store_mb=50) as model:
            stream = model.answer([("What is this?", None)], picture, max_tokens=4)
            assert "".join(stream) is not None
            assert stream.timings is not None
            found.append((stream.ids, stream.timings.reused_tokens, model.encode(picture)))
    (first, none, rows), (_, also_none, others), (again, reused, kept) = found
    assert (none, also_none) == (0, 0), "nothing of another budget was reused"
    assert reused > 4
    assert first == again
    assert rows.shape[1:] == (4, 64)
    assert others.shape[1:] == (1, 64)
    np.testing.assert_array_equal(rows, kept)


def test_the_same_backend_name_with_another_number_of_rows_is_another_key(
    nested: Nested, picture: Image.Image
) -> None:
    """The scripted and the torch backend do not have the variant in their name."""
    keys = set()
    for tokens in (16, 4):
        with open_bundle(nested.bundle, runtime="scripted", tokens=tokens) as model:
            model.encode(picture)
            keys |= set(model._encoder._cache)
    assert len(keys) == 2


def test_a_bundle_pruned_to_one_budget_opens_there(nested: Nested, tmp_path: Path) -> None:
    kept = (nested.bundle.variant("vision", "fp32-4"), nested.bundle.variant("language", "f32"))
    prune_bundle(nested.bundle, tmp_path / "small", kept)
    small = Bundle.open(tmp_path / "small")
    assert small.manifest.budgets == (4,)
    with open_bundle(small, runtime=RUNTIME) as model:
        assert model.vision.name == "onnxruntime fp32-4"
    assert read_reference_tensors(small.at_tokens()).embeddings.shape[1:] == (4, 64)
    reference = CheckpointReference(Checkpoint(nested.checkpoint), num_tokens=2)
    assert climb_quickly(small, reference).first_failure is None


def test_rows_of_a_comparison_are_asked_for_by_budgets(nested: Nested) -> None:
    named = named_bundles([nested.bundle])
    asked = Wish(runtimes=(RUNTIME,), vision=("int8",), budgets=("all",), checkpoints=(nested.checkpoint,))
    assert [cell.name for cell in plan_cells(named, asked)[:-1]] == [
        "int8 + f32",
        "int8-4 + f32",
        "int8-1 + f32",
    ]
    by_torch = Wish(runtimes=("torch",), budgets=("1", "16"), checkpoints=(nested.checkpoint,))
    assert [cell.options.tokens for cell in plan_cells(named, by_torch)[:-1]] == [16, 1]
    with pytest.raises(BundleError, match="no budget of 9"):
        plan_cells(named, Wish(runtimes=(RUNTIME,), budgets=("9",)))
    with pytest.raises(UsageError, match="--budgets 'few': expected numbers"):
        plan_cells(named, Wish(runtimes=(RUNTIME,), budgets=("few",)))


def test_commands_say_what_there_is(nested: Nested, tmp_path: Path, picture: Image.Image) -> None:
    root, file = str(nested.bundle.root), tmp_path / "a.png"
    picture.save(file)
    shown = CliRunner().invoke(app, ["inspect", root, "--json"])
    assert json.loads(shown.stdout)["token_budgets"] == [16, 4, 1]
    words = [
        "run",
        root,
        str(file),
        "What?",
        "--tokens",
        "4",
        "--runtime",
        RUNTIME,
        "--max-tokens",
        "2",
        "--json",
    ]
    told = CliRunner().invoke(app, words)
    assert told.exit_code == 0, told.output
    wide = json.loads(CliRunner().invoke(app, [w for w in words if w not in ("--tokens", "4")]).stdout)
    assert wide["timings"]["prompt_tokens"] - json.loads(told.stdout)["timings"]["prompt_tokens"] == 12
    card = CliRunner().invoke(app, ["card", root, "--checkpoint", str(nested.checkpoint)])
    assert "visual tokens of a picture | 16, 4, 1 |" in card.stdout
