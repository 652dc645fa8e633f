"""One command from a name: a bundle is downloaded, a checkpoint exported once, from a hub on this machine."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from typer.testing import CliRunner, Result

from tests.core.checkpoint.test_hub import point_at
from tests.hub_server import COMMIT, Requests, hub_of
from tests.tiny import write_tiny_checkpoint
from tinyllava_edge.bundle import Bundle
from tinyllava_edge.checkpoint.names import bundle_path
from tinyllava_edge.cli import app
from tinyllava_edge.errors import BundleError, CheckpointError, TinyLlavaEdgeError
from tinyllava_edge.runtimes.model import open_bundle

BUNDLE, CHECKPOINT, GATED = "someone/nano-bundle", "someone/tiny-llava", "someone/secret"
PICTURE = Path("docs/pictures/emoji.webp").resolve()
Hub = tuple[Path, Requests]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with a bundle, a whole checkpoint and one that wants a login; and the requests."""
    root = tmp_path / "root"
    shutil.copytree(bundle_path("nano"), root / BUNDLE)
    write_tiny_checkpoint(root / CHECKPOINT, hidden=32, intermediate=48, layers=1)
    (root / GATED).mkdir()
    (root / GATED / ".gated").touch()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))  # of the export's process
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    with hub_of(root) as (address, requests):
        point_at(address, monkeypatch)
        monkeypatch.setenv("HF_ENDPOINT", address)
        yield root, requests


def run(name: str, *options: str) -> Result:
    result = CliRunner().invoke(
        app, ["run", name, str(PICTURE), "What is this?", "--max-tokens", "4", *options]
    )
    if isinstance(result.exception, TinyLlavaEdgeError):
        raise result.exception
    return result


def test_a_published_bundle_is_downloaded_once_and_found_by_its_name_everywhere(
    hub: Hub, tmp_path: Path
) -> None:
    first = run(BUNDLE)
    assert first.exit_code == 0, first.output
    assert ": a bundle, " in first.stderr
    kept = tmp_path / "cache" / "tinyllava-edge" / "bundles" / f"{BUNDLE}@main"
    assert f"kept in {kept}" in first.stderr
    hub[1].clear()
    again = run(BUNDLE)
    assert (again.stdout, again.exit_code, hub[1]) == (first.stdout, 0, [])
    with open_bundle(BUNDLE) as model:
        assert model.bundle.root == kept
    assert first.stdout.strip() == open_bundle("nano").ask("What is this?", PICTURE)


def test_a_connection_that_breaks_within_a_file_is_gone_on_with(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the client: each byte comes once but for its last block, and the bundle is verified as ever."""
    block = 1 << 14
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", block)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    sizes = file_sizes(hub[0] / BUNDLE)
    large = max(sizes, key=lambda name: sizes[name])
    hub[1].cut[large] = sizes[large] // 2
    assert run(BUNDLE).exit_code == 0
    assert not hub[1].cut
    assert sizes[large] <= hub[1].sent[large] <= sizes[large] + block
    kept = tmp_path / "cache" / "tinyllava-edge" / "bundles" / f"{BUNDLE}@main"
    assert Bundle.open(kept).manifest_sha256 == Bundle.open(bundle_path("nano")).manifest_sha256


def test_whole_files_of_a_download_that_was_stopped_are_not_fetched_again(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    sizes = file_sizes(hub[0] / BUNDLE)
    hub[1].cut["vision/fp16.onnx"], hub[1].goes_down = 4_000_000, True
    with pytest.raises(CheckpointError, match=BUNDLE) as caught:
        run(BUNDLE)
    assert "\n" not in str(caught.value)
    kept = tmp_path / "cache" / "tinyllava-edge" / "bundles" / f"{BUNDLE}@main"
    assert not kept.exists()
    there = {name for name, size in sizes.items() if hub[1].sent[name] == size}
    assert there
    hub[1].is_down = False
    assert run(BUNDLE).exit_code == 0
    assert {name: hub[1].sent[name] for name in there} == {name: sizes[name] for name in there}
    assert [path.name for path in kept.parent.iterdir() if path.is_dir()] == [kept.name], "no part is left"


def file_sizes(bundle: Path) -> dict[str, int]:
    return {entry.path: entry.size for entry in Bundle.open(bundle).manifest.files}


def test_a_bundle_that_came_damaged_is_named_and_not_kept(hub: Hub, tmp_path: Path) -> None:
    file = hub[0] / BUNDLE / "tokenizer.json"
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(content)
    with pytest.raises(BundleError, match=r"tokenizer\.json"):
        run(BUNDLE)
    assert not any((tmp_path / "cache" / "tinyllava-edge" / "bundles").rglob("manifest.json"))


@pytest.mark.slow
def test_a_checkpoint_is_exported_once_after_its_cost_was_said(hub: Hub, tmp_path: Path) -> None:
    first = run(CHECKPOINT, "--vision", "fp32", "--language", "f16")
    assert first.exit_code == 0, first.output
    assert ": a checkpoint, which is exported once: " in first.stderr
    hub[1].clear()
    again = run(CHECKPOINT)
    assert (again.stdout, again.exit_code, hub[1]) == (first.stdout, 0, [])
    source = open_bundle(CHECKPOINT).bundle.manifest.source
    assert (source.repository, source.revision) == (CHECKPOINT, COMMIT)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("someone/none", "the hub has no such repository"),
        (f"{BUNDLE}@v9", "no revision 'v9'"),
        (GATED, "Accept them on its page"),
    ],
)
def test_what_cannot_be_had_is_one_line(hub: Hub, name: str, said: str) -> None:
    with pytest.raises(CheckpointError, match=said) as caught:
        run(name)
    assert "\n" not in str(caught.value)


def test_without_a_network_one_line_says_what_to_do(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=r"could not be asked \(OfflineModeIsEnabled") as caught:
        run(BUNDLE)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_that_was_downloaded_says_offline_the_line_that_exports_it(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    huggingface_hub.snapshot_download(CHECKPOINT)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=f"tinyllava-edge export {CHECKPOINT} -o BUNDLE"):
        run(CHECKPOINT)


def test_a_checkpoints_directory_says_the_line_that_exports_it(hub: Hub) -> None:
    with pytest.raises(BundleError, match=f"Make one: tinyllava-edge export {hub[0] / CHECKPOINT} -o BUNDLE"):
        run(str(hub[0] / CHECKPOINT))
