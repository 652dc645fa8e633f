"""Source archive and wheel, built and used in empty directories, with nothing of the checkout in reach."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from tests.test_packaging import LINKED, PROJECT, ROOT, SETUPTOOLS, folder_of
from tinyllava_edge import open_bundle

PICTURE = ROOT / "docs" / "pictures" / "emoji.webp"
QUESTION = "What is this?"
_BUILD = "from setuptools import build_meta; build_meta.build_{}({!r})"
# Of this environment, which writes no bytecode, and of nothing that is built.
_HARMLESS = "byte-compiling is disabled"
pytestmark = pytest.mark.skipif(os.name == "nt", reason="git makes no links there")


def python(*words: str | Path, cwd: Path, program: str | Path = sys.executable) -> str:
    """What a Python process says, with no path of ours; its warnings are its output, too."""
    own = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    result = subprocess.run([program, *words], cwd=cwd, env=own, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    return result.stdout + result.stderr


def warnings_in(text: str) -> list[str]:
    return [line for line in text.splitlines() if "warning" in line.lower() and _HARMLESS not in line]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, since a build leaves notes where it runs."""
    ignored = [line.strip("/") for line in (ROOT / ".gitignore").read_text(encoding="utf-8").split()]
    copy = tmp_path_factory.mktemp("checkout") / "tinyllava-edge"
    patterns = shutil.ignore_patterns(*ignored, ".git", "shared", "PKG-INFO", "setup.cfg")
    return Path(shutil.copytree(ROOT, copy, symlinks=True, ignore=patterns))


@pytest.fixture(scope="module")
def unpacked(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source archive in an empty directory."""
    place = tmp_path_factory.mktemp("sdist")
    # As `build_sdist` does, but for the compression, which takes longer than all the rest.
    said = python("-W", "default", "setup.py", "sdist", "--formats=tar", "-d", place, cwd=checkout)
    assert warnings_in(said) == []
    [archive] = place.glob("*.tar")
    with tarfile.open(archive) as files:
        names = files.getnames()
        files.extractall(place, filter="data")
    assert len(names) == len(set(names))
    return place / archive.name.removesuffix(".tar")


@pytest.fixture(scope="module")
def wheel(unpacked: Path) -> Path:
    """The wheel that the source archive builds."""
    place = unpacked.parent / "wheel"
    place.mkdir()
    said = python("-W", "default", "-c", _BUILD.format("wheel", str(place)), cwd=unpacked)
    assert warnings_in(said) == []
    [built] = place.glob("*.whl")
    return built


def names_below(root: Path) -> set[str]:
    """Files and links; a link is not gone through."""
    return {
        (Path(folder, name).relative_to(root)).as_posix()
        for folder, folders, files in os.walk(root)
        for name in (*files, *(each for each in folders if os.path.islink(os.path.join(folder, each))))
    }


def test_the_source_archive_is_the_whole_checkout(checkout: Path, unpacked: Path) -> None:
    notes = {name for name in names_below(unpacked) if ".egg-info/" in name} | {"PKG-INFO", "setup.cfg"}
    ours = {name for name in names_below(checkout) if ".egg-info/" not in name}
    assert names_below(unpacked) - notes - {"build"} == ours
    for name in LINKED:
        assert os.readlink(unpacked / "tinyllava_edge" / name) == f"../{name}"


@pytest.mark.long
def test_the_source_archive_tests_itself(unpacked: Path) -> None:
    files = ("tests/core/test_metrics.py", "tests/core/test_gates.py", "tests/test_documentation.py")
    said = python("-m", "pytest", "-q", "-p", "no:cacheprovider", *files, cwd=unpacked)
    assert " passed" in said
    where = "import tinyllava_edge.export as e; print(e.__file__)"
    assert python("-c", where, cwd=unpacked).strip() == str(unpacked / "tinyllava_edge/export/__init__.py")


def test_the_wheel_has_every_file_once_and_no_other(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        found = Counter(name for name in archive.namelist() if ".dist-info/" not in name)
        metadata = archive.read(f"{wheel.name.split('-py3')[0]}.dist-info/METADATA").decode()
    wanted = {
        f"{package.replace('.', '/')}/{path.relative_to(folder_of(package)).as_posix()}"
        for package in SETUPTOOLS["packages"]
        for pattern in ("*.py", *SETUPTOOLS["package-data"].get(package, ()))
        for path in folder_of(package).glob(pattern)
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert found == Counter(wanted)
    for classifier in PROJECT["project"]["classifiers"]:
        assert f"Classifier: {classifier}\n" in metadata
    for word in ("License-Expression: Apache-2.0", "License-File: LICENSE", "Project-URL: ", "Keywords: "):
        assert f"\n{word}" in metadata


def test_the_wheel_answers_in_a_fresh_environment(wheel: Path, tmp_path: Path) -> None:
    """Only its dependencies come from this environment, by a path that holds no .pth file of ours."""
    venv.create(tmp_path / "fresh", symlinks=True)
    program = tmp_path / "fresh" / "bin" / "python"
    [place] = (tmp_path / "fresh").glob("lib/python*/site-packages")
    (place / "theirs.pth").write_text("".join(f"{path}\n" for path in sys.path if path.endswith("-packages")))
    python("-m", "pip", "--python", program, "install", "-q", "--no-deps", "--no-index", wheel, cwd=tmp_path)
    rooms = f"import tinyllava_edge, {', '.join(f'tinyllava_edge.{name}' for name in LINKED)}"
    where = f"{rooms}, sys; print(*(m.__file__ for n, m in sys.modules.items() if n.startswith('tinyllava')))"
    files = python("-c", where, cwd=tmp_path, program=program).split()
    assert len(files) >= 1 + len(LINKED)
    assert [file for file in files if not file.startswith(str(place))] == []
    program = tmp_path / "fresh" / "bin" / "tinyllava-edge"
    words = ("-q", "ask", "nano", QUESTION, PICTURE, "--json")
    answer = json.loads(python(*words, cwd=tmp_path, program=program))
    with open_bundle("nano") as model:
        assert answer["answer"] == model.ask(QUESTION, PICTURE) != ""


def test_a_type_checker_sees_an_editable_install(checkout: Path, tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    python("-c", _BUILD.format("editable", str(tmp_path)), cwd=checkout)
    venv.create(tmp_path / "fresh", symlinks=True)
    [place] = (tmp_path / "fresh").glob("lib/python*/site-packages")
    [editable] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(editable) as archive:
        archive.extractall(place)
    line = "import tinyllava_edge; reveal_type(tinyllava_edge.open_bundle)"
    own = ("--python-executable", tmp_path / "fresh" / "bin" / "python", "--cache-dir", tmp_path / "cache")
    said = python("-m", "mypy", *own, "-c", line, cwd=tmp_path)
    assert "-> tinyllava_edge.runtimes.model.Model" in said
