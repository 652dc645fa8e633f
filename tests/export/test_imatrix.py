"""Importance is that of our own prompts, reaches llama.cpp, and recipes are what the manifest says."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
import numpy.typing as npt
import pytest
import torch

from tests.export.conftest import Exported
from tests.export.gguf_files import language_source
from tests.integration.combinations import draw_combination, write_combination
from tinyllava_edge.bundle import Bundle
from tinyllava_edge.checkpoint.families import FAMILIES
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.errors import DataError, ExportError, TinyLlavaEdgeError, UsageError
from tinyllava_edge.export.calibration import SHIPPED
from tinyllava_edge.export.imatrix import (
    IMATRIX_FILE,
    MAX_PROMPTS,
    QUESTION,
    Imatrix,
    PictureTurns,
    measure_imatrix,
    read_prompts,
)
from tinyllava_edge.export.language_gguf import LanguageSource, write_language_gguf
from tinyllava_edge.export.options import ExportOptions
from tinyllava_edge.export.parity import check_language
from tinyllava_edge.export.pipeline import export_bundle
from tinyllava_edge.export.quantize import quantize_gguf
from tinyllava_edge.export.recipes import resolve_types
from tinyllava_edge.image import open_picture, preprocess
from tinyllava_edge.manifest import Recipe
from tinyllava_edge.model.vlm import TinyLlava, load_model
from tinyllava_edge.prompt import place_markers

PICTURES = ["drawing.png", "coffee.jpg"]
Floats = npt.NDArray[np.float32]


def write_records(folder: Path, *records: Any) -> Path:
    """A file of training data beside two pictures."""
    folder.mkdir(exist_ok=True)
    for name in PICTURES:
        shutil.copy(SHIPPED / name, folder / name)
    (folder / "data.json").write_text(json.dumps(records))
    return folder / "data.json"


def record(*said: str, image: Any = None) -> dict[str, Any]:
    speakers = ("human", "gpt")
    turns = [{"from": speakers[place % 2], "value": text} for place, text in enumerate(said)]
    return {"conversations": turns} if image is None else {"image": image, "conversations": turns}


RECORDS = (
    record("<image>\nWhat is it?", "A wall.", "Which colour?", "Red.", image=PICTURES[0]),
    record("<image> and <image>?", "Two.", image=PICTURES),
    record("Which animals can fly?", "Birds."),
)


@pytest.fixture(scope="module")
def wide(exported: Exported) -> TinyLlava:
    return load_model(Checkpoint(exported.checkpoint))


@pytest.fixture(scope="module")
def measured(exported: Exported, wide: TinyLlava, tmp_path_factory: pytest.TempPathFactory) -> Imatrix:
    source = language_source(exported.checkpoint)
    data = write_records(tmp_path_factory.mktemp("data"), *RECORDS)
    return measure_imatrix(wide, source, read_prompts(data, None, source.assets.template))


def test_importance_is_of_pictures_between_the_rows_of_text(
    exported: Exported, wide: TinyLlava, measured: Imatrix
) -> None:
    """The first layer's projections read the norm of the spliced rows, which needs no hook to know."""
    assets = language_source(exported.checkpoint).assets
    language: Any = wide.language_model
    squares, positions = [], 0
    for raw in RECORDS:
        said = [turn["value"] for turn in raw["conversations"]]
        named = raw.get("image", [])
        paths = [SHIPPED / name for name in ([named] if isinstance(named, str) else named)]
        turns = place_markers([*zip(said[::2], said[1::2], strict=True)], len(paths), assets.template)
        pixels = [preprocess(open_picture(path), assets.preprocessing) for path in paths]
        with torch.no_grad():
            seen = wide.encode(torch.from_numpy(np.stack(pixels))) if pixels else torch.zeros(0, 0, 256)
            rows = wide.splice(assets.text_tokenizer().encode(assets.template, turns), seen)
            normed = language.model.layers[0].input_layernorm(rows)
        squares.append(normed.double().square().sum(dim=0))
        positions += len(rows)
    expected = (torch.stack(squares).sum(dim=0) / positions).numpy()
    assert (measured.prompts, measured.positions) == (3, positions)
    for name in ("blk.0.attn_q.weight", "blk.0.attn_v.weight"):
        np.testing.assert_allclose(measured.mean_squares[name], expected, rtol=1e-4)
    layers = [f"blk.{layer}.{part}.weight" for layer in range(2) for part in (
        "attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"
    )]  # fmt: skip
    assert [*measured.mean_squares] == layers
    assert measured.mean_squares["blk.1.ffn_down.weight"].shape == (512,)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_matrix_of_every_familys_layers_is_measured(family: str, tmp_path: Path) -> None:
    checkpoint, sources, _ = write_combination(tmp_path, draw_combination(0, family))
    source = language_source(checkpoint, sources=sources)
    model = load_model(source.checkpoint)
    found = measure_imatrix(model, source, [PictureTurns(turns=[("What?", "That.")], pictures=())])
    shapes = {rule.name: rule.shape[1:] for rule in source.rules().values() if len(rule.shape) > 1}
    expected = {name: shape for name, shape in shapes.items() if name.startswith("blk.")}
    assert {name: values.shape for name, values in found.mean_squares.items()} == expected
    assert all(values.min() >= 0 and values.max() > 0 for values in found.mean_squares.values())


def errors(path: Path, base: Path, name: str) -> Floats:
    """Squared errors of a tensor, by column."""
    stored, exact = (
        next(
            gguf.quants.dequantize(t.data, t.tensor_type)
            for t in gguf.GGUFReader(file).tensors
            if t.name == name
        )
        for file in (path, base)
    )
    found: Floats = np.square(stored - exact).sum(axis=0)
    return found


@pytest.mark.parametrize("kind", ["q4_0", "q4_k_m", "q3_k_m", "iq4_nl"])
def test_columns_that_weigh_more_have_smaller_errors_in_as_many_bytes(
    kind: str, exported: Exported, tmp_path: Path
) -> None:
    base, name = exported.bundle.root / "language/f32.gguf", "blk.1.attn_k.weight"
    weights = np.ones(256, np.float32)
    weights[::8] = 400
    quantize_gguf(base, tmp_path / "plain.gguf", kind)
    quantize_gguf(base, tmp_path / "weighed.gguf", kind, imatrix={name: weights})
    plain, weighed = (errors(tmp_path / f"{file}.gguf", base, name) for file in ("plain", "weighed"))
    assert weighed[::8].sum() < 0.7 * plain[::8].sum()
    assert float((weights * weighed).sum()) < 0.8 * float((weights * plain).sum())
    sizes = {(tmp_path / f"{file}.gguf").stat().st_size for file in ("plain", "weighed")}
    assert len(sizes) == 1
    check_language(tmp_path / "weighed.gguf", kind, language_source(exported.checkpoint))


@pytest.fixture(scope="module")
def mixed(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle with both, of which q8_0 and f16 can have neither."""
    folder = tmp_path_factory.mktemp("mixed")
    options = ExportOptions(
        vision=("fp32",),
        language=("f16", "q8_0", "q4_0"),
        imatrix=write_records(folder / "data", *RECORDS),
        tensor_types=(r"blk\.0\.attn_v=f16", "attn_v=q6_k", "token_embd=Q4_K"),
    )
    export_bundle(Checkpoint(exported.checkpoint), folder / "bundle", options)
    return Bundle.open(folder / "bundle")


def types_in(path: Path) -> Mapping[str, str]:
    return {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}


def test_a_bundle_says_by_what_a_variant_was_made(mixed: Bundle, measured: Imatrix) -> None:
    recipes = {variant.name: variant.recipe for variant in mixed.manifest.variants}
    rules = (r"blk\.0\.attn_v=f16", "attn_v=q6_k", "token_embd=Q4_K")
    expected = Recipe(imatrix_prompts=3, imatrix_positions=measured.positions, tensor_types=rules)
    assert recipes == {"fp32": None, "f16": None, "q8_0": None, "q4_0": expected}
    assert str(expected).startswith("imatrix of 3 prompts, blk")
    written = json.loads((mixed.root / "manifest.json").read_bytes())["variants"]
    assert ["recipe" in variant for variant in written] == [False, False, False, True]


def test_the_first_rule_that_is_found_says_a_tensors_type(mixed: Bundle) -> None:
    types = types_in(mixed.root / "language/q4_0.gguf")
    assert types["blk.0.attn_v.weight"] == "F16"
    assert types["blk.1.attn_v.weight"] == "Q6_K"
    assert types["token_embd.weight"] == "Q4_K"
    assert types["blk.0.attn_q.weight"] == "Q4_0"
    assert types_in(mixed.root / "language/q8_0.gguf")["blk.0.attn_v.weight"] == "Q8_0"


def test_llama_cpps_own_tool_finds_what_it_reads_in_the_imatrix(mixed: Bundle, measured: Imatrix) -> None:
    """Names and shapes: common/imatrix-loader.cpp; it divides sums by counts."""
    reader = gguf.GGUFReader(mixed.root / IMATRIX_FILE)
    facts = {name: entry.contents() for name, entry in reader.fields.items()}
    assert facts["general.type"] == "imatrix"
    assert facts["imatrix.datasets"] == ["data.json"]
    assert (facts["imatrix.chunk_count"], facts["imatrix.chunk_size"]) == (3, measured.positions // 3)
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    assert len(tensors) == 2 * len(measured.mean_squares)
    for name, values in measured.mean_squares.items():
        np.testing.assert_allclose(tensors[f"{name}.in_sum2"] / tensors[f"{name}.counts"], values, rtol=1e-5)


def test_a_tensor_of_another_type_than_asked_for_is_found(mixed: Bundle, exported: Exported) -> None:
    file, source = mixed.root / "language/q4_0.gguf", language_source(exported.checkpoint)
    with pytest.raises(ExportError, match=r"blk\.1\.attn_q\.weight is q4_0, --tensor-type says q8_0"):
        check_language(file, "q4_0", source, types={"blk.1.attn_q.weight": "q8_0"})


def test_a_recipes_type_that_does_not_fit_is_reported(tmp_path: Path, source: LanguageSource) -> None:
    """Rows of 64: llama.cpp takes another type than Q6_K in silence."""
    types = {"blk.1.attn_v.weight": "q6_k"}
    write_language_gguf(tmp_path / "f32.gguf", source, "f32")
    quantize_gguf(tmp_path / "f32.gguf", tmp_path / "q4_0.gguf", "q4_0", types=types)
    report = check_language(tmp_path / "q4_0.gguf", "q4_0", source, types=types)
    assert report["fallback"] == ["blk.1.attn_v.weight: q8_0, width 64"]


def test_records_and_pictures_are_spread_over_those_there_are(tmp_path: Path, exported: Exported) -> None:
    template = language_source(exported.checkpoint).assets.template
    many = [record(f"<image>\nQuestion {n}?", "Yes.", image=PICTURES[0]) for n in range(2 * MAX_PROMPTS)]
    asked = read_prompts(write_records(tmp_path / "a", *many), None, template)
    assert [prompt.turns[0][0].split()[2] for prompt in asked] == [f"{n}?" for n in range(0, len(many), 2)]
    (of_folder, _) = read_prompts(tmp_path / "a", None, template)
    assert of_folder.turns == [(f"<image>\n{QUESTION}", None)]
    assert of_folder.pictures == (tmp_path / "a" / PICTURES[1],)
    moved = shutil.move(tmp_path / "a" / "data.json", tmp_path / "data.json")
    assert read_prompts(Path(moved), tmp_path / "a", template) == asked


@pytest.mark.parametrize(
    ("records", "words"),
    [
        ('{"image": 1}', ["expected a folder of pictures, or a JSON list"]),
        ("[]", ["JSON list"]),
        ("not JSON", ["JSON list"]),
        ([record("What?", "That.")], ["no record names a picture"]),
        ([record("<image>\nWhat?", "That.", image="gone.png")], ["record 0", "gone.png", "--images"]),
        ([record("<image>\nWhat?", image=PICTURES[0])], ["record 0", "question and answer"]),
        ([{"image": PICTURES}], ["record 0"]),
        ([record("<image>", "No.", image=PICTURES)], ["record 0", "2 picture(s) but 1"]),
        ([record("<image>\nWhat?", "That.", image=[1])], ["record 0", "image (a path"]),
        (["text"], ["record 0"]),
    ],
)
def test_what_is_no_data_is_refused_by_record(
    records: Any, words: list[str], tmp_path: Path, exported: Exported
) -> None:
    data = write_records(tmp_path / "data")
    data.write_text(records if isinstance(records, str) else json.dumps(records))
    with pytest.raises(DataError) as caught:
        read_prompts(data, None, language_source(exported.checkpoint).assets.template)
    for word in ["--imatrix", str(data), *words]:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"imatrix": Path("x.json"), "language": ("f16", "q8_0", "ov_int8")},
            ["of no use", "f16,q8_0,ov_int8"],
        ),
        ({"images": Path("x")}, ["--images", "no file"]),
        ({"imatrix": SHIPPED, "images": SHIPPED}, ["--images", "no file"]),
        ({"tensor_types": ("attn_v",)}, ["'attn_v'", "REGEX=TYPE"]),
        ({"tensor_types": ("=q8_0",)}, ["REGEX=TYPE"]),
        ({"tensor_types": ("attn_v=q4_k_m",)}, ["'q4_k_m' is not known", "q4_k", "bf16"]),
        ({"tensor_types": ("attn_(=q8_0",)}, ["not a regular expression"]),
        (
            {"tensor_types": ("ffn_up=q3_k",), "language": ("f16", "q4_k_m")},
            ["f16,q4_k_m", "q3_k", "never less"],
        ),
        ({"tensor_types": ("ffn_up=q8_0",), "language": ("f16", "ov_int8")}, ["f16,ov_int8", "q8_0"]),
        ({"tensor_types": ("ffn_up=q8_0",), "interchange": ("transformers",)}, ["has none"]),
    ],
)
def test_what_would_be_of_no_use_is_refused_with_the_reason(
    options: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(UsageError) as caught:
        ExportOptions(**options)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("rules", "odd"), [(["attn_x=q8_0"], "attn_x"), (["attn=q8_0", "attn_v=q6_k"], "attn_v=q6_k")]
)
def test_a_rule_for_no_tensor_is_refused(rules: list[str], odd: str) -> None:
    with pytest.raises(UsageError, match=rf"{odd}.*Some names: ") as caught:
        resolve_types(rules, ["blk.0.attn_q.weight", "blk.0.attn_v.weight", "token_embd.weight"])
    assert "token_embd.weight" in str(caught.value)


def test_a_binding_that_takes_neither_is_found_before_any_work(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(llama_cpp, "llama_model_imatrix_data")
    options = ExportOptions(language=("q4_0",), tensor_types=("attn_v=q8_0",))
    with pytest.raises(TinyLlavaEdgeError, match=r"llama-cpp-python .* cannot be given"):
        export_bundle(Checkpoint(checkpoint), tmp_path / "out", options, on_progress=pytest.fail)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()
