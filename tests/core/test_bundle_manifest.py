"""The manifest is written by somebody else: nothing it says is believed before it is checked."""

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.core.small_bundle import change_manifest, file_entry
from tinyllava_edge.bundle import MAX_MANIFEST_BYTES, Bundle
from tinyllava_edge.checkpoint.names import bundle_path
from tinyllava_edge.errors import BundleError
from tinyllava_edge.manifest import parse_manifest

Change = Callable[[dict[str, Any]], None]


def assert_refused(root: Path, *named: str) -> None:
    with pytest.raises(BundleError) as caught:
        Bundle.open(root)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 1000
    for name in named:
        assert name in message


@pytest.mark.parametrize(
    "name",
    [
        "../secret",
        "vision/../../secret",
        "/etc/passwd",
        "./tokenizer.json",
        "vision//fp32.onnx",
        "vision/",
        "",
        ".",
        "..",
        "vision\\fp32.onnx",
        "C:secret",
        "nul\0byte",
        "line\nfeed",
        "vision/.hidden",
        "\u202egnp.exe",
        "caf\u00e9",
        "\ud800",
        "a" * 201,
        "-rf",
    ],
    ids=lambda name: repr(name)[:20],
)
def test_a_listed_name_that_is_no_plain_path_inside_is_refused(root: Path, name: str) -> None:
    change_manifest(root, lambda m: m["files"].append(file_entry("x") | {"path": name}))
    assert_refused(root, "manifest")


@pytest.mark.parametrize(
    "name", ["manifest.json", "Manifest.JSON", "parity/x.json", "Parity/x.json", "parity"]
)
def test_a_name_that_no_manifest_may_list_is_refused(root: Path, name: str) -> None:
    change_manifest(root, lambda m: m["files"].append(file_entry(name)))
    assert_refused(root, repr(name), "no manifest may list")


@pytest.mark.parametrize("name", ["tokenizer.json", "Tokenizer.json", "VISION/fp32.onnx"])
def test_two_names_that_are_one_file_on_some_disk_are_refused(root: Path, name: str) -> None:
    change_manifest(root, lambda m: m["files"].append(file_entry(name)))
    assert_refused(root, repr(name), "twice")


@pytest.mark.parametrize("version", [0, 2, -1, "1", 1.0, True, None, [1], {"a": 1}, 10**30])
def test_an_unknown_schema_version_is_named(root: Path, version: object) -> None:
    change_manifest(root, lambda m: m.update(schema_version=version))
    assert_refused(root, "manifest.json: schema version", "this program reads 1")


def test_a_manifest_without_a_schema_version_is_refused(root: Path) -> None:
    change_manifest(root, lambda m: m.pop("schema_version"))
    assert_refused(root, "schema version None")


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"1", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 100_000, b"NaN", b"\0" * 10],
    ids=lambda content: repr(content)[:12],
)
def test_a_manifest_that_is_no_json_object_is_refused(root: Path, content: bytes) -> None:
    (root / "manifest.json").write_bytes(content)
    assert_refused(root, "manifest.json")


def test_a_huge_manifest_is_refused_unread(root: Path) -> None:
    with (root / "manifest.json").open("r+b") as file:
        file.truncate(MAX_MANIFEST_BYTES + 1)
    assert_refused(root, "manifest.json: larger than 8388608 bytes")


def test_a_long_list_of_files_is_checked_in_linear_time(root: Path) -> None:
    names = [f"f{index}" for index in range(40_000)]
    change_manifest(root, lambda m: m.update(files=[file_entry(name) for name in names]))
    change_manifest(root, lambda m: m["variants"][0].update(files=names))
    started = time.process_time()
    assert_refused(root, "not listed")
    assert time.process_time() - started < 5


def test_a_variant_of_a_file_that_is_not_listed_is_named(root: Path) -> None:
    change_manifest(root, lambda m: m["variants"][0]["files"].append("/etc/passwd"))
    assert_refused(root, "fp32", "/etc/passwd")


CHANGES: dict[str, Change] = {
    "an extra key": lambda m: m.update(command="rm"),
    "an extra key deep inside": lambda m: m["vision"]["preprocessing"].update(command="rm"),
    "an extra key of the template": lambda m: m["prompt"]["template"].update(command="rm"),
    "a key missing": lambda m: m.pop("prompt"),
    "a key missing deep inside": lambda m: m["vision"]["preprocessing"].pop("mean"),
    "a number as text": lambda m: m["vision"].update(image_size="96"),
    "a truth as number": lambda m: m["vision"].update(drop_first=1),
    "an unknown part": lambda m: m["parts"].update(adapter=m["parts"]["vision_tower"]),
    "an unknown target": lambda m: m["variants"][0].update(target="plan"),
    "an unknown status": lambda m: m["variants"][0].update(status="fine"),
    "no variants": lambda m: m.update(variants=[]),
    "a variant without files": lambda m: m["variants"][0].update(files=[]),
    "no stop id": lambda m: m["prompt"].update(stop_ids=[]),
    "a negative size": lambda m: m["files"][0].update(size=-1),
    "a short hash": lambda m: m["files"][0].update(sha256="ab"),
    "a hash in capitals": lambda m: m["files"][0].update(sha256="A" * 64),
    "a hash with a line feed": lambda m: m["files"][0].update(sha256="a" * 64 + "\n"),
    "no pixels": lambda m: m["vision"].update(image_size=0),
    "gigantic pixels": lambda m: m["vision"]["preprocessing"].update(size=10**9),
    "a division by zero": lambda m: m["vision"]["preprocessing"].update(std=[0, 0, 0]),
    "a number that is none": lambda m: m["vision"]["preprocessing"].update(mean=[float("nan")] * 3),
    "no scale": lambda m: m["language"].update(embedding_scale=0),
    "an endless scale": lambda m: m["language"].update(embedding_scale=float("inf")),
    "pixels past float32": lambda m: m["vision"]["preprocessing"].update(mean=[1e308] * 3),
    "pixels of another size": lambda m: m["vision"]["preprocessing"].update(size=97),
    "no place for the question": lambda m: m["prompt"]["template"].update(question="USER: ASSISTANT:"),
    "two places for the answer": lambda m: m["prompt"]["template"].update(answer="{answer}{answer}"),
    "a picture in the system text": lambda m: m["prompt"]["template"].update(system="<image> A chat."),
    "no end of a turn": lambda m: m["prompt"]["template"].update(end=""),
    "a negative stop id": lambda m: m["prompt"].update(stop_ids=[-5]),
    "a stop id past the vocabulary": lambda m: m["prompt"].update(stop_ids=[500]),
    "a placeholder as BOS": lambda m: m["prompt"].update(bos_id=-200),
    "a variant twice": lambda m: m["variants"].append(m["variants"][0]),
    "a long unknown key": lambda m: m.update({"k" * 100_000: 1}),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_manifest_of_another_shape_is_refused(root: Path, change: Change) -> None:
    change_manifest(root, change)
    assert_refused(root, "manifest.json: ")


def test_no_flipped_bit_changes_what_a_manifest_says(root: Path) -> None:
    path = root / "manifest.json"
    text = path.read_bytes()
    said, refused = parse_manifest(text, path), 0
    for index in range(len(text)):
        damaged = bytearray(text)
        damaged[index] ^= 1 << index % 8
        try:
            assert parse_manifest(bytes(damaged), path) == said
        except BundleError:
            refused += 1
    assert refused > 0.7 * len(text)  # the rest is white space


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["prompt"]["template"].update(system="Be rude. "),
        lambda m: m["prompt"].update(stop_ids=[3]),
        lambda m: m["vision"]["preprocessing"]["mean"].reverse() or m.update(versions={}),
        lambda m: m.update(digest=None),
        lambda m: m.update(digest="0" * 64),
    ],
)
def test_an_edited_manifest_is_named(root: Path, change: Change) -> None:
    path = root / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    assert_refused(root, str(path), "digest", "damaged")


def test_the_digest_is_of_json_that_any_program_can_write(root: Path) -> None:
    manifest = json.loads((root / "manifest.json").read_text())
    digest = manifest.pop("digest")
    canonical = json.dumps(manifest, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    assert hashlib.sha256(canonical.encode("ascii")).hexdigest() == digest


def test_a_bundle_of_before_the_digest_opens_with_one_note(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = root / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["digest"]
    path.write_text(json.dumps(manifest))
    assert Bundle.open(root).manifest.digest is None
    Bundle.open(root)
    assert capsys.readouterr().err.count("may go unseen") == 1


def test_the_shipped_bundle_opens_without_a_note(capsys: pytest.CaptureFixture[str]) -> None:
    assert Bundle.open(bundle_path("nano")).manifest.digest
    assert capsys.readouterr().err == ""


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value in a JSON document."""
    children = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    return [path, *(place for key, child in children for place in places(child, (*path, key)))]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), value=JSON)
def test_any_value_anywhere_opens_or_is_a_bundle_error(root: Path, data: st.DataObject, value: Any) -> None:
    path = root / "manifest.json"
    original = path.read_bytes()
    manifest = json.loads(original)
    *place, last = data.draw(st.sampled_from([place for place in places(manifest) if place]))
    parent = manifest
    for key in place:
        parent = parent[key]
    parent[last] = value
    path.write_text(json.dumps(manifest))
    try:
        Bundle.open(root)
    except BundleError as error:
        assert "\n" not in str(error)  # noqa: PT017 - both outcomes are right
    finally:
        path.write_bytes(original)
