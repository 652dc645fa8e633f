"""Every family of language models, through everything that reads its entry in `families.py`."""

from pathlib import Path

import gguf
import pytest

from tests.benchmarks.conftest import climb_quickly
from tests.integration.combinations import TEXTS, draw_combination, write_combination
from tinyllava_edge.benchmarks.verify.reference_checkpoint import CheckpointReference
from tinyllava_edge.benchmarks.verify.upstream_text import ENDS
from tinyllava_edge.bundle import Bundle
from tinyllava_edge.checkpoint.families import FAMILIES
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.export.gguf_arch import ARCHITECTURES
from tinyllava_edge.export.pipeline import ExportOptions, export_bundle
from tinyllava_edge.gates import STAGES
from tinyllava_edge.prompt import TEMPLATES


def test_every_room_knows_the_same_families() -> None:
    assert set(FAMILIES) == set(ARCHITECTURES) == set(TEXTS)


@pytest.mark.parametrize("name", FAMILIES)
def test_what_an_entry_names_is_there(name: str) -> None:
    family = FAMILIES[name]
    assert family.llamacpp in gguf.MODEL_ARCH_NAMES.values()
    for template in (family.template, *family.template_by_eos.values()):
        assert ENDS[template] == TEMPLATES[template].end
    assert set(family.only) <= set(family.defaults)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_tiny_checkpoint_passes_every_stage(name: str, tmp_path: Path) -> None:
    checkpoint, sources, _ = write_combination(tmp_path, draw_combination(1, name))
    options = ExportOptions(vision=("fp32",), language=("f32",), sources=sources, allow_pickle=True)
    export_bundle(checkpoint, tmp_path / "bundle", options)
    reference = CheckpointReference(Checkpoint(checkpoint, sources=sources, allow_pickle=True), num_tokens=24)
    report = climb_quickly(Bundle.open(tmp_path / "bundle"), reference)
    assert report.passed, report.verdict
    assert {result.stage for result in report.results if not result.skipped} >= set(STAGES) - {"dequantized"}
