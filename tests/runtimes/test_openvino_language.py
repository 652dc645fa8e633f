"""The language half on OpenVINO, with graphs that our exporter wrote."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("openvino")
pytest.importorskip("torch")

from safetensors.numpy import save

from tests.export.gguf_files import language_source
from tests.export.test_openvino_decoder import Graph
from tests.runtimes import bundles
from tests.runtimes.contract import LanguageContract, language_ids
from tests.tiny import write_tiny_checkpoint
from tinyllava_edge.bundle import LanguageSpec
from tinyllava_edge.compute_classes import BF16_CPU, FLOAT32_CPU, INT8_CPU
from tinyllava_edge.device import read_cpu
from tinyllava_edge.errors import BackendError, BundleError, UsageError
from tinyllava_edge.export.language_openvino import write_language_openvino
from tinyllava_edge.ir_tensors import open_tensors
from tinyllava_edge.metrics import nmse
from tinyllava_edge.runtimes.base import BackendOptions
from tinyllava_edge.runtimes.openvino_language import OpenVinoLanguage, open_language

HAS_BF16 = bool({"avx512_bf16", "amx_bf16"} & set(read_cpu().features))


class Graphs:
    """A tiny checkpoint's language model, written once in each type."""

    def __init__(self, folder: Path) -> None:
        source = language_source(write_tiny_checkpoint(folder / "checkpoint"))
        self.config = source.checkpoint.config.language
        spec = LanguageSpec.of(self.config)
        self.spec = spec.model_copy(update={"context_length": 256})
        self.paths = {name: folder / f"{name}.xml" for name in ("ov_f32", "ov_int8", "ov_int4")}
        for name, path in self.paths.items():
            write_language_openvino(path, source, name)

    def open(self, name: str, **settings: Any) -> OpenVinoLanguage:
        compute = settings.pop("compute", FLOAT32_CPU)
        options = BackendOptions(**{"kv_type": "f32", "threads": 1, **settings})
        return OpenVinoLanguage(
            self.paths[name], self.spec, options, name=f"openvino {name}", compute=compute
        )


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Graphs:
    return Graphs(tmp_path_factory.mktemp("openvino"))


class TestF32(LanguageContract):
    @pytest.fixture
    def backend(self, graphs: Graphs) -> Iterator[OpenVinoLanguage]:
        with closing(graphs.open("ov_f32")) as backend:
            yield backend


class TestInt4(LanguageContract):
    tolerance = 1e-4

    @pytest.fixture
    def backend(self, graphs: Graphs) -> Iterator[OpenVinoLanguage]:
        with closing(graphs.open("ov_int4")) as backend:
            yield backend


class TestInt8WithACacheOf8Bits(LanguageContract):
    tolerance = 0.1  # a segment is attended to before it is rounded to 8 bits, what is behind it afterwards

    @pytest.fixture
    def backend(self, graphs: Graphs) -> Iterator[OpenVinoLanguage]:
        with closing(graphs.open("ov_int8", kv_type="q8_0")) as backend:
            yield backend


@pytest.mark.parametrize("name", ["ov_int8", "ov_int4"])
def test_integers_are_computed_as_the_values_that_they_stand_for(graphs: Graphs, name: str) -> None:
    values = {key: tensor.rows() for key, tensor in open_tensors(graphs.paths[name]).items()}
    with closing(graphs.open(name)) as backend:
        ids = language_ids(backend, 40)
        found = backend.evaluate(ids, 0, all_logits=True)
    assert found is not None
    assert nmse(Graph(graphs.config, values).run(0, ids), found) < 1e-6


@pytest.mark.skipif(not HAS_BF16, reason="this processor has no bfloat16 products")
def test_bfloat16_is_other_numbers(graphs: Graphs) -> None:
    found = []
    for compute in (FLOAT32_CPU, BF16_CPU):
        with closing(graphs.open("ov_f32", compute=compute)) as backend:
            logits = backend.evaluate(language_ids(backend, 200), 0, all_logits=True)
            assert logits is not None
            found.append(logits)
    assert 1e-6 < nmse(*found) < 1e-2


@pytest.mark.skipif(not HAS_BF16, reason="this processor has no bfloat16 products")
def test_what_is_multiplied_with_integers_is_rounded_to_8_bits_and_nothing_else(graphs: Graphs) -> None:
    errors = {}
    for name in ("ov_f32", "ov_int8"):
        found = []
        for compute in (BF16_CPU, INT8_CPU):
            with closing(graphs.open(name, compute=compute)) as backend:
                logits = backend.evaluate(language_ids(backend, 200), 0, all_logits=True)
                assert logits is not None
                found.append(logits)
        errors[name] = nmse(*found)
    assert errors["ov_f32"] == 0
    assert 1e-6 < errors["ov_int8"] < 1e-2


def test_a_prompt_of_many_parts_is_one_call(graphs: Graphs, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    with closing(graphs.open("ov_f32")) as backend:
        infer = backend._infer

        def counted(ids: Any, *rest: Any) -> Any:
            calls.append(len(ids))
            return infer(ids, *rest)

        monkeypatch.setattr(backend, "_infer", counted)
        rows = np.random.default_rng(0).standard_normal((5, backend.hidden_size), dtype=np.float32)
        ids = language_ids(backend, 12)
        for position, part in ((0, ids[:4]), (4, rows), (9, ids[4:])):
            backend.evaluate(part, position)
        assert calls == []
        together = backend.last_logits()
        assert calls == [17]
        backend.truncate(0)
        apart = [
            backend.evaluate(part, at, all_logits=True)
            for at, part in ((0, ids[:4]), (4, rows), (9, ids[4:]))
        ]
        assert apart[-1] is not None
        np.testing.assert_allclose(together, apart[-1][-1], atol=1e-4)
        monkeypatch.setattr("tinyllava_edge.runtimes.openvino_language._ROWS", 5)
        backend.truncate(0)
        calls.clear()
        for position, part in ((0, ids[:4]), (4, rows), (9, ids[4:])):
            backend.evaluate(part, position)
        np.testing.assert_allclose(backend.last_logits(), together, atol=1e-4)
        assert calls == [5, 5, 5, 2]


@pytest.mark.parametrize(
    ("most", "held"), [(256, [100, 140, 180, 220, 60, 100]), (50, [100, 60, 100, 60, 100, 60])]
)
def test_what_is_cut_off_stays_out_of_sight_until_there_is_much_of_it(
    graphs: Graphs, monkeypatch: pytest.MonkeyPatch, most: int, held: list[int]
) -> None:
    """The context has 256 positions."""
    monkeypatch.setattr("tinyllava_edge.runtimes.openvino_language._MOST_UNSEEN", most)
    with closing(graphs.open("ov_f32")) as backend:
        ids = language_ids(backend, 80)
        backend.evaluate(ids[:40], 0)
        expected = backend.evaluate(ids[40:60], 40, all_logits=True)
        assert expected is not None
        for rows in held:
            backend.evaluate(ids[60:], 60, all_logits=True)
            backend.truncate(40)
            again = backend.evaluate(ids[40:60], 40, all_logits=True)
            assert again is not None
            np.testing.assert_allclose(again, expected, atol=1e-4)
            assert len(backend._keys) == rows


@pytest.mark.parametrize(
    ("kv_type", "within"), [("f32", 0), ("f16", 0), ("q8_0", 1e-4)]
)  # u8 is rounded anew
def test_a_context_is_put_back_in_another_backend_to_the_bit(
    graphs: Graphs, kv_type: str, within: float
) -> None:
    with closing(graphs.open("ov_int8", kv_type=kv_type)) as backend:
        ids = language_ids(backend, 60)
        backend.evaluate(ids[:50], 0)
        state = backend.save_state()
        expected = backend.evaluate(ids[50:], 50, all_logits=True)
    with closing(graphs.open("ov_int8", kv_type=kv_type)) as backend:
        backend.evaluate(ids[::-1], 0)  # what it holds is gone then
        backend.load_state(state, 50)
        again = backend.evaluate(ids[50:], 50, all_logits=True)
        assert expected is not None
        assert again is not None
        np.testing.assert_allclose(again, expected, rtol=0, atol=within)


def test_what_is_out_of_sight_is_not_in_a_saved_context(graphs: Graphs) -> None:
    with closing(graphs.open("ov_f32")) as backend:
        ids = language_ids(backend, 60)
        backend.evaluate(ids[:50], 0)
        plain = backend.save_state()
        expected = backend.evaluate(ids[40:], 50, all_logits=True)
        backend.truncate(50)  # twenty rows stay in the cache
        assert backend.save_state() == plain
        backend.load_state(plain, 40)  # cut
        backend.evaluate(ids[40:50], 40)
        again = backend.evaluate(ids[40:], 50, all_logits=True)
        assert expected is not None
        assert again is not None
        np.testing.assert_allclose(again, expected, atol=1e-4)


def test_a_context_that_cannot_be_put_back_leaves_an_empty_one(graphs: Graphs) -> None:
    with closing(graphs.open("ov_f32")) as backend:
        ids = language_ids(backend, 60)
        backend.evaluate(ids, 0)
        state = backend.save_state()
        for broken, positions in ((state[:-1], 60), (state, 61), (state, 0), (save({}), 1)):
            with pytest.raises(BackendError, match="cannot be put back: "):
                backend.load_state(broken, positions)
            assert backend.evaluate(ids, 0, all_logits=True) is not None
    with closing(graphs.open("ov_f32", context_length=50)) as backend:
        with pytest.raises(BackendError, match="60 positions for at least 60 of 50"):
            backend.load_state(state, 60)
        backend.load_state(state, 50)


def test_turned_heads_are_one_operation_of_the_plugin(graphs: Graphs) -> None:
    with closing(graphs.open("ov_f32")) as backend:
        kinds = [node.get_rt_info()["layerType"] for node in compiled_ops(backend)]
    assert kinds.count("RoPE") == 2 * graphs.config.num_hidden_layers


def compiled_ops(backend: OpenVinoLanguage) -> list[Any]:
    """The operations that the CPU plugin computes."""
    ops: list[Any] = backend._compiled.model.get_runtime_model().get_ordered_ops()
    return ops


def test_a_graph_of_another_size_than_the_manifest_says_is_refused(graphs: Graphs) -> None:
    spec = graphs.spec.model_copy(update={"hidden_size": 128})
    with pytest.raises(BundleError, match=r"rows of 128 and .* found .*64"):
        OpenVinoLanguage(graphs.paths["ov_f32"], spec, BackendOptions(), name="x")


def test_a_gguf_and_options_of_llamacpp_are_refused_with_what_to_do(tmp_path: Path) -> None:
    bundle = bundles.write_bundle(tmp_path / "bundle")
    with pytest.raises(BundleError, match="no verified language variant openvino"):
        open_language(bundle, BackendOptions())
    with pytest.raises(
        BundleError, match="f32 is gguf; openvino runs its own, which export --language ov_int8"
    ):
        open_language(bundle, BackendOptions(language="f32"))
    (language,) = [variant for variant in bundle.manifest.variants if variant.part == "language"]
    variants = (language.model_copy(update={"target": "openvino"}),)
    changed = replace(bundle, manifest=bundle.manifest.model_copy(update={"variants": variants}))
    with pytest.raises(UsageError, match=r"no llama\.cpp\. Leave --gpu-layers out"):
        open_language(changed, BackendOptions(gpu_layers=1))
    with pytest.raises(UsageError, match="no q8_0 KV cache, only f32 or f16"):
        BackendOptions(kv_type="q8_0").check_without_llamacpp("openvino", ("f32", "f16"))
