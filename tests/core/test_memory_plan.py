"""What is planned, against llama.cpp's own log and sums by hand."""

from dataclasses import replace
from pathlib import Path

import onnx
import onnx.helper as oh
import pytest

from tinyllava_edge.bundle import Bundle
from tinyllava_edge.checkpoint.names import bundle_path
from tinyllava_edge.errors import UsageError
from tinyllava_edge.gguf_header import Entry, GgufHeader, Tensor
from tinyllava_edge.llamacpp_memory import KV_BYTES, kv_bytes, scratch_bytes, suits_cache
from tinyllava_edge.manifest import LanguageSpec
from tinyllava_edge.memory_plan import MIB, chosen_setting, plan_memory
from tinyllava_edge.onnx_shapes import read_activations
from tinyllava_edge.runtimes import llamacpp
from tinyllava_edge.runtimes.base import KV_TYPES

# hidden, inner, heads, KV heads, head size, vocabulary, gated, layers
SHAPES = {
    "smollm2-135m": (576, 1536, 9, 3, 64, 49152, True),
    "qwen2-0.5b": (896, 4864, 14, 2, 64, 151936, True),
    "gemma-2b": (2048, 16384, 8, 1, 256, 256000, True),
    "phi-2": (2560, 10240, 32, 32, 80, 51200, False),
    "openelm": (1280, 3072, 16, 4, 64, 32000, True),
    "stablelm-2": (2048, 5632, 32, 32, 64, 100352, True),
}
# "CPU compute buffer size" in the log of llama.cpp (llama-cpp-python 0.3.36), two layers, 64 rows of logits.
SCRATCH_MIB = [
    ("smollm2-135m", 4096, "f16", 17.51), ("smollm2-135m", 4096, "f32", 86.38),
    ("qwen2-0.5b", 1024, "f16", 39.28), ("qwen2-0.5b", 4096, "f32", 129.26),
    ("gemma-2b", 2048, "f16", 114.01), ("phi-2", 2048, "f16", 47.01), ("phi-2", 2048, "f32", 167.01),
    ("openelm", 1024, "f16", 26.51), ("stablelm-2", 4096, "q8_0", 49.04),
]  # fmt: skip


def model(shape: str, layers: int = 2) -> tuple[GgufHeader, LanguageSpec]:
    hidden, inner, heads, kv_heads, head, vocab, gated = SHAPES[shape]
    entries = {
        "general.architecture": Entry("string", "a"),
        "a.feed_forward_length": Entry("uint32", inner),
        "a.attention.head_count_kv": Entry("uint32", kv_heads),
    }
    tensors = {"blk.0.ffn_gate.weight": Tensor((inner, hidden), "F16")} if gated else {}
    spec = LanguageSpec(
        architecture="llama", hidden_size=hidden, vocab_size=vocab, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=head, context_length=32768,
    )  # fmt: skip
    return GgufHeader(entries, tensors), spec


@pytest.mark.parametrize(("shape", "context_length", "kv_type", "logged"), SCRATCH_MIB)
def test_scratch_is_what_llama_cpp_logs_and_never_less(
    shape: str, context_length: int, kv_type: str, logged: float
) -> None:
    planned = scratch_bytes(*model(shape), kv_type=kv_type, context_length=context_length) / MIB
    assert logged - 0.02 <= planned <= 1.1 * logged


@pytest.mark.parametrize(("kv_type", "mib"), [("f16", 48.0), ("f32", 96.0), ("q8_0", 25.5)])
def test_the_cache_is_keys_and_values_of_every_layer(kv_type: str, mib: float) -> None:
    # By hand: 24 layers x 2 (keys, values) x 2 heads x 64 x 4096 positions = 25,165,824 values.
    qwen = model("qwen2-0.5b", 24)
    assert kv_bytes(*qwen, kv_type=kv_type, context_length=4096) == mib * MIB
    assert kv_bytes(*qwen, kv_type=kv_type, context_length=3900) == mib * MIB  # rounded up to 256


def test_heads_that_a_block_of_q8_0_does_not_divide_have_no_such_cache() -> None:
    """llama.cpp refuses the context of Phi-2, whose heads have 80 values."""
    assert not suits_cache(model("phi-2")[1], "q8_0")
    assert suits_cache(model("qwen2-0.5b")[1], "q8_0")


def test_a_gpu_has_the_weights_and_the_host_their_table_of_tokens() -> None:
    bundle = Bundle.open(bundle_path("nano"))
    chosen = chosen_setting(bundle)
    host, gpu = (plan_memory(bundle, chosen, gpu=where) for where in (False, True))
    assert host.gpu_bytes == 0
    by_name = {line.name: line for line in gpu.lines}
    spec = bundle.manifest.language
    assert by_name["table of tokens"].bytes == 2 * spec.vocab_size * spec.hidden_size
    # nano's table is its output's matrix too, so the GPU holds it as well.
    assert (
        by_name["language weights"].bytes == next(x for x in host.lines if x.name == "language weights").bytes
    )
    assert {line.place for line in gpu.lines} == {"host", "gpu"}
    engine = {"weight_bytes": 5_086_720, "activation_bytes": 8_669_184}
    built = plan_memory(bundle, chosen, gpu=True, engine=engine)
    assert [x.bytes for x in built.lines if x.name.startswith("vision")] == [*engine.values()]


def test_a_cpu_lays_some_matrices_out_anew() -> None:
    bundle = Bundle.open(bundle_path("nano"))
    chosen = replace(chosen_setting(bundle), language="q8_0")
    plans = {cpu: plan_memory(bundle, chosen, gpu=False, architecture=cpu) for cpu in ("x86_64", "aarch64")}
    copies = {cpu: [x for x in plan.lines if x.name == "repacked weights"] for cpu, plan in plans.items()}
    assert copies["x86_64"] == []
    assert len(copies["aarch64"]) == 1  # Q8_0 is repacked for dot products of ARM


@pytest.mark.parametrize(
    ("asked", "words"),
    [({"kv_type": "q4_0"}, "known: f16, q8_0, f32"), ({"context_length": 9999}, "1 to 1024")],
)
def test_what_no_model_has_is_refused(asked: dict[str, str | int], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        chosen_setting(Bundle.open(bundle_path("nano")), **asked)  # type: ignore[arg-type]


def test_shapes_are_those_of_values_with_a_row_for_each_picture(tmp_path: Path) -> None:
    float_, path = onnx.TensorProto.FLOAT, tmp_path / "a.onnx"
    inner = [
        oh.make_tensor_value_info("scores", float_, ["batch", 16, 729, 729]),
        oh.make_tensor_value_info("weight", float_, [4, 4]),
        oh.make_tensor_value_info("unknown", float_, ["batch", "n"]),
    ]
    graph = oh.make_graph([oh.make_node("Identity", ["x"], ["y"])], "g", [], [], value_info=inner)
    onnx.save(oh.make_model(graph), path)
    assert read_activations(path) == [(16, 729, 729)]


def test_the_runtime_has_the_types_of_cache_that_are_planned() -> None:
    assert {*KV_TYPES} == {*KV_BYTES} == {*llamacpp._KV_TYPES}
