"""One honest bundle, and one reference for it, shared by the tests of the ladder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tests.tiny import write_tiny_checkpoint
from tinyllava_edge.benchmarks.verify.climb import chosen_variants, climb
from tinyllava_edge.benchmarks.verify.ladder import Ladder, Report
from tinyllava_edge.benchmarks.verify.reference import Reference
from tinyllava_edge.benchmarks.verify.reference_checkpoint import CheckpointReference
from tinyllava_edge.bundle import Bundle
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.export.pipeline import ExportOptions, export_bundle
from tinyllava_edge.runtimes.base import BackendOptions


@dataclass(frozen=True)
class Honest:
    """A checkpoint, its bundle, and torch on the checkpoint."""

    checkpoint: Path
    bundle: Path
    reference: CheckpointReference


def write_decided_checkpoint(directory: Path, **sizes: Any) -> Path:
    """A random checkpoint that has an opinion: its large tied embedding makes it repeat the last token.

    Without one, the most likely token of a random model is a tie that every rounding breaks anew.
    """
    write_tiny_checkpoint(directory, **{"tied": True, **sizes})
    path = directory / "model.safetensors"
    state = load_file(path)
    state["language_model.model.embed_tokens.weight"] *= 8
    save_file(state, path, metadata={"format": "pt"})
    return directory


@pytest.fixture(scope="session")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Honest:
    folder = tmp_path_factory.mktemp("honest")
    checkpoint = write_decided_checkpoint(folder / "checkpoint")
    options = ExportOptions(vision=("fp32", "fp16"), language=("f32", "f16", "q8_0"))
    export_bundle(Checkpoint(checkpoint), folder / "bundle", options)
    return Honest(checkpoint, folder / "bundle", CheckpointReference(Checkpoint(checkpoint), num_tokens=24))


def climb_quickly(
    bundle: Bundle,
    reference: Reference,
    *,
    vision: tuple[str, ...] = (),
    language: tuple[str, ...] = (),
    runtime: str = "onnxruntime+llamacpp",
) -> Report:
    """The ladder on one thread with few pictures."""
    return climb(
        Ladder(
            bundle=bundle,
            reference=reference,
            vision=chosen_variants(bundle, "vision", vision),
            language=chosen_variants(bundle, "language", language),
            runtime=runtime,
            num_pictures=3,
            options=BackendOptions(threads=1),
        )
    )
