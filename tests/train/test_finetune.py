"""Training on the user's own data: what changes, what is written, what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.golden import shared_fixtures
from tests.train.own_data import LORA, changed, own_options, write_own_data, write_small_checkpoint
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.checkpoint.tensor_names import UPSTREAM_PREFIXES
from tinyllava_edge.errors import DataError, OutputExistsError, UsageError
from tinyllava_edge.export.pipeline import ExportOptions, export_bundle
from tinyllava_edge.model.checkpoint import iter_readers, iter_tensors
from tinyllava_edge.model.lora import Adapter
from tinyllava_edge.model.vlm import load_model
from tinyllava_edge.runtimes.model import open_bundle
from tinyllava_edge.train.cli import train
from tinyllava_edge.train.data import read_lines
from tinyllava_edge.train.finetune import finetune
from tinyllava_edge.train.options import FinetuneOptions, LoraOptions, parse_tune
from tinyllava_edge.train.training_options import TrainingOptions, Tuning
from tinyllava_edge.train.tuning import arithmetic as precision_of

GOLDEN = shared_fixtures() / "checkpoints"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    write_own_data(folder)
    write_small_checkpoint(folder / "source")
    return folder


@pytest.fixture(scope="module")
def lora(folder: Path) -> Path:
    """One epoch of LoRA: four steps, with the adapter kept."""
    out = folder / "lora"
    finetune(out, own_options(folder, folder / "source", tune=LORA, save_adapter=True))
    return out


def _changed(before: Path, after: Path) -> set[str]:
    old = dict(iter_tensors(Checkpoint(before)))
    return {name for name, tensor in iter_tensors(Checkpoint(after)) if not torch.equal(tensor, old[name])}


def test_lora_changes_the_linear_layers_but_the_head_and_the_whole_connector(
    folder: Path, lora: Path
) -> None:
    names = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    changed = _changed(folder / "source", lora)
    language = {name for name in changed if name.startswith("language_model.")}
    assert {name.split(".")[-2] for name in language} == set(names)
    assert {name for name in changed if not name.startswith("language_model.")} == {
        f"connector.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")
    }


def test_the_kept_adapter_over_the_source_is_the_merged_model(folder: Path, lora: Path) -> None:
    """Through the reader of upstream's LoRA directories, which does not use PEFT."""
    adapter = Adapter.read(lora / "adapter", UPSTREAM_PREFIXES, "language_model")
    merged = dict(adapter.merge(iter_readers(Checkpoint(folder / "source"), part="language_model")))
    for name, tensor in iter_tensors(Checkpoint(lora), part="language_model"):
        torch.testing.assert_close(tensor, merged[name](), rtol=0, atol=1e-6)


def test_the_sidecar_says_how_the_model_came_about(folder: Path, lora: Path) -> None:
    sidecar = json.loads((lora / "tinyllava_edge.json").read_text())
    assert sidecar["template"] == "llama"
    assert sidecar["lora"] == {"rank": 4, "alpha": 8, "dropout": 0.05}
    assert sidecar["source"] == "source"
    assert len(sidecar["data_sha256"]) == len(sidecar["source_sha256"]) == 64
    assert 0 <= sidecar["merge_error"] <= 1e-5
    assert [line["step"] for line in read_lines(lora / "training_log.jsonl")] == [1, 2, 3, 4]
    assert (lora / "training_curve.png").read_bytes().startswith(b"\x89PNG")
    assert not (folder / "lora.work").exists()


def test_a_model_trained_with_lora_is_exported_and_answers_as_in_torch(
    folder: Path, lora: Path, tmp_path: Path
) -> None:
    export_bundle(Checkpoint(lora), tmp_path / "bundle", ExportOptions(vision=("fp32",), language=("f32",)))
    turns, pictures = [("<image>\nWhich colour is this?", None)], [folder / "1.png"]
    with open_bundle(tmp_path / "bundle", kv_type="f32") as model:
        exported = torch.from_numpy(model.logits(turns, pictures))
    with open_bundle(tmp_path / "bundle", runtime="torch", checkpoint=lora) as model:
        expected = torch.from_numpy(model.logits(turns, pictures))
    torch.testing.assert_close(exported, expected, rtol=0, atol=1e-4)
    assert torch.equal(exported.argmax(-1), expected.argmax(-1))


@pytest.mark.parametrize(
    ("tune", "parts"),
    [
        ("connector", {"connector"}),
        ("connector+llm", {"connector", "language_model"}),
        ("all", {"connector", "language_model", "vision_tower"}),
    ],
)
def test_the_full_recipe_trains_the_parts_that_tune_names(
    folder: Path, tmp_path: Path, tune: str, parts: set[str]
) -> None:
    options = own_options(folder, folder / "source", tune=parse_tune(tune), per_device_train_batch_size=5)
    outcome = finetune(tmp_path / "out", options)
    assert {name.split(".")[0] for name in _changed(folder / "source", tmp_path / "out")} == parts
    assert outcome.steps == 2


def test_captions_are_learned_with_the_checkpoints_own_template_kept(folder: Path, tmp_path: Path) -> None:
    data = [json.loads((folder / "data.json").read_text())[1]]
    (tmp_path / "captions.json").write_text(json.dumps(data))
    changes: dict[str, Any] = {"data": tmp_path / "captions.json", "template": "pretrain"}
    finetune(
        tmp_path / "out", own_options(folder, folder / "source", tune=parse_tune("connector"), **changes)
    )
    assert Checkpoint(tmp_path / "out").config.template == "llama"
    changes["data"] = folder / "data.json"
    with pytest.raises(DataError, match=r"4 bad of 10 records .*record 0 \(id r0\): no picture"):
        finetune(tmp_path / "other", own_options(folder, folder / "source", **changes))


@pytest.mark.parametrize("name", [path.name for path in sorted(GOLDEN.glob("*"))])
def test_every_layout_and_family_is_trained_and_read_again(folder: Path, tmp_path: Path, name: str) -> None:
    """On checkpoints that the original TinyLLaVA code wrote."""
    source, sources = GOLDEN / name / "model", GOLDEN.parent / "sources"
    options = own_options(
        folder, source, tune=LORA, per_device_train_batch_size=10, sources=sources, allow_pickle=True
    )
    finetune(tmp_path / "out", options)
    sidecar = json.loads((tmp_path / "out" / "tinyllava_edge.json").read_text())
    assert sidecar["merge_error"] <= 1e-5
    before = Checkpoint(source, sources=sources).config
    after = load_model(Checkpoint(tmp_path / "out", sources=sources)).config
    for part in ("vision", "second_vision", "connector", "language", "template", "image_aspect_ratio"):
        assert getattr(after, part) == getattr(before, part)


def test_missing_pictures_are_listed_before_anything_is_written(folder: Path, tmp_path: Path) -> None:
    options = own_options(folder, folder / "source", images=tmp_path)
    with pytest.raises(DataError, match=r"6 bad of 10 .*\(6 x missing picture\): .*1.png: .*2.png: .*4.png"):
        finetune(tmp_path / "out", options)
    assert not list(tmp_path.iterdir())


def test_a_batch_without_any_answer_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    record = json.loads((folder / "data.json").read_text())[0]
    record["conversations"][0]["value"] = "long " * 600
    (tmp_path / "data.json").write_text(json.dumps([record]))
    options = own_options(folder, folder / "source", data=tmp_path / "data.json")
    with pytest.raises(DataError, match=r"record 0 \(id r0\): no answer within the first 512 positions"):
        finetune(tmp_path / "out", options)


def test_a_training_that_diverges_is_stopped(folder: Path, tmp_path: Path) -> None:
    source = shutil.copytree(folder / "source", tmp_path / "source")
    weights = load_file(source / "model.safetensors")
    weights["connector._connector.0.weight"] *= 1e38
    save_file(weights, source / "model.safetensors")
    with pytest.raises(DataError, match="the loss of step 1 is not finite"):
        finetune(tmp_path / "out", own_options(folder, source))
    assert not (tmp_path / "out").exists()


def test_an_existing_output_is_kept_without_force(folder: Path, lora: Path) -> None:
    before = (lora / "model.safetensors").read_bytes()
    with pytest.raises(OutputExistsError, match="exists already"):
        finetune(lora, own_options(folder, folder / "source"))
    assert (lora / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tune": {"language_model": Tuning(how="dora")}}, "Known: full, lora"),  # type: ignore[arg-type]
        ({"tune": {"connector": Tuning(how="qlora")}}, "qlora is for llm; give connector lora"),
        ({"tune": {"head": Tuning()}}, "Known: connector, language_model, vision_tower"),
        ({"tune": {"connector": Tuning(from_layer=2)}}, "only a tower"),
        ({"tune": {"connector": Tuning(learning_rate=0.0)}}, "connector: learning rate is 0"),
        ({"save_adapter": True}, "needs --recipe lora"),
        ({"lora": LoraOptions(dropout=1.0)}, "--lora-dropout"),
        ({"training": {"num_train_epochs": 0}}, "--epochs"),
        ({"training": {"learning_rate": 0.0}}, "--learning-rate is 0"),
        ({"training": {"warmup_ratio": 1.0}}, "--warmup-ratio"),
        ({"training": {"precision": "fp8"}}, "Known: auto, fp32, bf16, fp16"),
        ({"training": {"report_to": ("tensorbored",)}}, "Known: tensorboard, wandb"),
        ({"training": {"fsdp": True, "deepspeed": Path("d")}}, "Give one of them"),
        ({"training": {"early_stopping_patience": 1}}, "--patience needs --eval-data"),
    ],
)
def test_options_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    def options(training: dict[str, Any] | None = None, **changes: Any) -> FinetuneOptions:
        made = TrainingOptions(**(training or {}))
        return FinetuneOptions(data=Path("d"), images=Path("i"), source=Path("s"), training=made, **changes)

    with pytest.raises(UsageError, match=message):
        options(**changes)


def test_a_way_to_tune_that_is_not_known_is_named() -> None:
    with pytest.raises(UsageError, match="Known: full, lora, qlora"):
        parse_tune("llm=dora")


def test_learning_rates_are_upstreams_where_none_is_given() -> None:
    """docs/sources/tinyllava.md#learning-rates."""

    def rate(**changes: Any) -> float:
        return FinetuneOptions(data=Path("d"), images=Path("i"), source=Path("s"), **changes).rate

    assert rate(tune=parse_tune("connector")) == 1e-3
    assert rate() == 2e-5
    assert rate(tune=LORA) == 2e-4
    assert rate(training=TrainingOptions(learning_rate=0.5)) == 0.5


def test_the_command_prints_one_line_of_json(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    data, source = folder / "data.json", str(folder / "source")
    train(out=out, data=[data], source=source, precision="fp32", json=True)
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["checkpoint"] == str(out)
    assert json.loads(line)["steps"] == 2


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"data": [Path("d.json")]},
        {"data": [Path("d.json")], "tower": "t"},
    ],
)
def test_a_command_that_does_not_say_what_to_train_is_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="nano"):
        train(out=Path("out"), **arguments)
    with pytest.raises(UsageError, match="Known: connector, llm, vision_tower"):
        parse_tune("tower")


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "no"), ((8, 6), "bf16")])
def test_a_gpu_is_not_asked_for_a_bf16_that_it_imitates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: str
) -> None:
    """A T4 (7.5) emulates it, and torch, whose own function is asked here, calls that supported too."""
    options = FinetuneOptions(data=tmp_path, images=tmp_path, source=tmp_path)
    properties = type("Properties", (), {"major": capability[0], "minor": capability[1]})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    assert precision_of(changed(options, precision="auto")) == expected
    if expected == "no":
        with pytest.raises(UsageError, match="--precision bf16: Tesla T4 does not compute in it"):
            precision_of(changed(options, precision="bf16"))
