"""What is installed is what is in the tree."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # comes with pytest there

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETUPTOOLS = PROJECT["tool"]["setuptools"]
LINKED = ("export", "runtimes", "train", "benchmarks")


def folder_of(package: str) -> Path:
    """The folder of a package by the table in pyproject.toml."""
    table: dict[str, str] = SETUPTOOLS["package-dir"]
    known = max((name for name in table if f"{package}.".startswith(f"{name}.")), key=len)
    return ROOT / table[known] / package.removeprefix(known).strip(".").replace(".", "/")


def test_every_folder_of_modules_is_installed_and_no_other() -> None:
    tops = ("tinyllava_edge", *LINKED)
    folders = {path.parent for top in tops for path in (ROOT / top).rglob("__init__.py")}
    assert {folder_of(package) for package in SETUPTOOLS["packages"]} == {
        folder for folder in folders if not any(part.is_symlink() for part in (folder, *folder.parents))
    }


def test_examples_and_tools_are_not_installed() -> None:
    """A bare `examples` or `tools` in site-packages would hide anyone else's."""
    assert {package.split(".")[0] for package in SETUPTOOLS["packages"]} == {"tinyllava_edge"}
    # Nothing else adds modules.
    assert set(SETUPTOOLS) == {"packages", "package-dir", "package-data", "include-package-data"}


def test_the_example_is_tested_with_what_it_requires() -> None:
    required = (ROOT / "examples" / "nano" / "requirements.txt").read_text(encoding="utf-8")
    for line in required.splitlines():
        assert line.split("#")[0].strip() in PROJECT["project"]["optional-dependencies"]["dev"]


@pytest.mark.parametrize("name", LINKED)
def test_the_links_lead_to_the_folders(name: str) -> None:
    link = ROOT / "tinyllava_edge" / name
    assert link.is_symlink()
    assert link.resolve() == ROOT / name == folder_of(f"tinyllava_edge.{name}")


def test_what_is_not_python_is_installed_too() -> None:
    """Each data file in a package matches one of the patterns of `package-data`, but for recorded results."""
    missing = []
    for package in SETUPTOOLS["packages"]:
        folder = folder_of(package)
        patterns = SETUPTOOLS["package-data"].get(package, [])
        covered = {path for pattern in patterns for path in folder.glob(pattern)}
        nested = {folder_of(other) for other in SETUPTOOLS["packages"] if other.startswith(f"{package}.")}
        for path in folder.rglob("*"):
            is_code = path.suffix in (".py", ".pyc") or "__pycache__" in path.parts
            parents = (path, *path.parents)
            elsewhere = any(part in nested or part.is_symlink() or part.name == "results" for part in parents)
            if path.is_file() and not is_code and not elsewhere and path not in covered:
                missing.append(str(path.relative_to(ROOT)))
    assert missing == []


def test_the_base_install_has_no_torch() -> None:
    names = {requirement.split(">")[0].split("[")[0] for requirement in PROJECT["project"]["dependencies"]}
    assert names == {"numpy", "pillow", "tokenizers", "platformdirs", "pydantic", "typer", "rich"}


def test_every_extra_that_a_message_recommends_exists() -> None:
    from tinyllava_edge.cli import EXTRAS

    assert set(EXTRAS.values()) <= set(PROJECT["project"]["optional-dependencies"])


def test_a_checkout_without_links_makes_the_whole_wheel(tmp_path: Path) -> None:
    """As git leaves it on Windows: a link is a small file that holds where it leads."""
    source = tmp_path / "checkout"
    ignored = shutil.ignore_patterns("__pycache__", "results", *LINKED)
    shutil.copytree(ROOT / "tinyllava_edge", source / "tinyllava_edge", ignore=ignored)
    for name in LINKED:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "results"))
        (source / "tinyllava_edge" / name).write_text(f"../{name}")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    options = ("-q", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path))
    command = [sys.executable, "-m", "pip", "wheel", *options, str(source)]
    subprocess.run(command, check=True, capture_output=True)
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if not name.split("/")[0].endswith(".dist-info")}
    modules = {
        f"{package.replace('.', '/')}/{path.name}"
        for package in SETUPTOOLS["packages"]
        for path in folder_of(package).glob("*.py")
    }
    assert {name for name in found if name.endswith(".py")} == modules
    assert {"tinyllava_edge/nano/bundle/manifest.json", "tinyllava_edge/runtimes/serve/page/app.js"} <= found
    assert not found & {f"tinyllava_edge/{name}" for name in LINKED}, "what is there a file is no module"
