"""One tiny checkpoint and its bundle, made once for all tests of the exporter."""

from dataclasses import dataclass
from pathlib import Path

import onnx
import pytest

from tests.export.gguf_files import language_source
from tests.tiny import write_tiny_checkpoint
from tinyllava_edge.bundle import Bundle
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.export.language_gguf import LanguageSource
from tinyllava_edge.export.pipeline import export_bundle
from tinyllava_edge.export.vision_onnx import build_vision_graph
from tinyllava_edge.model.vlm import TinyLlava, load_model


@dataclass(frozen=True)
class Exported:
    """A checkpoint whose widths are multiples of 256, so that K-quants apply, and what became of it."""

    checkpoint: Path
    bundle: Bundle


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp("export")
    checkpoint = write_tiny_checkpoint(folder / "wide", hidden=256, heads=4, kv_heads=2, intermediate=512)
    export_bundle(Checkpoint(checkpoint), folder / "bundle")
    return Exported(checkpoint, Bundle.open(folder / "bundle"))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest checkpoint; tests copy it before they spoil it."""
    return write_tiny_checkpoint(tmp_path_factory.mktemp("small") / "checkpoint")


@pytest.fixture(scope="session")
def model(checkpoint: Path) -> TinyLlava:
    return load_model(Checkpoint(checkpoint))


@pytest.fixture(scope="session")
def vision_graph(model: TinyLlava) -> onnx.ModelProto:
    """The graph of `model`; tests copy it before they change it."""
    return build_vision_graph(model, model.config.vision.image_size)


@pytest.fixture(scope="session")
def source(checkpoint: Path) -> LanguageSource:
    return language_source(checkpoint)
