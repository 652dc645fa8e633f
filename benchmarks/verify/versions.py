"""Versions of packages that a result depends on, of `verify` or of `bench`."""

from tinyllava_edge.runtimes import doctor

# `bench compare` refuses reports where one differs.
_PACKAGES = (
    *("tinyllava-edge", "numpy", "pillow", "tokenizers", "onnxruntime", "onnxruntime-gpu", "openvino"),
    *("tensorrt", "llama-cpp-python", "torch", "transformers", "onnx", "gguf"),
)


def package_versions() -> dict[str, str | None]:
    """Version of each package that a result depends on; None where it is not installed."""
    return {name: version for name, version in doctor.package_versions().items() if name in _PACKAGES}
