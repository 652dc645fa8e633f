"""What only a machine with a GPU can show about llama.cpp there; each docstring begins with why.

TINYLLAVA_EDGE_REQUIRE=cuda python -m pytest tests/device
"""

from pathlib import Path

import numpy as np
import pytest

from tests.runtimes.tiny_gguf import write_tiny_gguf
from tinyllava_edge.errors import UsageError
from tinyllava_edge.runtimes.base import BackendOptions
from tinyllava_edge.runtimes.llamacpp import LlamaCppLanguage
from tinyllava_edge.runtimes.llamacpp_library import load_library

pytestmark = [pytest.mark.device("cuda")]
LAYERS = 6


def logits_of(path: Path, layers: int | None, flash_attention: str) -> tuple[str, np.ndarray]:
    spec, _ = write_tiny_gguf(path, layers=LAYERS, head_dim=64)
    options = BackendOptions(gpu_layers=layers, flash_attention=flash_attention, threads=2)
    backend = LlamaCppLanguage(path, spec, options, name="llamacpp")
    try:
        assert backend.note == ""
        logits = backend.evaluate(np.arange(5, 105, dtype=np.int32), 0, all_logits=True)
    finally:
        backend.close()
    assert logits is not None
    return backend.name, logits


def test_llama_cpp_sees_the_gpu_that_is_here() -> None:
    """Whether a CUDA build registers a device is between the driver and it."""
    library = load_library()
    assert library.gpus, library.blind or "llama.cpp is a CPU build: see tinyllava-edge doctor"


@pytest.mark.parametrize("flash_attention", ["on", "off"])
def test_layers_on_the_gpu_compute_what_the_cpu_does(tmp_path: Path, flash_attention: str) -> None:
    """What runs where, and CUDA's kernels, are llama.cpp's own."""
    labels = {0: "without the GPU", 3: f"3 of {LAYERS + 1} layers on the GPU", None: "GPU"}
    found = {}
    for layers, label in labels.items():
        name, found[layers] = logits_of(tmp_path / "f32.gguf", layers, flash_attention)
        assert name == f"llamacpp, f16 KV, {label}"
    spread = found[0].std()
    for layers in (3, None):  # products in TF32 and sums in another order
        assert np.abs(found[layers] - found[0]).max() < 0.05 * spread


def test_a_gpu_that_is_not_here_is_refused_with_those_that_are(tmp_path: Path) -> None:
    """The numbers are the driver's."""
    spec, _ = write_tiny_gguf(tmp_path / "f32.gguf")
    with pytest.raises(UsageError, match=r"--main-gpu 99: llama.cpp sees 0 \("):
        LlamaCppLanguage(tmp_path / "f32.gguf", spec, BackendOptions(main_gpu=99), name="llamacpp")
    backend = LlamaCppLanguage(tmp_path / "f32.gguf", spec, BackendOptions(main_gpu=0), name="llamacpp")
    backend.close()
    assert backend.name == "llamacpp, f16 KV, GPU"
