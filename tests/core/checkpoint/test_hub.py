"""Checkpoints by name: huggingface_hub's own client against a hub on this machine."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from typer.testing import CliRunner

from tests.hub_server import COMMIT, hub_of
from tests.tiny import write_tiny_checkpoint
from tinyllava_edge.bundle import Bundle
from tinyllava_edge.checkpoint.hub import download_checkpoint, named_repositories, parse_name
from tinyllava_edge.checkpoint.names import checkpoint_path, fetch_checkpoint, fetch_sources
from tinyllava_edge.cli import app
from tinyllava_edge.errors import CheckpointError

NAME = "someone/tiny-llava"
Hub = tuple[Path, list[str]]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with one checkpoint, whose processor lies in the repository of its tower; and the requests."""
    root = tmp_path / "root"
    checkpoint = write_tiny_checkpoint(root / NAME, hidden=32, intermediate=48, layers=1)
    tower = root / "tiny-random" / "siglip"
    tower.mkdir(parents=True)
    shutil.move(checkpoint / "preprocessor_config.json", tower)
    (tower / "config.json").write_text("{}")
    (tower / "model.safetensors").write_bytes(bytes(100))
    config = json.loads((checkpoint / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_tinyllava.Model"}
    (checkpoint / "config.json").write_text(json.dumps(config))
    code = f"open({str(tmp_path / 'code-was-run')!r}, 'w')\n"
    (checkpoint / "modeling_tinyllava.py").write_text(code)
    torch.save({}, checkpoint / "training_args.bin")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own-cache"))
    monkeypatch.chdir(tmp_path)
    with hub_of(root) as (address, requests):
        point_at(address, monkeypatch)
        yield root, requests
    assert not (tmp_path / "code-was-run").exists()


def point_at(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What HF_ENDPOINT does when huggingface_hub is imported."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def asked_for(requests: list[str]) -> set[str]:
    return {request.split("/", 4)[4] for request in requests if "/resolve/" in request}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("owner/name", ("owner/name", None)),
        ("owner/name@v1.0", ("owner/name", "v1.0")),
        (f"o/n@{COMMIT}", ("o/n", COMMIT)),
        ("name", None),
        ("a/b/c", None),
        ("./owner", None),
        ("../name", None),
        ("owner/..", None),
        ("/owner/name", None),
        ("owner/name@", None),
        ("owner/na me", None),
    ],
)
def test_only_owner_and_name_are_a_hubs(text: str, expected: Any) -> None:
    assert parse_name(text) == expected


def test_weights_and_json_are_downloaded_and_neither_code_nor_pickles(hub: Hub) -> None:
    place = fetch_checkpoint(NAME)
    assert (place.repository, place.commit) == (NAME, COMMIT)
    assert asked_for(hub[1]) == {
        *("config.json", "model.safetensors"),
        *("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"),
    }
    assert checkpoint_path(f"{NAME}@{COMMIT}") == checkpoint_path(NAME) == place.path


def test_a_local_path_of_that_name_comes_first(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir(parents=True)
    assert fetch_checkpoint(NAME).path == Path(NAME)
    assert not hub[1]


def test_sources_are_downloaded_without_weights_and_only_when_asked(
    hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = fetch_checkpoint(NAME).path
    assert fetch_sources(None, checkpoint) is None
    assert named_repositories(checkpoint) == ["tiny-random/llama", "tiny-random/siglip"]
    hub[1].clear()
    folder = fetch_sources(Path("hub"), checkpoint)
    assert folder is not None
    assert (folder / "tiny-random" / "siglip" / "preprocessor_config.json").is_file()
    assert asked_for(hub[1]) == {"config.json", "preprocessor_config.json"}
    notes = [line for line in capsys.readouterr().err.splitlines() if "tiny-random" in line]
    assert notes[0] == f"sources: tiny-random/siglip@{COMMIT}"
    assert "tiny-random/llama" in notes[1]  # which this hub does not have


@pytest.mark.slow
def test_a_bundle_says_which_commit_it_is_of(hub: Hub, tmp_path: Path) -> None:
    arguments = ["export", NAME, "-o", "bundle", "--vision", "fp32", "--language", "f16", "--sources", "hub"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    source = Bundle.open(tmp_path / "bundle").manifest.source
    assert (source.name, source.repository, source.revision) == (f"{NAME}@{COMMIT}", NAME, COMMIT)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("someone/else", "the hub has no such repository"),
        (f"{NAME}@v2", "no revision 'v2'"),
    ],
)
def test_what_the_hub_does_not_have_is_named(hub: Hub, text: str, reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason):
        download_checkpoint(text)


def test_pickles_are_downloaded_only_where_they_are_allowed(hub: Hub) -> None:
    checkpoint = hub[0] / NAME
    (checkpoint / "model.safetensors").unlink()
    for part in ("vision_tower", "connector", "language_model"):
        (checkpoint / part).mkdir()
        torch.save({}, checkpoint / part / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="only with --allow-pickle"):
        download_checkpoint(NAME)
    assert not any(name.endswith(".bin") for name in asked_for(hub[1]))
    place = download_checkpoint(NAME, allow_pickle=True)
    assert (place.path / "connector" / "pytorch_model.bin").is_file()


def test_without_a_network_one_line_says_what_to_do(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=r"could not be asked .* copy the checkpoint") as caught:
        download_checkpoint(NAME)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
