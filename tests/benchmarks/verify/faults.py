"""Faults planted in a copy of a bundle: in an artefact, or in bundle-side code, never in the reference."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from PIL import Image

from tinyllava_edge import image, prompt
from tinyllava_edge.bundle import Bundle, sha256_of_file
from tinyllava_edge.checkpoint.config import IMAGE_MARKER, IMAGE_TOKEN_ID
from tinyllava_edge.manifest import digest_of

Manifest = dict[str, Any]


@dataclass(frozen=True)
class Fault:
    """A mistake, and where the ladder must find it.

    Attributes:
        name: the mistake.
        stage: the first stage that fails, with the checkpoint at hand.
        cause: a part of what must be said.
        stored_stage: the first stage that fails against the stored tensors alone.
        edit_manifest, edit_graph, edit_gguf, rewrite_gguf, patch: how it is planted; one of them.
        language: the variant whose file has it.
        needs_float32: the stored tensors alone show it only where products are float32.
    """

    name: str
    stage: str
    cause: str
    stored_stage: str | None
    edit_manifest: Callable[[Manifest], None] | None = None
    edit_graph: Callable[[onnx.ModelProto], None] | None = None
    edit_gguf: Callable[[gguf.GGUFReader], None] | None = None
    rewrite_gguf: Callable[[Path], None] | None = None
    language: str = "f32"
    patch: Callable[[pytest.MonkeyPatch], None] | None = None
    needs_float32: bool = False

    def plant(self, honest: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
        """A copy of the bundle with the fault in it, its hashes made valid again."""
        shutil.copytree(honest, target, ignore=shutil.ignore_patterns("parity"))
        file = target / "language" / f"{self.language}.gguf"
        if self.edit_graph:
            path = target / "vision" / "fp32.onnx"
            proto = onnx.load(path)
            self.edit_graph(proto)
            onnx.save(proto, path)
        if self.edit_gguf:
            self.edit_gguf(gguf.GGUFReader(file, "r+"))
        if self.rewrite_gguf:
            self.rewrite_gguf(file)
            # Opening refuses such a file; without that, verify's own stage must find it.
            monkeypatch.setattr("tinyllava_edge.bundle.check_gguf", lambda path, variant, spec: None)
        if self.patch:
            self.patch(monkeypatch)
        _seal_again(target, self.edit_manifest)
        return Bundle.open(target)


def _seal_again(root: Path, edit: Callable[[Manifest], None] | None) -> None:
    path = root / "manifest.json"
    manifest = json.loads(path.read_text())
    if edit:
        edit(manifest)
    for entry in manifest["files"]:
        entry["size"] = (root / entry["path"]).stat().st_size
        entry["sha256"] = sha256_of_file(root / entry["path"])
    manifest["digest"] = digest_of(manifest)
    path.write_text(json.dumps(manifest))


def _wrong_mean(manifest: Manifest) -> None:
    manifest["vision"]["preprocessing"]["mean"] = [0.48, 0.5, 0.5]


def _trailing_space(manifest: Manifest) -> None:
    manifest["prompt"]["template"]["question"] += " "


def _wrong_stop_id(manifest: Manifest) -> None:
    manifest["prompt"]["stop_ids"] = [3]


def _replace_preprocess(monkeypatch: pytest.MonkeyPatch, wrong: Callable[..., Any]) -> None:
    for module in ("tinyllava_edge.image", "tinyllava_edge.runtimes.pictures"):
        monkeypatch.setattr(f"{module}.preprocess", wrong)


def _bgr(monkeypatch: pytest.MonkeyPatch) -> None:
    right = image.preprocess
    _replace_preprocess(monkeypatch, lambda picture, how: right(picture, how)[::-1].copy())


def _no_antialias(monkeypatch: pytest.MonkeyPatch) -> None:
    right = image.preprocess

    def wrong(picture: Any, how: image.Preprocessing) -> Any:
        values = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float()
        sides = (how.size, how.size)
        resized = torch.nn.functional.interpolate(values, sides, mode="bicubic", antialias=False)
        values = resized[0].permute(1, 2, 0).round().clamp(0, 255).byte()
        return right(Image.fromarray(values.numpy()), how)

    _replace_preprocess(monkeypatch, wrong)


def _joint_tokenization(monkeypatch: pytest.MonkeyPatch) -> None:
    right = prompt.TextTokenizer.encode

    def wrong(self: prompt.TextTokenizer, template: prompt.Template, turns: Any, **options: Any) -> list[int]:
        before, marker, after = template.render(turns).partition(IMAGE_MARKER)
        if not marker or IMAGE_MARKER in after:
            return right(self, template, turns, **options)
        head = self.encode_text(before)
        return [*head, IMAGE_TOKEN_ID, *self.encode_text(before + after)[len(head) :]]

    monkeypatch.setattr(prompt.TextTokenizer, "encode", wrong)


def _long_text_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    right = prompt.TextTokenizer.encode

    def wrong(*args: Any, **options: Any) -> list[int]:
        return right(*args, **options)[:4096]

    monkeypatch.setattr(prompt.TextTokenizer, "encode", wrong)


def _special_text_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    right = prompt.TextTokenizer.encode

    def wrong(self: prompt.TextTokenizer, template: prompt.Template, turns: Any, **options: Any) -> list[int]:
        return right(self, template, turns)

    monkeypatch.setattr(prompt.TextTokenizer, "encode", wrong)


def _last_slice(proto: onnx.ModelProto) -> onnx.NodeProto:
    """The node that drops token 0 and makes the tower's output."""
    node: onnx.NodeProto
    (node,) = [node for node in proto.graph.node if "vision_tower_output" in node.output]
    assert node.op_type == "Slice"
    return node


def _token_0_kept(proto: onnx.ModelProto) -> None:
    proto.graph.initializer.append(numpy_helper.from_array(np.zeros(1, dtype=np.int64), "zero"))
    _last_slice(proto).input[1] = "zero"
    for value in [*proto.graph.value_info, *proto.graph.output]:
        if len(value.type.tensor_type.shape.dim) == 3:
            value.type.tensor_type.shape.dim[1].dim_param = "tokens"


def _layer_off_by_one(proto: onnx.ModelProto) -> None:
    outputs = [
        node.output[0]
        for node in proto.graph.node
        if node.op_type == "Add" and node.name.startswith("tower.model.encoder.layers.0/")
    ]
    _last_slice(proto).input[0] = outputs[-1]  # the first layer's residual sum, not the second's


def _tanh_gelu(proto: onnx.ModelProto) -> None:
    """Replace erf(y), y = x / sqrt 2, by tanh(2 / sqrt pi (y + 0.08943 y^3)), the usual approximation."""
    (erf,) = [node for node in proto.graph.node if node.op_type == "Erf"]
    index = list(proto.graph.node).index(erf)
    name, output = erf.input[0], erf.output[0]
    for constant, value in {"c1": 2 / np.sqrt(np.pi), "c3": 2 * 0.044715, "one": 1.0}.items():
        proto.graph.initializer.append(numpy_helper.from_array(np.array(value, dtype=np.float32), constant))
    nodes = [
        helper.make_node("Mul", [name, name], ["square"]),
        helper.make_node("Mul", ["square", "c3"], ["scaled"]),
        helper.make_node("Add", ["scaled", "one"], ["factor"]),
        helper.make_node("Mul", [name, "factor"], ["cubic"]),
        helper.make_node("Mul", ["cubic", "c1"], ["inner"]),
        helper.make_node("Tanh", ["inner"], [output]),
    ]
    proto.graph.node.remove(erf)
    for offset, node in enumerate(nodes):
        proto.graph.node.insert(index + offset, node)


def _transposed_connector(proto: onnx.ModelProto) -> None:
    # The tower's widths are 48 and 96, so the connector's second layer is the only square of 64.
    (weight,) = [tensor for tensor in proto.graph.initializer if list(tensor.dims) == [64, 64]]
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight).T.copy(), weight.name))


def _tensor(reader: gguf.GGUFReader, name: str) -> Any:
    (tensor,) = [tensor for tensor in reader.tensors if tensor.name == name]
    return tensor.data


def _transposed_weight(reader: gguf.GGUFReader) -> None:
    weight = _tensor(reader, "blk.0.attn_output.weight")
    weight[:] = weight.T.copy()


def _wrong_rope_order(reader: gguf.GGUFReader) -> None:
    """Leave the rows of q as transformers has them: first halves, then second halves."""
    for layer in range(2):
        weight = _tensor(reader, f"blk.{layer}.attn_q.weight")
        heads = weight.reshape(4, 8, 2, 64)  # [heads, half, pair, hidden]
        weight[:] = heads.swapaxes(1, 2).reshape(64, 64).copy()


def _swapped_k_and_v(reader: gguf.GGUFReader) -> None:
    key, value = _tensor(reader, "blk.1.attn_k.weight"), _tensor(reader, "blk.1.attn_v.weight")
    key[:], value[:] = value.copy(), key.copy()


def _eps_times_ten(reader: gguf.GGUFReader) -> None:
    entry = reader.fields["llama.attention.layer_norm_rms_epsilon"]
    entry.parts[entry.data[0]][:] *= 10


def a_scale_a_step_off(reader: gguf.GGUFReader) -> None:
    """One block's scale, 12 % larger: the tensor falls from 45 to 41 dB, and its type may have 39."""
    blocks = _tensor(reader, "blk.0.ffn_down.weight").reshape(-1, 34)
    scale = blocks[:1, :2].view(np.float16)
    blocks[:1, :2] = (scale * np.float16(1.12)).view(np.uint8)


def _scale_is_nan(reader: gguf.GGUFReader) -> None:
    blocks = _tensor(reader, "blk.0.ffn_down.weight").reshape(-1, 34)
    blocks[:1, :2] = np.array([np.nan], dtype=np.float16).view(np.uint8)


def a_unit_in_the_last_place(reader: gguf.GGUFReader) -> None:
    """Every value of a float16 tensor is the next larger one: some 66 dB, and not what was rounded."""
    weight = _tensor(reader, "blk.1.attn_k.weight")
    weight[:] = np.nextafter(weight, np.float16(np.inf))


def _rope_scaled(path: Path) -> None:
    """Write a key that no stage expects, with which llama.cpp divides the positions."""
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(path.with_suffix(".new"), "llama")
    for name, entry in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            kind = entry.types[0]
            element = entry.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, entry.contents(), kind, element)
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(4.0)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    path.with_suffix(".new").replace(path)


FAULTS = (
    Fault(
        "wrong mean", "pixels", "constant difference in a channel (red", "pixels", edit_manifest=_wrong_mean
    ),
    Fault("BGR", "pixels", "BGR for RGB", "pixels", patch=_bgr),
    Fault("resize without antialias", "pixels", "without antialias", "pixels", patch=_no_antialias),
    Fault("token 0 kept", "tower", "token 0 is kept", "tower", edit_graph=_token_0_kept),
    Fault("feature layer off by one", "tower", "wrong feature layer", "tower", edit_graph=_layer_off_by_one),
    # Its error is within what a deep tower may round, so the stored tensors cannot tell.
    Fault("tanh GELU for erf", "connector", "tanh approximation", None, edit_graph=_tanh_gelu),
    Fault("transposed weight", "weights", "is transposed", "logits", edit_gguf=_transposed_weight),
    Fault(
        "transposed connector", "connector", "is transposed", "connector", edit_graph=_transposed_connector
    ),
    Fault("joint tokenisation", "text", "not on its own", "text", patch=_joint_tokenization),
    Fault("special text honoured", "text", "as plain text", None, patch=_special_text_honoured),
    Fault("a long text's end cut", "text", "ids differ from index 4096", None, patch=_long_text_cut),
    Fault("trailing space", "text", "white space at the end", "text", edit_manifest=_trailing_space),
    Fault(
        "wrong RoPE permutation", "weights", "wrong RoPE permutation", "logits", edit_gguf=_wrong_rope_order
    ),
    Fault(
        "RMS eps x10",
        "metadata",
        "layer_norm_rms_epsilon is",
        "logits",
        edit_gguf=_eps_times_ten,
        needs_float32=True,  # logits NMSE 5e-9
    ),
    Fault("swapped K and V", "weights", "swapped", "logits", edit_gguf=_swapped_k_and_v),
    Fault(
        "scale of a Q8_0 block",
        "weights",
        "the values differ",
        None,
        edit_gguf=a_scale_a_step_off,
        language="q8_0",
    ),
    Fault(
        "NaN for the scale of a Q8_0 block",
        "weights",
        "32 values in the file are NaN or infinite",
        "logits",
        edit_gguf=_scale_is_nan,
        language="q8_0",
    ),
    Fault(
        "a unit in the last place of f16",
        "weights",
        "the values differ",
        None,
        edit_gguf=a_unit_in_the_last_place,
        language="f16",
    ),
    Fault(
        "RoPE scaled in q8_0 only",
        "dequantized",
        "torch with the values of this file computes something else",
        None,
        rewrite_gguf=_rope_scaled,
        language="q8_0",
    ),
    Fault("wrong stop id", "text", "stop ids are [3]", None, edit_manifest=_wrong_stop_id),
)
