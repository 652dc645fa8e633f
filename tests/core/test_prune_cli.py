"""A pruned bundle is a whole bundle with fewer variants."""

import json
from pathlib import Path

import pytest

from tests.core.small_bundle import FILES, tree, write_small_bundle
from tinyllava_edge.bundle import Bundle
from tinyllava_edge.errors import BundleError, OutputExistsError, UsageError
from tinyllava_edge.parity_files import write_parity
from tinyllava_edge.prune_cli import prune


def test_only_the_named_variants_and_what_all_need_are_kept(root: Path, tmp_path: Path) -> None:
    write_parity(Bundle.open(root), "verify", {})
    before = tree(root)
    prune(str(root), tmp_path / "small", vision="fp16", language="f16")
    small = Bundle.open(tmp_path / "small")
    kept = {name for name in FILES if not name.startswith("vision/fp32")}
    assert set(tree(small.root)) == {"manifest.json", *kept}  # no results of the other manifest
    assert [(v.part, v.name, v.status) for v in small.manifest.variants] == [
        ("vision", "fp16", "built, not run"),
        ("language", "f16", "verified"),
    ]
    same = {name: getattr(small.manifest, name) for name in ("variants", "files", "digest")}
    assert Bundle.open(root).manifest.model_copy(update=same) == small.manifest
    assert tree(root) == before


def test_only_another_bundle_is_replaced(root: Path, tmp_path: Path) -> None:
    before = tree(root)
    with pytest.raises(UsageError, match="which this command reads"):
        prune(str(root), root, vision="fp32", language="f16", force=True)
    assert tree(root) == before
    other = write_small_bundle(tmp_path / "other")
    with pytest.raises(OutputExistsError, match="--force"):
        prune(str(root), other, vision="fp32", language="f16")
    prune(str(root), other, vision="fp32", language="f16", force=True)
    assert [variant.name for variant in Bundle.open(other).manifest.variants] == ["fp32", "f16"]
    assert "vision/fp32.onnx.data" in tree(other)
    assert "vision/fp16.onnx" not in tree(other)


def test_a_variant_that_is_not_there_is_named_and_nothing_is_written(root: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"no language variant 'q4_k_m'\. There are: f16"):
        prune(str(root), tmp_path / "small", vision="fp16", language="f16,q4_k_m")
    with pytest.raises(UsageError, match="--vision: name at least one"):
        prune(str(root), tmp_path / "small", vision="", language="f16")
    assert not (tmp_path / "small").exists()


def test_json_says_how_much_it_saved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_small_bundle(tmp_path / "bundle")
    prune(str(root), tmp_path / "small", vision="fp16", language="f16", json=True)
    said = json.loads(capsys.readouterr().out)
    saved = len(FILES["vision/fp32.onnx"]) + len(FILES["vision/fp32.onnx.data"])
    assert said["bytes_before"] - said["bytes"] == saved
    assert said["variants"] == ["vision fp16", "language f16"]


def test_a_file_that_changes_while_it_is_copied_is_not_sealed(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def copy(source: Path, target: Path) -> None:
        target.write_bytes(source.read_bytes().replace(b"BPE", b"bpe"))

    monkeypatch.setattr("shutil.copyfile", copy)
    with pytest.raises(BundleError, match=r"tokenizer\.json: was changed during the copy"):
        prune(str(root), tmp_path / "small", vision="fp16", language="f16")
    assert not (tmp_path / "small").exists()
