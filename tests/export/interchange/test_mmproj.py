"""llama.cpp's own picture code makes of our mmproj file what torch makes of the checkpoint."""

from dataclasses import dataclass, replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from tests.export.gguf_files import language_source
from tests.tiny import write_tiny_checkpoint
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.errors import ExportError, UnsupportedModelError
from tinyllava_edge.export.interchange.mmproj import MmprojSource, check_mmproj, write_mmproj
from tinyllava_edge.export.interchange.mtmd_process import encode_pictures
from tinyllava_edge.export.language_gguf import write_language_gguf
from tinyllava_edge.image import preprocess
from tinyllava_edge.metrics import nmse
from tinyllava_edge.model.vlm import load_model

PICTURES = Path(__file__).parents[2] / "fixtures" / "pictures"
GATE = 1e-5  # NMSE of float16 matrices and a float16 table of GELU; measured 8e-7
ROW = np.linspace(-1, 1, 64, dtype=np.float32)


@dataclass(frozen=True)
class Written:
    source: MmprojSource
    file: Path
    language: Path


def written(folder: Path, row: np.ndarray | None, **sizes: object) -> Written:
    checkpoint = write_tiny_checkpoint(folder / "checkpoint", vision_layers=4, **sizes)  # type: ignore[arg-type]
    language = language_source(checkpoint)
    write_language_gguf(folder / "f16.gguf", language, "f16")
    how = language.assets.preprocessing
    source = MmprojSource(model=load_model(Checkpoint(checkpoint)), preprocessing=how, name="tiny", row=row)
    check_mmproj(source.config, how)
    write_mmproj(folder / "mmproj.gguf", source)
    return Written(source, folder / "mmproj.gguf", folder / "f16.gguf")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Written:
    return written(tmp_path_factory.mktemp("plain"), None)


def picture(width: int, height: int) -> np.ndarray:
    return np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def pixels_of(source: MmprojSource, values: np.ndarray) -> np.ndarray:
    from PIL import Image

    return preprocess(Image.fromarray(values), source.preprocessing)


@torch.no_grad()
def torchs(source: MmprojSource, pixels: np.ndarray) -> np.ndarray:
    """All rows, token 0's too."""
    model = source.model
    states = model.vision_tower.model(pixel_values=torch.from_numpy(pixels)[None], output_hidden_states=True)
    rows: np.ndarray = model.connector(states.hidden_states[source.config.vision.feature_layer])[0].numpy()
    return rows


@pytest.mark.parametrize(
    ("connector", "row"),
    [("mlp2x_gelu", ROW), ("linear", None), ("mlp1x_gelu", ROW), ("identity", None)],
)
def test_rows_are_torchs(connector: str, row: np.ndarray | None, tmp_path: Path) -> None:
    sizes = {"vision_hidden": 64} if connector == "identity" else {}
    made = written(tmp_path, row, connector=connector, **sizes)
    values = picture(56, 56)
    (encoded,) = encode_pictures(made.file, made.language, [values])
    expected = torchs(made.source, pixels_of(made.source, values))
    assert nmse(expected[1:], encoded.embeddings[1:]) <= GATE
    np.testing.assert_allclose(
        encoded.embeddings[0], expected[0] if row is None else row, atol=0.02 if row is None else 1e-6
    )


@pytest.mark.parametrize(("width", "height"), [(57, 56), (200, 90), (31, 17), (403, 61)])
def test_a_square_processors_pixels_are_ours_to_the_bit(plain: Written, width: int, height: int) -> None:
    values = picture(width, height)
    (encoded,) = encode_pictures(plain.file, plain.language, [values], ["inp_raw"])
    np.testing.assert_array_equal(encoded.taps["inp_raw"], pixels_of(plain.source, values))


def test_padding_has_our_colour(tmp_path: Path) -> None:
    made = written(tmp_path, ROW, aspect="pad")
    (encoded,) = encode_pictures(made.file, made.language, [picture(112, 56)], ["inp_raw"])
    grey = (127 / 255 - 0.5) / 0.5
    np.testing.assert_allclose(encoded.taps["inp_raw"][:, :13], grey, atol=1e-6)


def test_without_the_feature_layer_llamacpp_runs_a_layer_less(
    plain: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_feature_layer(writer: gguf.GGUFWriter, key: str, value: list[int]) -> None:
        if "feature_layer" not in key:
            add_array(writer, key, value)

    add_array = gguf.GGUFWriter.add_array
    monkeypatch.setattr(gguf.GGUFWriter, "add_array", no_feature_layer)
    write_mmproj(tmp_path / "mmproj.gguf", plain.source)
    values = picture(56, 56)
    (encoded,) = encode_pictures(tmp_path / "mmproj.gguf", plain.language, [values], [r"layer_out-\d"])
    assert sorted(encoded.taps) == ["layer_out-0", "layer_out-1"]
    assert nmse(torchs(plain.source, pixels_of(plain.source, values)), encoded.embeddings) > 0.01


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"vision": {"architecture": "clip_vision_model"}}, "class token behind the patches.*25814"),
        ({"vision": {"architecture": "dinov2"}}, "no graph for dinov2"),
        ({"connector": {"type": "resampler"}}, "no connector 'resampler'"),
        ({"connector": {"type": "mlp3x_gelu"}}, "no connector 'mlp3x_gelu'; its graph computes identity"),
        ({"vision": {"hidden_act": "relu"}}, "hidden_act is 'relu'"),
    ],
)
def test_what_llamacpp_has_not_is_refused(
    plain: Written, change: dict[str, dict[str, str]], says: str
) -> None:
    config = plain.source.config
    parts = {name: replace(getattr(config, name), **values) for name, values in change.items()}
    with pytest.raises(UnsupportedModelError, match=says) as caught:
        check_mmproj(replace(config, **parts), plain.source.preprocessing)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_none_is_one_line(plain: Written, tmp_path: Path) -> None:
    (tmp_path / "mmproj.gguf").write_bytes(b"GGUF" + bytes(60))
    with pytest.raises(ExportError, match=r"mmproj\.gguf: llama\.cpp"):
        encode_pictures(tmp_path / "mmproj.gguf", plain.language, [picture(56, 56)])


def test_the_connector_is_whole_in_float32(plain: Written) -> None:
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(plain.file).tensors}
    connector = plain.source.model.connector
    np.testing.assert_array_equal(
        tensors["mm.0.weight"].data, connector.get_parameter("0.weight").detach().numpy()
    )
