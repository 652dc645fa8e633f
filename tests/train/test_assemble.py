"""Towers and language models in transformers' own files -> a checkpoint, and stage 1 on it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from typer.testing import CliRunner

from tests.tiny import TOKENIZER_FOLDER, TOKENIZER_VOCAB
from tests.train.own_data import write_own_data
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.cli import app
from tinyllava_edge.errors import CheckpointError, UsageError
from tinyllava_edge.model.assets import read_assets
from tinyllava_edge.model.checkpoint import iter_tensors
from tinyllava_edge.model.vlm import load_model
from tinyllava_edge.train.assemble import assemble
from tinyllava_edge.train.cli import train
from tinyllava_edge.train.parts import Parts

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
VISION = {**SIZES, "image_size": 28, "patch_size": 14}


def _whole_siglip() -> Any:
    config = transformers.SiglipConfig(
        text_config={**SIZES, "vocab_size": 99, "projection_size": 32}, vision_config=VISION
    )
    return transformers.SiglipModel(config)


def _siglip_tower() -> Any:
    return transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**VISION))


def _whole_clip() -> Any:
    text = {**SIZES, "vocab_size": 99, "projection_dim": 32}
    config = transformers.CLIPConfig(text_config=text, vision_config=VISION, projection_dim=32)
    return transformers.CLIPModel(config)


def _dinov2() -> Any:
    sizes = {key: value for key, value in VISION.items() if key != "intermediate_size"}
    return transformers.Dinov2Model(transformers.Dinov2Config(**sizes, mlp_ratio=2))


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llm") / "tiny-llama"
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SIZES, vocab_size=TOKENIZER_VOCAB, tie_word_embeddings=True)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    for path in TOKENIZER_FOLDER.iterdir():
        shutil.copy(path, folder)
    return folder


def _save_tower(build: Callable[[], Any], folder: Path) -> Any:
    torch.manual_seed(1)
    model = build().eval()
    model.save_pretrained(folder)
    processor = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 3}
    (folder / "preprocessor_config.json").write_text(
        json.dumps(processor | {"size": {"height": 28, "width": 28}})
    )
    return model


@pytest.mark.parametrize("build", [_whole_siglip, _siglip_tower, _whole_clip, _dinov2])
def test_an_assembled_checkpoint_computes_what_its_parts_compute(
    build: Callable[[], Any], llm: Path, tmp_path: Path
) -> None:
    """The oracle is transformers, on the models that were saved."""
    tower = _save_tower(build, tmp_path / "tower")
    assemble(tmp_path / "out", Parts(tower=tmp_path / "tower", connector="linear", llm=llm), seed=0)
    model = load_model(Checkpoint(tmp_path / "out"))
    pixels = torch.rand(2, 3, 28, 28) * 2 - 1
    with torch.no_grad():
        half = getattr(tower, "vision_model", tower)
        hidden = half(pixel_values=pixels, output_hidden_states=True).hidden_states[-2]
        torch.testing.assert_close(model.vision_tower(pixels), hidden[:, 1:])
        language: Any = transformers.LlamaForCausalLM.from_pretrained(llm)
        language.eval()
        ids = torch.tensor([[1, 17, 23, 5]])
        torch.testing.assert_close(model.logits(ids[0].tolist()), language(ids).logits[0])


def test_stage_one_from_parts_trains_the_connector_and_leaves_nothing_else_behind(
    llm: Path, tmp_path: Path
) -> None:
    out, data = tmp_path / "out", write_own_data(tmp_path)
    data.write_text(json.dumps([record for record in json.loads(data.read_text()) if "image" in record]))
    _save_tower(_whole_siglip, tmp_path / "tower")
    names = {path.name for path in tmp_path.iterdir()}
    train(
        out=out,
        data=[data],
        tower=str(tmp_path / "tower"),
        llm=str(llm),
        tune="connector",
        template="pretrain",
        precision="fp32",
    )
    assert {path.name for path in tmp_path.iterdir()} == names | {"out"}
    assemble(tmp_path / "start", Parts(tower=tmp_path / "tower", connector="mlp2x_gelu", llm=llm), seed=0)
    start = dict(iter_tensors(Checkpoint(tmp_path / "start")))
    changed = {name for name, tensor in iter_tensors(Checkpoint(out)) if not torch.equal(tensor, start[name])}
    assert changed == {f"connector.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")}
    sidecar = json.loads((out / "tinyllava_edge.json").read_text())
    assert sidecar["source"] == "tower + mlp2x_gelu + tiny-llama"
    assert sidecar["source_sha256"] == Checkpoint(tmp_path / "start").sha256  # so it can be resumed
    assert sidecar["template"] == "llama"


def _assemble(folder: Path, connector: str) -> None:
    parts = Parts(tower=folder / "tower", connector=connector, llm=folder / "llm")
    assemble(folder / "out", parts, seed=0)


def test_a_folder_without_weights_is_named(llm: Path, tmp_path: Path) -> None:
    shutil.copytree(llm, tmp_path / "llm")
    (tmp_path / "llm" / "model.safetensors").unlink()
    _save_tower(_siglip_tower, tmp_path / "tower")
    with pytest.raises(CheckpointError, match="llm: holds no weights"):
        _assemble(tmp_path, "linear")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("part", "changes", "said"), [
    ("tower", {"model_type": "siglip", "vision_config": None}, "vision_config is missing"),
    ("tower", {"model_type": "clip", "vision_config": [1]}, "vision_config is missing"),
    ("llm", {"max_position_embeddings": "many"}, "max_position_embeddings"),
    ("llm", {"max_position_embeddings": 0}, "max_position_embeddings"),
])  # fmt: skip
def test_a_part_with_an_impossible_config_is_named(
    llm: Path, tmp_path: Path, part: str, changes: dict[str, Any], said: str
) -> None:
    shutil.copytree(llm, tmp_path / "llm")
    (tmp_path / "tower").mkdir()
    (tmp_path / "tower" / "config.json").write_text('{"model_type": "siglip_vision_model"}')
    path = tmp_path / part / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(CheckpointError, match=said):
        _assemble(tmp_path, "linear")


def test_a_width_that_the_weights_do_not_have_is_named(llm: Path, tmp_path: Path) -> None:
    """The connector would be as wide: gigabytes, for a digit too many."""
    shutil.copytree(llm, tmp_path / "llm")
    _save_tower(_siglip_tower, tmp_path / "tower")
    path = tmp_path / "llm" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"hidden_size": 64_000}))
    with pytest.raises(CheckpointError, match="says a width of 64000, its embedding has"):
        _assemble(tmp_path, "mlp2x_gelu")


def _mof(folder: Path) -> tuple[Any, Any]:
    """CLIP and DINOv2 of one width, and as many tokens of one picture."""
    return _save_tower(_whole_clip, folder / "tower"), _save_tower(_dinov2, folder / "second")


def test_a_mixture_of_features_computes_what_its_towers_compute(llm: Path, tmp_path: Path) -> None:
    """The oracle is transformers; the second tower's config, which upstream only names, is in ours."""
    clip, dinov2 = _mof(tmp_path)
    parts = Parts(
        tower=tmp_path / "tower",
        second_tower=tmp_path / "second",
        connector="mof_mlp",
        llm=llm,
        feature_layer=1,
    )
    assemble(tmp_path / "out", parts, seed=0)
    model = load_model(Checkpoint(tmp_path / "out"))
    pixels = torch.rand(2, 3, 28, 28) * 2 - 1
    with torch.no_grad():
        halves = [
            half(pixel_values=pixels, output_hidden_states=True).hidden_states[1][:, 1:]
            for half in (clip.vision_model, dinov2)
        ]
        torch.testing.assert_close(model.vision_tower(pixels), torch.cat(halves, dim=1))
    assert parts.name == "tower + second + mof_mlp + tiny-llama"


@pytest.mark.parametrize(("connector", "options", "shape"), [
    ("resampler", {"num_queries": 7, "num_layers": 2}, ("connector.layers.1.1.3.weight", (32, 128))),
    (
        "qformer",
        {"num_queries": 5, "num_layers": 2, "qformer_width": 128},
        ("connector.query_tokens", (1, 5, 128)),
    ),
])  # fmt: skip
def test_sizes_of_a_connector_are_in_the_checkpoint(
    llm: Path, tmp_path: Path, connector: str, options: dict[str, Any], shape: tuple[str, tuple[int, ...]]
) -> None:
    _save_tower(_siglip_tower, tmp_path / "tower")
    parts = Parts(
        tower=tmp_path / "tower",
        connector=connector,
        llm=llm,
        feature_select="cls_patch",
        image_aspect_ratio="pad",
        max_length=77,
        **options,
    )
    assemble(tmp_path / "out", parts, seed=0)
    checkpoint = Checkpoint(tmp_path / "out")
    config, tensors = checkpoint.config, dict(iter_tensors(checkpoint))
    assert tensors[shape[0]].shape == shape[1]
    assert f"connector.{'layers.2' if connector == 'resampler' else 'bert.encoder.layer.2'}" not in str(
        tensors.keys()
    )
    assert (config.connector.num_queries, config.tokenizer_max_length) == (options["num_queries"], 77)
    assert (config.image_aspect_ratio, config.vision.num_tokens) == ("pad", 4)
    rows = load_model(checkpoint).encode(torch.rand(1, 3, 28, 28))
    assert rows.shape == (1, options["num_queries"], 32)
    assert (rows[0, 0] - rows[0, 1]).abs().max() > 1e-3  # queries that are equal would never differ


@pytest.mark.parametrize(
    ("build", "select"), [(_siglip_tower, "cls_patch"), (_whole_clip, "patch"), (_dinov2, "patch")]
)
@pytest.mark.parametrize("connector", ["avg_pool", "pixel_shuffle"])
def test_a_connector_of_squares_is_assembled_and_trained(
    build: Callable[[], Any], select: str, connector: str, llm: Path, tmp_path: Path
) -> None:
    out, data = tmp_path / "out", write_own_data(tmp_path)
    _save_tower(build, tmp_path / "tower")
    result = CliRunner().invoke(
        app,
        [
            "train",
            "--data",
            str(data),
            "--tower",
            str(tmp_path / "tower"),
            "--llm",
            str(llm),
            "--connector",
            connector,
            "--feature-select",
            select,
            "--tune",
            "connector",
            "--max-steps",
            "1",
            "-o",
            str(out),
        ],
    )
    assert result.exit_code == 0, result.output
    checkpoint = Checkpoint(out)
    assert (checkpoint.raw_config["connector_type"], checkpoint.raw_config["connector_factor"]) == (
        connector,
        2,
    )
    assert load_model(checkpoint).encode(torch.rand(1, 3, 28, 28)).shape == (1, 1, 32)


def test_a_factor_that_does_not_fit_is_said_before_weights_are_read(llm: Path, tmp_path: Path) -> None:
    _save_tower(_siglip_tower, tmp_path / "tower")
    (tmp_path / "tower" / "model.safetensors").write_bytes(b"")
    parts = Parts(
        tower=tmp_path / "tower", connector="avg_pool", factor=3, llm=llm, feature_select="cls_patch"
    )
    with pytest.raises(CheckpointError, match=r"--connector-factor\) 3 does not divide the 2 x 2 .* do: 2"):
        assemble(tmp_path / "out", parts, seed=0)


def test_a_tower_in_a_pickle_is_read_where_that_is_allowed(llm: Path, tmp_path: Path) -> None:
    """As openai/clip-vit-large-patch14-336 is published."""
    tower = _save_tower(_whole_clip, tmp_path / "tower")
    (tmp_path / "tower" / "model.safetensors").unlink()
    state = tower.state_dict() | {"vision_model.embeddings.position_ids": torch.arange(5)[None]}
    torch.save(state, tmp_path / "tower" / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="pickle: give --allow-pickle"):
        assemble(tmp_path / "out", Parts(tower=tmp_path / "tower", connector="linear", llm=llm), seed=0)
    parts = Parts(tower=tmp_path / "tower", connector="linear", llm=llm, allow_pickle=True)
    assemble(tmp_path / "out", parts, seed=0)
    assert load_model(Checkpoint(tmp_path / "out"))


def test_a_tokenizer_from_elsewhere(llm: Path, tmp_path: Path) -> None:
    """OpenELM has none of its own."""
    shutil.copytree(llm, tmp_path / "llm")
    for path in TOKENIZER_FOLDER.iterdir():
        (tmp_path / "llm" / path.name).unlink()
    _save_tower(_siglip_tower, tmp_path / "tower")
    parts = Parts(tower=tmp_path / "tower", connector="linear", llm=tmp_path / "llm", tokenizer=llm)
    assemble(tmp_path / "out", parts, seed=0)
    assert read_assets(Checkpoint(tmp_path / "out")).text_tokenizer()


@pytest.mark.parametrize(("options", "said"), [
    ({"num_queries": 3}, "--num-queries is of --connector resampler or qformer, not linear"),
    ({"factor": 2}, "--connector-factor is of --connector avg_pool or pixel_shuffle, not linear"),
    ({"connector": "avg_pool", "factor": 0}, "--connector-factor is 0"),
    ({"connector": "resampler", "qformer_width": 64}, "--qformer-width is of --connector qformer"),
    ({"connector": "qformer", "qformer_width": 100}, "multiple of 64"),
    ({"connector": "qformer", "num_layers": 0}, "--connector-layers is 0"),
    ({"connector": "mof_mlp"}, "mof_mlp with 1 tower"),
    ({"second_tower": Path("d")}, "linear with 2 tower"),
    ({"feature_select": "cls"}, "--feature-select 'cls' is not known. Known: patch, cls_patch"),
    ({"image_aspect_ratio": "anyres"}, "Known: square, pad"),
])  # fmt: skip
def test_options_of_assembly_that_do_not_fit_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Parts(**{"tower": Path("t"), "connector": "linear", "llm": Path("l"), **options})
