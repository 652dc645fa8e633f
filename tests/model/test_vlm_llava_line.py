"""LLaVA's code line, broken in one place: one typed error that names file and key."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.integration.checkpoint_lines import FIXTURES
from tinyllava_edge.benchmarks.verify.upstream_text import UpstreamTokenizer
from tinyllava_edge.checkpoint.headers import read_headers
from tinyllava_edge.checkpoint.layouts import LINE, PROJECTOR
from tinyllava_edge.checkpoint.llava_line import LINES
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.errors import CheckpointError, MissingFileError, UnsupportedModelError
from tinyllava_edge.model.assets import read_assets
from tinyllava_edge.model.tokenizer import read_tokenizer
from tinyllava_edge.model.vlm import checked_tensors
from tinyllava_edge.prompt import TextTokenizer

INSIDE, NAMED, STAGE1 = "llava_llama-inside-pad", "llava_llama-named-fp16", "llava_llama-stage1"
SIGLIP = "bunny-qwen2-pad"
_TOWER = "model.vision_tower.vision_tower."
_CLIP = "openai/clip-vit-tiny-patch14-56"


class Copy:
    """A fixture and its sources, to be changed."""

    def __init__(self, name: str, folder: Path) -> None:
        self.path = shutil.copytree(FIXTURES / name / "model", folder / "model")
        self.sources = shutil.copytree(FIXTURES / "sources", folder / "sources")

    def open(self, **how: Any) -> Checkpoint:
        return Checkpoint(self.path, **{"sources": self.sources, "allow_pickle": True, **how})

    def configure(self, path: Path | None = None, **values: Any) -> None:
        file = (path or self.path) / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    def change(self, file: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file)


def read(checkpoint: Checkpoint) -> None:
    """Everything but the values of the weights, as `inspect` does."""
    assert read_headers(checkpoint)
    read_assets(checkpoint)
    checked_tensors(checkpoint)


def test_where_the_weights_are(tmp_path: Path) -> None:
    whole, named, alone = (Copy(name, tmp_path / name).open() for name in (INSIDE, NAMED, STAGE1))
    assert [checkpoint.layout for checkpoint in (whole, named, alone)] == [LINE, LINE, PROJECTOR]
    assert [file.name for file in whole.weight_files] == ["model.safetensors"]
    tower = named.sources / _CLIP / "model.safetensors"  # type: ignore[operator]
    assert named.weight_files == [named.path / "model.safetensors", tower]
    base = named.sources.parents[1] / STAGE1 / "sources" / "lmsys" / "vicuna-tiny"  # type: ignore[union-attr]
    assert alone.weight_files[0].parent == base
    assert alone.weight_files[1] == alone.path / "mm_projector.bin"
    assert [c.file_of("connector.0.weight").name for c in (whole, alone)] == [
        "model.safetensors",
        "mm_projector.bin",
    ]
    for checkpoint in (whole, named, alone):
        read(checkpoint)


def test_every_token_of_siglip_is_kept(tmp_path: Path) -> None:
    copy = Copy(SIGLIP, tmp_path)
    vision = copy.open().config.vision
    assert (vision.num_tokens, vision.drop_first, vision.num_hidden_layers, vision.feature_layer) == (
        16,
        False,
        2,
        -1,
    )
    names = read_headers(copy.open())
    assert not [name for name in names if ".head." in name or ".layers.2." in name]


def test_a_missing_projector_file_is_named(tmp_path: Path) -> None:
    copy = Copy(STAGE1, tmp_path)
    (copy.path / "mm_projector.bin").unlink()
    with pytest.raises(MissingFileError, match=r"holds no weights. Expected .*mm_projector.bin"):
        read(copy.open())


def test_missing_projector_tensors_are_named(tmp_path: Path) -> None:
    copy = Copy(INSIDE, tmp_path)
    copy.change(copy.path / "model.safetensors", lambda tensors: tensors.pop("model.mm_projector.2.bias"))
    with pytest.raises(
        CheckpointError, match=r"model.safetensors: 1 tensors are missing.*'model.mm_projector.2.bias'"
    ):
        read(copy.open())


def test_a_projector_alone_wants_its_language_model(tmp_path: Path) -> None:
    copy = Copy(STAGE1, tmp_path)
    shutil.rmtree(copy.sources / "lmsys")
    with pytest.raises(
        MissingFileError, match=r"mm_projector.bin: a projector without .*'lmsys/vicuna-tiny'"
    ):
        read(copy.open())


def test_a_projector_of_another_width_is_refused(tmp_path: Path) -> None:
    copy = Copy(INSIDE, tmp_path)
    copy.configure(mm_hidden_size=48)
    with pytest.raises(
        CheckpointError, match=r"config.json: mm_hidden_size = 48, but the tower .* has hidden_size 32"
    ):
        read(copy.open())
    copy.configure(mm_hidden_size=32, mm_projector_type="mlp3x_gelu")
    with pytest.raises(
        CheckpointError, match=r"tensors are missing, the first is 'model.mm_projector.4.bias'"
    ):
        read(copy.open())
    projector = torch.load(FIXTURES / STAGE1 / "model" / "mm_projector.bin", weights_only=True)
    other = Copy(STAGE1, tmp_path / "alone")
    projector["model.mm_projector.0.weight"] = torch.zeros(48, 24)
    torch.save(projector, other.path / "mm_projector.bin")
    with pytest.raises(
        CheckpointError, match=r"mm_projector.bin: .*\[48, 24\].*\[48, 32\] \(mm_projector_type, mm"
    ):
        read(other.open())


def test_a_tower_whose_size_does_not_fit_its_positions_is_refused(tmp_path: Path) -> None:
    copy = Copy(INSIDE, tmp_path)
    tower = copy.sources / _CLIP
    raw = json.loads((tower / "config.json").read_text())
    copy.configure(tower, vision_config=raw["vision_config"] | {"image_size": 70})
    with pytest.raises(
        CheckpointError, match=r"position_embedding.*\[17, 32\].*\[26, 32\] \(openai/.*image_size"
    ):
        checked_tensors(copy.open())


def test_a_template_that_the_tokenizer_cannot_write_is_refused(tmp_path: Path) -> None:
    copy = Copy(INSIDE, tmp_path)
    for template, token in (
        ("bunny", "<|endoftext|>"),
        ("qwen_2", "<|im_end|>"),
        ("phi3_instruct", "<|end|>"),
    ):
        with pytest.raises(CheckpointError, match="the tokenizer has no token") as caught:
            read_assets(copy.open(template=template))
        assert repr(token) in str(caught.value)


def test_half_a_download_is_named(tmp_path: Path) -> None:
    copy = Copy(NAMED, tmp_path)
    tower = copy.sources / _CLIP / "model.safetensors"
    tower.write_bytes(tower.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=rf"{_CLIP}/model.safetensors: damaged"):
        read(copy.open())
    tower.unlink()
    with pytest.raises(MissingFileError, match=rf"holds no vision tower, which config.json names: '{_CLIP}'"):
        read(copy.open())
    with pytest.raises(MissingFileError, match=r"config.json: mm_vision_tower = 'openai/.* in DIR/openai/"):
        read(copy.open(sources=None))


def test_a_trained_tower_has_no_stand_in(tmp_path: Path) -> None:
    copy = Copy(NAMED, tmp_path)
    copy.configure(unfreeze_mm_vision_tower=True)
    with pytest.raises(MissingFileError, match=r"says by unfreeze_mm_vision_tower that it was trained"):
        read(copy.open())
    copy.configure(unfreeze_mm_vision_tower=False, mm_tunable_parts="mm_vision_tower,mm_mlp_adapter")
    with pytest.raises(MissingFileError, match=r"says by mm_tunable_parts that it was"):
        read(copy.open())


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"image_aspect_ratio": "anyres"}, "image_aspect_ratio is 'anyres'"),
        ({"image_aspect_ratio": "anyres_max_9"}, "image_aspect_ratio is 'anyres_max_9'"),
        ({"mm_patch_merge_type": "spatial_unpad"}, "mm_patch_merge_type 'spatial_unpad'"),
        ({"s2": True}, "s2 = True: the S2 wrapper"),
        ({"use_s2": True}, "use_s2 = True: the S2 wrapper"),
        ({"mm_resampler_type": "perceiver"}, "mm_resampler_type = 'perceiver'"),
        ({"mm_projector_type": "pooler"}, "LLaVA's projector 'pooler'"),
        ({"mm_vision_select_feature": "slicefour_patch"}, "'slicefour_patch' is not supported"),
        ({"model_type": "bunny-minicpm"}, "model_type is 'bunny-minicpm'.*bunny-phi3"),
        ({"model_type": "llava_mistral"}, "model_type is 'llava_mistral'"),
        ({"mm_vision_tower": None, "vision_tower_cfg": {}}, "vision_tower_cfg: VILA's layout"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(tmp_path: Path, values: dict[str, Any], said: str) -> None:
    copy = Copy(INSIDE, tmp_path)
    copy.configure(**values)
    with pytest.raises(UnsupportedModelError, match=rf"config.json: .*{said}"):
        assert copy.open().config


def test_siglip2_of_any_size_is_refused_by_name(tmp_path: Path) -> None:
    copy = Copy(SIGLIP, tmp_path)
    copy.configure(copy.sources / "google" / "siglip-tiny-patch14-56", model_type="siglip2")
    with pytest.raises(UnsupportedModelError, match="'siglip2_vision_model' is not supported"):
        assert copy.open().config


def test_an_adapter_of_the_line_is_refused_by_name(tmp_path: Path) -> None:
    copy = Copy(STAGE1, tmp_path)
    (copy.path / "adapter_config.json").write_text('{"base_model_name_or_path": "lmsys/vicuna"}')
    said = rf"a LoRA adapter of LLaVA is not .*: python scripts/merge_lora_w.* --model-path {copy.path} --mod"
    with pytest.raises(UnsupportedModelError, match=said + "el-base lmsys/vicuna --save-model-path MERGED"):
        assert copy.open().layout


def test_every_line_names_a_template_that_there_is() -> None:
    from tinyllava_edge.prompt import template_named

    for line in LINES.values():
        for name in (line.template, *line.template_by_eos.values()):
            assert not name or template_named(name)


@pytest.mark.parametrize(
    ("text", "fixture", "more_strip"),
    [
        ("\u2581<|user|>\u3000<|user|>", [1, 259, 454, 454], [1, 454, 454]),
        ("<|user|></s>\u2581\na\n", [1, 454, 2, 378, 13, 381, 13], [1, 454, 2, 381, 13]),
        ("the<|user|><|user|>\u2581\u2581\u2581", [1, 273, 454, 454], [1, 273, 454, 454]),
        ("\t<|user|>\u2581\u2581<unk>athe", [1, 378, 12, 454, 0, 265, 332], [1, 454, 0, 265, 332]),
    ],
)
def test_phi3_tokens_strip_space_marks_too(
    text: str, fixture: list[int], more_strip: list[int], tmp_path: Path
) -> None:
    """Ids of transformers 4.41.2's slow LlamaTokenizer; in the second, `</s>` and `<|user|>` strip more."""
    folder = shutil.copytree(FIXTURES / "llava_phi-phi3-pad" / "model", tmp_path / "model")
    for expected in (fixture, more_strip):
        assets = read_tokenizer(folder)
        tokenizer = TextTokenizer(assets.tokenizer_json, bos_id=assets.bos_id)
        assert tokenizer.encode_text(text) == UpstreamTokenizer(folder).encode_prompt(text) == expected
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        settings["added_tokens_decoder"]["2"]["rstrip"] = True
        settings["added_tokens_decoder"]["454"]["lstrip"] = True
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def test_a_projectors_file_holds_nothing_else(tmp_path: Path) -> None:
    copy = Copy(STAGE1, tmp_path)
    tensors = torch.load(copy.path / "mm_projector.bin", weights_only=True)
    torch.save(tensors | {"model.embed_tokens.weight": torch.zeros(2, 2)}, copy.path / "mm_projector.bin")
    with pytest.raises(CheckpointError, match=r"mm_projector.bin: tensor 'model.embed_tokens.weight' is no"):
        read(copy.open())


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        (INSIDE, {"hidden_size": "48"}, r"/config.json: hidden_size = '48' is not a possible value"),
        (INSIDE, {"num_attention_heads": 5}, r"/config.json: hidden_size 48, num_attention_heads 5, "),
        (INSIDE, {"mm_vision_select_layer": "-2"}, r"mm_vision_select_layer = '-2' is not a possible"),
        (INSIDE, {"mm_vision_select_layer": 9}, r"mm_vision_select_layer 9 does not exist in a tower of 3"),
        (INSIDE, {"mm_projector_type": "identity"}, r"mm_projector_type 'identity' needs equal .* 48 and 32"),
        (INSIDE, {"rope_scaling": {"type": "linear"}}, r"/config.json: rope_scaling.factor = None is not"),
        (INSIDE, {"mm_vision_tower": "/x/clip-other/"}, r"mm_vision_tower = '/x/.*, whose .* in DIR/x/clip-"),
        (INSIDE, {"mm_vision_tower": ""}, r"config.json: mm_vision_tower is missing"),
    ],
)
def test_a_key_is_named_as_its_file_has_it(
    tmp_path: Path, name: str, values: dict[str, Any], said: str
) -> None:
    copy = Copy(name, tmp_path)
    copy.configure(**values)
    with pytest.raises(CheckpointError, match=said):
        assert copy.open().config


def test_a_towers_key_is_named_in_the_towers_file(tmp_path: Path) -> None:
    copy = Copy(NAMED, tmp_path)
    file = copy.sources / _CLIP / "config.json"
    file.write_text(file.read_text().replace('"num_attention_heads": 4', '"num_attention_heads": 5'))
    said = rf"sources/{_CLIP}/config.json: vision_config.hidden_size 32, num_attention_heads 5, "
    with pytest.raises(CheckpointError, match=said):
        assert copy.open().config


def test_sources_may_be_the_tower_itself(tmp_path: Path) -> None:
    copy = Copy(NAMED, tmp_path)
    read(copy.open(sources=copy.sources / _CLIP))


@pytest.mark.parametrize("tower", ["mobileclip_l_1024", "BAAI/EVA-CLIP", "EVA02_CLIP_L_336_psz14_s6B"])
def test_towers_of_another_kind_are_refused_by_name(tmp_path: Path, tower: str) -> None:
    copy = Copy(INSIDE, tmp_path)
    copy.configure(mm_vision_tower=tower)
    with pytest.raises(UnsupportedModelError, match=rf"mm_vision_tower = '{tower}': the tower .* is not"):
        assert copy.open().config


@pytest.mark.parametrize("key", ["mm_hidden_size", "hidden_size"])
def test_llava_phis_projector_has_widths_of_its_own(tmp_path: Path, key: str) -> None:
    copy = Copy("llava_phi-zhuyiche-pad", tmp_path)
    nested = copy.open().raw_config["vision_config"]
    nested["mm_projector"][key] = 24
    copy.configure(vision_config=nested)
    with pytest.raises(CheckpointError, match=rf"vision_config.mm_projector.{key} = 24, but the "):
        assert copy.open().config


def test_an_unknown_kind_of_model_is_said_before_its_tensors_are_looked_at(tmp_path: Path) -> None:
    copy = Copy(INSIDE, tmp_path)
    copy.configure(model_type="llava_mistral")
    with pytest.raises(UnsupportedModelError, match="model_type is 'llava_mistral'"):
        read_headers(copy.open())


def test_how_its_config_samples_changes_nothing(tmp_path: Path) -> None:
    copy = Copy(INSIDE, tmp_path)
    copy.configure(do_sample=True, temperature=0.2, top_p=0.7, max_new_tokens=512, max_length=4096)
    read(copy.open())
