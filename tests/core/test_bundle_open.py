"""Opening a bundle: what its maker wrote opens, and any other state of the directory is named and refused."""

import json
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.core.small_bundle import FILES, change_manifest, file_entry, write_small_bundle
from tinyllava_edge.bundle import Bundle
from tinyllava_edge.errors import BundleError
from tinyllava_edge.parity_files import write_parity

TOWER = "vision/fp32.onnx"


def assert_refused(root: Path, *named: str) -> str:
    with pytest.raises(BundleError) as caught:
        Bundle.open(root)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 1000
    for name in named:
        assert name in message
    return message


def test_a_bundle_opens_as_it_was_written(root: Path) -> None:
    bundle = Bundle.open(root)
    assert [entry.path for entry in bundle.manifest.files] == sorted(FILES)
    assert {entry.path: bundle.path(entry.path).read_bytes() for entry in bundle.manifest.files} == FILES
    assert bundle.manifest.prompt.template.end == "</s>"
    assert bundle.manifest.vision.preprocessing.mean == (0.5, 0.5, 0.5)


def test_a_bundle_can_be_moved_and_copied(root: Path, tmp_path: Path) -> None:
    before = Bundle.open(root)
    root.rename(tmp_path / "moved")
    copied = Path(shutil.copytree(tmp_path / "moved", tmp_path / "copied"))
    assert Bundle.open(copied).manifest_sha256 == Bundle.open(tmp_path / "moved").manifest_sha256
    assert Bundle.open(copied).manifest == before.manifest


def test_the_bundle_may_be_reached_through_a_link(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root)
    assert Bundle.open(tmp_path / "link").path(TOWER).exists()


def test_variants_are_found_by_name_and_the_first_verified_one_is_the_default(root: Path) -> None:
    bundle = Bundle.open(root)
    assert bundle.variant("vision").name == "fp32"
    assert bundle.variant("vision", "fp16").files == ("vision/fp16.onnx",)
    assert bundle.variant_bytes(bundle.variant("vision")) == len(FILES[TOWER]) + 256
    with pytest.raises(BundleError, match=r"no vision variant 'int8'. There are: fp32 \(verified\), fp16"):
        bundle.variant("vision", "int8")
    with pytest.raises(BundleError, match=r"lists no file 'vision/\.\./secret'"):
        bundle.path("vision/../secret")


def test_without_a_verified_variant_none_is_chosen(root: Path) -> None:
    change_manifest(root, lambda m: m["variants"][2].update(status="built, not run"))
    with pytest.raises(BundleError, match=r"no verified language variant. There are: f16 \(built, not run\)"):
        Bundle.open(root).variant("language")


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(root: Path, name: str) -> None:
    (root / name).unlink()
    assert_refused(root, f"{root / name}: missing")


@pytest.mark.parametrize("kept", [0, 1, 128, 255, 257])
def test_a_file_of_another_length_is_named(root: Path, kept: int) -> None:
    path = root / "vision/fp32.onnx.data"
    path.write_bytes((path.read_bytes() + b"more")[:kept])
    assert_refused(root, f"{path}: {kept} bytes, the manifest says 256")


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_bit_is_found(root: Path, name: str) -> None:
    data = bytearray((root / name).read_bytes())
    data[len(data) // 2] ^= 1
    (root / name).write_bytes(data)
    assert_refused(root, f"{root / name}: sha256", "the file was changed")


def test_swapped_files_are_found(root: Path) -> None:
    (root / "tokenizer.json").rename(root / "kept")
    (root / "reference/reference.json").rename(root / "tokenizer.json")
    (root / "kept").rename(root / "reference/reference.json")
    assert_refused(root, "the file was changed")


@pytest.mark.parametrize(
    "name", ["extra.txt", "vision/plan.engine", ".hidden", "parity.json", "parity/run.sh", "parity/a/b.json"]
)
def test_a_file_that_is_not_listed_is_named(root: Path, name: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text("{}")
    assert_refused(root, str(root / name if "/a/" not in name else root / "parity/a"))


def test_results_of_verify_may_be_added(root: Path) -> None:
    bundle = Bundle.open(root)
    path = write_parity(bundle, "verify", {"passed": True})
    assert json.loads(path.read_text()) == {"manifest_sha256": bundle.manifest_sha256, "passed": True}
    assert [p.name for p in (root / "parity").iterdir()] == ["verify.json"]
    assert Bundle.open(root).manifest_sha256 == bundle.manifest_sha256


@pytest.mark.parametrize("folder", ["empty", "vision/empty", "parity/empty", ".git"])
def test_a_folder_of_nothing_listed_is_named(root: Path, folder: str) -> None:
    (root / folder).mkdir(parents=True)
    assert_refused(root, str(root / folder))


def with_file_link(root: Path) -> Path:
    (root / TOWER).rename(root.parent / "outside")
    (root / TOWER).symlink_to(root.parent / "outside")
    return root / TOWER


def with_folder_link(root: Path) -> Path:
    (root / "vision").rename(root.parent / "outside")
    (root / "vision").symlink_to(root.parent / "outside")
    return root / "vision"


def with_extra_link(root: Path) -> Path:
    (root / "parity").mkdir()
    (root / "parity/r.json").symlink_to("/etc/passwd")
    return root / "parity/r.json"


def with_linked_parity(root: Path) -> Path:
    (root / "parity").symlink_to(root.parent)
    return root / "parity"


def with_broken_link(root: Path) -> Path:
    (root / "dangling").symlink_to("nowhere")
    return root / "dangling"


def with_hard_link(root: Path) -> Path:
    os.link(root / TOWER, root.parent / "outside")
    return root / TOWER


def with_linked_manifest(root: Path) -> Path:
    (root / "manifest.json").rename(root.parent / "outside")
    (root / "manifest.json").symlink_to(root.parent / "outside")
    return root / "manifest.json"


def with_pipe(root: Path) -> Path:
    (root / TOWER).unlink()
    os.mkfifo(root / TOWER)
    return root / TOWER


def with_parity_pipe(root: Path) -> Path:
    (root / "parity").mkdir()
    os.mkfifo(root / "parity/r.json")
    return root / "parity/r.json"


def with_socket(root: Path) -> Path:
    with socket.socket(socket.AF_UNIX) as server:
        previous = os.getcwd()
        os.chdir(root)  # the name of a socket must be short
        try:
            server.bind("socket")
        finally:
            os.chdir(previous)
    return root / "socket"


def with_folder_for_file(root: Path) -> Path:
    (root / TOWER).unlink()
    (root / TOWER).mkdir()
    return root / TOWER


@pytest.mark.parametrize(
    "attack",
    [
        with_file_link,
        with_folder_link,
        with_extra_link,
        with_linked_parity,
        with_broken_link,
        with_hard_link,
        with_linked_manifest,
        with_pipe,
        with_parity_pipe,
        with_socket,
        with_folder_for_file,
    ],
    ids=lambda attack: attack.__name__,
)
def test_what_is_not_a_plain_file_of_its_own_is_named(root: Path, attack: Callable[[Path], Path]) -> None:
    is_link = "link" in attack.__name__
    assert_refused(root, str(attack(root)), "link" if is_link else "is no file that the manifest lists")


def test_a_listed_pipe_of_size_zero_is_refused_and_not_read(root: Path) -> None:
    os.mkfifo(root / "empty.bin")
    change_manifest(root, lambda m: m["files"].append(file_entry("empty.bin")))
    assert_refused(root, str(root / "empty.bin"))


@pytest.mark.parametrize("name", ["vision", "manifest.json", TOWER, "parity"])
def test_what_cannot_be_read_is_named(name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own is closed to other users
        os.chmod(folder, 0o755)
        root = write_small_bundle(Path(folder) / "bundle")
        write_parity(Bundle.open(root), "verify", {})
        (root / name).chmod(0)
        with not_root():
            assert_refused(root, str(root / name), "cannot be read")
        (root / name).chmod(0o700)


@contextmanager
def not_root() -> Iterator[None]:
    """Be nobody for a while: root may read everything."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


def test_a_path_that_is_no_bundle_is_refused(root: Path, tmp_path: Path) -> None:
    assert_refused(tmp_path / "absent", "no such directory", "nano")
    assert_refused(root / "tokenizer.json", "no such directory")
    assert_refused(root / "vision", "manifest.json: no such file")
    assert_refused(Path("x" * 300), "cannot be read")
    assert_refused(Path("nul\0byte"), "no such directory")
