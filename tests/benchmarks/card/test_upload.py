"""A bundle to a hub on this machine by huggingface_hub's own client, and back by its name. nano. CPU.

Large files go as Git LFS, which the stand-in speaks; the hub's newer storage (Xet) is not tried here.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from typer.testing import CliRunner, Result

from tests.core.checkpoint.test_hub import point_at
from tests.core.small_bundle import tree
from tests.hub_server import COMMIT, OTHERS, READER, WRITER, hub_of
from tinyllava_edge.checkpoint.names import bundle_path
from tinyllava_edge.cli import app
from tinyllava_edge.errors import BundleError, HubError, OutputExistsError, TinyLlavaEdgeError, UsageError

NAME = "someone/nano-edge"
PICTURE = Path("docs/pictures/emoji.webp").resolve()
Hub = tuple[Path, list[str]]
# The client's own, of how it calls the library below it; users see none.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """An empty hub, to which this machine may write; and the requests."""
    root = tmp_path / "root"
    root.mkdir()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", WRITER)
    monkeypatch.chdir(tmp_path)
    with hub_of(root) as (address, requests):
        point_at(address, monkeypatch)
        yield root, requests


def push(*words: str) -> Result:
    result = CliRunner().invoke(app, ["push", *words])
    if isinstance(result.exception, TinyLlavaEdgeError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A bundle of one's own, with nano's files."""
    return Path(shutil.copytree(bundle_path("nano"), tmp_path / "own"))


def test_what_was_pushed_runs_by_its_name(hub: Hub, tmp_path: Path) -> None:
    pushed = push("nano", NAME, "--json")
    there = tree(hub[0] / NAME)
    said = json.loads(pushed.stdout)
    assert said["commit"] == COMMIT
    assert said["files"] == {name: len(data) for name, data in there.items() if name != ".gitattributes"}
    assert said["bytes"] == sum(said["files"].values())
    shipped = tree(bundle_path("nano"))
    assert {name: there[name] for name in shipped} == shipped
    assert there["README.md"].startswith(b'---\nlicense: "apache-2.0"\n')
    assert f'tinyllava-edge run {NAME} photo.jpg "What is this?"' in there["README.md"].decode()
    assert b"Twemoji" in there["ATTRIBUTION.md"]
    assert not (hub[0] / NAME / ".private").exists()
    answers = [
        CliRunner().invoke(app, ["run", name, str(PICTURE), "What is this?", "--max-tokens", "4"])
        for name in (NAME, "nano")
    ]
    assert [answer.exit_code for answer in answers] == [0, 0], answers[0].output
    assert answers[0].stdout == answers[1].stdout
    assert bundle_path(NAME).is_relative_to(tmp_path / "cache")


def test_a_dry_run_says_all_of_it_and_asks_nobody(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    said = push("nano", NAME, "--dry-run").stderr
    size = sum(path.stat().st_size for path in bundle_path("nano").rglob("*") if path.is_file())
    assert "would upload: " in said
    assert int(said.split(" files, ")[1].split(" bytes")[0].replace(",", "")) > size
    assert "language/f16.gguf: 4,094,880 bytes" in said
    assert hub[1] == []


def test_what_was_sent_before_it_broke_off_is_not_sent_again(hub: Hub) -> None:
    (hub[0] / ".full").touch()
    with pytest.raises(HubError, match="may not write there"):
        push("nano", NAME, "--private")
    assert tree(hub[0] / NAME).keys() == {".gitattributes", ".private"}, "nobody sees a part of it"
    (hub[0] / NAME / ".private").unlink()
    sent = {f"PUT lfs/{path.name}" for path in (hub[0] / ".lfs").iterdir()}
    (hub[0] / ".full").unlink()
    hub[1].clear()
    push("nano", NAME)
    assert sent
    assert not sent & set(hub[1])
    assert any(request.startswith("PUT lfs/") for request in hub[1])
    assert "manifest.json" in tree(hub[0] / NAME)
    hub[1].clear()
    assert "holds this bundle already" in push("nano", NAME).stderr
    assert not any(request.startswith("PUT ") for request in hub[1])


def test_another_bundle_of_that_name_goes_with_force_alone(hub: Hub, tmp_path: Path) -> None:
    push("nano", NAME)
    small = tmp_path / "small"
    words = ["prune", "nano", "-o", str(small), "--vision", "fp16", "--language", "q8_0"]
    assert CliRunner().invoke(app, words).exit_code == 0
    with pytest.raises(OutputExistsError, match="holds another bundle"):
        push(str(small), NAME)
    (hub[0] / NAME / "mine.txt").write_text("mine")
    push(str(small), NAME, "--force")
    there = tree(hub[0] / NAME)
    assert "language/f16.gguf" not in there
    assert "parity/export.json" not in there
    assert there["mine.txt"] == b"mine"
    assert there["manifest.json"] == (small / "manifest.json").read_bytes()


def test_a_name_that_holds_something_else_is_left(hub: Hub) -> None:
    (hub[0] / NAME).mkdir(parents=True)
    (hub[0] / NAME / "model.safetensors").write_bytes(b"mine")
    for force in ((), ("--force",)):
        with pytest.raises(OutputExistsError, match=r"holds model\.safetensors and no bundle"):
            push("nano", NAME, *force)
    assert not any(request.startswith(("POST", "PUT")) for request in hub[1])


def test_a_bundle_that_was_changed_is_not_uploaded(
    hub: Hub, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the cache says that its file was verified before."""
    monkeypatch.setattr(
        "tinyllava_edge.bundle._check_file", lambda root, entry, *_: _state(root / entry.path)
    )
    data = bytearray((own / "language/f16.gguf").read_bytes())
    data[-1] ^= 1
    (own / "language/f16.gguf").write_bytes(data)
    with pytest.raises(BundleError, match=r"f16\.gguf: its sha256 is not what the manifest says"):
        push(str(own), NAME)
    assert hub[1] == []


def _state(path: Path) -> tuple[int, int, int]:
    from tinyllava_edge.verified_files import state_of

    return state_of(path.lstat())


@pytest.mark.parametrize(
    ("token", "name", "said"),
    [
        ("", NAME, "no token to write with. Run `hf auth login`"),
        ("hf_nobody", NAME, "does not know your token"),
        (READER, NAME, "may not write there"),
        (WRITER, f"{OTHERS}/nano", "may not write there"),
    ],
)
def test_who_may_not_write_is_told(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, token: str, name: str, said: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(HubError, match=said) as caught:
        push("nano", name)
    assert "\n" not in str(caught.value)
    assert tree(hub[0]) == {}


@pytest.mark.parametrize("name", ["nano", "a/b/c", "a/b@main", "../x/y", "-a/b"])
def test_a_name_that_the_hub_does_not_know_is_refused_at_once(hub: Hub, name: str) -> None:
    with pytest.raises(UsageError, match="Give owner/name"):
        push("nano", "--dry-run", "--", name)


def test_without_a_network_one_line_says_so(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match=r"could not be asked \(OfflineModeIsEnabled") as caught:
        push("nano", NAME)
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    point_at("http://127.0.0.1:9", monkeypatch)
    with pytest.raises(HubError, match=r"could not be asked \(ConnectError") as caught:
        push("nano", NAME)
    assert "\n" not in str(caught.value)
