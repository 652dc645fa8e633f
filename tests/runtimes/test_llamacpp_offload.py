"""The retreat from a GPU that is too small, on the real library for the CPU, which a fake front makes refuse.

Not yet run on hardware: what llama.cpp does and says there is from its source
(docs/sources/tensorrt.md#llamacpp-where-a-gpu-is-full-or-not-seen).
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.runtimes.tiny_gguf import write_tiny_gguf
from tinyllava_edge.bundle import LanguageSpec
from tinyllava_edge.errors import BackendError, UsageError
from tinyllava_edge.runtimes import llamacpp, llamacpp_offload
from tinyllava_edge.runtimes.base import BackendOptions
from tinyllava_edge.runtimes.llamacpp import LlamaCppLanguage
from tinyllava_edge.runtimes.llamacpp_library import Library, Log, load_library
from tinyllava_edge.runtimes.llamacpp_offload import NoMemoryError

ERROR = 4  # ggml_log_level
LAYERS = 24
TOTAL = LAYERS + 1


class SmallGpu:
    """llama.cpp's bindings in front of the real ones: the model, or its context, fits with so many layers."""

    def __init__(self, bindings: Any, log: Log, weights_fit: int, context_fits: int) -> None:
        self._bindings, self._log = bindings, log
        self._weights_fit, self._context_fits = weights_fit, context_fits
        self.loads: list[tuple[int, int, int]] = []  # layers, split mode, main GPU
        self.freed = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bindings, name)

    def llama_model_load_from_file(self, path: bytes, parameters: Any) -> Any:
        layers = parameters.n_gpu_layers
        self.loads.append((layers, parameters.split_mode, parameters.main_gpu))
        if layers > self._weights_fit:
            self._say("ggml_backend_cuda_buffer_type_alloc_buffer: allocating 942.00 MiB on device 0: "
                      "cudaMalloc failed: out of memory")  # fmt: skip
            self._say("llama_model_load: error loading model: unable to allocate CUDA0 buffer")
            return None
        parameters.split_mode, parameters.main_gpu = 1, 0  # the real library has no GPU to choose
        return self._bindings.llama_model_load_from_file(path, parameters)

    def llama_model_free(self, model: Any) -> None:
        self.freed += 1
        self._bindings.llama_model_free(model)

    def llama_init_from_model(self, model: Any, parameters: Any) -> Any:
        if self.loads[-1][0] > self._context_fits:
            self._say("llama_init_from_model: failed to initialize the context: "
                      "failed to allocate buffer for kv cache")  # fmt: skip
            return None
        return self._bindings.llama_init_from_model(model, parameters)

    def _say(self, line: str) -> None:
        self._log.receive(ERROR, f"{line}\n".encode())


@pytest.fixture
def model(tmp_path: Path) -> tuple[Path, LanguageSpec]:
    path = tmp_path / "f32.gguf"
    spec, _ = write_tiny_gguf(path, layers=LAYERS, hidden=32, intermediate=32)
    return path, spec


@pytest.fixture
def on_gpu(
    model: tuple[Path, LanguageSpec], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[LlamaCppLanguage, SmallGpu]]:
    def opened(
        weights_fit: int = TOTAL, context_fits: int = TOTAL, gpus: int = 1, **options: Any
    ) -> tuple[LlamaCppLanguage, SmallGpu]:
        real = load_library()
        small = SmallGpu(real.bindings, real.log, weights_fit, context_fits)
        names = tuple(f"Fake GPU {number}" for number in range(gpus))
        seen = replace(real, bindings=small, gpus=names)
        monkeypatch.setattr(llamacpp, "load_library", lambda: seen)
        return LlamaCppLanguage(*model, BackendOptions(threads=1, **options), name="llamacpp f32"), small

    return opened


@pytest.mark.parametrize("fit", range(TOTAL + 1))
@pytest.mark.parametrize("what", ["weights_fit", "context_fits"])
def test_as_many_layers_as_fit_are_on_the_gpu_and_it_is_said(on_gpu: Any, fit: int, what: str) -> None:
    backend, small = on_gpu(**{what: fit})
    assert small.loads[0][0] == TOTAL
    assert small.loads[-1][0] == fit
    assert len(small.loads) <= 7  # each one reads the weights
    if fit == TOTAL:
        assert (backend.name, backend.note) == ("llamacpp f32, f16 KV, GPU", "")
    else:
        where = f"{fit} of {TOTAL} layers on the GPU" if fit else "without the GPU"
        assert backend.name == f"llamacpp f32, f16 KV, {where}"
        why = "unable to allocate CUDA0 buffer" if what == "weights_fit" else "allocate buffer for kv cache"
        assert backend.note.startswith("not all layers fit on the GPU (")
        assert why in backend.note
    backend.evaluate(np.array([5, 6, 7], dtype=np.int32), 0)
    assert np.isfinite(backend.last_logits()).all()
    backend.close()
    loaded = [layers for layers, _, _ in small.loads if layers <= small._weights_fit]
    assert small.freed == len(loaded)  # those that were tried, too


def test_without_layers_the_gpu_is_left_out_of_the_computation(on_gpu: Any) -> None:
    assert on_gpu(weights_fit=0)[1].loads[-1] == (0, 0, -1)  # LLAMA_SPLIT_MODE_NONE, no device
    backend, small = on_gpu(gpu_layers=0)
    assert small.loads == [(0, 0, -1)]
    assert (backend.name, backend.note) == ("llamacpp f32, f16 KV, without the GPU", "")


def test_layers_that_were_asked_for_are_taken_or_an_error(on_gpu: Any) -> None:
    backend, small = on_gpu(weights_fit=10, gpu_layers=10)
    assert (backend.name, backend.note) == ("llamacpp f32, f16 KV, 10 of 25 layers on the GPU", "")
    assert [layers for layers, _, _ in small.loads] == [10]
    assert on_gpu(gpu_layers=999)[0].name.endswith(", GPU")
    with pytest.raises(NoMemoryError, match="unable to allocate CUDA0 buffer"):
        on_gpu(weights_fit=10, gpu_layers=11)
    with pytest.raises(NoMemoryError, match="unable to allocate CUDA0 buffer"):
        on_gpu(weights_fit=10, gpu_layers=999)


def test_one_gpu_of_several_is_taken_by_its_number(on_gpu: Any) -> None:
    assert on_gpu(gpus=2, main_gpu=1)[1].loads == [(TOTAL, 0, 1)]
    assert on_gpu(gpus=2)[1].loads == [(TOTAL, 1, 0)]  # both, layer by layer: llama.cpp's own default
    with pytest.raises(UsageError, match=r"--main-gpu 2: llama.cpp sees 0 \(Fake GPU 0\), 1 \(Fake GPU 1\)"):
        on_gpu(gpus=2, main_gpu=2)


def test_a_model_that_fits_nowhere_is_the_error_of_the_last_try(on_gpu: Any) -> None:
    with pytest.raises(NoMemoryError, match=r"KV cache alone is .* MiB: a smaller --context take less"):
        on_gpu(context_fits=-1)


def test_what_is_no_matter_of_memory_is_not_tried_again(
    on_gpu: Any, model: tuple[Path, LanguageSpec]
) -> None:
    model[0].write_bytes(b"not a model" * 100)
    with pytest.raises(BackendError, match="invalid magic") as error:
        on_gpu()
    assert not isinstance(error.value, NoMemoryError)


@pytest.mark.parametrize(
    ("options", "named"), [({"gpu_layers": 10}, "--gpu-layers 10"), ({"main_gpu": 0}, "--main-gpu 0")]
)
def test_a_cpu_build_refuses_a_gpu_with_the_line_that_installs_one(
    model: tuple[Path, LanguageSpec], options: dict[str, Any], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if load_library().gpus:
        pytest.skip("this llama.cpp sees a GPU")
    for is_here, mend in ((True, "One for the GPU here: .*llama-cpp-python=="), (False, "no GPU is here")):
        monkeypatch.setattr(llamacpp_offload, "has_nvidia_gpu", lambda here=is_here: here)
        with pytest.raises(UsageError, match=rf"{named}: there is no GPU .*CPU build.*{mend}"):
            LlamaCppLanguage(*model, BackendOptions(**options), name="llamacpp f32")
    LlamaCppLanguage(*model, BackendOptions(gpu_layers=0, threads=1), name="llamacpp f32").close()


def test_a_cuda_build_that_sees_no_gpu_says_so(
    model: tuple[Path, LanguageSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    blind = "llama.cpp is a CUDA build and sees no GPU. llama.cpp: ggml_cuda_init: failed to initialize CUDA"
    seen: Library = replace(load_library(), gpus=(), blind=blind)
    monkeypatch.setattr(llamacpp, "load_library", lambda: seen)
    monkeypatch.setattr(llamacpp, "has_nvidia_gpu", lambda: True)
    backend = LlamaCppLanguage(*model, BackendOptions(threads=1), name="llamacpp f32")
    assert (backend.name, backend.note) == ("llamacpp f32, f16 KV, without the GPU", blind)
    with pytest.raises(UsageError, match=r"--gpu-layers 3: .*failed to initialize CUDA"):
        LlamaCppLanguage(*model, BackendOptions(gpu_layers=3), name="llamacpp f32")
