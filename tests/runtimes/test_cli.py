"""`run`, `chat` and `doctor` as a user starts them."""

import base64
import io
import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pytest
import typer

from tests.runtimes import bundles
from tinyllava_edge.cli import main
from tinyllava_edge.device import has_nvidia_gpu
from tinyllava_edge.runtimes.chat import Chat
from tinyllava_edge.runtimes.llamacpp_library import load_library
from tinyllava_edge.runtimes.scripted import DEFAULT_ANSWER, ScriptedLanguage

# Started so that some packages are not there.
HIDING = """
import sys
from importlib.machinery import PathFinder

class Hidden(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in {hidden!r} else super().find_spec(name, path, target)

sys.meta_path[:] = [Hidden if finder is PathFinder else finder for finder in sys.meta_path]
sys.argv = ["tinyllava-edge", *{arguments!r}]
from tinyllava_edge.cli import main
main()
"""
NOT_ON_A_DEVICE = ("torch", "transformers", "onnx", "safetensors", "sentencepiece", "gguf", "peft")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundles.write_bundle(tmp_path_factory.mktemp("cli") / "bundle").root


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "photo.png"
    bundles.picture(7).save(path)
    return path


def without(hidden: tuple[str, ...], *arguments: Any, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own that lacks some packages."""
    code = HIDING.format(hidden=hidden, arguments=[str(argument) for argument in arguments])
    return subprocess.run(
        [sys.executable, "-c", code],
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
    )


class Result(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


class Command(Protocol):
    def __call__(self, *arguments: Any, stdin: str = "") -> Result: ...


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run the command in this process."""

    def run(*arguments: Any, stdin: str = "") -> Result:
        monkeypatch.setattr(sys, "argv", ["tinyllava-edge", *(str(argument) for argument in arguments)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        with pytest.raises(SystemExit) as exit_info:
            main()
        code = exit_info.value.code
        return Result(code if isinstance(code, int) else 0, *capsys.readouterr())

    return run


def test_run_answers_without_torch(bundle: Path, photo: Path) -> None:
    result = without(NOT_ON_A_DEVICE, "run", bundle, photo, "what is this", "--max-tokens", 4, "--threads", 1)
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith("\n")
    assert result.stdout.strip()
    assert "vision: onnxruntime fp32; language: llamacpp f32, f16 KV" in result.stderr
    assert "first token after" in result.stderr


def test_ask_answers_without_torch(bundle: Path, photo: Path) -> None:
    words = ("ask", bundle, "what is this", photo, "--max-tokens", 4, "--threads", 1, "--json")
    result = without(NOT_ON_A_DEVICE, *words)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["answer"]


def test_a_picture_on_standard_input_and_one_in_a_url_are_seen(
    bundle: Path, photo: Path, command: Command
) -> None:
    words = ["--max-tokens", "4", "--threads", "1"]
    asked = [sys.executable, "-m", "tinyllava_edge", "run", str(bundle), "-", "what is this", *words]
    result = subprocess.run(asked, input=photo.read_bytes(), capture_output=True, check=True, timeout=120)
    url = f"data:image/png;base64,{base64.b64encode(photo.read_bytes()).decode()}"
    for picture in (photo, url):
        assert command("run", bundle, picture, "what is this", *words).stdout == result.stdout.decode()
    said = command("chat", bundle, url, *words, stdin=f"what is this\n/reset\n/image {url}\nwhat is this\n")
    assert said.stdout == 2 * result.stdout.decode()
    for name, message in (("https://example.com/a.png", "--allow-url"), ("-", "where the questions are")):
        refused = command("chat", bundle, name, stdin="what\n")
        assert (refused.returncode, message in refused.stderr) == (2, True), refused


def test_run_prints_one_line_of_json_with_what_was_used_and_every_time(
    command: Command, bundle: Path, photo: Path
) -> None:
    result = command(
        "run", bundle, photo, "what is this", "--json", "--runtime", "scripted", "--kv-type", "f32"
    )
    assert result.returncode == 0, result.stderr
    [line] = result.stdout.splitlines()
    found = json.loads(line)
    assert found["answer"] == DEFAULT_ANSWER
    assert found["vision"] == found["language"] == "scripted"
    assert found["bundle"] == str(bundle)
    assert found["timings"]["finish"] == "stop_id"
    assert len(found["timings"]["next_token_ms"]) + 1 == found["timings"]["generated_tokens"]


def test_run_takes_a_question_without_a_picture(command: Command, bundle: Path) -> None:
    result = command("run", bundle, "hello", "--runtime", "scripted", "--stop", "answer", "--stop", "xyz")
    assert result.stdout == "This is a scripted\n"


def test_options_reach_the_engine(command: Command, bundle: Path) -> None:
    sampled = ("run", bundle, "say", "--max-tokens", 12, "--temperature", 2, "--threads", 1)
    first, again, other = (command(*sampled, "--seed", seed).stdout for seed in (1, 1, 2))
    assert first == again != other
    greedy = command("run", bundle, "say", "--max-tokens", 12, "--threads", 1).stdout
    assert command(*sampled, "--top-k", 1).stdout == greedy
    assert command(*sampled, "--min-p", 1).stdout == greedy
    assert command(*sampled, "--top-p", "1e-9").stdout == greedy


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{photo}"], "is a file, but the last argument is the question"),
        (["missing.png", "what"], "missing.png"),
        (["{photo}", "{photo}", "what"], "2 picture"),
        (["what", "--runtime", "nonsense"], "nonsense"),
        (["what", "--vision", "fp8"], "fp8"),
        (["what", "--language", "q2_k"], "q2_k"),
        (["what", "--kv-type", "q3"], "q3"),
        (["what", "--temperature", "-1"], "temperature"),
        (["what", "--max-tokens", "5000"], "the context holds 1024"),
        (["what", "--max-tokens", "5000"], "the model was made for no more"),
        (["what", "--max-tokens", "99", "--context", "64"], "--context N (context_length=N), N up to 1024"),
        (["what", "--flash-attention", "maybe"], "known: auto, on, off"),
        (["what", "--kv-type", "q8_0", "--flash-attention", "off"], "needs flash attention"),
        (["what", "--runtime", "scripted", "--gpu-layers", "1"], "has no llama.cpp. Leave --gpu-layers out"),
        (["what", "--runtime", "torch"], "--checkpoint"),
        (["what", "--checkpoint", "somewhere"], "reads no checkpoint"),
        (["what", "--allow-pickle"], "reads no checkpoint"),
        (["what", "--runtime", "torch", "--kv-type", "f16"], "no f16 KV cache"),
        ([" "], "the question is empty"),
    ],
)
def test_what_a_user_can_mend_is_one_line_and_exit_code_2(
    command: Command, bundle: Path, photo: Path, arguments: list[str], message: str
) -> None:
    result = command("run", bundle, *(argument.format(photo=photo) for argument in arguments))
    assert result.returncode == 2
    assert result.stdout == ""
    assert message in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("command_name", ["run", "chat"])
@pytest.mark.parametrize(("bad", "message"), [("picture", "nowhere.png"), ("setting", "temperature is -1")])
def test_pictures_and_settings_are_checked_before_the_weights_are_loaded(
    command: Command, bundle: Path, photo: Path, command_name: str, bad: str, message: str
) -> None:
    arguments = ["nowhere.png" if bad == "picture" else photo, *(["what"] if command_name == "run" else [])]
    arguments += ["--temperature", "-1"] if bad == "setting" else []
    result = command(command_name, bundle, *arguments, stdin="what\n")
    assert result.returncode == 2
    assert message in result.stderr
    assert "vision:" not in result.stderr  # what is said once the weights are there


def test_a_missing_package_is_named_with_the_line_that_installs_it(bundle: Path) -> None:
    result = without(("llama_cpp",), "run", bundle, "what")
    assert result.returncode == 2
    assert re.search(r"needs the package llama_cpp: .*pip install .*llama-cpp-python==", result.stderr)


def test_opening_says_that_llama_cpp_leaves_a_gpu_out(
    command: Command, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("auto", "llamacpp", "llamacpp_build"):
        monkeypatch.setattr(f"tinyllava_edge.runtimes.{module}.has_nvidia_gpu", lambda: True)
    said = command("run", bundle, "what", "--max-tokens", 1).stderr
    assert "KV, without the GPU" in said
    assert re.search(
        r"llama.cpp: CPU build, a GPU is there: .*CMAKE_ARGS=.* pip install --no-cache-dir", said
    )


@pytest.mark.parametrize("option", [("--gpu-layers", 10), ("--main-gpu", 0)])
def test_a_cpu_build_refuses_a_gpu_in_one_line_with_the_one_that_installs_it(
    command: Command, bundle: Path, option: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    if load_library().gpus:
        pytest.skip("this llama.cpp sees a GPU")
    monkeypatch.setattr("tinyllava_edge.runtimes.llamacpp_offload.has_nvidia_gpu", lambda: True)
    result = command("run", bundle, "what", *option)
    assert result.returncode == 2
    assert "there is no GPU for it. llama.cpp is a CPU build" in result.stderr.splitlines()[-1]
    assert "pip install" in result.stderr


def test_one_line_says_what_was_taken_and_why(command: Command, bundle: Path) -> None:
    if has_nvidia_gpu():
        pytest.skip("there is a GPU")
    asked = ("run", bundle, "what", "--max-tokens", 1)
    taken = "vision: onnxruntime fp32; language: llamacpp f32, f16 KV"
    [line, _] = command(*asked).stderr.splitlines()
    assert line == f"{taken} (auto: no NVIDIA GPU is here)"
    assert command(*asked, "--runtime", "onnxruntime+llamacpp").stderr.splitlines()[0] == taken
    found = json.loads(command(*asked, "--json").stdout)
    assert (found["runtime"], found["runtime_reason"]) == ("onnxruntime+llamacpp", "no NVIDIA GPU is here")


def test_chat_reads_questions_and_commands_from_a_pipe(bundle: Path, photo: Path) -> None:
    lines = ["what is this", "", f"/image {photo}", "and this", "/reset", "again", "/quit", "never read"]
    scripted = ("--runtime", "scripted", "--json")
    result = without(NOT_ON_A_DEVICE, "chat", bundle, photo, *scripted, stdin="\n".join(lines))
    assert result.returncode == 0, result.stderr
    turns = [json.loads(line) for line in result.stdout.splitlines()]
    assert [turn["answer"] for turn in turns] == [DEFAULT_ANSWER] * 3
    first, second, again = (turn["timings"] for turn in turns)
    assert first["reused_tokens"] == 0
    assert second["reused_tokens"] > first["prompt_tokens"]
    assert second["vision_ms"] < first["vision_ms"]  # the same picture: known
    assert again["prompt_tokens"] < first["prompt_tokens"]  # no picture, no history


def test_chat_on_a_real_backend_keeps_the_conversation(command: Command, bundle: Path, photo: Path) -> None:
    result = command(
        "chat", bundle, photo, "--max-tokens", 5, "--threads", 1, "--json", stdin="what is this\nwhy\n"
    )
    assert result.returncode == 0, result.stderr
    first, second = (json.loads(line)["timings"] for line in result.stdout.splitlines())
    assert second["reused_tokens"] == first["prompt_tokens"] + first["generated_tokens"] - 1


@pytest.mark.parametrize(("where", "second"), [("evaluate", 0), ("print", 0), ("prefill", 1)])
def test_a_picture_waits_after_ctrl_c_only_where_the_turn_was_dropped(
    command: Command, bundle: Path, photo: Path, monkeypatch: pytest.MonkeyPatch, where: str, second: int
) -> None:
    asked: list[int] = []
    shown: list[object] = []
    ask, evaluate, echo = Chat.ask, ScriptedLanguage.evaluate, typer.echo
    presses = iter([where])

    def press(place: str) -> None:
        if place == where and next(presses, None):
            raise KeyboardInterrupt

    def counted(self: Chat, question: str, pictures: Any, **settings: Any) -> Any:
        asked.append(len(pictures))
        return ask(self, question, pictures, **settings)

    def evaluated(self: ScriptedLanguage, segment: Any, position: int, **settings: Any) -> Any:
        if len(segment) > 1:
            press("prefill")
        elif shown:
            press("evaluate")
        return evaluate(self, segment, position, **settings)

    def echoed(*arguments: Any, **settings: Any) -> None:
        echo(*arguments, **settings)
        shown.append(arguments)
        press("print")

    monkeypatch.setattr(Chat, "ask", counted)
    monkeypatch.setattr(ScriptedLanguage, "evaluate", evaluated)
    monkeypatch.setattr(typer, "echo", echoed)
    result = command("chat", bundle, photo, "--runtime", "scripted", stdin="what is this\nand now\n")
    assert result.returncode == 0
    assert "(stopped)" in result.stderr
    assert result.stdout.endswith(f"{DEFAULT_ANSWER}\n")
    assert asked == [1, second]


@pytest.mark.parametrize("line", ["/image nowhere.png", "/unknown", "<image> what"])
def test_an_error_in_a_piped_chat_ends_it_with_exit_code_2(command: Command, bundle: Path, line: str) -> None:
    result = command("chat", bundle, "--runtime", "scripted", stdin=f"hello\n{line}\nnever read\n")
    assert result.returncode == 2
    assert result.stdout == f"{DEFAULT_ANSWER}\n"


def test_doctor_names_versions_machine_and_runtimes(command: Command) -> None:
    result = command("doctor", "--json")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["python"].startswith(".".join(map(str, sys.version_info[:3])))
    assert found["packages"]["llama-cpp-python"]
    assert found["machine"]["cpu"]["usable_cores"] >= 1
    usable = {state["name"]: state["usable"] for state in found["runtimes"]}
    has_torch = find_spec("torch") is not None
    assert usable.items() >= {"onnxruntime+llamacpp": True, "torch": has_torch}.items()
    assert "scripted" not in usable
    statuses = {state["name"]: state["status"] for state in found["runtimes"]}
    assert statuses["tensorrt+llamacpp"] == statuses["onnxruntime-cuda+llamacpp"] == "built, not run"
    assert statuses["onnxruntime+llamacpp"] == ""
    text = command("doctor").stdout
    assert found["machine"]["cpu"]["model"] in text
    assert "onnxruntime+llamacpp      usable" in text


def test_doctor_says_what_mends_a_runtime_that_is_not_there() -> None:
    result = without(("onnxruntime", "torch"), "doctor")
    assert result.returncode == 1
    lines = result.stdout.splitlines()
    [broken] = [i for i, line in enumerate(lines) if line.startswith("onnxruntime+llamacpp")]
    assert "not usable: onnxruntime is not installed" in lines[broken]
    assert "pip install 'onnxruntime>=1.20'" in lines[broken + 1]
