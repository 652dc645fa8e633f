"""The ladder of `build` on a device, with engines that are made to be wrong."""

import errno
import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from tests.runtimes import bundles
from tests.runtimes.trt.engine_bundles import write_engine_bundle
from tests.runtimes.trt.fake_gpu import ORIN, RTX_3060, FakeGpu
from tinyllava_edge.benchmarks.bench.plan import plan_cells
from tinyllava_edge.benchmarks.evals.cells import Wish
from tinyllava_edge.bundle import Bundle, sha256_of_file
from tinyllava_edge.errors import (
    BackendError,
    BundleError,
    DiskFullError,
    EngineBuildError,
    EngineMemoryError,
    MissingExtraError,
    NoEngineError,
    NoGpuError,
    PackError,
    TensorRTVersionError,
    UnsupportedGraphError,
    UnsupportedPrecisionError,
    UsageError,
)
from tinyllava_edge.runtimes import registry
from tinyllava_edge.runtimes.auto import candidates, settle_runtime
from tinyllava_edge.runtimes.base import BackendOptions
from tinyllava_edge.runtimes.model import open_bundle
from tinyllava_edge.runtimes.trt.cache import EngineCache, StoredEngine
from tinyllava_edge.runtimes.trt.choose import DeviceBuild
from tinyllava_edge.runtimes.trt.options import EngineOptions
from tinyllava_edge.runtimes.trt.pack import write_pack
from tinyllava_edge.runtimes.trt.vision import TensorRTVision


@pytest.fixture
def bundle(gpu: FakeGpu, tmp_path: Path) -> Bundle:
    return write_engine_bundle(tmp_path / "bundle")


class Builds:
    """Names of the graphs that engines were built of."""

    def __init__(self, tasks: list[dict[str, Any]]) -> None:
        self._tasks = tasks

    def __eq__(self, other: object) -> bool:
        return [Path(task["onnx"]).stem for task in self._tasks if task["job"] == "build"] == other


@pytest.fixture(autouse=True)
def builds(tasks_here: list[dict[str, Any]]) -> Builds:
    return Builds(tasks_here)


@pytest.fixture(autouse=True)
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lines for the user."""
    lines: list[str] = []
    for module in ("choose", "budget"):
        monkeypatch.setattr(f"tinyllava_edge.runtimes.trt.{module}.note", lines.append)
    return lines


def device(bundle: Bundle, *, force: bool = False, **options: Any) -> DeviceBuild:
    return DeviceBuild(bundle, EngineOptions(**options), force=force)


def test_the_first_engine_that_computes_the_reference_is_chosen(bundle: Bundle, said: list[str]) -> None:
    choice = device(bundle, max_batch=2).choose()
    assert (choice.runtime, choice.vision) == ("tensorrt+llamacpp", "fp16")
    assert choice.engine is not None
    record = EngineCache().record(choice.engine)
    assert record.status == "verified"
    assert record.parity["not_finite"] == 0
    assert record.parity["pictures"] == 3
    assert record.facts["memory"]["plan"] == record.plan_bytes
    assert record.facts["device_ms"] > 0
    assert record.key.profile == (1, 1, 2)
    assert said[-1].startswith(
        "tensorrt+llamacpp fp16: chosen, equal within the gates (worst token cosine 1.0"
    )


@pytest.mark.parametrize(
    ("faults", "chosen", "outcomes"),
    [
        ({"fp16": "nan"}, ("tensorrt+llamacpp", "fp32"), ["refused"]),
        ({"fp16": "noise"}, ("tensorrt+llamacpp", "fp32"), ["refused"]),
        ({"fp16": "fail"}, ("tensorrt+llamacpp", "fp32"), ["not possible"]),
        ({"fp16": "build: out of memory"}, ("tensorrt+llamacpp", "fp32"), ["not possible"]),
        ({"fp16": "nan", "fp32": "noise"}, ("onnxruntime+llamacpp", "fp32"), ["refused", "refused"]),
    ],
)
def test_what_differs_is_left_for_the_next_step_and_says_why(
    gpu: FakeGpu,
    bundle: Bundle,
    faults: dict[str, str],
    chosen: tuple[str, str],
    outcomes: list[str],
    said: list[str],
) -> None:
    gpu.spoil(bf16="build: no kernel", **faults)
    choice = device(bundle).choose()
    assert (choice.runtime, choice.vision) == chosen
    engines = {step.vision: step for step in choice.steps if step.runtime == "tensorrt+llamacpp"}
    assert engines["bf16"].outcome == "not possible"
    assert "no kernel" in engines["bf16"].reason
    assert [engines[name].outcome for name in faults] == outcomes
    assert choice.steps[-1].outcome == "chosen"
    if faults["fp16"] == "nan":
        assert engines["fp16"].reason == "9 embeddings are NaN or infinite"
        assert engines["fp16"].parity["snr_db"] is None
    if faults["fp16"] == "noise":
        assert "the gate is at least" in engines["fp16"].reason
    assert len([line for line in said if "to be built" not in line]) == len(choice.steps)


def test_onnxruntime_on_cuda_comes_before_the_cpu(gpu: FakeGpu, bundle: Bundle) -> None:
    gpu.spoil(fp16="nan", bf16="nan", fp32="nan")
    choice = device(bundle).choose()
    tried = [(step.runtime, step.vision) for step in choice.steps]
    assert tried[3:] == [
        ("onnxruntime-cuda+llamacpp", "fp16"),
        ("onnxruntime-cuda+llamacpp", "fp32"),
        ("onnxruntime+llamacpp", "fp32"),
    ]
    assert "has no CUDA" in choice.steps[3].reason


def test_a_variant_that_was_asked_for_is_not_replaced(gpu: FakeGpu, bundle: Bundle) -> None:
    gpu.spoil(fp16="nan")
    with pytest.raises(BackendError, match="fp16: 9 embeddings are NaN"):
        device(bundle).choose("fp16")
    assert EngineCache().choice(bundle.manifest_sha256) is None
    with pytest.raises(BundleError, match="no vision variant 'fp8'"):
        device(bundle).choose("fp8")


def add_to_graph(bundle: Bundle, change: Callable[[onnx.GraphProto], object]) -> Bundle:
    """The bundle with another graph of the fp16 variant."""
    path = bundle.root / "vision/fp16.onnx"
    model = onnx.load(path)
    change(model.graph)
    onnx.save(model, path)
    manifest = json.loads((bundle.root / "manifest.json").read_text())
    del manifest["digest"]
    for entry in manifest["files"]:
        if entry["path"] == "vision/fp16.onnx":
            entry |= {"size": path.stat().st_size, "sha256": sha256_of_file(path)}
    (bundle.root / "manifest.json").write_text(json.dumps(manifest))
    return Bundle.open(bundle.root)


def constant(kind: int) -> Callable[[onnx.GraphProto], object]:
    return lambda graph: graph.initializer.append(onnx.helper.make_tensor("odd", kind, [1], [1.0]))


@pytest.mark.parametrize(
    ("device_name", "kind", "message"),
    [
        (
            "Fake RTX 2080,75,46,0,12060",
            onnx.TensorProto.BFLOAT16,
            "BF16, which GPUs have from compute capability 80",
        ),
        (
            "Fake Orin,87,8,1,12060",
            onnx.TensorProto.FLOAT8E4M3FN,
            "FP8, which GPUs have from compute capability 89",
        ),
    ],
)
def test_a_precision_that_the_gpu_lacks_is_told_before_the_build(
    gpu: FakeGpu, bundle: Bundle, device_name: str, kind: int, message: str
) -> None:
    gpu.be(device_name)
    bundle = add_to_graph(bundle, constant(kind))
    with pytest.raises(UnsupportedPrecisionError, match=rf"{message}.*Build the fp16 or int8_fp16 variant"):
        device(bundle).choose("fp16")
    assert device(bundle).choose().vision != "fp16"  # the ladder goes on


@pytest.mark.parametrize(
    ("fault", "error", "next_step"),
    [
        ("build: CUDA error: out of memory", EngineMemoryError, "Close other programs, give a smaller"),
        (
            "build: NvMapMemAllocInternalTagged: 1075072515 error 12",
            EngineMemoryError,
            "Close other programs",
        ),
        (
            "build: no tactics to implement the operation within workspace limit",
            EngineMemoryError,
            "--workspace",
        ),
        ("build: something else", EngineBuildError, "onnxruntime"),
    ],
)
def test_a_build_that_fails_is_a_typed_error_with_the_next_step(
    gpu: FakeGpu, bundle: Bundle, fault: str, error: type[Exception], next_step: str
) -> None:
    gpu.spoil(fp16=fault)
    with pytest.raises(error, match=next_step):
        device(bundle).choose("fp16")
    assert list(EngineCache().folder.glob("*.plan")) == []


def test_an_operator_that_tensorrt_does_not_know_is_named(gpu: FakeGpu, bundle: Bundle) -> None:
    gpu.spoil(fp16="parse: no importer registered for Strange")
    with pytest.raises(UnsupportedGraphError, match=r"no importer registered for Strange.*Export it again"):
        device(bundle).choose("fp16")


@pytest.mark.parametrize("version", ["8.6.2", "12.0.0"])
def test_tensorrt_of_another_major_is_refused(gpu: FakeGpu, bundle: Bundle, version: str) -> None:
    gpu.be_version(version)
    with pytest.raises(
        TensorRTVersionError, match=rf"tensorrt {version} is installed .* supported are 10.3 to 11.x"
    ):
        device(bundle)
    with pytest.raises(TensorRTVersionError):
        open_bundle(bundle, runtime="tensorrt+llamacpp")


def test_an_engine_that_was_never_compared_is_not_used(bundle: Bundle) -> None:
    """As one is whose build was killed before the comparison."""
    choice = device(bundle).choose()
    assert choice.engine is not None
    record = EngineCache().record(choice.engine)
    EngineCache().update(record.model_copy(update={"status": "built, not run", "reason": ""}))
    with pytest.raises(
        NoEngineError, match=r"it was not checked on this device. tinyllava-edge build .*fp16$"
    ):
        open_bundle(bundle, runtime="tensorrt+llamacpp")


def test_an_engine_is_built_once_and_again_when_it_must_be(
    gpu: FakeGpu, bundle: Bundle, builds: Builds, said: list[str]
) -> None:
    for _ in range(2):
        choice = device(bundle).choose()
    assert builds == ["fp16"]
    device(bundle, force=True).choose()
    assert builds == ["fp16"] * 2
    device(bundle, max_batch=2).choose()
    assert builds == ["fp16"] * 3
    (plan,) = EngineCache().folder.glob(f"{choice.engine}-*.plan")
    content = bytearray(plan.read_bytes())
    content[len(content) // 2] ^= 1
    plan.write_bytes(content)
    said.clear()
    device(bundle).choose()
    assert builds == ["fp16"] * 4
    assert "is damaged (its hash)" in said[0]
    gpu.be_version("10.7.0")
    device(bundle).choose()
    gpu.be(RTX_3060)
    device(bundle).choose()
    assert builds == ["fp16"] * 6


def test_an_engine_that_the_library_does_not_load_is_built_again(
    gpu: FakeGpu, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, builds: Builds, said: list[str]
) -> None:
    device(bundle).choose()
    board = device(bundle).board
    gpu.be_version("10.7.0")  # as if an update had not changed its version's name
    monkeypatch.setattr("tinyllava_edge.runtimes.trt.process.read_board", lambda *_: board)
    said.clear()
    device(bundle).choose()
    assert builds == ["fp16", "fp16"]
    assert "to be built again (TensorRT 10.7.0 does not load this engine" in said[0]


@pytest.mark.parametrize("fault", ["nan", "fail"])
def test_an_engine_of_a_pack_that_does_not_pass_takes_no_place(
    gpu: FakeGpu, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """The board's own engine of the same key stays as it is; where there was none, there still is none."""
    own = device(bundle).choose()
    assert own.engine is not None
    before = EngineCache().record(own.engine)
    with EngineCache().find(before.key) as stored:
        foreign = StoredEngine(before.model_copy(update={"origin": "pack of key 0"}), stored.plan)
        gpu.spoil(fp16=fault)
        with pytest.raises(BackendError, match="refused on this board" if fault == "nan" else "failed"):
            device(bundle).install(foreign)
        assert EngineCache().record(own.engine) == before
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
        with pytest.raises(BackendError):
            device(bundle).install(foreign)
        assert list(EngineCache().records()) == []


def test_the_timings_of_a_build_are_kept_for_the_next(gpu: FakeGpu, bundle: Bundle) -> None:
    build = device(bundle)
    build.choose()
    assert build.options.timing_cache == EngineCache().timings
    assert EngineCache().timings.read_bytes() == b"timings of 10.3.0, SM 87"  # what the fake's builder says
    assert EngineCache().timings.stat().st_mode & 0o077 == 0
    gpu.be(RTX_3060)
    assert device(bundle, target="tensorrt-rtx").options.timing_cache is None


def test_a_bundle_without_reference_tensors_is_refused_before_anything_is_built(
    gpu: FakeGpu, tmp_path: Path, builds: Builds
) -> None:
    with pytest.raises(BundleError, match=r"lists no file 'reference/reference.json'"):
        device(bundles.write_bundle(tmp_path / "plain")).choose()
    assert builds == []


@pytest.mark.parametrize("missing", ["driver", "package"])
def test_without_tensorrt_or_gpu_nothing_is_tried(
    gpu: FakeGpu, bundle: Bundle, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if missing == "driver":
        gpu.be("none")
        with pytest.raises(NoGpuError, match=r"no NVIDIA driver|no usable GPU"):
            device(bundle)
    else:
        monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
        with pytest.raises(MissingExtraError, match="tensorrt_rtx is not installed"):
            device(bundle, target="tensorrt-rtx")


def test_tensorrt_rtx_builds_for_this_gpu(gpu: FakeGpu, bundle: Bundle) -> None:
    gpu.be(RTX_3060)
    build = device(bundle, target="tensorrt-rtx")
    assert build.options.sms == (86,)
    assert build.key("fp16").flags["sms"] == "(86,)"


def test_auto_takes_what_build_chose_and_says_why(gpu: FakeGpu, bundle: Bundle) -> None:
    gpu.spoil(fp16="nan", bf16="nan")
    device(bundle).choose()
    with open_bundle(bundle, runtime="auto", threads=1) as model:
        assert model.runtime == "tensorrt+llamacpp"
        assert model.runtime_reason.startswith("chosen by build here: equal within the gates")
        assert model.vision.name == "tensorrt fp32 on Fake Orin"


def test_auto_takes_the_cpu_where_build_chose_it(gpu: FakeGpu, bundle: Bundle) -> None:
    gpu.spoil(fp16="nan", bf16="nan", fp32="nan")
    device(bundle).choose()
    with open_bundle(bundle, runtime="auto", threads=1) as model:
        assert model.runtime == "onnxruntime+llamacpp"
        assert "chosen by build here" in model.runtime_reason


def test_what_compares_runtimes_takes_what_build_chose_and_nothing_else(gpu: FakeGpu, bundle: Bundle) -> None:
    assert settle_runtime("auto", bundle).runtime == "onnxruntime+llamacpp"
    device(bundle).choose()
    (cell, _) = plan_cells({"tiny": bundle}, Wish(runtimes=("auto",)))
    assert (cell.runtime, cell.options.vision) == ("tensorrt+llamacpp", "fp16")
    named = Wish(runtimes=("auto",), vision=("fp32",))
    assert plan_cells({"tiny": bundle}, named)[0].options.vision == "fp32"
    gpu.be_version("10.7.0")  # its engine does not fit any more
    assert settle_runtime("auto", bundle).runtime == "tensorrt+llamacpp"
    assert settle_runtime("onnxruntime+llamacpp", bundle).variants == ()


def test_auto_says_that_what_build_chose_is_not_installed_any_more(
    gpu: FakeGpu, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    device(bundle).choose()
    gone = replace(registry.VISION_BACKENDS["tensorrt"], package="no_such_package")
    monkeypatch.setitem(registry.VISION_BACKENDS, "tensorrt", gone)
    with open_bundle(bundle, runtime="auto", threads=1) as model:
        assert model.runtime == "onnxruntime+llamacpp"
        assert "backend tensorrt needs the package no_such_package" in model.runtime_reason


@pytest.mark.parametrize("change", ["library", "gpu", "damage", "driver"])
def test_auto_goes_on_where_the_engine_no_longer_fits_and_says_so(
    gpu: FakeGpu, bundle: Bundle, change: str
) -> None:
    device(bundle).choose()
    if change == "library":
        gpu.be_version("10.7.0")
    elif change == "gpu":
        gpu.be("Fake Thor,110,20,1,13000")
    elif change == "driver":
        gpu.be("none")
    else:
        for plan in EngineCache().folder.glob("*.plan"):
            plan.write_bytes(plan.read_bytes()[:-1])
    with open_bundle(bundle, runtime="auto", threads=1) as model:
        assert model.runtime == "onnxruntime+llamacpp"
        assert model.runtime_reason.startswith("tensorrt+llamacpp does not open (")
        assert ("tinyllava-edge build" in model.runtime_reason) == (change != "driver")


def test_a_runtime_that_was_asked_for_is_never_replaced(gpu: FakeGpu, bundle: Bundle) -> None:
    with pytest.raises(
        NoEngineError, match=r"no engine was built here .*tinyllava-edge build .* --target tensorrt"
    ):
        open_bundle(bundle, runtime="tensorrt+llamacpp")
    gpu.spoil(fp16="nan")
    device(bundle).choose()
    with pytest.raises(NoEngineError, match=r"not to be used: 9 embeddings are NaN.*--force"):
        open_bundle(bundle, runtime="tensorrt+llamacpp", vision="fp16")
    gpu.be_version("10.7.0")
    with pytest.raises(NoEngineError, match=r"this is library_version 10.7.0, not 10.3.0"):
        open_bundle(bundle, runtime="tensorrt+llamacpp", vision="fp16")


def test_an_answer_is_the_one_of_onnxruntime(gpu: FakeGpu, bundle: Bundle) -> None:
    device(bundle).choose()
    picture = str(bundle.root / "reference/0.png")
    answers = []
    for runtime in ("onnxruntime+llamacpp", "tensorrt+llamacpp"):
        with open_bundle(bundle, runtime=runtime, threads=1) as model:
            answers.append(["".join(model.chat("What is this?", picture, max_tokens=12)) for _ in range(2)])
            logits = model.logits([("<image>\nthe", None)], [picture])
            answers[-1].append(str(logits.argmax(axis=-1).tolist()))
    assert answers[0] == answers[1]
    assert answers[0][0]


def test_where_nothing_was_built_a_gpu_is_tried_through_onnxruntime(
    gpu: FakeGpu, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tinyllava_edge.runtimes.auto.has_nvidia_gpu", lambda: True)
    first = candidates(bundle, BackendOptions())[0]
    assert first.runtime == "onnxruntime-cuda+llamacpp"
    assert f"tinyllava-edge build {bundle.root} --target tensorrt" in first.reason
    with open_bundle(bundle, runtime="auto", threads=1) as model:
        assert model.runtime == "onnxruntime+llamacpp"
        assert "onnxruntime-cuda+llamacpp does not open" in model.runtime_reason


def test_a_cache_without_room_is_said_before_the_build(
    bundle: Bundle, builds: Builds, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tinyllava_edge.full_disk.free_bytes", lambda path: 70_000)
    built = device(bundle)
    # fp16.onnx has 151 kB in this bundle: a kernel [64, 3, 14, 14] of float32
    with pytest.raises(DiskFullError, match=r"engines: the disk is full: 13\d,\d+ bytes are needed"):
        built.choose()
    assert builds == []


def test_an_engine_of_another_power_mode_is_used_with_a_word(
    gpu: FakeGpu, bundle: Bundle, builds: Builds
) -> None:
    """As nvpmodel makes one, which switches off multiprocessors of an Orin."""
    device(bundle).choose()
    gpu.be("Fake Orin,87,4,1,12060")
    with open_bundle(bundle, runtime="auto", threads=1) as model:
        assert model.runtime == "tensorrt+llamacpp"
        assert isinstance(model.vision, TensorRTVision)
        assert model.vision.note.startswith(
            "built in another power mode (8 multiprocessors, here are 4); tinyllava-edge build "
        )
    device(bundle).choose()
    assert builds == ["fp16"] * 2
    with open_bundle(bundle, runtime="auto", threads=1) as model:
        assert isinstance(model.vision, TensorRTVision)
        assert model.vision.note == ""


def test_a_card_with_other_multiprocessors_is_another_card(gpu: FakeGpu, bundle: Bundle) -> None:
    gpu.be(RTX_3060)
    device(bundle).choose()
    gpu.be("Fake RTX 3060,86,30,0,12060")
    with pytest.raises(NoEngineError, match=r"this is multiprocessors 30, not 28"):
        open_bundle(bundle, runtime="tensorrt+llamacpp")


def test_what_another_cuda_library_was_found_by_is_said(gpu: FakeGpu, bundle: Bundle) -> None:
    device(bundle).choose()
    (record,) = [record for _, record in EngineCache().records() if record]
    other = record.key.model_copy(update={"board": record.key.board.model_copy(update={"cuda": "13.0"})})
    for path in EngineCache().folder.glob(f"{record.key.digest}*"):
        path.unlink()
    EngineCache().update(record.model_copy(update={"key": other}))
    with pytest.raises(NoEngineError, match=r"cuda 12.6, not 13.0 \(TINYLLAVA_EDGE_CUDART can name"):
        open_bundle(bundle, runtime="tensorrt+llamacpp", vision="fp16")


@pytest.mark.parametrize(("ticks", "mapped"), [(0, True), (10, False)])
def test_mapped_and_copied_buffers_are_measured_and_the_faster_kept(
    gpu: FakeGpu, bundle: Bundle, ticks: int, mapped: bool
) -> None:
    gpu.compute_slower_when_mapped(ticks)
    choice = device(bundle).choose()
    assert choice.engine is not None
    facts = EngineCache().record(choice.engine).facts
    # Marks around the run are a tick each apart; a copy is one tick more, before and after.
    assert facts["buffers_ms"] == {"mapped": 2.0 + ticks, "copied": 4.0}
    assert facts["mapped"] == mapped
    assert facts["device_ms"] == min(facts["buffers_ms"].values())
    assert (facts["memory"]["buffers"] == 0) == mapped
    with open_bundle(bundle, runtime="auto", threads=1) as model:
        assert isinstance(model.vision, TensorRTVision)
        assert model.vision.mapped == mapped
    gpu.compute_slower_when_mapped(10 - ticks)
    device(bundle).choose()  # the same engine, measured again
    assert EngineCache().record(choice.engine).facts["mapped"] != mapped


def test_a_card_with_memory_of_its_own_copies(gpu: FakeGpu, bundle: Bundle) -> None:
    gpu.be(RTX_3060)
    choice = device(bundle).choose()
    assert choice.engine is not None
    assert "mapped" not in EngineCache().record(choice.engine).facts


class TestAnswers:
    @pytest.fixture
    def bundle(self, gpu: FakeGpu, tmp_path: Path) -> Bundle:
        return write_engine_bundle(tmp_path / "asked", ("fp32", "fp16"), with_questions=True)

    def test_a_step_whose_answers_are_equal_is_still_left_for_a_better_one(
        self, gpu: FakeGpu, bundle: Bundle
    ) -> None:
        gpu.spoil(fp16="tiny")
        choice = device(bundle).choose()
        left = choice.steps[0]
        assert (left.vision, left.outcome, left.answers_equal) == ("fp16", "refused", True)
        assert "the gate is" in left.reason
        assert left.reason.endswith("; answers equal on 3 of 3 (llamacpp f32, f16 KV)")
        assert (choice.runtime, choice.vision) == ("tensorrt+llamacpp", "fp32")
        with pytest.raises(NoEngineError, match="not to be used"):
            open_bundle(bundle, runtime="tensorrt+llamacpp", vision="fp16")

    def test_where_nothing_better_is_there_it_is_used_and_not_verified(
        self, gpu: FakeGpu, bundle: Bundle, tmp_path: Path
    ) -> None:
        gpu.spoil(fp16="tiny")
        choice = device(bundle).choose("fp16")
        assert choice.engine is not None
        assert choice.steps[-1].outcome == "chosen"
        assert choice.steps[-1].reason.startswith("it was asked for by name, and it is not verified: ")
        record = EngineCache().record(choice.engine)
        assert record.status == "answers equal"
        with open_bundle(bundle, runtime="auto", threads=1) as model:
            assert isinstance(model.vision, TensorRTVision)
            assert model.vision.note.startswith("not verified: ")
        with EngineCache().find(record.key) as stored, pytest.raises(PackError, match="answers equal"):
            write_pack(tmp_path / "pack", stored, tmp_path / "key")
        gpu.spoil()
        device(bundle).choose("fp16")
        assert EngineCache().record(choice.engine).status == "verified"
        assert "answers" not in EngineCache().record(choice.engine).facts

    @pytest.mark.parametrize(
        ("fault", "said"), [("noise", r"answers equal on [0-2] of 3"), ("nan", "NaN or infinite[.]")]
    )
    def test_an_engine_that_changes_answers_is_never_taken(
        self, gpu: FakeGpu, bundle: Bundle, fault: str, said: str
    ) -> None:
        gpu.spoil(fp16=fault)
        with pytest.raises(BackendError, match=said):
            device(bundle).choose("fp16")

    def test_without_llamacpp_the_tensors_alone_decide(
        self, gpu: FakeGpu, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        gone = replace(registry.LANGUAGE_BACKENDS["llamacpp"], package="no_such_package")
        monkeypatch.setitem(registry.LANGUAGE_BACKENDS, "llamacpp", gone)
        gpu.spoil(fp16="tiny")
        with pytest.raises(BackendError, match=r"no reference question was asked: .*no_such_package"):
            device(bundle).choose("fp16")


def test_a_step_that_cannot_fit_is_left_out_and_one_that_was_asked_for_is_tried(
    bundle: Bundle, builds: Builds, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    monkeypatch.setattr("tinyllava_edge.runtimes.trt.budget._available_bytes", lambda root: 300 << 20)
    choice = device(bundle).choose()
    assert builds == []
    assert choice.runtime == "onnxruntime+llamacpp"
    arithmetic = r"about \d\.\d GiB \(4\.3 x 0\.00 of weights \+ 0\.3 \+ \d\.\d workspace\), 0\.3 are free"
    assert re.search(arithmetic, choice.steps[0].reason)
    device(bundle).choose("fp16")
    assert builds == ["fp16"]
    assert any(line.startswith("this may not fit: building it takes") for line in said)


def test_kernel_timings_of_another_version_are_said_and_measured_again(
    gpu: FakeGpu, bundle: Bundle, said: list[str]
) -> None:
    device(bundle).choose()
    gpu.be_version("10.7.0")
    device(bundle).choose()
    assert any("timings.cache is of another TensorRT or GPU, or damaged" in line for line in said)
    assert EngineCache().timings.read_bytes() == b"timings of 10.7.0, SM 87"
    said.clear()
    device(bundle, force=True).choose()
    assert not any("timings" in line for line in said)


def test_an_engine_is_not_lost_where_its_timings_cannot_be_kept(
    bundle: Bundle, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: object, *, mode: int) -> None:
        raise DiskFullError(f"{path}: the disk is full")

    monkeypatch.setattr("tinyllava_edge.runtimes.trt.timings.write_bytes", full)
    assert device(bundle).choose().vision == "fp16"
    assert any(line.startswith("kernel timings are not kept") and "disk is full" in line for line in said)


def test_a_disk_that_fills_while_an_engine_is_written_is_said(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tinyllava_edge.runtimes.trt.process.write_bytes", full)
    built = device(bundle)
    with pytest.raises(DiskFullError, match="the disk is full"):
        built.choose()
    assert list(EngineCache().folder.glob("*.plan")) == []


def test_a_gpu_that_is_not_there_is_one_line_with_those_that_are(gpu: FakeGpu, bundle: Bundle) -> None:
    gpu.be(f"{ORIN};{RTX_3060}")
    there = r"there is no GPU 2\. Those there are: 0 \(Fake Orin\), 1 \(Fake RTX 3060\)"
    with pytest.raises(UsageError, match=there):
        device(bundle, device=2)
    device(bundle).choose()
    with pytest.raises(UsageError, match=there):
        open_bundle(bundle, runtime="tensorrt+llamacpp", device=2)
