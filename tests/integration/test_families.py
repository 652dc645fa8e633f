"""Every family of language models, through everything that reads its entry in `families.py`."""

import os
from pathlib import Path

import gguf
import pytest

from tests.benchmarks.conftest import climb_quickly
from tests.integration.combinations import (
    DRAWN_TOWERS,
    TEXTS,
    draw_combination,
    write_combination,
    write_settings,
)
from tinyllava_edge.benchmarks.verify.reference_checkpoint import CheckpointReference
from tinyllava_edge.benchmarks.verify.upstream_text import ENDS
from tinyllava_edge.bundle import Bundle
from tinyllava_edge.checkpoint.families import FAMILIES, TOWERS
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.export.gguf_arch import ARCHITECTURES
from tinyllava_edge.export.language_gguf import LanguageSource, _write_header
from tinyllava_edge.export.pipeline import ExportOptions, export_bundle
from tinyllava_edge.gates import STAGES
from tinyllava_edge.gguf_check import check_gguf
from tinyllava_edge.manifest import LanguageSpec
from tinyllava_edge.model import vision_tower
from tinyllava_edge.model.assets import read_assets
from tinyllava_edge.prompt import TEMPLATES


def test_every_room_knows_the_same_families_and_towers() -> None:
    assert set(FAMILIES) == set(ARCHITECTURES) == set(TEXTS)
    assert set(TOWERS) == set(vision_tower.TOWERS) == set(DRAWN_TOWERS)


@pytest.mark.parametrize("name", FAMILIES)
def test_what_an_entry_names_is_there(name: str) -> None:
    family = FAMILIES[name]
    assert family.llamacpp in gguf.MODEL_ARCH_NAMES.values()
    for template in (family.template, *family.template_by_eos.values()):
        assert ENDS[template] == TEMPLATES[template].end
    assert set(family.only) <= set(family.defaults)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_file_as_export_writes_it_passes_the_check_of_a_bundle(name: str, tmp_path: Path) -> None:
    for seed in range(8):  # tied heads and biases, or not
        (folder := tmp_path / str(seed)).mkdir()
        checkpoint, sources = write_settings(folder, draw_combination(seed, name))
        opened = Checkpoint(checkpoint, sources=sources)
        source = LanguageSource(checkpoint=opened, assets=read_assets(opened), name="random")
        for float_type in ("f32", "f16"):
            path = folder / f"{float_type}.gguf"
            _, end = _write_header(path, source, source.rules(), float_type)
            os.truncate(path, end)
            check_gguf(path, float_type, LanguageSpec.of(opened.config.language))


# Golden checkpoints, or those of transformers, take the others through every stage.
_WALKED_ONLY_HERE = ("qwen3", "smollm3")
WALKED = [
    name if name in _WALKED_ONLY_HERE else pytest.param(name, marks=pytest.mark.long) for name in FAMILIES
]


@pytest.mark.slow
@pytest.mark.parametrize("name", WALKED)
def test_a_tiny_checkpoint_passes_every_stage(name: str, tmp_path: Path) -> None:
    checkpoint, sources, _ = write_combination(tmp_path, draw_combination(1, name))
    options = ExportOptions(vision=("fp32",), language=("f32",))
    opened = Checkpoint(checkpoint, sources=sources, allow_pickle=True)
    export_bundle(opened, tmp_path / "bundle", options)
    reference = CheckpointReference(opened, num_tokens=24)
    report = climb_quickly(Bundle.open(tmp_path / "bundle"), reference)
    assert report.passed, report.verdict
    assert {result.stage for result in report.results if not result.skipped} >= set(STAGES) - {"dequantized"}
