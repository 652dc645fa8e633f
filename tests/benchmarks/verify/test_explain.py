"""One question through checkpoint and bundle: what is planted in the bundle is named. CPU, nano."""

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.benchmarks.verify.test_cli import run
from tinyllava_edge import open_bundle
from tinyllava_edge.benchmarks.verify.climb import chosen_variants, open_checkpoint
from tinyllava_edge.benchmarks.verify.explain import (
    Explanation,
    explain,
    first_difference,
)
from tinyllava_edge.benchmarks.verify.ladder import Ladder
from tinyllava_edge.benchmarks.verify.reference_question import (
    QuestionReference,
    length_of_answer,
    room_behind,
)
from tinyllava_edge.benchmarks.verify.stage_dequantized import QUANTIZATION, quantization_cause, wider_type
from tinyllava_edge.bundle import Bundle
from tinyllava_edge.checkpoint.names import checkpoint_path
from tinyllava_edge.checkpoint.opened import Checkpoint
from tinyllava_edge.export.pipeline import ExportOptions, export_bundle
from tinyllava_edge.export.reference import PICTURES_FOLDER
from tinyllava_edge.runtimes.base import BackendOptions

from .faults import FAULTS

NANO_CHECKPOINT = checkpoint_path("nano")
PICTURE = PICTURES_FOLDER / "portrait.png"
QUESTION = "What is this?"
ONE_THREAD = BackendOptions(threads=1)


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("explain") / "nano"
    export_bundle(
        Checkpoint(NANO_CHECKPOINT), root, ExportOptions(vision=("fp32",), language=("f32", "q8_0", "q4_k_m"))
    )
    return root


def explained(root: Path, language: str, picture: bytes | None = None) -> Explanation:
    bundle = Bundle.open(root)
    reference = QuestionReference(
        open_checkpoint(bundle, Checkpoint(NANO_CHECKPOINT)),
        picture=picture or PICTURE.read_bytes(),
        question=QUESTION,
        room=room_behind(bundle, ONE_THREAD, QUESTION),
    )
    ladder = Ladder(
        bundle=bundle,
        reference=reference,
        vision=chosen_variants(bundle, "vision", ("fp32",)),
        language=chosen_variants(bundle, "language", (language,)),
        runtime="onnxruntime+llamacpp",
        num_pictures=1,
        options=ONE_THREAD,
    )
    return explain(ladder)


def test_equal_answers_say_so_and_are_what_run_says(nano: Path) -> None:
    found = explained(nano, "f32")
    assert found.verdict.startswith("equal: "), found.verdict
    assert (found.parts_at, found.cause) == (None, "")
    with open_bundle(nano, language="f32", runtime="onnxruntime+llamacpp", threads=1) as model:
        answer = model.ask(QUESTION, PICTURE)
    with open_bundle(nano, runtime="torch", checkpoint="nano", threads=1) as model:
        assert model.ask(QUESTION, PICTURE) == answer
    assert found.bundle is not None
    assert (found.checkpoint.text, found.bundle.text) == (answer, answer)
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["equal"] is True


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("BGR", "pixels"),
        ("trailing space", "text"),
        ("scale of a Q8_0 block", "weights"),
        ("RoPE scaled in q8_0 only", "dequantized"),
    ],
)
def test_a_planted_fault_is_named_with_its_stage(
    nano: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, stage: str
) -> None:
    (fault,) = [fault for fault in FAULTS if fault.name == name]
    bundle = fault.plant(nano, tmp_path / "bundle", monkeypatch)
    found = explained(bundle.root, fault.language)
    first = found.report.first_failure
    assert first is not None, found.verdict
    assert (first.stage, fault.cause in found.cause) == (stage, True), found.verdict
    assert found.verdict.startswith("different: ")
    assert f"first stage that differs: {stage}" in found.verdict
    assert not found.is_equal
    assert (found.prompt_ids == found.bundle_prompt_ids) is (stage != "text")


def blends() -> Iterator[bytes]:
    """One photograph turning into another: each variant changes its answer at a little other place."""
    one, other = (
        np.asarray(Image.open(PICTURES_FOLDER / name).convert("RGB").resize((96, 96)), dtype=np.float64)
        for name in ("portrait.png", "wide.png")
    )
    for share in np.linspace(0, 1, 201):
        buffer = io.BytesIO()
        Image.fromarray(np.uint8(one + share * (other - one))).save(buffer, "PNG")
        yield buffer.getvalue()


def test_what_q4_k_m_changes_is_named_as_the_quantization(nano: Path) -> None:
    how: dict[str, Any] = {"runtime": "onnxruntime+llamacpp", "threads": 1, "kv_type": "f32"}
    with (
        open_bundle(nano, language="f32", **how) as precise,
        open_bundle(nano, language="q4_k_m", **how) as coarse,
    ):
        asked = ((one, precise.ask(QUESTION, one), coarse.ask(QUESTION, one)) for one in blends())
        picture, right, other = next(found for found in asked if found[1] != found[2])
    found = explained(nano, "q4_k_m", picture)
    assert found.bundle is not None
    assert (found.checkpoint.text, found.bundle.text) == (right, other)
    assert QUANTIZATION in found.cause, found.verdict
    assert "--language q8_0 is in the bundle" in found.cause
    sides = (found.checkpoint, found.bundle)
    assert all(side.probability is not None and side.probability_of_other is not None for side in sides)
    assert all(side.probability > side.probability_of_other for side in sides)  # type: ignore[operator]
    assert not found.is_equal


def test_a_loss_that_torch_does_not_have_is_not_called_the_quantization() -> None:
    cost = {"mean_kld": 0.01, "p99_kld": 0.1, "top1_agreement": 0.9}
    assert QUANTIZATION in quantization_cause(cost, 0.02, "")
    assert quantization_cause(cost, 0.05, "") == ""
    assert quantization_cause({}, 0.02, "") == ""


def test_the_wider_type_is_one_of_the_bundle_or_to_be_exported(nano: Path) -> None:
    bundle = Bundle.open(nano)
    assert wider_type(bundle, "q4_k_m") == "take a wider type: --language q8_0 is in the bundle"
    assert wider_type(bundle, "q8_0") == "take a wider type: --language f32 is in the bundle"


def test_answers_part_where_one_ends_before_the_other() -> None:
    assert first_difference([1, 2], [1, 2]) is None
    assert first_difference([1, 2, 3], [1, 4, 3]) == 1
    assert first_difference([1, 2], [1, 2, 3]) == 2
    assert (length_of_answer([5, 2, 7], {2}), length_of_answer([5, 7], {2})) == (2, 2)


def test_the_command_shows_it_on_one_screen_and_as_json(nano: Path) -> None:
    words = (
        "explain",
        nano,
        PICTURE,
        QUESTION,
        "--checkpoint",
        "nano",
        "--language",
        "f32",
        "--threads",
        "1",
    )
    shown = run(*words)
    assert shown.returncode == 0, shown.stderr
    lines = shown.stdout.splitlines()
    assert lines[0].startswith("equal: ")
    assert len(lines) <= 24
    url = f"data:image/png;base64,{base64.b64encode(PICTURE.read_bytes()).decode()}"
    printed = json.loads(run(*words[:2], url, *words[3:], "--json").stdout)
    assert next(iter(printed)) == "verdict"
    assert printed["variants"] == {"vision": "fp32", "language": "f32"}
    assert printed["checkpoint"]["ids"] == printed["bundle"]["ids"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((PICTURE, QUESTION), "--checkpoint"),
        ((PICTURE, QUESTION, "--checkpoint", "no-such-folder"), "no-such-folder"),
        (("no.png", QUESTION, "--checkpoint", "nano"), "no.png"),
        ((PICTURE, "why " * 1000, "--checkpoint", "nano"), "and the context holds 1024"),
        ((PICTURE, QUESTION, "--checkpoint", "nano", "--language", "q2_k"), "no language variant 'q2_k'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(words: tuple[str | Path, ...], said: str) -> None:
    result = run("explain", "nano", *words)
    assert result.returncode == 2, result.stderr
    assert said in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert result.stdout == ""
