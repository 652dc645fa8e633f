"""Reading what an engine's inspector says. Its forms: docs/sources/tensorrt.md#engine-inspector."""

import json

import pytest

from tinyllava_edge.runtimes.trt.fusion import Fusion, is_fused_attention, read_fusion


def layer(name: str, tactic: str = "", kind: str = "kgen") -> dict[str, object]:
    """As TensorRT 10 describes a kernel."""
    tensor = {"Name": "x", "Dimensions": [1, 40, 256], "Format/Datatype": "Half"}
    return {"Name": name, "LayerType": kind, "Inputs": [tensor], "Outputs": [tensor], "TacticName": tactic}


@pytest.mark.parametrize(
    ("name", "is_fused"),
    [
        ("_gemm_mha_v2_myl0_17", True),  # NVIDIA/TensorRT#4397
        ("_gemm_mha_v2_0x957a2fe283f77dcf35c142c1390a3e6a", True),  # a tactic, likewise
        ("_gemv_mha_v1_myl0_3", True),
        ("__mye8037_gemm_mha_v2", True),
        ("fmha_v2_flash_attention_fp16_S_40_64_sm86_kernel", True),
        # A product whose node was named so, in the same issue.
        (
            "/encoder/layers_2/mha/attn/mha_prob/key/MatMul+/encoder/layers_2/mha/value/MatMul_myl0_16",
            False,
        ),
        ("__myl_MaxSubExpSumDivMul_myl0_9", False),
        ("sm80_xmma_gemm_f16f16_f16f16_f16_nn_n_tilesize32x32x64_stage6", False),
    ],
)
def test_fused_attention_is_known_by_its_kernel(name: str, is_fused: bool) -> None:
    assert is_fused_attention(name) is is_fused


def test_a_detailed_answer_is_counted() -> None:
    layers = [
        layer("/mha/query/MatMul_myl0_0", "sm80_xmma_gemm_f16f16", "gemm"),
        layer("_gemm_mha_v2_myl0_1", "_gemm_mha_v2_0x957a"),
        layer("__myl_AddCast_myl0_2", "__myl_AddCast_0x01"),
        layer("_gemm_mha_v2_myl0_3", "_gemm_mha_v2_0x957a"),
    ]
    found = read_fusion(json.dumps({"Layers": layers, "Bindings": ["pixels", "embeddings"]}))
    assert found == Fusion(layers=4, fused=2)
    assert found.text(2) == "attention fused in 2 of 2"
    assert found.text(None) == "attention fused in 2"


def test_an_engine_without_fused_attention_says_none_of_so_many() -> None:
    found = read_fusion(json.dumps({"Layers": [layer("qk", kind="gemm"), layer("softmax"), layer("pv")]}))
    assert found.text(26) == "attention fused in 0 of 26"


def test_names_alone_will_do() -> None:
    """What an engine without detailed verbosity answers: NVIDIA/TensorRT#4020."""
    found = read_fusion(json.dumps({"Layers": ["_gemm_mha_v2_myl0_1", "__myl_AddCast_myl0_2"]}))
    assert found == Fusion(layers=2, fused=1)


def test_lines_will_do() -> None:
    line = "Name: {}, LayerType: kgen, Inputs: [ {{ Name: a }}], Outputs: [], TacticName: {}, StreamId: 0"
    lines = [line.format("_gemm_mha_v2_myl0_1", "_gemm_mha_v2_0x9"), line.format("b", "c")]
    assert read_fusion("\n".join(["Layers:", *lines, "", "Bindings:"])) == Fusion(layers=2, fused=1)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nothing of that kind",
        "null",
        "[]",
        "{}",
        '{"Layers": []}',
        '{"Layers": 7}',
        "[" * 100_000,
        json.dumps({"Layers": [layer("{ForeignNode[/patch/Conv.../connector/Add]}", kind="Myelin")]}),
    ],
)
def test_what_shows_no_kernels_tells_nothing(text: str) -> None:
    found = read_fusion(text)
    assert found.fused is None
    assert found.text(26) == "fusion not shown by the inspector"


@pytest.mark.parametrize(
    "odd", [None, 7, [], {"LayerType": "gemm"}, {"Name": None}, {"Name": 3, "TacticName": []}]
)
def test_an_odd_layer_is_no_attention(odd: object) -> None:
    assert read_fusion(json.dumps({"Layers": [odd, "_gemm_mha_v2"]})).fused == 1
