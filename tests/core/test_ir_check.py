"""Graphs that no export writes are refused by the file, before OpenVINO sees them."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("openvino")
pytest.importorskip("torch")

from tests.runtimes.tiny_ir import write_tiny_ir
from tinyllava_edge.bundle import LanguageSpec
from tinyllava_edge.errors import BundleError
from tinyllava_edge.ir_check import check_ir, read_constants
from tinyllava_edge.ir_tensors import open_tensors

SPEC = LanguageSpec(
    architecture="llama",
    hidden_size=64,
    vocab_size=300,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    context_length=1024,
)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ir") / "ov_int8.xml"
    write_tiny_ir(path)
    return path


@pytest.fixture
def graph(written: Path, tmp_path: Path) -> Path:
    for path in (written, written.with_suffix(".bin")):
        shutil.copy(path, tmp_path)
    return tmp_path / written.name


def check(path: Path, variant: str = "ov_int8", spec: LanguageSpec = SPEC) -> None:
    weights = path.with_suffix(".bin")
    check_ir(path, {weights.name: weights.stat().st_size}, variant, spec)


def assert_refused(path: Path, said: str) -> None:
    with pytest.raises(BundleError) as caught:
        check(path)
    message = str(caught.value)
    assert said in message
    assert str(path) in message
    assert "\n" not in message
    assert len(message) < 500


def test_what_export_writes_passes_and_its_tensors_are_found(graph: Path) -> None:
    check(graph)
    tensor = read_constants(graph)["model.layers.1.mlp.down_proj.weight"]
    assert (tensor.kind, tensor.shape, tensor.size) == ("i8", (64, 4, 32), 64 * 128)


def test_the_same_weights_give_the_same_bytes(written: Path, tmp_path: Path) -> None:
    write_tiny_ir(tmp_path / "again.xml")
    assert (tmp_path / "again.xml").read_bytes() == written.read_bytes()
    assert (tmp_path / "again.bin").read_bytes() == written.with_suffix(".bin").read_bytes()


def replaced(old: str, new: str) -> Callable[[str], str]:
    def change(text: str) -> str:
        assert old in text
        return text.replace(old, new, 1)

    return change


BOMB = '<!DOCTYPE net [<!ENTITY a "aaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]>\n<net '
CHANGES = {
    "entities": (replaced("<net ", BOMB), "a document type"),
    "an instruction": (replaced("<net ", "<?php x ?><net "), "a processing instruction"),
    "another OpenVINO's": (replaced('version="11"', 'version="12"'), "version '12', of another OpenVINO"),
    "an extension": (replaced('version="opset4"', 'version="extension"'), "the operation 'Swish:extension'"),
    "a later opset": (replaced('version="opset4"', 'version="opset99"'), "the operation 'Swish:99'"),
    "a loop": (replaced('type="Swish"', 'type="TensorIterator"'), "the operation 'TensorIterator:4'"),
    "an element": (replaced("<edges>", "<meta_data/><edges>"), "the element 'meta_data' in 'net'"),
    "an attribute": (replaced(' special_zero="', ' path="/etc/passwd" special_zero="'), "attribute 'path'"),
    "a text": (replaced("<edges>", "<edges>x"), "the text "),
    "a constant past the end": (replaced(' offset="0"', ' offset="999999999"'), "ends behind its .bin"),
    "a constant of another size": (replaced('shape="300, 2, 32"', 'shape="301, 2, 32"'), "in 19200 bytes"),
    "a negative shape": (replaced('shape="300, 2, 32"', 'shape="-300, 2, 32"'), "a constant of 'i8'"),
    "a type": (replaced('element_type="i8"', 'element_type="string"'), "a constant of 'string'"),
    "a state": (lambda text: text.replace("keys.1", "keys.7"), "states for 2 layers"),
    "a name twice": (
        lambda text: text.replace(".0.mlp.up_proj.weight", ".0.mlp.gate_proj.weight"),
        "two constants",
    ),
    "a layer twice": (replaced('<layer id="1"', '<layer id="0"'), "the layer '0' twice"),
    "cut off": (lambda text: text[: len(text) // 2], "XML that cannot be read"),
    "deep": (replaced("<layers>", "<layers>" * 5000), "the element 'layers' in 'layers'"),
    "a table without rows": (
        replaced('shape="300, 2, 32" offset="24" size="19200"', 'shape="" offset="24" size="1"'),
        "no token embedding of 300 x 64",
    ),
    "another table": (
        lambda text: text.replace("embed_tokens", "other_table"),
        "no token embedding of 300 x 64",
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_no_export_writes_is_refused(graph: Path, what: str) -> None:
    change, said = CHANGES[what]
    graph.write_text(change(graph.read_text()))
    assert_refused(graph, said)


def test_weights_that_are_cut_off_or_not_there_are_refused(graph: Path) -> None:
    weights = graph.with_suffix(".bin")
    weights.write_bytes(weights.read_bytes()[:5000])
    assert_refused(graph, "ends behind its .bin: it is cut off")
    for beside in ({}, {"other.bin": 7}, {weights.name: 7, "x.so": 7}):
        with pytest.raises(BundleError, match=r"a \.xml with its \.bin beside it"):
            check_ir(graph, beside, "ov_int8", SPEC)


def test_scales_of_other_rows_are_refused(graph: Path) -> None:
    text = graph.read_text()
    graph.write_text(text.replace('shape="300, 2, 1"', 'shape="2, 300, 1"'))
    check(graph)
    with pytest.raises(BundleError, match=r"embed_tokens\.weight\.scale is \[2, 300, 1\] for \[300, 2, 32\]"):
        open_tensors(graph)


def test_another_model_or_variant_than_the_manifests_is_refused(graph: Path) -> None:
    with pytest.raises(BundleError, match="of 300 x 128, the manifest's"):
        check(graph, spec=SPEC.model_copy(update={"hidden_size": 128}))
    with pytest.raises(BundleError, match="4 states for 3 layers"):
        check(graph, spec=SPEC.model_copy(update={"num_hidden_layers": 3}))
    with pytest.raises(BundleError, match="a token embedding of i8 in the variant 'ov_f16'"):
        check(graph, variant="ov_f16")
