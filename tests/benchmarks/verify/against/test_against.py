"""`verify --against` finds known faults of others at their stage, and nothing in what is right."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from tests.benchmarks.verify.against.foreign_files import (
    write_converted_mmproj,
    write_onnx_tower,
    write_our_mmproj,
)
from tests.export.gguf_files import change_weights, language_source
from tests.tiny import write_tiny_checkpoint
from tinyllava_edge.benchmarks.verify.against.compare import Given, compare_against, kind_of, open_given
from tinyllava_edge.benchmarks.verify.against.findings import AgainstReport
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.cli import app
from tinyllava_edge.errors import UsageError
from tinyllava_edge.export.interchange.bundle_files import LlamaCppFiles
from tinyllava_edge.export.interchange.transformers_llava import export_llava
from tinyllava_edge.export.language_gguf import write_language_gguf
from tinyllava_edge.image import preprocess
from tinyllava_edge.model.vlm import load_model


@dataclass(frozen=True)
class Held:
    """A checkpoint that files are held against, loaded once."""

    path: Path
    checkpoint: Checkpoint
    given: Given

    def against(self, *files: Path) -> AgainstReport:
        return compare_against(files, self.given)


def held(path: Path) -> Held:
    checkpoint = Checkpoint(path)
    return Held(path, checkpoint, open_given(checkpoint))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Held:
    return held(write_tiny_checkpoint(tmp_path_factory.mktemp("against") / "checkpoint", vision_layers=4))


def test_our_own_pair_differs_nowhere(tiny: Held, tmp_path: Path) -> None:
    source = language_source(tiny.path)
    write_language_gguf(tmp_path / "f16.gguf", source, "f16")
    LlamaCppFiles(tmp_path, source).write(load_model(tiny.checkpoint))
    report = tiny.against(tmp_path / "mmproj.gguf", tmp_path / "f16.gguf")
    assert report.passed, report.verdict
    stages = {one.stage for one in report.findings}
    assert stages == {"files", "weights", "pixels", "tower", "connector", "rows", "ids", "logits"}


def test_llamacpps_converter_is_a_layer_short(tiny: Held, tmp_path: Path) -> None:
    write_converted_mmproj(tmp_path / "mmproj.gguf", tiny.path)
    report = tiny.against(tmp_path / "mmproj.gguf")
    tower = next(one for one in report.findings if one.stage == "tower")
    assert tower.passed is False
    assert "equal to hidden_states[2], the checkpoint uses hidden_states[3]" in tower.cause
    assert "25817" in tower.cause


def test_token_0_kept_is_told_from_the_connector(tiny: Held, tmp_path: Path) -> None:
    write_our_mmproj(tmp_path / "mmproj.gguf", tiny.path)
    report = tiny.against(tmp_path / "mmproj.gguf")
    assert report.first is not None
    assert (report.first.stage, report.first.cause) == (
        "rows",
        "16 rows instead of 15: token 0, which upstream drops, is kept",
    )


def test_llamacpps_class_token_is_found_at_the_tower(tmp_path: Path) -> None:
    clip = held(write_tiny_checkpoint(tmp_path / "clip", tower="clip_vision_model", vision_layers=4))
    write_converted_mmproj(tmp_path / "mmproj.gguf", clip.path, layers=4)
    report = clip.against(tmp_path / "mmproj.gguf")
    tower = next(one for one in report.findings if one.stage == "tower")
    assert tower.passed is False
    assert "25814" in tower.cause


def test_a_weight_of_another_model_is_named(tiny: Held, tmp_path: Path) -> None:
    other = write_tiny_checkpoint(tmp_path / "other", vision_layers=4, seed=1)
    write_language_gguf(tmp_path / "f16.gguf", language_source(other), "f16")
    report = tiny.against(tmp_path / "f16.gguf")
    assert report.first is not None
    assert report.first.stage == "weights"
    assert "is not the checkpoint's tensor" in report.first.cause


@pytest.fixture(scope="module")
def towers(tiny: Held, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`right.onnx`, and `wrong.onnx` of another layer."""
    folder = tmp_path_factory.mktemp("towers")
    write_onnx_tower(folder / "right.onnx", tiny.path)
    write_onnx_tower(folder / "wrong.onnx", tiny.path, feature_layer=-1)
    return folder


def openvino_folder(folder: Path, tower: Path, checkpoint: Path, **processor: Any) -> Path:
    openvino = pytest.importorskip("openvino")
    folder.mkdir()
    openvino.save_model(openvino.convert_model(tower), folder / "openvino_vision_embeddings_model.xml")
    own = json.loads((checkpoint / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(own | processor))
    return folder


def test_an_openvino_folder_with_another_resize_is_found_at_the_pixels(
    tiny: Held, towers: Path, tmp_path: Path
) -> None:
    tower = towers / "right.onnx"
    edge = {"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}, "do_center_crop": True}
    report = tiny.against(openvino_folder(tmp_path / "crops", tower, tiny.path, **edge))
    assert report.first is not None
    assert report.first.stage == "pixels"
    assert "resize is shortest_edge, the checkpoint has stretch" in report.first.cause
    assert all(one.passed for one in report.findings if one.stage == "rows")
    same = tiny.against(openvino_folder(tmp_path / "same", tower, tiny.path))
    assert same.passed, same.verdict


def test_a_bare_tower_of_another_layer(tiny: Held, towers: Path) -> None:
    assert tiny.against(towers / "right.onnx").passed
    report = tiny.against(towers / "wrong.onnx")
    assert report.first is not None
    assert "of hidden_states[4], the checkpoint uses hidden_states[3]" in report.first.cause


def test_a_graph_that_its_library_refuses_is_one_line(tiny: Held, towers: Path, tmp_path: Path) -> None:
    (tmp_path / "tower.onnx").write_bytes(b"\x08\x08")
    with pytest.raises(UsageError, match=r"onnxruntime cannot compute it \(.*No graph was found"):
        tiny.against(tmp_path / "tower.onnx")
    folder = openvino_folder(tmp_path / "ir", towers / "right.onnx", tiny.path)
    ir = folder / "openvino_vision_embeddings_model.xml"
    ir.write_text(ir.read_text().replace('version="opset1"', 'version="opset77"', 1))
    with pytest.raises(UsageError, match=r"OpenVINO cannot compute it \(.*opset77\)") as caught:
        tiny.against(folder)
    assert "\n" not in str(caught.value)


def test_dumped_tensors_are_held_stage_by_stage(tiny: Held, tmp_path: Path) -> None:
    reference = tiny.given.reference
    picture = reference.pictures[3].upright
    arrays: dict[str, Any] = {
        "picture": picture,
        "tower": reference.tower(3),
        "embeddings": reference.embeddings(3),
    }
    pixels = reference.pixels(3)
    np.savez(tmp_path / "right.npz", pixels=pixels[None], **arrays)
    assert tiny.against(tmp_path / "right.npz").passed
    np.savez(tmp_path / "dark.npz", pixels=pixels - 0.05, **arrays)
    report = tiny.against(tmp_path / "dark.npz")
    assert report.first is not None
    assert report.first.stage == "pixels"
    from PIL import Image

    made = preprocess(Image.fromarray(picture), tiny.given.source.assets.preprocessing)
    np.testing.assert_array_equal(made, pixels)


def test_a_vocabulary_that_an_engine_pads_differs_only_where_padding_wins(tiny: Held, tmp_path: Path) -> None:
    ids = np.array([5, 6, 7])
    rows = torch.from_numpy(tiny.given.reference.embedding_table()[ids])
    logits = tiny.given.reference.logits_with({}, rows)
    file = tmp_path / "padded.npz"
    np.savez(file, ids=ids, logits=np.pad(logits, ((0, 0), (0, 6)), constant_values=-9.0))
    report = tiny.against(file)
    assert report.passed
    assert "6 more than the vocabulary" in report.findings[-1].what
    np.savez(file, ids=ids, logits=np.pad(logits, ((0, 0), (0, 6)), constant_values=99.0))
    report = tiny.against(file)
    assert report.first is not None
    assert f"token {logits.shape[1]} is, which the checkpoint has not" in report.first.cause


BYTES = np.zeros((20, 30, 3), np.uint8)
REFUSED_DUMPS: dict[str, tuple[dict[str, Any], str]] = {
    "no colours": ({"picture": BYTES[..., 0]}, r"picture \[20, 30\], expected \[h, w, 3\]"),
    "0 to 1": ({"picture": BYTES + 0.5}, "of whole numbers below 256"),
    "no picture": ({"picture": BYTES[:0]}, r"picture \[0, 30, 3\]"),
    "no such id": ({"ids": np.array([1, 10**6]), "logits": np.zeros((2, 9))}, "ids .* whole numbers below"),
    "a negative id": ({"ids": np.array([1, -1]), "logits": np.zeros((2, 9))}, "ids .* whole numbers below"),
    "two prompts": ({"ids": np.zeros((2, 3)), "logits": np.zeros((3, 9))}, r"ids \[2, 3\], expected \[n\]"),
    "complex": ({"pixels": np.zeros((3, 8, 8), complex)}, "no .npz file of plain arrays"),
    "nothing beside": ({"ids": np.array([1])}, "a dump with nothing in it to compare"),
    "no such layer": ({"picture": BYTES, "hidden_states.99": BYTES[0]}, "nothing in it to compare"),
}


@pytest.mark.parametrize("what", REFUSED_DUMPS)
def test_a_dump_of_which_nothing_can_be_computed_is_one_line(what: str, tiny: Held, tmp_path: Path) -> None:
    arrays, says = REFUSED_DUMPS[what]
    np.savez(tmp_path / "dump.npz", **arrays)
    with pytest.raises(UsageError, match=says):
        tiny.against(tmp_path / "dump.npz")


def test_pixels_of_another_size_differ(tiny: Held, tmp_path: Path) -> None:
    np.savez(tmp_path / "dump.npz", pixels=np.zeros((3, 8, 8)), tower=np.zeros((4, 8)))
    report = tiny.against(tmp_path / "dump.npz")
    assert report.first is not None
    assert report.first.cause.startswith("pixels is [3, 8, 8], the checkpoint has [3, ")


def test_a_weight_that_is_no_number_is_not_equal(tiny: Held, tmp_path: Path) -> None:
    import gguf

    path = tmp_path / "f16.gguf"
    write_language_gguf(path, language_source(tiny.path), "f16")
    table = next(one for one in gguf.GGUFReader(path).tensors if one.name == "token_embd.weight")
    content = bytearray(path.read_bytes())
    content[table.data_offset : table.data_offset + 2] = b"\xff\xff"  # a row that no prompt asks for
    path.write_bytes(content)
    report = tiny.against(path)
    assert report.first is not None
    assert (report.first.stage, report.first.what) == ("weights", "token_embd.weight F16")
    assert '"snr_db": "-inf"' in json.dumps(report.to_json(), allow_nan=False)


def test_an_mmproj_file_that_llamacpp_refuses_differs(tiny: Held, tmp_path: Path) -> None:
    path = tmp_path / "mmproj.gguf"
    write_our_mmproj(path, tiny.path)
    key = b"clip.vision.embedding_length"
    content = path.read_bytes()
    start = content.index(key) + len(key) + 4
    path.write_bytes(content[:start] + b"\xff\xff\xff\x7f" + content[start + 4 :])
    report = tiny.against(path)
    assert report.first is not None
    assert report.first.what == "clip.vision.embedding_length"
    assert any("llama.cpp" in one.cause for one in report.findings if one.what == "libmtmd")


def test_transformers_llava_of_the_checkpoint_is_equal_and_a_changed_one_is_not(
    tiny: Held, tmp_path: Path
) -> None:
    export_llava(Checkpoint(tiny.path), tmp_path / "llava")
    same = tiny.against(tmp_path / "llava")
    assert same.passed
    assert '{"lowest_snr_db": "inf"}' in json.dumps(same.to_json(), allow_nan=False)

    def damage(tensors: dict[str, Any]) -> None:
        tensors["multi_modal_projector.linear_2.bias"] += 1

    change_weights(tmp_path / "llava", damage)
    report = tiny.against(tmp_path / "llava")
    assert report.first is not None
    assert (report.first.stage, report.first.what) == ("weights", "connector.2.bias")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("model.gguf", b"PK\x03\x04", r"not what its name says: it begins with b'PK"),
        ("model.gguf", b"GGUF\xff\xff\xff\xff", "no GGUF file, though it begins as one"),
        ("tower.onnx", b"GGUF", "which is no onnx"),
        ("dump.npz", b"\x93NUMPY", "which is no npz"),
        ("notes.txt", b"hello", "Give a language model's .gguf"),
    ],
)
def test_a_file_that_is_not_what_it_says_is_one_line(
    name: str, content: bytes, says: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=says) as caught:
        kind_of(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_the_command_tells_in_json_and_by_its_code(tiny: Held, towers: Path) -> None:
    command = ["verify", "--against", str(towers / "wrong.onnx"), "--checkpoint", str(tiny.path), "--json"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 1
    told = json.loads(result.stdout)
    assert (told["equal"], told["first"], told["kind"]) == (False, "rows", "ONNX tower")
    for short in (command[:3], ["verify"], ["verify", "nano", "nano"]):
        assert isinstance(CliRunner().invoke(app, short).exception, UsageError)
