"""Graphs that no export writes are refused when the bundle is opened, by the file, before any library."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.core.small_bundle import FILES, change_manifest, file_entry
from tinyllava_edge.bundle import Bundle
from tinyllava_edge.errors import BundleError

GRAPH, DATA = "vision/fp32.onnx", "fp32.onnx.data"
Plant = Callable[[onnx.ModelProto], None]


def plant(root: Path, content: bytes) -> None:
    """Put this in the graph's place, its size and hash made valid again."""
    (root / GRAPH).write_bytes(content)

    def list_it(manifest: dict[str, list[dict[str, object]]]) -> None:
        (entry,) = [entry for entry in manifest["files"] if entry["path"] == GRAPH]
        entry.update(file_entry(GRAPH, content))

    change_manifest(root, list_it)


def assert_refused(root: Path, *named: str) -> None:
    with pytest.raises(BundleError) as caught:
        Bundle.open(root)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 1000
    for text in (str(root / GRAPH), *named):
        assert text in message


def apart(location: str, offset: str = "0", length: str = "16", **more: str) -> TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, "offset": offset, "length": length, **more}.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def model(*tensors: TensorProto) -> onnx.ModelProto:
    proto: onnx.ModelProto = onnx.ModelProto.FromString(FILES[GRAPH])
    proto.graph.initializer.extend(tensors)
    return proto


def test_weights_in_the_listed_file_pass(root: Path) -> None:
    inline = numpy_helper.from_array(np.ones((3, 3), dtype=np.float32), "inline")
    plant(root, model(apart(DATA, "240"), inline).SerializeToString())
    Bundle.open(root)


@pytest.mark.parametrize(
    "location",
    [
        *("/etc/passwd", "../tokenizer.json", "x/../fp32.onnx.data", "./fp32.onnx.data", "", ".", ".."),
        *("..\\x", "C:x", "other.data", "fp32.onnx", "fp16.onnx", "a\0b", "\u00e9", "a" * 10_000),
        *("file:///etc/passwd", "vision/fp32.onnx.data", "fp32.onnx.data\n", "fp32.onnx.data/"),
    ],
    ids=lambda text: repr(text)[:25],
)
@pytest.mark.parametrize("place", ["initializer", "attribute", "attribute list"])
def test_weights_anywhere_else_are_refused(root: Path, location: str, place: str) -> None:
    tensor = apart(location)
    proto = model(*([tensor] if place == "initializer" else []))
    if place != "initializer":
        node = proto.graph.node.add(op_type="Constant", output=["c"])
        value = node.attribute.add(name="value", type=onnx.AttributeProto.TENSOR)
        (value.t.CopyFrom if place == "attribute" else value.tensors.append)(tensor)
    plant(root, proto.SerializeToString())
    assert_refused(root, "weights in the file", DATA)


@pytest.mark.parametrize(
    ("tensor", "named"),
    [
        (apart(DATA, "241"), "weights at 241 + 16 of 'fp32.onnx.data', which has 256 bytes"),
        (apart(DATA, "0", "257"), "which has 256 bytes"),
        (apart(DATA, "999999999999999999", "1"), "which has 256 bytes"),
        (apart(DATA, "-1"), "without location, offset and length"),
        (apart(DATA, "0x1"), "without location, offset and length"),
        (apart(DATA, "9" * 5000), "without location, offset and length"),
        (apart(DATA, ""), "without location, offset and length"),
        (apart(DATA, basepath="/etc"), "or with more"),
        (TensorProto(name="w", data_location=TensorProto.EXTERNAL), "weights in the file ''"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_a_place_outside_the_file_is_refused(root: Path, tensor: TensorProto, named: str) -> None:
    plant(root, model(tensor).SerializeToString())
    assert_refused(root, named)


def test_a_location_given_twice_is_refused(root: Path) -> None:
    tensor = apart(DATA)
    tensor.external_data.add(key="location", value="/etc/passwd")
    plant(root, model(tensor).SerializeToString())
    assert_refused(root, "'location' is given twice")


BODY = helper.make_graph([helper.make_node("Identity", ["a"], ["b"])], "body", [], [])
PLANTS: dict[str, tuple[Plant, str]] = {
    name: (lambda proto, name=name: proto.graph.node.add(op_type=name), f"the operator '{name}'")
    for name in ("Loop", "Scan", "If", "SequenceMap", "NoSuch", "add", "")
} | {
    "a graph inside a known operator": (
        lambda proto: proto.graph.node.append(helper.make_node("Add", ["a"], ["b"], body=BODY)),
        "a graph inside a node",
    ),
    "graphs inside a known operator": (
        lambda proto: proto.graph.node.append(helper.make_node("Add", ["a"], ["b"], bodies=[BODY])),
        "graphs inside a node",
    ),
    "another domain": (
        lambda proto: proto.graph.node.append(helper.make_node("Add", ["a"], ["b"], domain="com.microsoft")),
        "operators of 'com.microsoft'",
    ),
    "another domain imported": (
        lambda proto: proto.opset_import.append(helper.make_opsetid("example.org", 1)),
        "operators of 'example.org'",
    ),
    "a local function": (lambda proto: proto.functions.add(name="Add"), "local functions"),
    "training": (lambda proto: proto.training_info.add(), "training information"),
    "session options": (
        lambda proto: proto.metadata_props.add(key="ort_config", value="{}"),
        "metadata, which can set options",
    ),
    "sparse weights": (lambda proto: proto.graph.sparse_initializer.add(), "sparse weights"),
    "no graph": (lambda proto: proto.ClearField("graph"), "no graph"),
}


@pytest.mark.parametrize(("change", "named"), PLANTS.values(), ids=PLANTS.keys())
def test_what_export_never_writes_is_refused(root: Path, change: Plant, named: str) -> None:
    proto = model()
    change(proto)
    plant(root, proto.SerializeToString())
    assert_refused(root, named)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00",
        b"\x08",  # a field without its value
        b"\xff" * 20,  # a number without an end
        b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\x7f",  # a graph of 2^63 bytes
        b"\x3a\x05\x0a",
        b"\x3b\x3c",  # a group
        b"\x39" + b"\0" * 8,  # the graph as a fixed number
        FILES[GRAPH] + b"\x08\x07",  # the version twice
        FILES[GRAPH] * 2,
        b"\xff\xff\xff\xff\x0f\x00",  # the largest field number
        b"ORTM" + b"\0" * 100,
        b"\x42\x00" * 1_000_001 + FILES[GRAPH],
    ],
    ids=lambda content: repr(content[:12]),
)
def test_damaged_bytes_are_refused(root: Path, content: bytes) -> None:
    plant(root, content)
    assert_refused(root)


@pytest.mark.parametrize("kept", range(1, len(FILES[GRAPH]), 3))
def test_a_cut_graph_is_refused(root: Path, kept: int) -> None:
    plant(root, FILES[GRAPH][:kept])
    with pytest.raises(BundleError, match="cut off"):
        Bundle.open(root)


def test_a_graph_of_another_name_is_refused(root: Path) -> None:
    shutil.move(root / GRAPH, root / "vision/fp32.ort")

    def rename(manifest: dict[str, list[dict[str, object]]]) -> None:
        (entry,) = [entry for entry in manifest["files"] if entry["path"] == GRAPH]
        entry["path"] = "vision/fp32.ort"
        manifest["variants"][0]["files"] = ["vision/fp32.ort", f"vision/{DATA}"]

    change_manifest(root, rename)
    with pytest.raises(BundleError, match=r"fp32\.ort: the name of a graph ends in \.onnx"):
        Bundle.open(root)
