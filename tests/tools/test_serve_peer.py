"""Two servers loaded in turns: here both are ours, as llama-cpp-python's needs an environment of its own."""

import asyncio
import re
from importlib.metadata import requires
from pathlib import Path

import pytest

from tests.runtimes.serve.serving import ROOT, running
from tinyllava_edge.benchmarks.bench.peers.environments import listed_versions
from tinyllava_edge.errors import UsageError
from tools import serve_peer
from tools.serve_peer import OURS, PEER

NANO = ROOT / "tinyllava_edge" / "nano" / "bundle"


def test_each_server_has_a_row_for_each_number_of_clients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve_peer, "_MORE", {OURS: {}, PEER: {}})
    pictures = serve_peer._as_png(str(tmp_path))
    names = {OURS: "nano", PEER: "nano"}
    with running() as one, running() as other:
        urls = {OURS: one.url, PEER: other.url}
        assert asyncio.run(serve_peer._same_answers(urls, names, pictures)) == [True] * 8
        rows = asyncio.run(serve_peer._load(urls, names, pictures, [1, 2], 2, 0.1))
    assert [row["load"] for row in rows] == [
        f"{n} clients, {server}" for n in (1, 2) for server in (OURS, PEER)
    ]
    for row in rows:
        assert row["errors"] == {}
        assert row["tokens_per_s"] > row["answers_per_s"] > 0


def test_a_bundle_without_an_mmproj_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--interchange mmproj"):
        serve_peer.main(NANO, tmp_path, tmp_path / "out", language="f16")


def test_the_list_has_what_the_server_asks_for() -> None:
    pytest.importorskip("llama_cpp")
    wanted = {
        re.split(r"[<>=!; ]", line)[0].lower()
        for line in requires("llama-cpp-python") or []
        if "extra" not in line or "extra == 'server'" in line.replace('"', "'")
    }
    assert {"sse-starlette", "numpy"} <= wanted
    assert {name.replace("_", "-") for name in wanted} <= set(listed_versions("llama-cpp-server"))
