"""One folder for one board: variants that fit it, this package, what it needs, a first answer to expect."""

import json
import platform
import re
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tinyllava_edge.atomic_files import foreign_file, output_directory, write_json
from tinyllava_edge.boards import BOARDS, Board
from tinyllava_edge.bundle import REFERENCE_FOLDER, Bundle
from tinyllava_edge.command_options import FitOptions
from tinyllava_edge.console import note
from tinyllava_edge.errors import BackendError, UsageError
from tinyllava_edge.install import LLAMA_CPP
from tinyllava_edge.memory_fit import Target, best_setting, find_target, fit_facts, verdict
from tinyllava_edge.memory_plan import Setting, chosen_setting
from tinyllava_edge.prune_cli import prune_bundle

from .base import BackendOptions
from .deploy_files import INSTALL, README
from .deploy_wheel import write_wheel
from .registry import DEFAULT_RUNTIME

QUESTION = "What is this?"
RECORD, KIND = "deploy.json", "tinyllava-edge deploy"
_MAX_TOKENS = 32
_SOURCE = LLAMA_CPP.split("==", maxsplit=1)[0]
GLIBC = {"3.10": "2_35", "3.12": "2_39"}  # of the JetPack with that Python
# What compiles llama-cpp-python; the last two by markers of Python 3.10, which pip reads for the running one.
_BUILD = ("scikit-build-core>=0.9.2", "cmake", "ninja", "packaging", "pathspec", "exceptiongroup", "tomli")


@dataclass(frozen=True)
class Deployment:
    """What was written: the variants, what they take there, and the first answer."""

    setting: Setting
    facts: dict[str, Any]
    answer: dict[str, Any]
    bytes: int


def lock_of(board: Board) -> Path:
    """The packages of a board, resolved ahead; there may be none."""
    return Path(__file__).parent / "locks" / f"{board.architecture}-{board.python}.txt"


def deployable() -> list[str]:
    """Names of the boards whose packages are resolved."""
    return [name for name, board in BOARDS.items() if lock_of(board).is_file()]


def choose_setting(bundle: Bundle, target: Target, asked: FitOptions) -> Setting:
    """What was asked for, where it fits; the most precise that fits for what was left open.

    Raises:
        UsageError: nothing fits, or what was asked for does not; with the numbers, and what would.
        BundleError: there is no such variant.
    """
    wanted = chosen_setting(bundle, **vars(asked))
    if not asked.vision and not asked.language:
        wanted = best_setting(bundle, target, wanted) or wanted
    if not target.fits(target.plan(bundle, wanted)):
        raise UsageError(f"{bundle.root}: {verdict(fit_facts(bundle, target, wanted))}.")
    return wanted


def deploy_bundle(
    bundle: Bundle,
    output: Path,
    device: str,
    asked: FitOptions,
    *,
    download: bool = False,
    force: bool = False,
) -> Deployment:
    """Write the folder; it appears whole or not at all.

    Args:
        bundle: opened.
        output: the folder.
        device: a name of `deployable()`.
        asked: what of the bundle.
        download: fetch every package too, so that the board needs no network.
        force: replace `output`, if it is such a folder.

    Raises:
        UsageError: no such device, or it does not fit.
        OutputExistsError: as `output_directory`.
        BackendError: the bundle does not answer here, or pip cannot fetch something.
    """
    if device not in deployable():
        raise UsageError(
            f"no packages are resolved for {device!r}. There are some for {', '.join(deployable())}."
        )
    board, target = BOARDS[device], find_target(device)
    setting = choose_setting(bundle, target, asked)
    facts = fit_facts(bundle, target, setting)
    kept = (bundle.variant("vision", setting.vision), bundle.variant("language", setting.language))
    needed = sum(map(bundle.variant_bytes, kept))
    with output_directory(output, force=force, mark=deploy_mark, needed=needed) as work:
        prune_bundle(bundle, work / "bundle", kept)
        answer = first_answer(Bundle.open(work / "bundle"), setting)
        (work / "wheels").mkdir()
        write_wheel(work / "wheels")
        pins = lock_of(board).read_text(encoding="utf-8")
        own = re.sub(rf"^{_SOURCE}==.*\n", "", pins, flags=re.MULTILINE)
        (work / "requirements.txt").write_text(own, encoding="utf-8")
        if download:
            download_packages(work, board.python)
        _write_texts(work, bundle, board, setting, {**answer, "network": not download}, verdict(facts))
        files = sorted(path for path in work.rglob("*") if path.is_file())
        listed = {path.relative_to(work).as_posix(): path.stat().st_size for path in files}
        record = {"kind": KIND, "device": device, "first_answer": answer, "plan": facts, "files": listed}
        write_json(work / RECORD, record)
    return Deployment(setting, facts, answer, sum(listed.values()))


def first_answer(bundle: Bundle, setting: Setting) -> dict[str, Any]:
    """Ask the pruned bundle here about one of its own pictures: what the board is to answer.

    Raises:
        BackendError: it does not open here.
    """
    from .model import open_bundle

    names = [entry.path for entry in bundle.manifest.files if entry.path.endswith(".png")]
    pictures = [name for name in names if name.startswith(f"{REFERENCE_FOLDER}/")]
    if not pictures:
        raise UsageError(f"{bundle.root}: has no reference picture to ask about. Export the bundle again.")
    options = {name: value for name, value in vars(setting).items() if name in BackendOptions.__annotations__}
    with open_bundle(bundle, runtime=DEFAULT_RUNTIME, **options) as model:
        stream = model.answer([(QUESTION, None)], bundle.path(pictures[0]), max_tokens=_MAX_TOKENS)
        text = "".join(stream)
        return {
            "question": QUESTION,
            "picture": f"bundle/{pictures[0]}",
            "answer": text,
            "ids": list(stream.ids),
            "max_tokens": _MAX_TOKENS,
            "setting": asdict(setting),
            "runtime": f"{model.vision.name}, {model.language.name}",
            "machine": f"{platform.machine()} {platform.system()}",
        }


def download_packages(work: Path, python: str) -> None:
    """Fetch wheels for the board's Python, llama.cpp's source, and what compiles it, into `wheels`.

    Raises:
        BackendError: pip cannot; with its last line.
    """
    glibc = int(GLIBC[python].split("_")[1])
    platforms = [f"manylinux_2_{minor}_aarch64" for minor in range(glibc, 16, -1)] + ["manylinux2014_aarch64"]
    words = [word for name in platforms for word in ("--platform", name)]
    words += ["--only-binary", ":all:", "--python-version", python, "--implementation", "cp"]
    _pip_download(work, [*words, "--no-deps", "-r", str(work / "requirements.txt")])
    _pip_download(work, [*words, *_BUILD])
    _pip_download(work, ["--no-deps", "--no-binary", _SOURCE, LLAMA_CPP])


def _pip_download(work: Path, words: list[str]) -> None:
    note(f"pip download {' '.join(words[-2:])}")
    command = [sys.executable, "-m", "pip", "download", "-q", "-d", str(work / "wheels"), *words]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        said = (result.stderr.strip() or "it says nothing").splitlines()[-1]
        raise BackendError(f"pip download failed: {said}. Without --wheels the board fetches them itself.")


def _write_texts(
    work: Path, bundle: Bundle, board: Board, setting: Setting, answer: dict[str, Any], needed: str
) -> None:
    here = "Everything it needs is in `wheels/`: no network." if not answer["network"] else (
        "It fetches what `requirements.txt` lists from PyPI; made with `--wheels`, it needs no network."
    )  # fmt: skip
    words = {
        "title": board.title, "python": board.python, "llama_cpp": LLAMA_CPP, "options": setting.options(),
        "picture": answer["picture"], "question": answer["question"], "host": answer["machine"],
        "name": bundle.manifest.source.name, "needed": needed, "network": here, "max_tokens": _MAX_TOKENS,
    }  # fmt: skip
    (work / "install.sh").write_text(INSTALL.substitute(words), encoding="utf-8")
    (work / "README.md").write_text(README.substitute(words), encoding="utf-8")
    (work / "first_answer.txt").write_text(answer["answer"] + "\n", encoding="utf-8")


def deploy_mark(root: Path) -> str:
    """Whether a directory is such a folder and nothing but it: see `atomic_files.Mark`."""
    record = json.loads((root / RECORD).read_bytes())
    if record["kind"] != KIND:
        return f"has a {RECORD} that is not this command's"
    known = {RECORD, *record["files"]}
    return foreign_file(root, lambda name: name in known or name.startswith(".venv/"))
