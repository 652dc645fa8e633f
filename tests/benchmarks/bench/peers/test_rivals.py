"""Rivals as rows of a comparison, with a scripted one: what is said, measured, left out and written."""

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest
import tomllib
from PIL import Image

from tests.benchmarks.bench.test_record import request
from tests.benchmarks.conftest import Honest
from tinyllava_edge.benchmarks.bench.machine_load import watch
from tinyllava_edge.benchmarks.bench.pace import Amount
from tinyllava_edge.benchmarks.bench.peers import rivals
from tinyllava_edge.benchmarks.bench.peers.environments import Environment, listed_versions
from tinyllava_edge.benchmarks.bench.peers.lines import PICTURE
from tinyllava_edge.benchmarks.bench.peers.older_transformers import write_readable
from tinyllava_edge.benchmarks.bench.peers.openvino_llava import OpenVinoLlava
from tinyllava_edge.benchmarks.bench.peers.planned import with_rivals
from tinyllava_edge.benchmarks.bench.peers.prepared import (
    converted,
    find_checkpoint_of,
    find_mmproj,
    gives_token,
    prepare,
)
from tinyllava_edge.benchmarks.bench.peers.rivals import Places, Rival, check_names
from tinyllava_edge.benchmarks.bench.plan import Plan, plan_cells
from tinyllava_edge.benchmarks.bench.record import run_plan
from tinyllava_edge.benchmarks.bench.report import markdown_lines, write_report
from tinyllava_edge.benchmarks.evals.cells import Wish
from tinyllava_edge.bundle import Bundle
from tinyllava_edge.errors import UsageError
from tinyllava_edge.image import open_picture, preprocess
from tinyllava_edge.reference_tensors import read_reference_tensors

HERE = Path(__file__).parent
FEW = Amount(sessions=1, blocks=1, warm_up_s=0.0, warm_up_runs=1, alone=False)


@pytest.fixture(autouse=True)
def _no_long_look_at_the_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tinyllava_edge.benchmarks.bench.record.watch", lambda seconds=0.0: watch(0.01))


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> dict[str, Rival]:
    """A table of rivals of one's own, whose module is beside this file."""
    started = rivals._START.replace("[sys.argv.pop(1)]", f"[sys.argv.pop(1), {str(HERE)!r}]")
    monkeypatch.setattr(rivals, "_START", started)
    table: dict[str, Rival] = {}
    monkeypatch.setattr(rivals, "RIVALS", table)
    return table


def rival(**settings: Any) -> Rival:
    return Rival(module="scripted_rival", settings=settings, reads="checkpoint")


def plan_of(honest: Honest) -> Plan:
    bundles = {"tiny": Bundle.open(honest.bundle)}
    cells = plan_cells(bundles, Wish(runtimes=("scripted",), language=("f32",)))
    return Plan(bundles=bundles, cells=cells, request=request(honest), amount=FEW)


def llava(folder: Path) -> Path:
    """What passes for a LlavaForConditionalGeneration as long as nobody reads its weights."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlavaForConditionalGeneration"]}))
    (folder / "model.safetensors").write_bytes(b"x" * 100)
    return folder


def test_rivals_are_rows_of_the_same_rounds_and_those_that_fail_say_why(
    honest: Honest, scripted: dict[str, Rival], tmp_path: Path
) -> None:
    plan = plan_of(honest)
    vocab_size = plan.bundles["tiny"].manifest.language.vocab_size
    scripted |= {
        "sees": rival(vocab_size=vocab_size + 1, remembers=True),  # and a row for <image>
        "blind": rival(facts={"language_only": True}),
        "raises": rival(fails="raises"),
        "dies": rival(fails="dies"),
        "other words": rival(vocab_size=vocab_size, width=vocab_size - 1),
        "not made": Rival(module="scripted_rival", environment="transformers", reads="checkpoint"),
    }
    places = Places(home=tmp_path, checkpoint=llava(tmp_path / "llava"))
    with with_rivals(plan, tuple(scripted), places, Wish(checkpoints=(tmp_path,))) as whole:
        assert [row.name for row in whole.rows] == [whole.reference, "sees", "blind", "fp32 + f32 again"]
        record, stop = run_plan(whole)
    assert stop is None
    assert record["partial"] is None
    assert [cell["name"] for cell in record["cells"]] == ["fp32 + f32", "fp32 + f32 again"]
    found = record["rivals"]
    why = {one["name"]: one["why"] for one in found["absent"]}
    assert why.keys() == {"raises", "dies", "other words", "not made"}
    assert "ValueError: no such weights" in why["raises"]
    assert "code 7; it said last: terminate called" in why["dies"]
    assert "another vocabulary?" in why["other words"]
    assert why["not made"].endswith("make peers PEERS=transformers")

    sees, blind = found["rows"]
    assert sees["warm"]["runs"] == 2
    assert sees["warm"]["stages_ms"].keys() == {"tokenize", "preprocess", "vision", "prefill"}
    assert sees["warm"]["stages_ms"]["tokenize"] is None
    assert sees["cached"]["first_token_ms"] > 0
    assert blind["cached"] is None
    assert sees["size_bytes"] == 100
    assert sees["accuracy"]["top1_agreement"] == 1
    assert sees["accuracy"]["mean_kld"] > 0
    assert blind["accuracy"]["mean_kld"] is None

    metrics = {
        name: {r["metric"] for r in found["ratios"] if r["rival"] == name} for name in ("sees", "blind")
    }
    assert metrics["blind"] == {"prefill_ms", "token_ms"}
    assert metrics["sees"] >= {"vision_ms", "first_token_ms", "total_ms", "second_first_token_ms"}
    ratio = next(r for r in found["ratios"] if (r["rival"], r["metric"]) == ("sees", "total_ms"))
    (ours,), (theirs,) = (row["sessions"][0]["requests"] for row in (record["cells"][0], sees))
    pairs = zip(ours, theirs, strict=True)
    times = [one["warm"]["total_ms"] / other["warm"]["total_ms"] for one, other in pairs]
    assert ratio["ratio"] == pytest.approx(np.exp(np.median(np.log(times))))  # ours over theirs

    text = "\n".join(markdown_lines(record))
    assert "sees cannot match: anything at all." in text
    assert "- not made: NOT MEASURED: no environment" in text
    write_report(tmp_path, record)
    assert json.loads((tmp_path / "report.json").read_text())["rivals"]["rows"][0]["name"] == "sees"


def test_openvino_sees_no_picture_twice_as_it_keeps_prefixes() -> None:
    peer = object.__new__(OpenVinoLlava)
    drawn = np.random.default_rng(0).integers(0, 256, (1, 24, 24, 3), dtype=np.uint8)
    peer._pixels, peer._answers = drawn, 0
    peer._np, peer._openvino = np, SimpleNamespace(Tensor=np.array)
    seen = [peer._unseen_picture() for _ in range(300)]
    assert len({picture[0, 0].tobytes() for picture in seen}) == 300  # from the first row on
    assert all((np.sort(picture.ravel()) == np.sort(drawn.ravel())).all() for picture in seen[::60])


def test_answers_are_held_against_torch_where_the_checkpoint_is_though_it_is_no_row(
    honest: Honest, scripted: dict[str, Rival], tmp_path: Path
) -> None:
    plan = plan_of(honest)
    scripted |= {"sees": rival(vocab_size=plan.bundles["tiny"].manifest.language.vocab_size)}
    places = Places(home=tmp_path, checkpoint=llava(tmp_path / "llava"))
    with with_rivals(plan, ("sees",), places, Wish(checkpoints=(honest.checkpoint,))) as whole:
        assert whole.reference == "torch fp32"
        assert whole.reference not in {row.name for row in whole.rows}
        assert whole.accuracy.keys() == {"fp32 + f32", "sees"}
        assert whole.accuracy["fp32 + f32"]["mean_kld"] > 1e-3  # a scripted runtime's logits are its own


def test_no_rivals_no_section(honest: Honest) -> None:
    plan = plan_of(honest)
    with with_rivals(plan, (), Places(), Wish()) as whole:
        assert whole is plan


def test_names() -> None:
    assert check_names(["all"]) == tuple(rivals.RIVALS)
    assert check_names(["mtmd"]) == ("mtmd",)
    with pytest.raises(UsageError, match=r"--peers mtmb: known are mtmd, .*, optimum-onnx and all\."):
        check_names(["mtmb"])


def test_an_environment_of_another_version_says_which(tmp_path: Path) -> None:
    environment = Environment("transformers", tmp_path)
    assert environment.fault() == f"no environment at {tmp_path}: make peers PEERS=transformers"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").touch()
    versions = dict(listed_versions("transformers"))
    install(tmp_path, {**versions, "torch": versions["torch"] + "+cpu"})
    assert environment.fault() == ""
    wanted = versions["transformers"]
    install(tmp_path, {"transformers": "4.1"})
    assert f"has transformers 4.1, {wanted} is listed: make peers" in environment.fault()


def install(root: Path, versions: Mapping[str, str]) -> None:
    """What importlib.metadata takes for installed packages."""
    place = root / "lib" / "python3.11" / "site-packages"
    for name, version in versions.items():
        for old in place.glob(f"{name}-*.dist-info"):
            (old / "METADATA").unlink()
            old.rmdir()
        folder = place / f"{name}-{version}.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


@pytest.mark.parametrize("name", ["transformers", "openvino", "optimum-onnx", "llama-server"])
def test_lists_pin_every_package(name: str) -> None:
    path = Path(rivals.__file__).with_name(f"requirements-{name}.txt")
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    assert len(lines) == len(listed_versions(name)) > 0


def test_packages_of_rivals_stay_out_of_the_extras() -> None:
    project = tomllib.loads((HERE.parents[3] / "pyproject.toml").read_text())["project"]
    said = json.dumps(project["optional-dependencies"])
    for package in ("openvino-genai", "optimum", "nncf", "openvino-tokenizers"):
        assert package not in said


def test_everybody_gets_the_same_pixels_and_ids(honest: Honest, tmp_path: Path) -> None:
    bundle = Bundle.open(honest.bundle)
    how = bundle.manifest.vision.preprocessing
    Image.radial_gradient("L").resize((61, 83)).convert("RGB").save(picture := tmp_path / "own.png")
    prepared = prepare(bundle, replace(request(honest), picture=str(picture)), tmp_path)
    pixels = np.load(prepared.fields["pixels"])
    np.testing.assert_array_equal(pixels[0], preprocess(open_picture(picture), how))
    with Image.open(prepared.fields["picture"]) as sent:
        assert sent.size == (how.image_size, how.image_size)
    np.testing.assert_array_equal(pixels[0], preprocess(open_picture(Path(prepared.fields["picture"])), how))
    first = prepared.fields["first"]
    assert first.ids.count(PICTURE) == first.text.count("<image>") == 1
    before, after = first.parts()
    assert (*before, PICTURE, *after) == first.ids


def test_an_mmproj_that_gives_the_token_in_front_of_the_picture(honest: Honest, tmp_path: Path) -> None:
    bundle = Bundle.open(honest.bundle)
    prepared = prepare(bundle, request(honest), tmp_path)
    whole = prepared.fields["first"]
    short = prepared.without_last_token()["first"]
    assert short.parts() == (whole.parts()[0][:-1], whole.parts()[1])
    assert whole.text.startswith(short.text.split("<image>")[0])
    assert whole.text.endswith(short.text.split("<image>")[1])
    hidden = read_reference_tensors(bundle).tower.shape[-1]
    for width, gives in ((hidden, False), (hidden + 16, True)):
        writer = gguf.GGUFWriter(path := tmp_path / f"{width}.gguf", "clip")
        writer.add_uint32("clip.vision.embedding_length", width)
        writer.add_tensor("mm.0.bias", np.zeros(32, dtype=np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        assert gives_token(path, bundle) is gives


def test_files_of_rivals_are_found_or_missed_by_name(honest: Honest, tmp_path: Path) -> None:
    bundle = Bundle.open(honest.bundle)
    with pytest.raises(UsageError, match="export with --interchange mmproj"):
        find_mmproj(bundle, None)
    with pytest.raises(UsageError, match="export with --interchange transformers"):
        find_checkpoint_of(bundle, honest.checkpoint)
    assert find_checkpoint_of(bundle, llava(tmp_path / "llava")) == tmp_path / "llava"


def test_a_converter_that_fails_says_why_and_one_that_was_killed_begins_anew(
    honest: Honest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fails = [sys.executable, "-c", "raise SystemExit('no exporter')"]
    with pytest.raises(UsageError, match=r"ended with code 1 and said 'no exporter'; .*convert\.log"):
        converted("onnx", fails, honest.checkpoint, tmp_path, {})
    (left,) = tmp_path.glob("onnx-*")
    (left / "half.bin").touch()  # and the log is there, too: a killed one leaves what this one did
    works = [sys.executable, "-c", "import sys, pathlib; pathlib.Path(sys.argv[2], 'model.bin').touch()"]
    made = converted("onnx", works, honest.checkpoint, tmp_path, {})
    assert (made / "model.bin").exists()
    assert not (made / "half.bin").exists()
    assert converted("onnx", fails, honest.checkpoint, tmp_path, {}) == made  # it is there already
    assert capsys.readouterr().err.count("its own converter makes") == 2


def test_configs_of_transformers_5_as_4_reads_them(tmp_path: Path) -> None:
    new = llava(tmp_path / "new")
    (new / "tokenizer_config.json").write_text(
        json.dumps({"extra_special_tokens": ["<image>"], "tokenizer_class": "Qwen2Tokenizer"})
    )
    (new / "processor_config.json").write_text(json.dumps({"image_processor": {"size": 3}, "patch_size": 14}))
    write_readable(new, tmp_path / "old")
    tokenizer = json.loads((tmp_path / "old" / "tokenizer_config.json").read_text())
    assert tokenizer == {
        "additional_special_tokens": ["<image>"],
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    assert json.loads((tmp_path / "old" / "preprocessor_config.json").read_text()) == {"size": 3}
    assert (tmp_path / "old" / "model.safetensors").read_bytes() == b"x" * 100


def test_what_reads_gguf_has_no_row_for_other_variants(honest: Honest, tmp_path: Path) -> None:
    bundle = Bundle.open(honest.bundle)
    object.__setattr__(bundle.variant("language", "q8_0"), "target", "openvino")
    cells = plan_cells({"tiny": bundle}, Wish(runtimes=("scripted",), language=("f32", "q8_0")))
    writer = gguf.GGUFWriter(mmproj := tmp_path / "mmproj.gguf", "clip")
    writer.add_uint32("clip.vision.embedding_length", 48)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    prepared = prepare(bundle, request(honest), tmp_path)
    places = Places(home=tmp_path, mmproj=mmproj)
    assert [row.name for row in rivals.plan_rivals(["mtmd"], bundle, cells, places, prepared)] == ["mtmd f32"]
    (absent,) = rivals.plan_rivals(["mtmd"], bundle, cells[1:2], places, prepared)
    assert "no row has such a variant" in absent.why  # type: ignore[union-attr]
