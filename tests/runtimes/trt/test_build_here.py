"""`tinyllava-edge build` without `-o`, `keygen` and packs, as commands, on a fake GPU."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.runtimes.trt.engine_bundles import write_engine_bundle
from tests.runtimes.trt.fake_gpu import ORIN, RTX_3060, FakeGpu
from tinyllava_edge.bundle import Bundle
from tinyllava_edge.cli import main
from tinyllava_edge.runtimes.trt.cache import EngineCache


@pytest.fixture
def bundle(gpu: FakeGpu, tmp_path: Path) -> Bundle:
    return write_engine_bundle(tmp_path / "bundle", ("fp32", "fp16"))


def command(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    line = [sys.executable, "-m", "tinyllava_edge", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True)


class Said(NamedTuple):
    """How a command ended, and what it wrote."""

    code: int
    stdout: str
    stderr: str


Command = Callable[..., Said]


@pytest.fixture
def here(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tasks_here: list[dict[str, Any]]
) -> Command:
    """A command in this process, which also builds in it: much faster than four new ones."""

    def call(*arguments: str | Path) -> Said:
        monkeypatch.setattr(sys, "argv", ["tinyllava-edge", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        return Said(int(ended.value.code or 0), *capsys.readouterr())

    return call


def build(here: Command, bundle: Bundle, *arguments: str | Path) -> dict[str, Any]:
    result = here("build", bundle.root, "--json", *arguments)
    assert result.code == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    found["said"] = result.stderr
    return found


def test_an_engine_is_built_in_a_process_of_its_own_and_run_takes_it(gpu: FakeGpu, bundle: Bundle) -> None:
    gpu.spoil(fp16="nan")
    result = command("build", bundle.root)
    assert result.returncode == 0, result.stderr
    said = " ".join(result.stderr.split())
    record = next(record for _, record in EngineCache().records() if record and record.variant == "fp32")
    assert record.facts["peak_memory_bytes"] > 0
    assert "tensorrt+llamacpp fp16: refused, 9 embeddings are NaN or infinite" in said
    assert "tensorrt+llamacpp fp32: chosen, equal within the gates" in said
    assert "chosen: tensorrt+llamacpp, vision fp32" in result.stdout
    assert "ms a picture on the device" in result.stdout
    assert "verified, attention fused in 0 of 0; built here" in result.stdout
    assert "buffers mapped (ms a picture: mapped 2.00, copied 4.00)" in result.stdout
    picture = bundle.root / "reference/0.png"
    answers = {}
    for runtime in ("auto", "onnxruntime+llamacpp"):
        ran = command(
            "run", bundle.root, picture, "What is this?", "--runtime", runtime, "--json", "--max-tokens", "8"
        )
        assert ran.returncode == 0, ran.stderr
        answers[runtime] = json.loads(ran.stdout)
    assert answers["auto"]["runtime"] == "tensorrt+llamacpp"
    assert answers["auto"]["runtime_reason"].startswith("chosen by build here")
    assert answers["auto"]["vision"] == "tensorrt fp32 on Fake Orin"
    assert answers["auto"]["answer"] == answers["onnxruntime+llamacpp"]["answer"] != ""


def test_an_engine_is_built_compared_and_run_on_the_gpu_that_was_asked_for(
    gpu: FakeGpu, bundle: Bundle, tmp_path: Path
) -> None:
    gpu.be(f"{RTX_3060};{ORIN}")
    built = command("build", bundle.root, "--gpu", "1", "--json")
    assert built.returncode == 0, built.stderr
    record = json.loads(built.stdout)["engine_record"]
    assert record["key"]["board"]["gpu"] == "Fake Orin"
    picture, options = bundle.root / "reference/0.png", ("--runtime", "auto", "--json", "--max-tokens", "4")
    ran = command("run", bundle.root, picture, "What is this?", *options, "--gpu", "1")
    assert json.loads(ran.stdout)["vision"] == "tensorrt fp16 on Fake Orin"
    first = command("run", bundle.root, picture, "What is this?", *options)
    assert "this is gpu Fake RTX 3060, not Fake Orin" in json.loads(first.stdout)["runtime_reason"]
    missing = command("build", bundle.root, "--gpu", "2")
    assert (missing.returncode, missing.stdout) == (2, "")
    assert "there is no GPU 2. Those there are: 0 (Fake RTX 3060), 1 (Fake Orin)." in missing.stderr


def test_the_record_says_how_it_was_built(here: Command, bundle: Bundle) -> None:
    found = build(here, bundle, "--vision", "fp16", "--max-batch", "2", "--workspace", "256")
    record = found["engine_record"]
    assert record["key"]["profile"] == [1, 1, 2]
    assert record["key"]["flags"]["workspace_bytes"] == str(256 << 20)
    assert record["facts"]["trtexec"].startswith("trtexec --onnx=")
    assert found["steps"][-1]["parity"]["pictures"] == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target", "tensorrt-rtx", "--sm", "86"], "name a directory for them with -o"),
        (["--vision", "fp16,fp32"], "one variant for this machine"),
        (["--pack", "x"], "--pack and --key go together"),
        (["--trust", "x"], "--install and --trust go together"),
        (["--vision", "fp4"], "no vision variant 'fp4'"),
        (
            ["--target", "tensorrt-rtx", "--pack", "x", "--key", "y", "-o", "z"],
            "packs are of the private cache",
        ),
        (["--target", "tensorrt-rtx", "--vision", " ,", "-o", "z"], "name at least one variant to build"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    here: Command, bundle: Bundle, arguments: list[str], message: str
) -> None:
    result = here("build", bundle.root, *arguments)
    assert (result.code, result.stdout) == (2, "")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [["-o"], ["--key", "y", "--pack"]])
def test_nothing_is_written_into_a_bundle(here: Command, bundle: Bundle, arguments: list[str]) -> None:
    result = here("build", bundle.root, *arguments, bundle.root / "vision" / "engine")
    assert result.code == 2
    assert "is inside the bundle, which never holds engines" in " ".join(result.stderr.split())
    assert list(EngineCache().folder.iterdir()) == []


@pytest.mark.parametrize(
    ("device", "message"),
    [("none", "finds no usable GPU|no NVIDIA driver"), ("Fake Orin,87,8,1,11040", "driver is too old")],
)
def test_without_a_usable_gpu_it_says_what_to_do(
    gpu: FakeGpu, here: Command, bundle: Bundle, device: str, message: str
) -> None:
    gpu.be(device)
    result = here("build", bundle.root)
    assert result.code == 2
    assert any(part in result.stderr for part in message.split("|"))
    assert list(EngineCache().folder.iterdir()) == []


class TestPacks:
    @pytest.fixture(autouse=True)
    def _cryptography(self) -> None:
        pytest.importorskip("cryptography", reason="needs the package cryptography (extra packs)")

    @pytest.fixture
    def pack(self, here: Command, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """Of another board that is identical; this one's cache is empty."""
        assert here("keygen", tmp_path / "owner").code == 0
        found = build(here, bundle, "--pack", tmp_path / "engine.pack", "--key", tmp_path / "owner")
        assert found["pack"].startswith(f"{tmp_path}/engine.pack, signed by key ")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))
        return tmp_path / "engine.pack"

    def test_an_identical_board_installs_and_compares(
        self, here: Command, bundle: Bundle, pack: Path
    ) -> None:
        found = build(here, bundle, "--install", pack, "--trust", pack.parent / "owner.pub")
        assert found["engine_record"]["origin"].startswith("pack of key ")
        assert found["engine_record"]["status"] == "verified"
        assert found["steps"][-1]["reason"].startswith("pack of key ")
        assert "to be built" not in found["said"]

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ("board", "it is for another board: this one has multiprocessors 16, not 8"),
            ("tensorrt", "this one has library_version 10.7.0, not 10.3.0"),
            ("key", "is signed by key"),
            ("bit", "signature is not right"),
            ("cut", "damaged or cut"),
            ("batch", "other options (profile)"),
            ("bundle", "another bundle or with other options (onnx)"),
            ("wrong", "its engine is refused on this board: 9 embeddings are NaN"),
        ],
    )
    def test_what_does_not_fit_is_not_installed_and_the_board_builds_its_own(
        self, gpu: FakeGpu, here: Command, bundle: Bundle, pack: Path, change: str, reason: str
    ) -> None:
        tmp_path = pack.parent
        trust, more = tmp_path / "owner.pub", []
        if change == "board":
            gpu.be("Fake Orin,87,16,1,12060")
        elif change == "tensorrt":
            gpu.be_version("10.7.0")
        elif change == "key":
            assert here("keygen", tmp_path / "other").code == 0
            trust = tmp_path / "other.pub"
        elif change == "bit":
            content = bytearray(pack.read_bytes())
            content[-100] ^= 1
            pack.write_bytes(content)
        elif change == "cut":
            pack.write_bytes(pack.read_bytes()[:-1])
        elif change == "batch":
            more = ["--max-batch", "3"]
        elif change == "bundle":
            bundle = write_engine_bundle(tmp_path / "other-bundle", ("fp32", "bf16", "fp16"), seed=7)
        elif change == "wrong":
            gpu.spoil(fp16="nan")
        found = build(here, bundle, "--install", pack, "--trust", trust, *more)
        said = " ".join(found["said"].split())
        assert "the pack is not installed: " in said
        assert reason in said
        assert "This board builds its own engine." in said
        assert found["engine_record"]["origin"] == "built here"
        assert found["engine_record"]["status"] == "verified"
