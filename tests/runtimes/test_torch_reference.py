"""Both halves on torch: the same contract, and the same numbers as the other runtime on a real export."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load_file

from tests.runtimes.bundles import picture
from tests.runtimes.contract import LanguageContract, VisionContract
from tests.tiny import write_tiny_checkpoint
from tinyllava_edge.bundle import Bundle
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.errors import BackendError, CheckpointError, UsageError
from tinyllava_edge.export.options import ExportOptions
from tinyllava_edge.export.pipeline import export_bundle
from tinyllava_edge.model.vlm import load_model
from tinyllava_edge.runtimes import torch_reference
from tinyllava_edge.runtimes.base import BackendOptions
from tinyllava_edge.runtimes.model import open_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("exported")
    write_tiny_checkpoint(folder / "checkpoint", seed=3)
    options = ExportOptions(vision=("fp32",), language=("f32",))
    export_bundle(Checkpoint(folder / "checkpoint"), folder / "bundle", options)
    return Bundle.open(folder / "bundle")


class TestLanguage(LanguageContract):
    @pytest.fixture
    def backend(self, bundle: Bundle) -> Iterator[torch_reference.TorchLanguage]:
        backend = torch_reference.open_language(bundle, BackendOptions(threads=1, context_length=300))
        yield backend
        backend.close()


class TestVision(VisionContract):
    @pytest.fixture
    def backend(self, bundle: Bundle) -> Iterator[torch_reference.TorchVision]:
        backend = torch_reference.open_vision(bundle, BackendOptions(threads=1))
        yield backend
        backend.close()

    @pytest.fixture
    def pixels(self, bundle: Bundle) -> npt.NDArray[np.float32]:
        size = bundle.manifest.vision.image_size
        return np.random.default_rng(0).standard_normal((2, 3, size, size), dtype=np.float32)

    @pytest.fixture
    def shape(self, bundle: Bundle) -> tuple[int, int]:
        return bundle.manifest.vision.num_tokens, bundle.manifest.vision.hidden_size


def test_both_halves_share_one_model(bundle: Bundle) -> None:
    options = BackendOptions(threads=1)
    vision = torch_reference.open_vision(bundle, options)
    language = torch_reference.open_language(bundle, options)
    assert vision._model is not None
    assert language._model is vision._model.language_model
    vision.close()
    language.close()
    assert not torch_reference._open_models


def test_both_runtimes_give_the_same_ids_embeddings_logits_and_answers(bundle: Bundle) -> None:
    turns = [("<image>\nWhat is this?", "A red car."), ("And this? <image>", None)]
    pictures = [picture(1), picture(2)]
    found = []
    for runtime in ("torch", "onnxruntime+llamacpp"):
        with open_bundle(bundle.root, runtime=runtime, kv_type="f32", threads=1) as model:
            answer = "".join(model.chat("What is this?", [picture(3)], max_tokens=12))
            answer += "".join(model.chat("Why?", max_tokens=12))
            ids = model.tokenize(turns)
            found.append((ids, model.encode(pictures), model.logits(turns, pictures), answer))
    (ids, rows, logits, answer), (other_ids, other_rows, other_logits, other_answer) = found
    assert other_ids == ids
    np.testing.assert_allclose(other_rows, rows, atol=1e-4)
    error = np.square(other_logits - logits).sum() / np.square(logits).sum()
    assert error < 1e-10
    assert other_answer == answer


def test_the_engine_on_torch_gives_the_reference_models_own_logits(bundle: Bundle) -> None:
    reference = load_model(Checkpoint(Path(bundle.manifest.source.name)))
    turns = [("<image>\nWhat is this?", None)]
    with open_bundle(bundle.root, runtime="torch", threads=1) as model:
        ids, logits = model.tokenize(turns), model.logits(turns, [picture(1)])
        rows = torch.from_numpy(model.encode([picture(1)]))
    with torch.inference_mode():
        expected = reference.language_model(inputs_embeds=reference.splice(ids, rows)[None]).logits[0]
    np.testing.assert_allclose(logits, expected.numpy(), atol=1e-4)


def test_another_checkpoint_than_the_bundles_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    other = write_tiny_checkpoint(tmp_path / "other", seed=4)
    with pytest.raises(BackendError, match="is not the checkpoint"):
        open_bundle(bundle.root, runtime="torch", checkpoint=other)


def test_a_checkpoint_that_moved_is_found_where_it_is_said_to_be(bundle: Bundle, tmp_path: Path) -> None:
    copy = shutil.copytree(bundle.manifest.source.name, tmp_path / "moved")
    with open_bundle(bundle.root, runtime="torch", threads=1, checkpoint=copy) as model:
        assert model.tokenize([("hello", None)])


def test_a_missing_checkpoint_is_an_error_that_names_the_option(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="--checkpoint"):
        open_bundle(bundle.root, runtime="torch", checkpoint=tmp_path / "nowhere")


def test_a_variant_is_refused_because_torch_has_none(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="fp16"):
        open_bundle(bundle.root, runtime="torch", vision="fp16")


@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
def test_a_kv_type_that_torch_does_not_have_is_refused(bundle: Bundle, kv_type: str) -> None:
    with pytest.raises(UsageError, match=f"no {kv_type} KV cache"):
        open_bundle(bundle, runtime="torch", threads=1, kv_type=kv_type)


def test_options_of_the_checkpoint_reach_its_reader(tmp_path: Path) -> None:
    checkpoint = write_tiny_checkpoint(tmp_path / "checkpoint", seed=5)
    tensors = load_file(checkpoint / "model.safetensors")
    (checkpoint / "model.safetensors").unlink()
    for part in ("vision_tower", "connector", "language_model"):
        own = {k.split(".", 1)[1]: v for k, v in tensors.items() if k.startswith(f"{part}.")}
        (checkpoint / part).mkdir()
        torch.save(
            {k.removeprefix(f"_{part}."): v for k, v in own.items()}, checkpoint / part / "pytorch_model.bin"
        )
    options = ExportOptions(vision=("fp32",), language=("f32",))
    export_bundle(Checkpoint(checkpoint, allow_pickle=True), tmp_path / "bundle", options)
    with pytest.raises(CheckpointError, match="pickle"):
        open_bundle(tmp_path / "bundle", runtime="torch", threads=1)
    with open_bundle(tmp_path / "bundle", runtime="torch", threads=1, allow_pickle=True) as model:
        assert model.encode([picture(1)]).shape[0] == 1
