"""What each vision variant computes on ONNX Runtime, without llama.cpp: one line of JSON a variant."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

from tinyllava_edge.bundle import Bundle
from tinyllava_edge.runtimes.base import BackendOptions
from tinyllava_edge.runtimes.ort import open_vision
from tinyllava_edge.runtimes.trt.device_parity import measure_parity


def print_figures(path: Path) -> None:
    """Embeddings of the bundle's reference pictures against torch's."""
    bundle = Bundle.open(path)
    for variant in bundle.manifest.variants:
        if variant.part == "vision":
            backend = open_vision(bundle, BackendOptions(vision=variant.name))
            figures = asdict(measure_parity(bundle, backend.encode, largest_batch=2))
            sys.stdout.write(json.dumps({"variant": variant.name, **figures}) + "\n")
            backend.close()


if __name__ == "__main__":
    print_figures(Path(sys.argv[1]))
