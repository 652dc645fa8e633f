"""Which cells a comparison has. No model is opened; torch is imported to hash the checkpoint."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.benchmarks.conftest import Honest
from tinyllava_edge.benchmarks.bench.pace import Amount
from tinyllava_edge.benchmarks.bench.plan import Plan, cell_bytes, cell_files, check_memory, plan_cells
from tinyllava_edge.benchmarks.bench.worker import Request
from tinyllava_edge.benchmarks.evals.cells import Wish, find_checkpoint, named_bundles
from tinyllava_edge.bundle import Bundle
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.errors import BundleError, MissingExtraError, UsageError
from tinyllava_edge.runtimes import registry
from tinyllava_edge.runtimes.base import BackendOptions

DEFAULT = "onnxruntime+llamacpp"


@pytest.fixture
def bundles(honest: Honest) -> dict[str, Bundle]:
    return {"tiny": Bundle.open(honest.bundle)}


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> str:
    """A runtime that somebody registers later, whose package is not here."""
    entry = registry.Entry("somewhere:open_vision", "no_such_package", "gpu")
    monkeypatch.setitem(registry.VISION_BACKENDS, "onnxruntime-cuda", entry)
    monkeypatch.setitem(registry.RUNTIMES, "onnxruntime-cuda+llamacpp", ("onnxruntime-cuda", "llamacpp"))
    return "onnxruntime-cuda+llamacpp"


def names(bundles: dict[str, Bundle], **wish: object) -> list[str]:
    return [cell.name for cell in plan_cells(bundles, Wish(**wish))]  # type: ignore[arg-type]


def test_by_default_torch_and_every_language_variant(honest: Honest, bundles: dict[str, Bundle]) -> None:
    variants = ["fp32 + f32", "fp32 + f16", "fp32 + q8_0"]
    assert names(bundles, runtimes=(DEFAULT,)) == [*variants, "fp32 + f32 again"]
    assert names(bundles, checkpoints=(honest.checkpoint,)) == ["torch fp32", *variants, "torch fp32 again"]


def test_named_vision_variants_are_paired_with_every_language_variant(bundles: dict[str, Bundle]) -> None:
    found = names(bundles, runtimes=(DEFAULT,), vision=("fp32", "fp16"), language=("f16", "q8_0"))
    assert found[:-1] == ["fp32 + f16", "fp32 + q8_0", "fp16 + f16", "fp16 + q8_0"]
    with pytest.raises(BundleError, match="no vision variant 'int8'"):
        names(bundles, runtimes=(DEFAULT,), vision=("int8",))


def test_all_vision_variants_are_paired_as_verify_pairs_them(bundles: dict[str, Bundle]) -> None:
    found = names(bundles, runtimes=(DEFAULT,), vision=("all",), language=("f16", "q8_0"))
    assert found[:-1] == ["fp32 + f16", "fp32 + q8_0", "fp16 + f16"]


def test_several_runtimes_are_told_apart_by_name(bundles: dict[str, Bundle]) -> None:
    found = names(bundles, runtimes=("scripted", DEFAULT), language=("f32",))
    assert found == ["scripted fp32 + f32", f"{DEFAULT} fp32 + f32", "scripted fp32 + f32 again"]


def test_each_runtime_takes_the_named_variants_that_it_reads(bundles: dict[str, Bundle]) -> None:
    object.__setattr__(bundles["tiny"].variant("language", "q8_0"), "target", "openvino")
    found = names(bundles, runtimes=(DEFAULT, "openvino"), language=("f32", "f16", "q8_0"))
    assert found[:-1] == [f"{DEFAULT} fp32 + f32", f"{DEFAULT} fp32 + f16", "openvino fp32 + q8_0"]
    unread = names(bundles, runtimes=("openvino",), language=("f32",))
    assert unread[0] == "fp32 + f32"  # which says so when it is opened


def test_several_bundles_are_told_apart_by_name(honest: Honest, tmp_path: Path) -> None:
    roots = [honest.bundle, Path(shutil.copytree(honest.bundle, tmp_path / "other"))]
    both = named_bundles([Bundle.open(root) for root in roots])
    assert list(both) == ["bundle", "other"]
    found = names(both, runtimes=(DEFAULT,), language=("q8_0",))
    assert found == ["bundle fp32 + q8_0", "other fp32 + q8_0", "bundle fp32 + q8_0 again"]
    with pytest.raises(UsageError, match="given twice"):
        named_bundles([both["other"], both["other"]])


def test_a_runtime_that_is_registered_later_appears_or_says_what_it_needs(
    cuda: str, bundles: dict[str, Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        MissingExtraError, match=r"needs the package no_such_package: .*pip install 'onnxruntime-gpu>="
    ):
        names(bundles, runtimes=(DEFAULT, cuda))
    monkeypatch.setitem(registry.VISION_BACKENDS, "onnxruntime-cuda", registry.Entry("somewhere:open_vision"))
    assert f"{cuda} fp32 + f32" in names(bundles, runtimes=(DEFAULT, cuda))
    with pytest.raises(UsageError, match="no runtime 'mine'"):
        names(bundles, runtimes=("mine",))


def test_only_torch_is_told_of_the_checkpoint(honest: Honest, bundles: dict[str, Bundle]) -> None:
    checkpoint, sources = honest.checkpoint, honest.checkpoint.parent
    options = BackendOptions(sources=sources, allow_pickle=True)
    wish = Wish(language=("f32",), checkpoints=(checkpoint,), options=options)
    torch_cell, other, control = plan_cells(bundles, wish)
    for cell in (torch_cell, control):
        told = cell.options
        assert (told.checkpoint, told.sources, told.allow_pickle) == (checkpoint, sources, True)
    told = other.options
    assert (told.checkpoint, told.sources, told.allow_pickle) == (None, None, False)


def test_the_checkpoint_is_known_by_its_content(
    honest: Honest, bundles: dict[str, Bundle], tmp_path: Path
) -> None:
    assert find_checkpoint(bundles["tiny"], (tmp_path, honest.checkpoint)) == honest.checkpoint
    with pytest.raises(UsageError, match="is not the checkpoint that tiny came from"):
        names(bundles, checkpoints=(tmp_path,))
    other = Path(shutil.copytree(honest.checkpoint, tmp_path / "other"))
    (other / "config.json").write_text((other / "config.json").read_text() + "\n")
    assert find_checkpoint(bundles["tiny"], (other,)) is None


def test_an_adapters_base_is_looked_for_under_sources(honest: Honest, tmp_path: Path) -> None:
    shutil.copy(honest.checkpoint / "config.json", tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").touch()  # only hashed here
    sha256 = Checkpoint(tmp_path, sources=honest.checkpoint).sha256
    source = SimpleNamespace(name="elsewhere", checkpoint_sha256=sha256)
    bundle: Any = SimpleNamespace(manifest=SimpleNamespace(source=source))
    assert find_checkpoint(bundle, (tmp_path,), honest.checkpoint) == tmp_path
    assert find_checkpoint(bundle, (tmp_path,)) is None


def test_torch_without_its_checkpoint_is_refused(
    bundles: dict[str, Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tinyllava_edge.benchmarks.evals.cells.find_checkpoint", lambda *given: None)
    with pytest.raises(UsageError, match="runtime torch needs the checkpoint that tiny came from"):
        names(bundles, runtimes=("torch",))


def test_cells_that_do_not_fit_in_memory_together_are_refused(bundles: dict[str, Bundle]) -> None:
    bundle = bundles["tiny"]
    cells = plan_cells(bundles, Wish(runtimes=(DEFAULT,), language=("f32",)))
    asked = Request(picture="a.png", question="?", second_question="?", num_tokens=2)
    plan = Plan(bundles=bundles, cells=cells, request=asked, amount=Amount(sessions=1, blocks=1))
    size = cell_bytes(cells[0], bundle)
    assert size == sum(path.stat().st_size for path in cell_files(cells[0], bundle)[1:]) > 0
    check_memory(plan, 3 * size)
    check_memory(plan, None)
    with pytest.raises(UsageError, match="these 2 rows hold"):
        check_memory(plan, 2 * size)
