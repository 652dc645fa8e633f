"""The page's files, their headers and who gets them; the proofs of a bundle over HTTP. nano, CPU."""

import json
import re
import shutil
import socket
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.runtimes.serve.serving import Running, running
from tinyllava_edge.bundle import Bundle
from tinyllava_edge.checkpoint.names import NANO, bundle_path
from tinyllava_edge.errors import BundleError
from tinyllava_edge.parity_files import write_parity
from tinyllava_edge.runtimes.cli_options import Opening
from tinyllava_edge.runtimes.serve.cli import _openings
from tinyllava_edge.runtimes.serve.gate import Rules
from tinyllava_edge.runtimes.serve.page import FOLDER
from tinyllava_edge.runtimes.serve.proof import proof_of

KEY = "k" * 32
PROOF = "/v1/models/nano/proof"
RUNTIME = "onnxruntime+llamacpp"
SERVED = sorted(path for path in FOLDER.iterdir() if path.suffix != ".md")
PATHS = ["/" if path.name == "index.html" else f"/page/{path.name}" for path in SERVED]
PRIVATE = "torch float32 of /home/owner/secret/checkpoint"


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(rules=Rules(keys=[KEY])) as found:
        yield found


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[httpx.Client]:
    with server.client() as found:
        yield found


@pytest.mark.parametrize(("path", "file"), [*zip(PATHS, SERVED, strict=True)])
def test_each_file_is_served_without_a_key_and_asked_for_anew(
    client: httpx.Client, path: str, file: Path
) -> None:
    got = client.get(path)
    assert (got.status_code, got.content) == (200, file.read_bytes())
    assert got.headers["cache-control"] == "no-cache"
    again = client.get(path, headers={"If-None-Match": f'"x", W/{got.headers["etag"]}'})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", got.headers["etag"])
    assert client.get(path, headers={"If-None-Match": '"other"'}).status_code == 200
    head = client.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(got.content))
    assert client.post(path).status_code == 405


def test_the_files_have_their_types_and_nothing_is_guessed(client: httpx.Client) -> None:
    kinds = {path: client.get(path).headers["content-type"].partition(";")[0] for path in PATHS}
    assert kinds["/"] == "text/html"
    assert kinds["/page/style.css"] == "text/css"
    assert {kind for path, kind in kinds.items() if path.endswith(".js")} == {"text/javascript"}
    assert kinds["/page/icon.svg"] == "image/svg+xml"
    assert all(client.get(path).headers["x-content-type-options"] == "nosniff" for path in PATHS)


def test_the_policy_lets_the_page_do_no_more_than_it_does(client: httpx.Client) -> None:
    got = client.get("/")
    [policy] = got.headers.get_list("content-security-policy")
    rules = dict(rule.strip().partition(" ")[::2] for rule in policy.split(";"))
    assert rules == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "img-src": "'self' blob:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }
    assert got.headers["x-frame-options"] == "DENY"
    assert got.headers["referrer-policy"] == "no-referrer"
    assert got.headers["permissions-policy"].startswith("camera=(self), microphone=()")
    assert got.headers["cross-origin-opener-policy"] == "same-origin"
    assert "access-control-allow-origin" not in got.headers


def test_answers_of_the_api_keep_their_own_headers(client: httpx.Client) -> None:
    got = client.get("/v1/models", headers={"Authorization": f"Bearer {KEY}"})
    assert got.headers.get_list("content-security-policy") == ["default-src 'none'; frame-ancestors 'none'"]
    assert got.headers.get_list("cache-control") == ["no-store"]


def test_the_host_and_the_origin_are_checked_for_the_page_too(client: httpx.Client) -> None:
    assert client.get("/", headers={"Host": "evil.example"}).status_code == 421
    assert client.get("/page/app.js", headers={"Origin": "https://evil.example"}).status_code == 403


@pytest.mark.parametrize(
    "path",
    [
        "/page/../app.py",
        "/page/..%2fapp.py",
        "/page/%2e%2e/app.py",
        "/page/..\\app.py",
        "/page//etc/passwd",
        "/page/index.html",
        "/page/ATTRIBUTION.md",
        "/page/",
        "/page",
        "/page/app.js/",
        "/page/app.js%00",
        "/PAGE/app.js",
        "//page/app.js",
        "/index.html",
    ],
)
def test_no_other_path_leads_to_a_file(server: Running, path: str) -> None:
    """As it stands on the wire: a client would tidy it. Without the key it is not even looked for."""
    for key, status in ((f"Authorization: Bearer {KEY}\r\n", b"404"), ("", b"401")):
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(
                f"GET {path} HTTP/1.1\r\nHost: {host}\r\n{key}Connection: close\r\n\r\n".encode()
            )
            found = b"".join(iter(lambda: connection.recv(65536), b""))
        assert found.split(b" ")[1] == status, found[:200]


def test_without_the_page_there_is_none() -> None:
    with running(with_page=False) as server, server.client() as client:
        assert [client.get(path).status_code for path in ("/", "/page/app.js")] == [404, 404]
        assert client.get(PROOF).status_code == 200


class _Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_the_page_names_nothing_that_is_not_its_own() -> None:
    tags = _Tags((FOLDER / "index.html").read_text(encoding="utf-8")).tags
    named = [value for _, attributes in tags for name, value in attributes.items() if name in ("src", "href")]
    assert {value for value in named if not str(value).startswith("#")} <= {path[1:] for path in PATHS}
    inline = [
        (tag, name) for tag, found in tags for name in found if name == "style" or name.startswith("on")
    ]
    assert inline == []
    assert [found for tag, found in tags if tag == "script"] == [{"type": "module", "src": "page/app.js"}]
    assert "style" not in {tag for tag, _ in tags}
    for path in SERVED:
        if path.suffix in (".js", ".css", ".html"):
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"https?:|//\w+\.\w|url\(", text), path.name
            assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b", text)


def test_each_control_of_the_page_has_a_name() -> None:
    text = (FOLDER / "index.html").read_text(encoding="utf-8")
    tags = _Tags(text).tags
    labelled = {found["for"] for tag, found in tags if tag == "label" and "for" in found}
    wrapped = set(re.findall(r'<label(?: class="\w+")?>[^<]*<input id="([\w-]+)"', text))
    for tag, found in tags:
        if tag in ("input", "select", "textarea"):
            assert found["id"] in labelled | wrapped or found.get("aria-label"), found
        if tag == "dialog":
            assert found["aria-labelledby"]
        if tag == "img":
            assert "alt" in found


def test_the_files_are_small() -> None:
    assert sum(path.stat().st_size for path in SERVED) < 60_000


def proof(**verify: Any) -> dict[str, Any]:
    """What `verify` writes, with a path of its maker's machine wherever there may be one."""
    check = {"metric": "nmse", "value": 1e-9, "gate": {"metric": "nmse", "kind": "max", "limit": 1e-6}}
    stages = [
        {"stage": "tower", "variant": "fp16", "checks": [{**check, "passed": True}], "detail": PRIVATE},
        {"stage": "splice", "variant": "f16", "checks": [], "skipped": "give --checkpoint"},
        {
            "stage": "logits",
            "variant": "f16",
            "checks": [
                {"metric": "snr_db", "value": "inf", "gate": None, "passed": True},
                {**check, "value": 1.0, "passed": False},
            ],
            "cause": PRIVATE,
        },
    ]
    return {
        "verdict": f"different: {PRIVATE}",
        "passed": False,
        "reference": PRIVATE,
        "stages": stages,
    } | verify


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return Bundle.open(shutil.copytree(bundle_path(NANO), tmp_path / "copy"))


def test_a_proof_has_every_figure_of_verify_and_no_path(bundle: Bundle) -> None:
    write_parity(bundle, RUNTIME, proof())
    found = proof_of(bundle, RUNTIME)
    rows = [{k: row[k] for k in ("stage", "metric", "value", "status")} for row in found["verify"]["rows"]]
    assert rows == [
        {"stage": "tower", "metric": "nmse", "value": 1e-9, "status": "passed"},
        {"stage": "splice", "metric": "", "value": None, "status": "skipped"},
        {"stage": "logits", "metric": "snr_db", "value": "inf", "status": "reported"},
        {"stage": "logits", "metric": "nmse", "value": 1.0, "status": "failed"},
    ]
    assert found["verify"]["rows"][0]["gate"] == {"kind": "max", "limit": 1e-6}
    assert found["verify"]["passed"] is False
    assert "/home" not in json.dumps(found)
    assert "give --checkpoint" in json.dumps(found)


def test_a_proof_of_export_has_the_gates_of_the_table(bundle: Bundle) -> None:
    found = proof_of(bundle, RUNTIME)
    assert found["verify"] is None
    assert found["source"]["manifest_sha256"] == bundle.manifest_sha256
    assert {(each["name"], each["bytes"]) for each in found["variants"]} >= {("q8_0", 2_190_304)}
    rows = {(row["stage"], row["variant"], row["metric"]): row for row in found["export"]["rows"]}
    judged = [row for row in rows.values() if row["gate"]]
    assert judged
    assert {row["status"] for row in judged} == {"passed"}
    assert rows["weights", "f16", "lowest_snr_db"]["value"] == "inf"
    assert round(rows["weights", "q8_0", "lowest_snr_db"]["value"], 2) == 44.86
    assert rows["connector", "fp16", "snr_db"]["value"] > 79


@pytest.mark.parametrize(
    "damage",
    [
        {
            "stages": [
                {
                    "stage": "tower",
                    "variant": "fp16",
                    "checks": [{"metric": "x", "value": float("nan"), "gate": None, "passed": True}],
                }
            ]
        },
        {"stages": [{"stage": "t", "variant": "", "checks": [{"metric": "x", "value": 1.0, "gate": "<b>"}]}]},
        {"verdict": ["<img>"]},
        {"stages": "none"},
    ],
)
def test_a_damaged_result_is_refused(bundle: Bundle, damage: dict[str, Any]) -> None:
    path = bundle.root / "parity" / f"{RUNTIME}.json"
    path.write_text(json.dumps({"manifest_sha256": bundle.manifest_sha256, **proof(**damage)}))
    with pytest.raises(BundleError, match=r"parity/"):
        proof_of(bundle, RUNTIME)


def test_the_owner_alone_is_told_of_a_damaged_result(
    bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    with running(bundle=bundle.root) as server, server.client() as client:
        assert client.get(PROOF).json()["verify"] is None
        (bundle.root / "parity" / f"{server.model.runtime}.json").write_text("{")
        got = client.get(PROOF)
        assert (got.status_code, got.json()["error"]["code"]) == (500, "proof_unreadable")
        assert str(bundle.root) not in got.text
        assert client.get("/v1/models/other/proof").status_code == 404
    assert str(bundle.root) in capsys.readouterr().err


def test_several_runtimes_and_variants_are_models_of_their_own() -> None:
    ways = _openings(Opening(runtime=f"auto, {RUNTIME}", language="f16,q8_0,f16", vision="fp16"))
    assert {(name, way.runtime, way.language, way.vision) for name, way in ways.items()} == {
        (":auto:f16", "auto", "f16", "fp16"),
        (":auto:q8_0", "auto", "q8_0", "fp16"),
        (f":{RUNTIME}:f16", RUNTIME, "f16", "fp16"),
        (f":{RUNTIME}:q8_0", RUNTIME, "q8_0", "fp16"),
    }
    assert _openings(Opening()) == {"": Opening()}
