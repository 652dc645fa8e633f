"""Results beside a bundle are bound to its manifest, and nothing is written into the package."""

from pathlib import Path
from typing import Any

import pytest

from tinyllava_edge.bundle import Bundle
from tinyllava_edge.checkpoint.names import bundle_path
from tinyllava_edge.errors import BundleError
from tinyllava_edge.parity_files import parity_path, read_parity, write_parity


def test_parity_of_another_manifest_is_not_used(root: Path) -> None:
    bundle = Bundle.open(root)
    write_parity(bundle, "some-runtime", {"passed": True, "stages": []})
    assert read_parity(bundle, "some-runtime") is not None
    other = Bundle(bundle.root, bundle.manifest, "0" * 64)
    assert read_parity(other, "some-runtime") is None


def test_parity_of_the_shipped_bundle_is_kept_in_the_users_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    bundle = Bundle.open(bundle_path("nano"))
    path = write_parity(bundle, "some-runtime", {"passed": True})
    assert path == tmp_path / "tinyllava-edge" / "parity" / bundle.manifest_sha256 / "some-runtime.json"
    assert read_parity(bundle, "some-runtime") == {"manifest_sha256": bundle.manifest_sha256, "passed": True}


def test_what_export_found_of_the_shipped_bundle_came_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    report = read_parity(Bundle.open(bundle_path("nano")), "export")
    assert report is not None
    assert report["vision"]["fp16"]["islands"] == []


def test_a_result_that_is_no_json_is_named(root: Path) -> None:
    bundle = Bundle.open(root)
    path = write_parity(bundle, "export", {})
    path.write_text("{")
    with pytest.raises(BundleError, match=r"parity/export\.json: not valid JSON"):
        read_parity(bundle, "export")


def test_a_result_that_is_no_object_is_named(root: Path) -> None:
    bundle = Bundle.open(root)
    write_parity(bundle, "export", {}).write_text("[]")
    with pytest.raises(BundleError, match=r"parity/export\.json: expected a JSON object, found list"):
        read_parity(bundle, "export")


def test_what_is_not_finite_is_a_text_in_a_result(root: Path) -> None:
    bundle = Bundle.open(root)
    checks = [{"metric": "mean_kld", "value": value} for value in ("nan", "inf", "-inf", 1.5, 1.0)]
    write_parity(
        bundle, "verify", {"passed": True, "stages": [{"stage": "text", "variant": "", "checks": checks}]}
    )
    found = read_parity(bundle, "verify")
    assert found is not None
    assert found["stages"][0]["checks"] == checks


def test_what_export_finds_of_a_new_shipped_bundle_goes_into_it() -> None:
    """While it is written it stands beside the old one: `make nano-bundle`."""
    shipped = Bundle.open(bundle_path("nano"))
    work = Bundle(shipped.root.with_name(".bundle.tmp-abc"), shipped.manifest, shipped.manifest_sha256)
    assert parity_path(work, "export") == work.root / "parity" / "export.json"


def of_verify(**changed: Any) -> dict[str, Any]:
    check = {"metric": "snr_db", "value": "inf"}
    stage = {"stage": "tower", "variant": "fp32", "checks": [check], "detail": "kept, and not read"}
    return {"passed": True, "variants": {"vision": ["fp32"]}, "stages": [stage], **changed}


@pytest.mark.parametrize(
    ("name", "result", "said"),
    [
        ("some-runtime", of_verify(passed=1), "passed"),
        ("some-runtime", of_verify(variants={"vision": []}), r"variants\.vision"),
        ("some-runtime", of_verify(stages=[{"stage": "tower"}]), r"stages\.0\.variant"),
        ("some-runtime", of_verify(stages=[{"stage": "a", "variant": "", "checks": [{}]}]), "metric"),
        ("some-runtime", {}, "passed"),
        ("export", {"vision": []}, "vision"),
        ("export", {"vision": {"fp16": {"islands": [{"nodes": 5}]}}}, r"islands\.0\.nodes"),
    ],
)
def test_what_is_read_of_a_result_has_its_type(
    root: Path, name: str, result: dict[str, Any], said: str
) -> None:
    bundle = Bundle.open(root)
    write_parity(bundle, name, result)
    with pytest.raises(BundleError, match=rf"parity/{name}\.json: .*{said}.*: .*Remove it"):
        read_parity(bundle, name)


@pytest.mark.parametrize("text", [b"\xff{}", b"[" * 100_000, b'{"a": ' * 50_000, b" " * ((8 << 20) + 1)])
def test_a_result_that_cannot_be_read_is_named(root: Path, text: bytes) -> None:
    bundle = Bundle.open(root)
    write_parity(bundle, "some-runtime", of_verify())
    assert read_parity(bundle, "some-runtime") is not None
    (root / "parity" / "some-runtime.json").write_bytes(text)
    with pytest.raises(BundleError, match=r"parity/some-runtime\.json: (not valid JSON|larger than)"):
        read_parity(bundle, "some-runtime")
