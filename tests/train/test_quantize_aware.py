"""Fake quantization: what the forward pass computes with, what is written, and what `export` makes of it."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from tests.golden import golden_checkpoint, shared_fixtures
from tests.train.own_data import loss_of, own_options, write_own_data
from tests.train.test_finetune_resume import _assert_same, _interrupt
from tests.train.test_plan import SMALL
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.errors import MissingExtraError, UsageError
from tinyllava_edge.export.pipeline import ExportOptions, export_bundle
from tinyllava_edge.model.checkpoint import iter_tensors
from tinyllava_edge.model.vlm import load_model
from tinyllava_edge.model.weight_grids import GRIDS, int8_layers, q4_0_layers, round_to_int8, round_to_q4_0
from tinyllava_edge.train.asked import check_packages
from tinyllava_edge.train.finetune import finetune
from tinyllava_edge.train.model import TinyLlavaForTraining
from tinyllava_edge.train.options import FinetuneOptions, parse_tune
from tinyllava_edge.train.plan import make_plan
from tinyllava_edge.train.recipe import open_recipe
from tinyllava_edge.train.samples import open_samples, open_source
from tinyllava_edge.train.training_options import TrainingOptions

BOTH: Any = ("q4_0", "int8")
Q4_0 = gguf.GGMLQuantizationType.Q4_0


@pytest.fixture
def torchao() -> None:
    pytest.importorskip("torchao", reason="torchao is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("aware")
    write_own_data(folder)
    return folder


def _weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return dict(iter_tensors(Checkpoint(checkpoint)))


@pytest.mark.usefixtures("torchao")
def test_forward_is_on_the_grid_and_the_gradient_goes_straight_through(source: Path) -> None:
    from tinyllava_edge.train.quantize_aware import prepare

    plain, aware = load_model(Checkpoint(source)), load_model(Checkpoint(source))
    names = [name for name, _ in plain.named_parameters()]
    rounded = {name: GRIDS[grid] for grid in BOTH for name in GRIDS[grid][1](plain)}
    for name, (round_to, _) in rounded.items():
        weight = plain.get_parameter(f"{name}.weight")
        weight.data = round_to(weight.data)
    masters = {name: value.clone() for name, value in aware.named_parameters()}
    prepare(aware, BOTH)
    assert [name for name, _ in aware.named_parameters()] == names  # resume and saving know them by these
    pixels, ids = torch.rand(1, 3, 28, 28), torch.tensor([[1, 5, 9, 3]])
    for model in (plain, aware):
        model.encode(pixels).square().sum().backward()  # type: ignore[no-untyped-call]
        model.language_model(input_ids=ids).logits.square().sum().backward()
    for name, parameter in aware.named_parameters():
        assert torch.equal(parameter, masters[name])
        found, expected = parameter.grad, plain.get_parameter(name).grad
        assert (found is None) == (expected is None)
        assert found is None or expected is None or torch.equal(found, expected), name
    moved = [
        n for n in rounded if not torch.equal(masters[f"{n}.weight"], plain.get_parameter(f"{n}.weight"))
    ]
    assert moved == list(rounded)


@pytest.mark.usefixtures("torchao")
def test_export_writes_the_very_weights_of_a_trained_golden_checkpoint(folder: Path, tmp_path: Path) -> None:
    start = golden_checkpoint("qwen2-siglip-mlp2x-bf16-sharded") / "model"
    options = own_options(
        folder,
        start,
        sources=shared_fixtures() / "sources",
        tune=parse_tune("all"),
        max_steps=3,
        quantize_aware=BOTH,
    )
    outcome = finetune(tmp_path / "out", options)
    assert outcome.steps == 3
    weights = _weights(tmp_path / "out")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    model = load_model(Checkpoint(tmp_path / "out"))
    before = load_model(Checkpoint(start, sources=options.sources))
    for layers, round_to in ((q4_0_layers, round_to_q4_0), (int8_layers, round_to_int8)):
        for layer, module in layers(model).items():
            assert torch.equal(round_to(module.weight), module.weight), layer
    learned = before.get_parameter("connector.0.weight")
    assert not torch.equal(round_to_int8(learned), model.get_parameter("connector.0.weight"))
    exported = ExportOptions(vision=("int8",), language=("q4_0",))
    export_bundle(Checkpoint(tmp_path / "out"), tmp_path / "bundle", exported)
    _check_q4_0(tmp_path / "out", tmp_path / "bundle" / "language" / "q4_0.gguf", len(q4_0_layers(model)))
    _check_int8(tmp_path / "bundle" / "vision" / "int8.onnx", model)


def _check_q4_0(checkpoint: Path, path: Path, least: int) -> None:
    from tests.export.gguf_files import language_source

    source = language_source(checkpoint)
    rules, written = source.rules(), {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    equal = 0
    for name, tensor in source.tensors():
        stored = written[rules[name].name]
        if stored.tensor_type == Q4_0:
            values = torch.from_numpy(gguf.quants.dequantize(stored.data, Q4_0).astype(np.float32))
            assert torch.equal(rules[name].restore(values), tensor), name
            equal += 1
    assert equal >= least > 0


def _check_int8(path: Path, model: Any) -> None:
    graph = onnx.load(path).graph
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    saved = [layer.weight for layer in int8_layers(model).values()]
    found = 0
    for name, steps in stored.items():
        if steps.dtype == np.int8 and steps.ndim == 2:
            scale = stored[name.removesuffix("_quantized") + "_scale"]
            values = torch.from_numpy((steps.astype(np.float32) * scale).T)
            assert any(values.shape == weight.shape and torch.equal(values, weight) for weight in saved), name
            found += 1
    assert found > 0


@pytest.mark.usefixtures("torchao")
def test_what_is_frozen_is_on_the_grid_too_and_learned_around(source: Path, folder: Path) -> None:
    options = own_options(
        folder, source, tune=parse_tune("connector=lora"), max_steps=1, quantize_aware=("q4_0",)
    )
    finetune(folder / "around", options)
    before, after = _weights(source), _weights(folder / "around")
    layers = {f"{name}.weight" for name in q4_0_layers(load_model(Checkpoint(source)))}
    assert layers <= before.keys()
    for name, tensor in after.items():
        if name in layers:
            assert torch.equal(tensor, round_to_q4_0(before[name])), name
        elif not name.startswith("connector."):
            assert torch.equal(tensor, before[name]), name


@pytest.mark.usefixtures("torchao")
def test_an_interrupted_run_goes_on_to_the_same_bits(source: Path, folder: Path) -> None:
    options = own_options(
        folder, source, tune=parse_tune("all"), max_steps=4, save_steps=1, quantize_aware=BOTH, distill=True
    )
    finetune(folder / "whole", options)
    _interrupt(folder / "cut", options, at_step=3)
    assert finetune(folder / "cut", options, resume=True).resumed_at in (2, 3)
    _assert_same(folder / "cut", folder / "whole")


def test_a_teacher_is_what_is_learned_and_no_part_of_the_model(source: Path, folder: Path) -> None:
    options = own_options(folder, source)
    checkpoint = open_source(options, source)
    from tinyllava_edge.train.records import read_data
    from tinyllava_edge.train.run_records import Numbered

    samples, data = open_samples(checkpoint, options), read_data(options)
    samples.conversations = Numbered(data, range(len(data)), samples.left_out)
    batch = samples.collator(samples.__getitems__([1, 2]))
    model, teacher = load_model(checkpoint), load_model(checkpoint)
    taught = TinyLlavaForTraining(model, teacher)
    assert taught.state_dict().keys() == TinyLlavaForTraining(model).state_dict().keys()
    assert loss_of(taught, batch).item() == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        next(iter(model.connector.parameters())).mul_(1.5)
    loss = loss_of(taught, batch)
    assert loss.item() > 1e-4
    assert loss_of(taught, {**batch, "labels": batch["labels"].clamp(max=3)}).item() == loss.item()
    loss.backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is None for parameter in teacher.parameters())


@pytest.mark.usefixtures("torchao")
def test_the_plan_counts_rounded_weights_and_the_teacher() -> None:
    def plan(**training: Any) -> dict[str, Any]:
        options = FinetuneOptions(
            data=Path(), images=Path(), source=Path(), training=TrainingOptions(precision="fp32", **training)
        )
        return make_plan(SMALL, options, rows=None, positions=400, memory="80GB").memory_bytes

    plain, aware, taught = plan(), plan(quantize_aware=BOTH), plan(quantize_aware=BOTH, distill=True)
    on_grid = 4 * (2 * (3 * 256 * 768 + 2 * 256 * 256 + 2 * 256 * 64) + 450 * 256)  # at least
    assert aware["activations"] - plain["activations"] > 0.9 * on_grid
    assert aware["weights"] == plain["weights"]
    assert taught["weights"]["teacher"] == sum(aware["weights"].values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantize_aware": ("q4_1",)}, "--quantize-aware 'q4_1' is not known. Known: q4_0, int8"),
        ({"quantize_aware": ("q4_0",), "tune": parse_tune("llm=lora")}, "takes them off the grid"),
        ({"quantize_aware": ("int8",), "tune": parse_tune("connector=lora")}, "takes them off the grid"),
        (
            {"quantize_aware": ("int8",), "tune": parse_tune("llm=lora"), "keep_adapter": True},
            "writes no weights",
        ),
        ({"distill": True}, "--distill: .*--quantize-aware q4_0"),
        ({"quantize_aware": ("q4_0",), "fsdp": True}, "never run with weights that --fsdp"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], message: str, folder: Path) -> None:
    with pytest.raises(UsageError, match=message):
        own_options(folder, folder, **changes)


@pytest.mark.usefixtures("torchao")
def test_rows_that_are_no_multiple_of_32_are_named(folder: Path, tmp_path: Path) -> None:
    start = golden_checkpoint("openelm-siglip-mlp2x-last-fp16") / "model"
    options = own_options(folder, start, sources=shared_fixtures() / "sources", quantize_aware=("q4_0",))
    with pytest.raises(UsageError, match=r"rows of language_model\.\S+ are 144 wide, expected a multiple"):
        finetune(tmp_path / "out", options)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("torchao")
def test_an_embedding_that_does_more_than_look_up_is_refused_but_where_it_is_frozen(source: Path) -> None:
    """Gemma's scales what it looks up; a fake one would not."""
    from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding

    from tinyllava_edge.train.quantize_aware import prepare

    model = load_model(Checkpoint(source))
    name = next(name for name, layer in q4_0_layers(model).items() if isinstance(layer, torch.nn.Embedding))
    rows, width = model.get_parameter(f"{name}.weight").shape
    scaled: torch.nn.Embedding = Gemma3TextScaledWordEmbedding(rows, width, padding_idx=0, embed_scale=4.0)
    model.set_submodule(name, scaled)
    with pytest.raises(UsageError, match=rf"q4_0: {name} is a Gemma3TextScaledWordEmbedding, .*frozen"):
        prepare(model, ("q4_0",))
    model.requires_grad_(False)
    prepare(model, ("q4_0",))
    assert torch.equal(scaled.weight, round_to_q4_0(scaled.weight))


def test_without_torchao_the_line_that_installs_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tinyllava_edge.train.asked.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"torchao, which is missing here: .*pip install"):
        check_packages(own_options(folder, folder, quantize_aware=("q4_0",)))


def test_a_recipe_names_the_grids(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("extends: base-finetune\nsummary: on the grid\nquantize_aware: [q4_0]\ndistill: true\n")
    recipe = open_recipe(str(path)).any_recipe
    assert (recipe.quantize_aware, recipe.distill) == (["q4_0"], True)
    path.write_text("extends: base-finetune\nsummary: on the grid\nquantize_aware: [q4_1]\n")
    with pytest.raises(UsageError, match=r"quantize_aware.0: .*'q4_0' or 'int8'"):
        open_recipe(str(path))
    path.write_text("extends: base-finetune\nsummary: on the grid\nquantise_aware: [q4_0]\n")
    with pytest.raises(UsageError, match="Did you mean 'quantize_aware'"):
        open_recipe(str(path))
