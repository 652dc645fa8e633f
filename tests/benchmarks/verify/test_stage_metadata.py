"""Every fact of manifest and GGUF is held against the checkpoint's files. CPU, a random tiny model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest

from tests.benchmarks.conftest import Honest
from tinyllava_edge.benchmarks.verify.climb import chosen_variants
from tinyllava_edge.benchmarks.verify.ladder import Ladder, StageResult
from tinyllava_edge.benchmarks.verify.stage_metadata import check_metadata
from tinyllava_edge.bundle import Bundle

from .faults import Fault


def metadata(bundle: Bundle, honest: Honest) -> list[StageResult]:
    ladder = Ladder(
        bundle=bundle,
        reference=honest.reference,
        vision=chosen_variants(bundle, "vision", ("fp32",)),
        language=chosen_variants(bundle, "language", ("f32",)),
        runtime="onnxruntime+llamacpp",
        num_pictures=1,
    )
    return list(check_metadata(ladder))


def set_in(part: str, key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def edit(manifest: dict[str, Any]) -> None:
        place = manifest[part]
        *outer, last = key.split(".")
        for name in outer:
            place = place[name]
        place[last] = value

    return edit


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("vision", "num_tokens", 7),
        ("vision", "preprocessing.resample", 2),
        ("vision", "preprocessing.rescale_factor", 0.004),
        ("language", "context_length", 123),
    ],
)
def test_a_wrong_value_of_the_manifest_is_named(
    part: str, key: str, value: Any, honest: Honest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault = Fault("wrong", "metadata", "", None, edit_manifest=set_in(part, key, value))
    manifest, file = metadata(fault.plant(honest.bundle, tmp_path / "b", monkeypatch), honest)
    assert (manifest.status, file.status) == ("failed", "passed")
    assert f"{part}.{key} is " in manifest.cause


def _other_score(reader: gguf.GGUFReader) -> None:
    entry = reader.fields["tokenizer.ggml.scores"]
    entry.parts[entry.data[300]][:] -= 1


def _no_bos(reader: gguf.GGUFReader) -> None:
    entry = reader.fields["tokenizer.ggml.add_bos_token"]
    entry.parts[entry.data[0]][:] = False


@pytest.mark.parametrize(
    ("edit", "said"), [(_other_score, "tokenizer.ggml.scores[300] is"), (_no_bos, "add_bos_token is False")]
)
def test_a_wrong_vocabulary_of_the_file_is_named(
    edit: Callable[[gguf.GGUFReader], None],
    said: str,
    honest: Honest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fault = Fault("wrong", "metadata", "", None, edit_gguf=edit)
    manifest, file = metadata(fault.plant(honest.bundle, tmp_path / "b", monkeypatch), honest)
    assert (manifest.status, file.status) == ("passed", "failed")
    assert said in file.cause
